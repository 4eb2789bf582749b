"""Stanford Cars: 16,185 images of 196 car models with boxes.

J. Krause, M. Stark, J. Deng, L. Fei-Fei, "3D Object Representations for Fine-Grained Categorization", 3dRR
workshop, ICCV 2013.

Two packagings are in use, and both are supported. They number their images differently, so do not mix their
ids:

    split    cars_train/00001.jpg  cars_test/00001.jpg  devkit/cars_meta.mat  devkit/cars_train_annos.mat
             cars_test_annos_withlabels.mat
    joint    car_ims/000001.jpg  cars_annos.mat

Boxes count from 1 with inclusive ends; classes count from 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.matfiles import finite_number, load_structs, load_texts, text, whole_number
from wsolbench.exceptions import DataError
from wsolbench.system.listing import is_empty
from wsolbench.types import Dataset

INFO = DatasetInfo(
    name="cars",
    summary="Stanford Cars: 16,185 images of 196 car models with boxes",
    splits=("train", "test"),
    root_holds=(
        "stanford_cars/ with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat, or "
        "car_ims/ and cars_annos.mat"
    ),
    expected={"train": 8144, "test": 8041},
    classes=196,
    citation="Krause, Stark, Deng, Fei-Fei, 3dRR 2013",
    license="non-commercial research (ImageNet terms)",
)
_JOINT = ("cars_annos.mat", "car_ims")
_SPLIT = ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train", "cars_test")
"""Files and folders of each packaging. The first one identifies it."""
_BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load(root: Path, split: str, *, missing: Missing = "error") -> Dataset:
    """Load one split in the order of its annotation file, with one box per image.

    Raises `UsageError` for a folder that is neither packaging, and `DataError` for a `.mat` file that is
    invalid or lacks a field.
    """
    packagings = [
        (_share_present(folder, parts), loader, folder)
        for folder in (root, root / "stanford_cars")
        for loader, parts in ((_load_joint, _JOINT), (_load_split, _SPLIT))
        if (folder / parts[0]).is_file()
    ]
    if not packagings:
        raise wrong_root(INFO, root, f"there is neither {root / _SPLIT[0]} nor {root / _JOINT[0]}")
    _, load_packaging, folder = max(packagings, key=lambda packaging: packaging[0])
    return load_packaging(folder, split, missing)


def _share_present(folder: Path, parts: tuple[str, ...]) -> float:
    """Return the share of a packaging that is in the folder. Both may be there, one without its images."""
    present = [
        (folder / part).is_file() or ((folder / part).is_dir() and not is_empty(folder / part))
        for part in parts
    ]
    return sum(present) / len(parts)


def _image_folder(root: Path, name: str) -> Path:
    """Return an image folder. Kaggle's archives nest it in another folder of the same name."""
    return root / name / name if (root / name / name).is_dir() else root / name


def _load_split(root: Path, split: str, missing: Missing) -> Dataset:
    # Class names, and the annotation file of the split.
    class_names = load_texts(root / "devkit" / "cars_meta.mat", "class_names")
    if split == "train":
        path = root / "devkit" / "cars_train_annos.mat"
    else:
        folders = (root, root / "devkit")
        path = next(
            (
                f / "cars_test_annos_withlabels.mat"
                for f in folders
                if (f / "cars_test_annos_withlabels.mat").is_file()
            ),
            root,
        )
        if path == root:
            raise DataError(
                f"no file {root / 'cars_test_annos_withlabels.mat'}; expected it for the labels, which "
                "devkit/cars_test_annos.mat does not have"
            )
    # One record per row.
    folder = f"cars_{split}"
    images = _image_folder(root, folder)
    records = []
    for number, row in enumerate(
        load_structs(path, "annotations", ("class", "fname", *_BOX_FIELDS)), start=1
    ):
        name = text(row, "fname", path, f"row {number}")
        records.append(_record(path, row, f"{folder}/{name}", f"{images}/{name}", len(class_names)))
    return assemble(INFO.name, split, root, records, class_names, missing=missing)


def _load_joint(root: Path, split: str, missing: Missing) -> Dataset:
    path = root / "cars_annos.mat"
    class_names = load_texts(path, "class_names")
    records = []
    for number, row in enumerate(
        load_structs(path, "annotations", ("class", "relative_im_path", "test", *_BOX_FIELDS)), start=1
    ):
        name = text(row, "relative_im_path", path, f"row {number}")
        flag = whole_number(row, "test", path, repr(name))
        if flag not in {0, 1}:
            raise DataError(f"{path}: expected 0 or 1 as `test` of {name!r}, found {flag}")
        if flag == int(split == "test"):
            records.append(_record(path, row, name, f"{root}/{name}", len(class_names)))
    return assemble(INFO.name, split, root, records, class_names, missing=missing)


def _record(path: Path, row: np.void, image_id: str, image: str, classes: int) -> Record:
    x1, y1, x2, y2 = (finite_number(row, name, path, repr(image_id)) for name in _BOX_FIELDS)
    number = whole_number(row, "class", path, repr(image_id))
    if not 1 <= number <= classes:
        raise DataError(f"{path}: expected a class from 1 to {classes} for {image_id!r}, found {number}")
    if x2 < x1 or y2 < y1:
        raise DataError(
            f"{path}: expected a box with x1 <= x2 and y1 <= y2 for {image_id!r}, found {x1:g} {y1:g} "
            f"{x2:g} {y2:g}"
        )
    return Record(id=image_id, label=number - 1, path=image, boxes=[(x1 - 1.0, y1 - 1.0, x2, y2)])
