"""FGVC-Aircraft 2013b: 10,000 images of 100 aircraft variants with boxes.

S. Maji, J. Kannala, E. Rahtu, M. Blaschko, A. Vedaldi, "Fine-Grained Visual Classification of Aircraft",
arXiv:1306.5151. (The text of the data set mentions 10,200 images and 102 variants; its lists have 10,000
and 100.)

Papers train on `trainval` (6,667) and test on `test`. Boxes count from 1 with inclusive ends. Every image
has a copyright banner of 20 rows at the bottom, which its authors ask users to remove. `crop_banner=True`,
the default, removes it; many published runs kept it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.tables import bad_line, parse_float, rows_of
from wsolbench.exceptions import DataError, unknown_name
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="aircraft",
    summary="FGVC-Aircraft 2013b: 10,000 images of 100 variants with boxes",
    splits=("train", "val", "trainval", "test"),
    root_holds=(
        "fgvc-aircraft-2013b/data/ with variants.txt, images_box.txt and images/ (or be one of these two "
        "folders)"
    ),
    repeated=("trainval",),
    expected={"train": 3334, "val": 3333, "trainval": 6667, "test": 3333},
    classes=100,
    citation="Maji, Kannala, Rahtu, Blaschko, Vedaldi, arXiv:1306.5151",
    license="non-commercial research; the images belong to their photographers",
)
BANNER_ROWS = 20

Level = Literal["variant", "family", "manufacturer"]
_CLASS_FILES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


def load(
    root: Path, split: str, *, level: Level = "variant", crop_banner: bool = True, missing: Missing = "error"
) -> Dataset:
    """Load one split in the order of its list, with one box per image.

    `level` chooses the labels: 100 variants, 70 families or 30 manufacturers. Raises `UsageError` for a
    folder that is not this data set, and `DataError` naming file and line.
    """
    if level not in _CLASS_FILES:
        raise unknown_name("level", level, _CLASS_FILES)
    data = _data_folder(root)
    # Classes, numbered by their line; then a box for every image.
    index: dict[str, int] = {}
    for line, (name,) in rows_of(data / _CLASS_FILES[level], "name"):
        if name in index:
            raise bad_line(data / _CLASS_FILES[level], line, "every class once", repr(name))
        index[name] = len(index)
    boxes = _boxes(data / "images_box.txt")
    # One record per line of the split's list.
    table = data / f"images_{level}_{split}.txt"
    records = []
    for line, (image, label) in rows_of(table, "image label"):  # a label may have spaces and slashes
        if label not in index:
            raise bad_line(table, line, f"a label of {_CLASS_FILES[level]}", repr(label))
        if image not in boxes:
            name = image[:200]
            raise DataError(
                f"{data / 'images_box.txt'}: expected a box for every image, found none for {name!r} (of "
                f"{table.name}:{line})"
            )
        path = f"{data}/images/{image}.jpg"
        crop = BANNER_ROWS if crop_banner else 0
        records.append(
            Record(id=f"{image}.jpg", label=index[label], path=path, boxes=[boxes[image]], crop_bottom=crop)
        )
    what = (
        f"images without their banner of {BANNER_ROWS} rows"
        if crop_banner
        else "images with their copyright banner"
    )
    findings = [Finding(what=what, count=len(records), example=records[0].id)] if records else []
    return assemble(INFO.name, split, data, records, tuple(index), findings=findings, missing=missing)


def _data_folder(root: Path) -> Path:
    for folder in (root, root / "data", root / "fgvc-aircraft-2013b" / "data"):
        if (folder / "variants.txt").is_file():
            return folder
    raise wrong_root(INFO, root, f"there is no {root / 'data' / 'variants.txt'}")


def _boxes(path: Path) -> dict[str, tuple[float, float, float, float]]:
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for line, (image, *corners) in rows_of(path, "image xmin ymin xmax ymax"):
        x0, y0, x1, y1 = (parse_float(text, path, line, "a box corner") for text in corners)
        if x1 < x0 or y1 < y0:
            raise bad_line(path, line, "a box with xmin <= xmax and ymin <= ymax", " ".join(corners))
        if image in boxes:
            raise bad_line(path, line, "every image once", f"{image!r} again")
        boxes[image] = (x0 - 1.0, y0 - 1.0, x1, y1)  # counted from 1, inclusive → continuous, exclusive
    return boxes
