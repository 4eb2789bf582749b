"""Leeds Butterfly: 10 species, one mask and one box per image.

J. Wang, K. Markert, M. Everingham, "Learning models for object recognition from natural language
descriptions", BMVC 2009.

The folder has the layout of `wsolbench.datasets.csvfolder`, except that the boxes' `x1`, `y1` are the last
pixel inside. The data set has no official split. `annotations.csv` contains the one that was drawn (502
train, 330 test).
"""

from __future__ import annotations

from pathlib import Path

from wsolbench.datasets.base import DatasetInfo, Missing
from wsolbench.datasets.csvfolder import load_csv_folder
from wsolbench.types import Dataset

INFO = DatasetInfo(
    name="butterflies",
    summary="Leeds Butterfly: 832 images of 10 species with masks and boxes",
    splits=("train", "test"),
    root_holds="annotations.csv, classes.csv, images/ and masks/",
    expected={"train": 502, "test": 330},
    classes=10,
    citation="Wang, Markert, Everingham, BMVC 2009",
    license="for learning purposes, as its authors say",
)


def load(root: Path, split: str, *, missing: Missing = "error") -> Dataset:
    """Load one split: boxes and masks, no key points. Raises `DataError` naming file and line."""
    return load_csv_folder(root, split, name=INFO.name, box_end="inclusive", missing=missing)
