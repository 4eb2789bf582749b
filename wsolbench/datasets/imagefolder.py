"""Your own images in one folder per class.

    root/
      CLASS/IMAGE            with an automatic split, or
      train/CLASS/IMAGE      with the folders train, val and test, or some of them
      boxes.csv              optional: image,x0,y0,x1,y1

The name of a class folder is the name of the class. Classes are counted in alphabetical order over all
splits. Images may lie in folders below the class folder. The id of an image is its path relative to the root.

Without split folders, images are split by class (`wsolbench.datasets.automatic_split`): 70 % train, 10 % val,
20 % test, by a seed. The record states seed and fractions.

`boxes.csv` has one line per box, in pixels of the stored image, continuous with exclusive end: the whole
image is 0,0,width,height. Without it, only recognition is scored. The name of an image file ends in one of
`SUFFIXES`. Other files are reported and not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.automatic_split import SPLITS, AutomaticSplit, small_classes
from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.tables import bad_line, check_inner_path, csv_rows, parse_box
from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.system.listing import is_junk, list_files, list_folders
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="imagefolder",
    summary="your own images, one folder per class, with boxes if there is a boxes.csv",
    splits=(),
    own=True,
    root_holds="one folder of images per class, or train/, val/ and test/ with such folders",
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Ends of the names of image files, in any case."""
BOXES = "boxes.csv"


@dataclass
class _Folders:
    """What lies in the root.

    Attributes:
        names: names of the classes.
        labels: label of each image by id, sorted by id.
        splits: split folders, or empty.
        others: files that are not read, relative to the root.
    """

    names: tuple[str, ...]
    labels: dict[str, int] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    others: list[str] = field(default_factory=list)


def load(
    root: Path,
    split: str,
    *,
    missing: Missing = "error",
    split_seed: int | None = None,
    split_fractions: str | None = None,
) -> Dataset:
    """Load one split of the folder, in the layout above, sorted by id.

    Args:
        root: the folder.
        split: train, val or test.
        missing: what to do with unreadable images; see `wsolbench.datasets.base.Missing`.
        split_seed: seed of the automatic split, default 0.
        split_fractions: shares of train, val and test, default "0.7,0.1,0.2".

    Raises `DataError` for a root with split folders and class folders side by side, and naming file and line
    of `boxes.csv`. Raises `UsageError` for an unknown split, and for options of the automatic split in a root
    with split folders.
    """
    found = _read_folders(root)
    automatic = _automatic(root, found.splits, split_seed, split_fractions)
    # Choose the images of the split.
    known = found.splits if automatic is None else automatic.splits
    if split not in known:
        raise unknown_name("split", split, known)
    of_image = (
        {image_id: image_id.partition("/")[0] for image_id in found.labels}
        if automatic is None
        else automatic.assign(found.labels)
    )
    records = [
        Record(id=image_id, label=label, path=f"{root}/{image_id}")
        for image_id, label in found.labels.items()
        if of_image[image_id] == split
    ]
    # Add the boxes, and build the data set.
    has_boxes = _add_boxes(root, records, found.labels)
    dataset = assemble(
        INFO.name,
        split,
        root,
        records,
        found.names,
        findings=_findings(found, records, split, automatic),
        missing=missing,
        lazy_sizes=not has_boxes,
    )
    return replace(dataset, details={} if automatic is None else automatic.describe())


def available_splits(root: Path, *, split_fractions: str | None = None) -> tuple[str, ...]:
    """Return the split folders, or the splits of the automatic split."""
    return _split_folders(root) or AutomaticSplit.parse(None, split_fractions).splits


def _automatic(
    root: Path, splits: tuple[str, ...], seed: int | None, fractions: str | None
) -> AutomaticSplit | None:
    """Return the automatic split, or None for a root with split folders."""
    if not splits:
        return AutomaticSplit.parse(seed, fractions)
    if seed is not None or fractions is not None:
        raise UsageError(
            f"--split-seed and --split-fractions have no effect: {root} has the split folders "
            f"{', '.join(splits)}; leave them out"
        )
    return None


