"""Galleries of the page: images with the best and worst maps, and those that map folders disagree on most."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from wsolbench.exceptions import DataError
from wsolbench.maps import MapFolder, frame_boxes, to_frame
from wsolbench.maps.folder_source import FolderSource
from wsolbench.metrics.hits import HitCounts
from wsolbench.metrics.max_box_acc import passes
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import DELTA, EvalProtocol
from wsolbench.report.board.tables import disambiguate
from wsolbench.report.page.html import escape
from wsolbench.report.pictures.scene import box_scene
from wsolbench.report.pictures.sheets import best_and_worst
from wsolbench.types import Dataset

SIDE = 200
"""Longer side of an embedded picture in pixels."""
QUALITY = 72
"""JPEG quality of an embedded picture."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A map over its image with ground-truth and predicted boxes: name of the maps, IoU, JPEG as base64."""

    name: str
    iou: float
    jpeg: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images under a heading. Each has its id, its class and one picture per folder of maps."""

    title: str
    note: str
    items: tuple[tuple[str, str, tuple[Picture, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """A folder of maps with the IoU of every image at the best threshold for GT-known."""

    name: str
    source: FolderSource
    tau: float
    iou: Float64[np.ndarray, " n"]


def galleries(
    folders: Sequence[Path], dataset: Dataset, protocol: EvalProtocol, *, count: int
) -> list[Gallery]:
    """Return the best and worst images of each folder, and those with the widest range of IoU over folders.

    Only images with a ground-truth box, and a map in every folder, are used. Raises `DataError` if there is
    none, or if a folder was made on other data.
    """
    # Images that every folder has a map of.
    missing = {image_id for folder in folders for image_id in MapFolder(folder).missing(dataset.ids)}
    chosen = tuple(sample for sample in dataset.samples if len(sample.boxes) and sample.id not in missing)
    if not chosen:
        where = ", ".join(map(str, folders))
        raise DataError(
            f"no image of {dataset.name} {dataset.split} has a ground-truth box and a map in {where}; "
            "expected maps that are named by the image's id"
        )
    boxed = replace(dataset, samples=chosen)
    of = f"From the {len(chosen)} of {len(dataset)} images with a ground-truth box and a map in every folder."
    # IoU of all images in all folders.
    maps = [_read(folder, boxed, protocol) for folder in folders]
    names = disambiguate([each.name for each in maps], [str(folder) for folder in folders])
    maps = [replace(each, name=name) for each, name in zip(maps, names, strict=True)]
    # Best and worst images of each folder, then the largest differences.
    found = []
    for each in maps:
        best, worst = best_and_worst(np.argsort(each.iou, kind="stable"), each.iou, count)
        note = f"{of} IoU of the single box at tau {each.tau:g}, the best threshold for GT-known."
        found.append(_gallery(f"{each.name}: highest IoU", note, best, [each], boxed, protocol))
        found.append(_gallery(f"{each.name}: lowest IoU", note, worst, [each], boxed, protocol))
    if len(maps) > 1:
        span = np.ptp(np.stack([each.iou for each in maps]), axis=0)
        order = np.argsort(-span, kind="stable")[:count].tolist()
        note = f"{of} Each method uses its best threshold for GT-known."
        found.append(_gallery("Largest differences in IoU", note, order, maps, boxed, protocol))
    return found


def _read(path: Path, dataset: Dataset, protocol: EvalProtocol) -> _Maps:
    folder = MapFolder(path)
    name = str(dict(folder.manifest().get("method", {})).get("name", path.resolve().name))
    source = FolderSource(folder, name=name)
    source.check(dataset, protocol)
    counts = HitCounts(protocol, 1)
    rows = []
    for sample in dataset.samples:
        unit_map = to_frame(source.load(sample), sample.size, protocol, what=f"map of {sample.id!r}")
        iou = sweep(
            unit_map, frame_boxes(sample.boxes, sample.size, protocol, check_unit=False), protocol
        ).single_iou
        counts.add(passes(iou, DELTA, protocol.iou_test)[None], sample.label)
        rows.append(iou)
    best = int(counts.threshold_scores()[0].argmax())
    return _Maps(
        name=name,
        source=source,
        tau=protocol.taus[best],
        iou=np.array([row[best] for row in rows], dtype=np.float64),
    )


def _gallery(
    title: str,
    note: str,
    indices: Sequence[int],
    maps: Sequence[_Maps],
    dataset: Dataset,
    protocol: EvalProtocol,
) -> Gallery:
    items = []
    for index in indices:
        sample = dataset[index]
        pictures = []
        for each in maps:
            unit_map = to_frame(each.source.load(sample), sample.size, protocol, what=f"map of {sample.id!r}")
            drawn = box_scene(sample, protocol, unit_map, each.tau).painted()
            pictures.append(Picture(name=each.name, iou=float(each.iou[index]), jpeg=_jpeg(drawn)))
        items.append((sample.id, dataset.class_names[sample.label], tuple(pictures)))
    return Gallery(title=title, note=note, items=tuple(items))


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    import cv2

    scale = SIDE / max(pixels.shape[:2])
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded: bytes = cv2.imencode(".jpg", pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()
    return base64.b64encode(encoded).decode()


def gallery_html(gallery: Gallery) -> str:
    """Return a gallery as a list of figures."""
    figures = []
    for image_id, class_name, pictures in gallery.items:
        shown = "".join(
            f'<span class="picture"><img src="data:image/jpeg;base64,{picture.jpeg}" loading="lazy" '
            f'alt="{escape(f"map of {picture.name} over {image_id} with ground-truth and predicted box")}">'
            f"<span>{escape(f'{picture.name}: ' * (len(pictures) > 1))}IoU {picture.iou:.2f}</span></span>"
            for picture in pictures
        )
        figures.append(
            f"<li><figure>{shown}<figcaption>{escape(image_id)}<br>{escape(class_name)}</figcaption></figure></li>"
        )
    legend = "Ground-truth boxes: solid green. Predicted box: dashed red."
    note = f'<p class="note">{escape(gallery.note)} {legend}</p>'
    return f'<h3>{escape(gallery.title)}</h3>{note}<ul class="gallery">{"".join(figures)}</ul>'
