"""Grids of pictures with captions, a legend and a colour bar, drawn by matplotlib.

Pictures keep their shape. Outlines, text and colour bar are vectors, so a PDF of the grid can be scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from wsolbench.exceptions import DataError
from wsolbench.report.pictures.figure_files import as_paths, save_figures
from wsolbench.report.pictures.grid_parts import draw_outlines, draw_text, foot_width, legend_and_bar
from wsolbench.report.pictures.overlays import STRENGTH, Pixels
from wsolbench.types import no_boxes

BLOCK = 0.16
"""Inches of 16 pixels, a block of a subsampled JPEG. Panels that begin with a block need fewer bytes."""
SHEET_DPI = 150
"""Pixels per inch of the sheets of a run: a panel of 2 inches has 300."""
_DOTS_PER_INCH = 100
_LINE = 0.155
"""Height of a line of a caption in inches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlines:
    """Boxes (xyxy) and masks of a picture, in its pixels."""

    true_boxes: Float[np.ndarray, "r 4"] = field(default_factory=no_boxes)
    predicted_boxes: Float[np.ndarray, "m 4"] = field(default_factory=no_boxes)
    true_mask: Bool[np.ndarray, "h w"] | None = None
    predicted_mask: Bool[np.ndarray, "h w"] | None = None
    seen: Float[np.ndarray, "4"] | None = None
    """The part that the protocol sees, or None if that is the whole picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """A picture of a grid, with outlines, a name (bold) and further lines of text below."""

    pixels: Pixels
    name: str = ""
    caption: tuple[str, ...] = ()
    outlines: Outlines | None = None

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Text and font weight of each line below the picture."""
        return [(self.name, "bold")] * bool(self.name) + [(line, "normal") for line in self.caption]

    def inches(self, side: float) -> tuple[float, float]:
        """Return width and height of the picture, whose longer side has `side` inches."""
        height, width = self.pixels.shape[:2]
        return side * width / max(width, height), side * height / max(width, height)


