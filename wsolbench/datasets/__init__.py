"""Data sets. Every data set is loaded into the same `Dataset` of samples.

`load_dataset("cub", "test", root="...")` loads one split. `list_datasets()` lists all data sets. Each data
set has its own file, which defines `INFO` and `load(root, split, ...)` and is imported on first use.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from wsolbench.datasets.base import DatasetInfo, Missing, carve, convert_os_errors, resolve_root
from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.system.files import file_name
from wsolbench.types import Dataset

__all__ = [
    "DatasetInfo",
    "Missing",
    "available_splits",
    "dataset_info",
    "is_generated",
    "list_datasets",
    "load_dataset",
    "name_of_folder",
]

_NAMES = (
    "aircraft",
    "butterflies",
    "cars",
    "coco",
    "coco-json",
    "csvfolder",
    "cub",
    "ilsvrc",
    "imagefolder",
    "openimages",
    "toybirds",
    "toybirds-v2",
)


def list_datasets() -> list[DatasetInfo]:
    """Return the metadata of every data set, sorted by name. Reads no data and imports no image library."""
    return [dataset_info(name) for name in _NAMES]


def dataset_info(name: str) -> DatasetInfo:
    """Return the metadata of a data set without reading data. Raises `UsageError` naming the closest name."""
    info: DatasetInfo = _module(name).INFO
    return info


def is_generated(name: str) -> bool:
    """Return whether wsolbench generates the data set of this name. False for names that are not listed."""
    return name in _NAMES and dataset_info(name).generated


def load_dataset(
    name: str,
    split: str,
    root: Path | str | None = None,
    *,
    missing: Missing = "error",
    carve_val: bool = False,
    **options: Any,
) -> Dataset:
    """Load one split of a data set, in evaluation order.

    Args:
        name: see `list_datasets`.
        split: "train", "val" or "test", if the data set has it.
        root: folder of the data set. If None, it is taken from the environment
            (`wsolbench.datasets.base.resolve_root`).
        missing: what to do with images whose file is missing: "error", "skip" (exclude them), or "keep" or
            "keep_or_skip" (for scoring maps; see `wsolbench.datasets.base.Missing`).
        carve_val: use a tenth of each class of `train` as `val`, instead of the data set's own `val`, and
            remove it from `train`.
        options: further options of the data set's own `load`, such as `metadata_root`.

    Raises `UsageError` for an unknown name, split or option and for a wrong root, and `DataError` for files
    that are missing or invalid.
    """
    # Resolve the data set, its options and its folder.
    module = _module(name)
    info: DatasetInfo = module.INFO
    _check_options(module, options)
    folder = data_folder(info, root)
    # Load the split, or the split that it is carved from.
    carved = carve_val and split in {"train", "val"}
    wanted = "train" if carved else split
    if info.splits and wanted not in info.splits:
        raise unknown_name("split", split, info.splits)
    with convert_os_errors(f"{name} {split}"):
        dataset: Dataset = module.load(folder, wanted, missing=missing, **options)
    if info.own and folder is not None:
        dataset = replace(dataset, name=name_of_folder(folder, info.name), format=info.name)
    return carve(dataset, "val" if split == "val" else "train") if carved else dataset


def available_splits(name: str, root: Path | str | None = None, **options: Any) -> tuple[str, ...]:
    """Return the splits that can be loaded from this root, without unions of splits such as `trainval`."""
    module = _module(name)
    _check_options(module, options)
    lister = getattr(module, "available_splits", None)
    if lister is None:
        info: DatasetInfo = module.INFO
        return tuple(split for split in info.splits if split not in info.repeated)
    relevant = {
        option: value for option, value in options.items() if option in inspect.signature(lister).parameters
    }
    with convert_os_errors(name):
        found: tuple[str, ...] = lister(data_folder(module.INFO, root), **relevant)
    return found


def name_of_folder(folder: Path, form: str) -> str:
    """Return the name of the user's own data set: that of its folder, safe as a file name.

    A folder with the name of a known data set gets the format as suffix, so that records never mix both.

    >>> [name_of_folder(Path(folder), "imagefolder") for folder in ("/data/my birds", "/data/cub")]
    ['my-birds', 'cub-imagefolder']
    """
    name = file_name(folder.resolve().name)
    return f"{name}-{form}" if name.lower() in _NAMES and name != form else name


def _module(name: str) -> ModuleType:
    if name not in _NAMES:
        raise unknown_name("dataset", name, _NAMES)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def data_folder(info: DatasetInfo, root: Path | str | None) -> Path | None:
    """Return the data root, or None for a generated data set without one."""
    if info.generated:
        return None if root is None else Path(root)
    return resolve_root(info, root)


def _check_options(module: ModuleType, options: dict[str, Any]) -> None:
    known = set(inspect.signature(module.load).parameters) - {"root", "split", "missing"}
    for option in options:
        if option not in known:
            raise UsageError(
                f"the dataset {module.INFO.name!r} has no option {option!r}; expected one of: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
