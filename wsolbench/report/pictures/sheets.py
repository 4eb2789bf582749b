"""Sheets of a run: which images to show, and what to draw and write about each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores
from wsolbench.exceptions import DataError
from wsolbench.maps import to_frame
from wsolbench.metrics.catalog import metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.report.board.tables import run_title
from wsolbench.report.pictures.grid import MapScale, OverlayItem, Panel, overlay_sheet
from wsolbench.report.pictures.scene import LEAST, box_scene, drawn_size, mask_scene
from wsolbench.types import Dataset, Sample, ScoreMap

SHEETS = {
    "best": "Highest IoU",
    "worst": "Lowest IoU",
    "sample": "Evenly spaced from the lowest to the highest IoU",
}
"""File name, without suffix -> title of each sheet."""


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """The images that have an IoU, sorted by it, and the threshold of that IoU."""

    indices: Int64[np.ndarray, " m"]
    """Positions in the data set, from the lowest to the highest IoU. Equal ones keep the data set's order."""
    iou: Float64[np.ndarray, " n"]
    by_boxes: bool
    tau_index: int
    """Index into the protocol's thresholds (boxes), or the 8-bit level (masks)."""

    def cut(self, protocol: EvalProtocol) -> str:
        """Return the threshold in words: "tau 0.23" or "level 113"."""
        return (
            f"tau {round(protocol.taus[self.tau_index], 3):g}" if self.by_boxes else f"level {self.tau_index}"
        )

    def scale(self, protocol: EvalProtocol) -> MapScale:
        """Return the colour bar of the sheets, with the threshold."""
        text = self.cut(protocol)
        if not self.by_boxes:
            return MapScale(marks=((self.tau_index / 255, text),))
        return tau_scale(protocol, protocol.taus[self.tau_index], text)

    def sheets(self, count: int) -> dict[str, list[int]]:
        ordered = self.indices.tolist()
        best, worst = best_and_worst(self.indices, self.iou, count)
        return {
            "best": best,
            "worst": worst,
            "sample": [ordered[place] for place in spread(len(ordered), count)],
        }


