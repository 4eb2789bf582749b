"""A picture of proposed parts and of the key points nearest to them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wsolbench.evaluation.scores import part_distances
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.sources import PARTS, ProposedParts
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.grid import Panel
from wsolbench.report.pictures.overlays import WHITE, draw_box, draw_disc, draw_line, gray
from wsolbench.report.pictures.scene import photograph
from wsolbench.types import Sample

RANK_COLORS = ((230, 30, 50), (255, 150, 0), (60, 150, 255), (190, 110, 255))
"""Colours of the boxes, best first: red, orange, blue, violet."""


def regions_panel(
    sample: Sample, proposed: ProposedParts, protocol: EvalProtocol, *, line_width: float = 1.0
) -> Panel:
    """Draw the best proposals on the image in gray, with a line from each centre to the nearest key point.

    Boxes are coloured by rank from red to violet. Visible key points are white discs. A box that only fills
    up the number is not drawn. The caption is the mean distance in percent of the ground-truth box's
    diagonal. It is empty if the image has no key points.
    """
    # From the network's input, which may be a centre crop, to the whole image.
    canvas = gray(photograph(sample))
    outer, start = protocol.view_of(proposed.side)
    scale = np.array([canvas.shape[1], canvas.shape[0]]) / outer

    def move(places: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.asarray((places + start) * np.tile(scale, places.shape[-1] // 2))

    found = part_distances(sample, protocol, proposed)
    points = (
        None
        if found is None or sample.key_points is None
        else map_to_view(sample.key_points[:, :2], sample.size, proposed.side, protocol)
    )
    # Boxes, lines to the nearest points, centres, key points.
    for rank in reversed(range(min(PARTS, len(proposed.boxes)))):  # the best is drawn last
        if proposed.padded[rank]:
            continue
        box = proposed.boxes[rank]
        draw_box(canvas, move(box), RANK_COLORS[rank], line_width)
        if found is not None and points is not None:
            draw_line(
                canvas,
                move(_centre(box)),
                move(points[found.nearest[rank]]),
                RANK_COLORS[rank],
                line_width,
            )
        draw_disc(canvas, move(_centre(box)), RANK_COLORS[rank], line_width)
    if found is None or points is None or sample.key_points is None or not found.real.any():
        return Panel(pixels=canvas)
    for point in points[sample.key_points[:, 2] > 0]:
        draw_disc(canvas, move(point), WHITE, line_width)
    return Panel(pixels=canvas, caption=(f"{100 * found.norm[found.real].mean():.0f} % away",))


def _centre(box: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 2"]:
    return np.asarray((box[:2] + box[2:]) / 2)