@dataclass(frozen=True, kw_only=True)
class MapScale:
    """What the colours of the maps mean: the colour bar of a grid."""

    labels: tuple[str, str, str] = ("0", "0.5", "1")
    """Labels of the lowest, the middle and the highest colour."""
    strength: float = STRENGTH
    marks: tuple[tuple[float, str], ...] = ()
    """Thresholds in [0, 1] to mark on the bar, with their labels."""
    note: str = ""
    """What the bar cannot show about the threshold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OverlayItem:
    """One image of a sheet: the picture, the picture with map and boxes, and lines of text below."""

    image: Panel
    overlay: Panel
    caption: tuple[str, ...]


def overlay_sheet(
    items: Sequence[OverlayItem],
    paths: Sequence[Path],
    title: str,
    *,
    columns: int = 3,
    scale: MapScale | None = None,
) -> None:
    """Write pairs of image and overlay, `columns` per row, with captions, a legend and a colour bar.

    The longer side of a picture has 300 pixels in a PNG. Raises as `panel_grid`.
    """
    columns = min(columns, max(len(items), 1))
    pairs = [
        (
            Panel(
                pixels=item.image.pixels,
                outlines=item.image.outlines,
                name=item.caption[0],
                caption=item.caption[1:],
            ),
            item.overlay,
        )
        for item in items
    ]
    rows = [
        [panel for pair in pairs[start : start + columns] for panel in pair]
        for start in range(0, len(pairs), columns)
    ]
    panel_grid(rows, paths, title, scale=scale or MapScale(), dpi=SHEET_DPI)


def panel_grid(
    rows: Sequence[Sequence[Panel]],
    paths: Path | Sequence[Path],
    title: str,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    side: float = 2.0,
    boxes: bool = True,
    scale: MapScale | None = MapScale(),
    colors: int | None = None,
    max_bytes: int | None = None,
    dpi: int = _DOTS_PER_INCH,
) -> None:
    """Write a grid of panels with a legend and a colour bar.

    Args:
        rows: panels of each row. A caption extends below the panels to its right that have none.
        paths: output file, or one for each format; see `save_figure`, as for `colors` and `max_bytes`.
        title: text above the grid. Its first line is the heading.
        row_names: names left of each row, written upwards.
        column_names: names above the first row.
        side: longer side of a picture in inches.
        boxes: whether the legend explains ground-truth and predicted boxes.
        scale: the colour bar. None: the panels have no maps and no predictions, and the legend explains
            ground truth only.
        dpi: pixels per inch of a PNG or JPEG.

    Raises `DataError` without panels, and `UsageError` if a file cannot be written.
    """
    targets = as_paths(paths)
    if not rows:
        raise DataError(f"no image to show in {targets[0]}; expected at least one")
    figure = _grid_figure(rows, title, row_names, column_names, side, boxes, scale, dpi)
    save_figures(figure, targets, colors=colors, max_bytes=max_bytes)


def _grid_figure(
    rows: Sequence[Sequence[Panel]],
    title: str,
    row_names: Sequence[str],
    column_names: Sequence[str],
    side: float,
    boxes: bool,
    scale: MapScale | None,
    dpi: int,
) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    outlines = [panel.outlines for row in rows for panel in row if panel.outlines is not None]
    in_legend = {"boxes": boxes, "cropped": any(each.seen is not None for each in outlines)}
    # Lengths of the layout, in inches.
    gap, foot = BLOCK, 0.45 if scale is None else 0.64
    names = _in_blocks(_LINE * max(name.count("\n") + 1 for name in row_names)) if row_names else 0.0
    head = _in_blocks(0.32 + 0.2 * title.count("\n") + (0.22 if column_names else 0.0))
    tall = [_in_blocks(max(panel.inches(side)[1] for panel in row)) for row in rows]
    below = [_in_blocks(_LINE * max(len(panel.lines) for panel in row) + 0.08) for row in rows]
    inner = max(map(len, rows)) * (side + gap) - gap
    least = max(6.0, foot_width(scale, **in_legend) + gap)
    width, height = max(names + inner + 2 * gap, least), head + sum(tall) + sum(below) + foot
    figure: Any = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)  # measures text with one renderer, instead of one for each measurement
    left = _in_blocks((width - names - inner) / 2 - 0.01) + names
    # Panels with their names and captions.
    top = height - head
    for number, row in enumerate(rows):
        if row_names:
            style: dict[str, Any] = {
                "size": 8,
                "rotation": 90,
                "va": "center",
                "ma": "center",
                "linespacing": 1.3,
            }
            room = tall[number] + below[number] - 0.08
            draw_text(figure, left - names + 0.02, top - room / 2, row_names[number], room, **style)
        if number == 0:
            for column, name in enumerate(column_names):
                x = left + column * (side + gap)
                draw_text(figure, x, top + 0.06, name, side, size=9, va="baseline")
        for column, panel in enumerate(row):
            free = next((after for after in range(column + 1, len(row)) if row[after].lines), len(row))
            x, room = left + column * (side + gap), (free - column) * (side + gap) - gap
            _draw_panel(figure, panel, x, top, side, top - tall[number], room)
        top -= tall[number] + below[number]
    # Title and legend.
    for number, text in enumerate(title.splitlines()):
        style = {"size": 9} if number else {"size": 11, "weight": "bold"}
        draw_text(figure, left - names, height - 0.08 - 0.2 * number, text, names + inner, **style)
    legend_and_bar(figure, scale, **in_legend)
    return figure


def _draw_panel(
    figure: Any, panel: Panel, x: float, top: float, side: float, foot: float, room: float
) -> None:
    """Draw a panel whose left top corner is (x, top), and its lines of text below `foot`."""
    width, height = figure.get_size_inches()
    breadth, tallness = panel.inches(side)
    axes = figure.add_axes((x / width, (top - tallness) / height, breadth / width, tallness / height))
    rows, columns = panel.pixels.shape[:2]
    axes.imshow(
        panel.pixels,
        interpolation="lanczos" if min(rows, columns) > 1 else "nearest",
        extent=(0, columns, rows, 0),
        aspect="auto",
    )
    axes.set_axis_off()
    if panel.outlines is not None:
        draw_outlines(axes, panel.outlines, (columns, rows))
    for place, (text, weight) in enumerate(panel.lines):
        draw_text(figure, x, foot - 0.05 - _LINE * place, text, room, size=8, weight=weight)


def _in_blocks(inches: float) -> float:
    return math.ceil(round(inches / BLOCK, 6)) * BLOCK
