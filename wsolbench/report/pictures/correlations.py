"""Self-correlation of points: similarity of all pixels of a feature stage to one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from wsolbench.exceptions import UsageError
from wsolbench.maps import to_frame
from wsolbench.methods import PointCorrelator
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.grid import MapScale, Panel, panel_grid
from wsolbench.report.pictures.overlays import mark_point
from wsolbench.report.pictures.scene import photograph, scene
from wsolbench.system.files import atomic_path
from wsolbench.types import Sample, no_boxes

if TYPE_CHECKING:
    from wsolbench.maps.sources import ModelSource

SHOWN = EvalProtocol(resize="bilinear", order="normalize_then_resize")
"""Protocol of the pictures: the whole image, and min-max normalised maps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointMaps:
    """Correlations of all pixels of an image with `point`, (x, y) in its pixels: one map per order."""

    sample: Sample
    point: tuple[float, float]
    stage: str
    orders: tuple[int, ...]
    maps: Float32[np.ndarray, "o h w"]


def correlate(
    source: ModelSource,
    sample: Sample,
    point: tuple[float, float] | None,
    orders: Sequence[int],
    stage: str | None = None,
) -> PointMaps:
    """Return the correlations with one point of an image, as `source.post` defines them.

    Args:
        source: model and post-process. Its protocol must be `SHOWN`.
        sample: the image.
        point: (x, y) in pixels of the image, or None for the peak of the model's map of the true class.
        orders: orders of the correlations.
        stage: name of the feature stage, or None for the last one.

    Raises `UsageError` for a point outside of the image, for a stage or order that does not exist, and for a
    post-process without correlations.
    """
    import torch

    from wsolbench.methods.device import normalized

    # Check the arguments.
    size = sample.size
    if not isinstance(source.post, PointCorrelator):
        name = "none" if source.post is None else source.post.method_name
        raise UsageError(
            f"post-process {name!r} has no correlations of points; expected one that has, such as scg"
        )
    if point is not None and not all(0 <= value < end for value, end in zip(point, size, strict=True)):
        raise UsageError(
            f"point {point[0]:g},{point[1]:g} is outside of image {sample.id!r}; expected 0 <= X < "
            f"{size[0]} and 0 <= Y < {size[1]}"
        )
    # Run the model on one image, (1, 3, S, S).
    pixels = torch.from_numpy(source.load(sample)["image"][None].copy())
    result = source.method.localize(normalized(pixels, source.method.input_spec, source.device))
    if point is None:
        raw_map = result.score_maps(torch.tensor([[sample.label]], device=source.device))[0, 0]
        row, column = divmod(int(raw_map.argmax()), raw_map.shape[1])
        point = ((column + 0.5) / raw_map.shape[1] * size[0], (row + 0.5) / raw_map.shape[0] * size[1])
    # Correlations at the point: (1, O, h, w).
    place = torch.tensor([[point[0] / size[0], point[1] / size[1]]], device=source.device)
    stage, maps = source.post.correlations(result, place, orders=orders, stage=stage)
    return PointMaps(
        sample=sample, point=point, stage=stage, orders=tuple(orders), maps=maps[0].float().cpu().numpy()
    )


def correlation_sheet(rows: Sequence[PointMaps], path: Path, title: str) -> None:
    """Write a picture with one row per point: the image with a cross, and the map of each order over it.

    The range of each map is printed below it. All rows must have the same orders. Raises as
    `wsolbench.report.pictures.overlays.panel_grid`.
    """
    names = ["image", *(f"order {order}" for order in rows[0].orders)]
    scale = MapScale(labels=("lowest", "middle", "highest"))
    panel_grid([_panels(row) for row in rows], path, title, column_names=names, boxes=False, scale=scale)


def _panels(row: PointMaps) -> list[Panel]:
    sample, (x, y) = row.sample, row.point
    image = photograph(sample)
    height, width = image.shape[:2]
    marked = mark_point(image, (x * width / sample.size[0], y * height / sample.size[1]))
    panels = [Panel(pixels=marked, name=sample.id, caption=(f"point {x:.0f}, {y:.0f}",))]
    without_boxes = replace(sample, boxes=no_boxes())
    for order_map in row.maps:
        unit_map = to_frame(order_map, sample.size, SHOWN, what=f"correlation map of {sample.id!r}")
        drawn = scene(without_boxes, SHOWN, unit_map)
        panels.append(drawn.panel(caption=(f"{order_map.min():.3g} to {order_map.max():.3g}",)))
    return panels


def save_correlations(rows: Sequence[PointMaps], path: Path) -> None:
    """Write an .npz file.

    It has `maps` (R, O, h, w), `images` (R,), `points` (R, 2) as x, y in pixels of the image, `orders` (O,)
    and `stage`.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            maps=np.stack([row.maps for row in rows]),
            images=np.array([row.sample.id for row in rows]),
            points=np.array([row.point for row in rows], dtype=np.float64),
            orders=np.array(rows[0].orders),
            stage=np.array(rows[0].stage),
        )