def _split_folders(root: Path) -> tuple[str, ...]:
    """Return the split folders of the root, which have folders themselves.

    Raises `DataError` if there are other folders, too.
    """
    folders = list_folders(root)
    splits = tuple(name for name in SPLITS if name in folders and list_folders(root / name))
    others = [name for name in folders if name not in splits]
    if splits and others:
        raise DataError(
            f"{root} has the split folders {', '.join(splits)} and also {', '.join(others[:3])}"
            f"{' and more' if len(others) > 3 else ''}; expected only train, val and test, or only class "
            "folders. Move the others away, or rename them"
        )
    return splits


def _read_folders(root: Path) -> _Folders:
    # Class folders, of all splits together.
    splits = _split_folders(root)
    homes = [root / split for split in splits] or [root]
    names = tuple(sorted({name for home in homes for name in list_folders(home)}))
    if not names:
        raise wrong_root(INFO, root, "it has no folder in it")
    # Images and other files in them.
    found = _Folders(names=names, splits=splits)
    images = {}
    for home in homes:
        found.others += [_relative(home / name, root) for name in list_files(home) if name != BOXES]
        for label, name in enumerate(names):
            for path in _files_below(home / name):
                if path.name.lower().endswith(SUFFIXES):
                    images[_relative(path, root)] = label
                else:
                    found.others.append(_relative(path, root))
    if not images:
        raise wrong_root(INFO, root, f"its folders have no file that ends in {', '.join(SUFFIXES[:4])} ...")
    found.labels = dict(sorted(images.items()))
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and all below it. Links to folders are followed, each target once."""
    seen: set[str] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        target = os.path.realpath(top)
        folders[:] = [] if target in seen else [name for name in folders if not is_junk(name)]
        if target in seen:
            continue
        seen.add(target)
        yield from (Path(top, name) for name in names if not is_junk(name))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _add_boxes(root: Path, records: list[Record], labels: dict[str, int]) -> bool:
    """Give the records the boxes of `boxes.csv`, and return whether there are any in this split."""
    table = root / BOXES
    if not table.exists():
        return False
    by_id = {record.id: record for record in records}
    seen: dict[tuple[object, ...], int] = {}
    for line, row in csv_rows(table, ("image", "x0", "y0", "x1", "y1")):
        image = check_inner_path(row["image"], table, line, "image")
        box = parse_box(row, table, line)
        if image not in labels:
            raise bad_line(
                table, line, "an image below the root, such as " + repr(next(iter(labels))), repr(image)
            )
        if box is None:
            raise bad_line(table, line, "a box in x0,y0,x1,y1", "none", "Remove the line.")
        if (image, box) in seen:
            raise bad_line(
                table, line, "every box of an image once", f"that of line {seen[image, box]} again"
            )
        seen[image, box] = line
        if image in by_id:
            by_id[image].boxes.append(box)
    return any(record.boxes for record in records)


def _findings(
    found: _Folders, records: list[Record], split: str, automatic: AutomaticSplit | None
) -> list[Finding]:
    """Report the automatic split, small and absent classes, and files that are not read."""
    notes = []

    def note(what: str, items: list[str], severity: str) -> None:
        if items:
            notes.append(Finding(what=what, count=len(items), example=items[0], severity=severity))

    if automatic is not None:
        shares = ", ".join(
            f"{name} {share:g}" for name, share in zip(SPLITS, automatic.fractions, strict=True)
        )
        note(
            f"images in {split} by the automatic split ({shares}, by class, seed {automatic.seed})",
            [record.id for record in records],
            "note",
        )
        few = [found.names[label] for label in small_classes(found.labels.values())]
        note("classes with too few images for three splits", few, "warning")
    used = {record.label for record in records}
    note(
        f"classes without an image in {split}",
        [name for label, name in enumerate(found.names) if label not in used],
        "warning",
    )
    note("files that are not images by their name: not read", found.others, "note")
    return notes
