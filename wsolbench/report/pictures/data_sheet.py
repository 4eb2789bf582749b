"""Contact sheets of a data set: images of each split with their ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsolbench.datasets.coco import InstanceDataset, InstanceSample
from wsolbench.exceptions import DataError
from wsolbench.report.pictures.grid import Panel, panel_grid
from wsolbench.report.pictures.overlays import overlay
from wsolbench.report.pictures.sheets import spread
from wsolbench.system.files import file_name
from wsolbench.types import Dataset, Sample, no_boxes

SHOWN = 24
"""Number of images of a sheet, evenly spread over the split."""
_COLUMNS = 6
_SIDE = 200
"""Pixels of the longer side of a picture."""


def write_data_sheet(folder: Path, dataset: Dataset | InstanceDataset, count: int = SHOWN) -> Path:
    """Write `NAME_SPLIT.png` into the folder, and return its path.

    Boxes and outlines of masks are drawn as they are read: after the conversion to continuous corners, and
    clipped to the image. An image that cannot be read is a gray panel that says so. Raises `DataError` for a
    split without images.
    """
    panels = [_panel(dataset.samples[index], dataset.class_names) for index in spread(len(dataset), count)]
    boxes = sum(len(sample.boxes) for sample in dataset.samples)
    title = (
        f"{dataset.name} {dataset.split}\n{len(panels)} of {len(dataset):,} images, {boxes:,} boxes; "
        f"fingerprint {dataset.fingerprint}"
    )
    path = folder / f"{file_name(dataset.name)}_{file_name(dataset.split)}.png"
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    panel_grid(rows, path, title, scale=None, boxes=boxes > 0 or _has_masks(dataset))
    return path


def _has_masks(dataset: Dataset | InstanceDataset) -> bool:
    return isinstance(dataset, Dataset) and dataset.has_masks


def _panel(sample: Sample | InstanceSample, names: tuple[str, ...]) -> Panel:
    """Return the picture of an image with its ground truth, named by its class or classes."""
    import cv2

    if isinstance(sample, InstanceSample):
        name, labels = sample.file_name, [names[label] for label in dict.fromkeys(sample.labels.tolist())]
    else:
        name, labels = sample.id, [names[sample.label]]
    try:
        image, size = sample.image(), sample.size
        mask = sample.mask() if isinstance(sample, Sample) else None
    except DataError:
        gray = np.full((_SIDE, _SIDE, 3), 128, dtype=np.uint8)
        return Panel(pixels=gray, name=", ".join(labels), caption=("cannot be read", name))
    # Boxes and mask are in the annotated frame, which the file may be a copy of.
    scale = _SIDE / max(size)
    width, height = (max(1, round(scale * side)) for side in size)
    canvas = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if mask is not None:
        mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0
    without_map = np.zeros((height, width), dtype=np.float64)
    canvas = overlay(canvas, without_map, sample.boxes * scale, no_boxes(), true_mask=mask, strength=0.0)
    count = f", {len(sample.boxes)} boxes" if len(sample.boxes) > 1 else ""
    caption = (f"{size[0]} x {size[1]}{count}", name)
    return Panel(pixels=_centred(canvas), name=", ".join(labels) or "no object", caption=caption)


def _centred(canvas: np.ndarray) -> np.ndarray:
    """Return the picture in the middle of a white square."""
    square = np.full((_SIDE, _SIDE, 3), 255, dtype=np.uint8)
    height, width = canvas.shape[:2]
    top, left = (_SIDE - height) // 2, (_SIDE - width) // 2
    square[top : top + height, left : left + width] = canvas
    return square
