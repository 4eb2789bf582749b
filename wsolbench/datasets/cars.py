"""Stanford Cars: 16,185 images of 196 car models with boxes.

J. Krause, M. Stark, J. Deng, L. Fei-Fei, "3D Object Representations for Fine-Grained Categorization", 3dRR workshop, ICCV 2013.

Two packagings are in use, and both load; they number their images differently, so their ids must not be mixed:

    split    cars_train/00001.jpg  cars_test/00001.jpg  devkit/cars_meta.mat  devkit/cars_train_annos.mat  cars_test_annos_withlabels.mat
    joint    car_ims/000001.jpg  cars_annos.mat

Boxes count from 1 with inclusive ends; classes count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsolbench.datasets.base import DatasetInfo, Missing, Record, assemble, wrong_root
from wsolbench.datasets.matfiles import load_mat
from wsolbench.exceptions import DataError
from wsolbench.types import Dataset

INFO = DatasetInfo(
    name="cars",
    summary="Stanford Cars: 16,185 images of 196 car models with boxes",
    splits=("train", "test"),
    root_holds="stanford_cars/ with devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat, or car_ims/ and cars_annos.mat",
    expected={"train": 8144, "test": 8041},
    citation="Krause, Stark, Deng, Fei-Fei, 3dRR 2013",
    license="non-commercial research (ImageNet terms)",
)
_BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def load(root: Path, split: str, *, missing: Missing = "error") -> Dataset:
    """One split in the order of its annotation file; one box an image.

    Raises `UsageError` on a folder that is neither packaging, `DataError` on a `.mat` file that is broken or lacks a field.
    """
    for folder in (root, root / "stanford_cars"):
        if (folder / "cars_annos.mat").is_file():
            return _load_joint(folder, split, missing)
        if (folder / "devkit" / "cars_meta.mat").is_file():
            return _load_split(folder, split, missing)
    raise wrong_root(INFO, root, f"there is neither {root / 'devkit' / 'cars_meta.mat'} nor {root / 'cars_annos.mat'}")


def _load_split(root: Path, split: str, missing: Missing) -> Dataset:
    class_names = _class_names(root / "devkit" / "cars_meta.mat")
    if split == "train":
        path = root / "devkit" / "cars_train_annos.mat"
    else:
        folders = (root, root / "devkit")
        path = next((f / "cars_test_annos_withlabels.mat" for f in folders if (f / "cars_test_annos_withlabels.mat").is_file()), root)
        if path == root:
            raise DataError(f"no file {root / 'cars_test_annos_withlabels.mat'}; devkit/cars_test_annos.mat does not do: it has no labels")
    rows = _annotations(path, ("class", "fname", *_BOX_FIELDS))
    records = [_record(path, row, f"cars_{split}/{row['fname']}", root, len(class_names)) for row in rows]
    return assemble(INFO.name, split, root, records, class_names, missing=missing)


def _load_joint(root: Path, split: str, missing: Missing) -> Dataset:
    path = root / "cars_annos.mat"
    class_names = _class_names(path)
    flag = int(split == "test")
    rows = _annotations(path, ("class", "relative_im_path", "test", *_BOX_FIELDS))
    records = [_record(path, row, str(row["relative_im_path"]), root, len(class_names)) for row in rows if int(row["test"]) == flag]
    return assemble(INFO.name, split, root, records, class_names, missing=missing)


def _record(path: Path, row: np.void, image_id: str, root: Path, classes: int) -> Record:
    # The file stores the smallest integer type that fits: in uint8, 0 - 1 would be 255.
    x1, y1, x2, y2 = (float(row[name]) for name in _BOX_FIELDS)
    number = int(row["class"])
    if not 1 <= number <= classes:
        raise DataError(f"{path}: expected a class from 1 to {classes} for {image_id!r}, found {number}")
    if x2 < x1 or y2 < y1:
        raise DataError(f"{path}: expected a box with x1 <= x2 and y1 <= y2 for {image_id!r}, found {x1:g} {y1:g} {x2:g} {y2:g}")
    return Record(id=image_id, label=number - 1, path=f"{root}/{image_id}", boxes=[(x1 - 1.0, y1 - 1.0, x2, y2)])


def _annotations(path: Path, fields: tuple[str, ...]) -> Iterator[np.void]:
    rows = np.atleast_1d(load_mat(path, "annotations"))
    absent = [name for name in fields if name not in (rows.dtype.names or ())]
    if absent:
        raise DataError(f"{path}: expected the fields {', '.join(fields)} in `annotations`, found no {', '.join(absent)}")
    return iter(rows)


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(str(name) for name in np.atleast_1d(load_mat(path, "class_names")))
