"""A picture of the parts that a method proposes, and of the key points that they are nearest to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wsolbench.evaluation.scores import part_distances
from wsolbench.maps import frame_size
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.sources import PARTS, ProposedParts
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.overlays import WHITE, Panel, draw_box, draw_disc, draw_line, frame_image, gray
from wsolbench.types import Sample

RANK_COLORS = ((230, 30, 50), (255, 150, 0), (60, 150, 255), (190, 110, 255))
"""Of the boxes, best first: red, orange, blue, violet."""


def regions_panel(
    sample: Sample, proposed: ProposedParts, protocol: EvalProtocol, *, line_width: float = 1.0
) -> Panel:
    """The image in grey with its best proposals: boxes by rank from red to violet, and from each centre a
    line to the nearest key point.

    Visible key points are white discs. A box that only fills up the number is not drawn. The caption has the
    mean distance in percent of the true box's diagonal, or nothing where the image has no key points.
    """
    canvas = gray(frame_image(sample, protocol))
    width, height = frame_size(sample.size, protocol)
    scale = np.array([width, height]) / proposed.side  # the network sees what the frame shows
    found = part_distances(sample, protocol, proposed)
    points = (
        None
        if found is None or sample.key_points is None
        else map_to_view(sample.key_points[:, :2], sample.size, proposed.side, protocol)
    )
    for rank in reversed(range(min(PARTS, len(proposed.boxes)))):  # the best on top
        if proposed.padded[rank]:
            continue
        box = proposed.boxes[rank]
        draw_box(canvas, box * np.tile(scale, 2), RANK_COLORS[rank], line_width)
        if found is not None and points is not None:
            draw_line(
                canvas,
                _centre(box) * scale,
                points[found.nearest[rank]] * scale,
                RANK_COLORS[rank],
                line_width,
            )
        draw_disc(canvas, _centre(box) * scale, RANK_COLORS[rank], line_width)
    if found is None or points is None or sample.key_points is None or not found.real.any():
        return Panel(pixels=canvas)
    for point in points[sample.key_points[:, 2] > 0]:
        draw_disc(canvas, point * scale, WHITE, line_width)
    return Panel(pixels=canvas, caption=(f"{100 * found.norm[found.real].mean():.0f} % away",))


def _centre(box: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 2"]:
    return np.asarray((box[:2] + box[2:]) / 2)