def write_sheets(
    folder: Path,
    record: RunRecord,
    scores: ScoreTable,
    dataset: Dataset,
    maps_of: Callable[[list[int]], Sequence[ScoreMap]],
    *,
    count: int,
    names: Collection[str] = tuple(SHEETS),
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write the sheets `names` of `SHEETS` into `folder` in each of `formats`.

    Nothing is written if no image has a ground-truth box or mask. See
    `wsolbench.report.pictures.plots.write_pictures`.
    """
    ranking = _by_boxes(record, scores) or _by_masks(record, scores)
    if ranking is None:
        return []
    # Choose the images, and ask once for the maps of all.
    sheets = {name: chosen for name, chosen in ranking.sheets(count).items() if name in names}
    indices = sorted({index for chosen in sheets.values() for index in chosen})
    chosen_scores = scores.take(indices)
    items = {
        index: _item(
            record,
            chosen_scores.select(np.array([row])),
            dataset[index],
            dataset.class_names,
            ranking,
            float(ranking.iou[index]),
            raw_map,
        )
        for row, (index, raw_map) in enumerate(zip(indices, maps_of(indices), strict=True))
    }
    # Write the sheets.
    written = []
    for name, chosen in sheets.items():
        paths = [folder / f"{name}.{kind}" for kind in formats]
        overlay_sheet(
            [items[index] for index in chosen],
            paths,
            f"{SHEETS[name]}\n{run_title(record)}",
            scale=ranking.scale(record.map_protocol),
        )
        written += paths
    return written


def tau_scale(protocol: EvalProtocol, tau: float, text: str, **scale: Any) -> MapScale:
    """Return a colour bar with the threshold tau, or a note where it differs between images.

    A map that is normalised before it is resized can end below 1, and tau may be a fraction of the map's
    maximum or of a percentile.
    """
    if protocol.threshold_basis == "percentile":
        return MapScale(note=f"{text} of each map's {protocol.percentile:g}th percentile", **scale)
    if protocol.threshold_basis == "max" and protocol.order != "resize_then_normalize":
        return MapScale(marks=((tau, text),), note="tau is a fraction of the map's maximum", **scale)
    return MapScale(marks=((tau, text),), **scale)


def _by_boxes(record: RunRecord, scores: ScoreTable) -> _Ranking | None:
    """Rank by the IoU of GT-known's box at its oracle threshold."""
    metric = record.metric("gt_known", "oracle")
    if metric is None or not metric.tau:
        return None
    tau_index = int(np.abs(np.array(record.map_protocol.taus) - metric.tau[0]).argmin())
    has_boxes = scores.column(lambda part: part.has_boxes)
    return _ranking(
        np.flatnonzero(has_boxes),
        scores.column(lambda part: part.single_iou[:, tau_index]),
        tau_index,
        by_boxes=True,
    )


def _by_masks(record: RunRecord, scores: ScoreTable) -> _Ranking | None:
    """Rank by the pixel IoU at Peak-T."""
    metric = record.metric("peak_t")
    if metric is None or metric.value is None:
        return None
    level = int(metric.value)
    has_object = scores.column(lambda part: part.has_object)
    iou = np.zeros(len(has_object))
    iou[has_object] = scores.column(lambda part: pixel_iou(part.level_histogram[part.has_object])[:, level])
    return _ranking(np.flatnonzero(has_object), iou, level, by_boxes=False)


def _ranking(
    indices: Int64[np.ndarray, " m"], iou: Float64[np.ndarray, " n"], tau_index: int, *, by_boxes: bool
) -> _Ranking:
    return _Ranking(
        indices=indices[np.argsort(iou[indices], kind="stable")],
        iou=iou,
        by_boxes=by_boxes,
        tau_index=tau_index,
    )


def _item(
    record: RunRecord,
    scores: ImageScores,
    sample: Sample,
    class_names: Sequence[str],
    ranking: _Ranking,
    iou: float,
    raw_map: ScoreMap,
) -> OverlayItem:
    """Draw one image of a sheet. `scores` are the scores of this image."""
    protocol = record.map_protocol
    unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
    # Caption: image, IoU at the threshold, classes, range of the map.
    top1_right = bool(scores.ranked[0, 0] == sample.label) if scores.ranked.shape[1] else None
    measure = f"{'' if ranking.by_boxes else 'pixel '}IoU {iou:.2f} at {ranking.cut(protocol)}"
    if ranking.by_boxes:
        code = "cls" if top1_right is False else ERROR_NAMES[scores.error_codes[0, ranking.tau_index]]
        measure += f" · {metric_title(f'error_{code}')}"
    classes = _class_caption(sample, scores, class_names, top1_right)
    values = f"map {raw_map.min():.3g} to {raw_map.max():.3g}"
    caption = (sample.id, measure, *classes, values)
    # Pictures.
    try:
        if ranking.by_boxes:
            found = box_scene(sample, protocol, unit_map, protocol.taus[ranking.tau_index])
        else:
            found = mask_scene(sample, protocol, unit_map, ranking.tau_index)
    except DataError:
        blank = unreadable(sample.size)
        return OverlayItem(image=blank, overlay=blank, caption=(*caption, "image cannot be read"))
    return OverlayItem(image=found.photograph(), overlay=found.panel(), caption=caption)


def unreadable(size: tuple[int, int]) -> Panel:
    """Return a grey panel in the shape of an image of `size` = (width, height) that cannot be read."""
    width, height = drawn_size(size, longest=LEAST)
    return Panel(pixels=np.full((height, width, 3), 128, dtype=np.uint8))


def _class_caption(
    sample: Sample, scores: ImageScores, class_names: Sequence[str], top1_right: bool | None
) -> tuple[str, ...]:
    """Return true and predicted class, one line each, so that the captions of a sheet have the same height.

    Without a classifier there is no second line.
    """
    true_line = f"true: {class_names[sample.label]}"
    if top1_right is None:
        return (true_line,)
    return true_line, f"predicted: {class_names[scores.ranked[0, 0]]}{'' if top1_right else ' (wrong)'}"


def best_and_worst(
    indices: Int64[np.ndarray, " m"], iou: Float64[np.ndarray, " n"], count: int
) -> tuple[list[int], list[int]]:
    """Return at most `count` images with the highest IoU and as many with the lowest.

    `indices` are sorted from the lowest to the highest IoU. Often many maps miss the object completely. Of
    images that share the lowest IoU, some are taken evenly from the whole data set.
    """
    ordered = indices.tolist()
    lowest = [index for index in ordered if iou[index] == iou[ordered[0]]]
    worst = (
        [lowest[place] for place in spread(len(lowest), count)] if len(lowest) > count else ordered[:count]
    )
    return ordered[::-1][:count], worst


def spread(n: int, count: int) -> Iterator[int]:
    """Yield at most `count` different positions, evenly spaced over 0 .. n - 1, with the first and the last.

    >>> list(spread(10, 4))
    [0, 3, 6, 9]
    """
    yield from sorted({round(place) for place in np.linspace(0, n - 1, min(count, n))})
