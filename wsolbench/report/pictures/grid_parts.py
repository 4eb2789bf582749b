"""Parts of a grid of pictures: outlines as vectors, text that fits, legend and colour bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from wsolbench.report.pictures.overlays import BLACK, COLORMAP, PREDICTED_COLOR, TRUE_COLOR, WHITE

if TYPE_CHECKING:
    from wsolbench.report.pictures.grid import MapScale, Outlines

_LINE, _CASING = 1.4, 2.8
"""Widths of an outline and of the line below it, in points."""
_DASH = 4.2
"""Length of a dash and of a gap, in points."""
_SEEN_COLOR = (255, 255, 255)
_BAR = 1.9
"""Width of the colour bar in inches."""
_LEGEND = (2.4, 3.6)
"""Width of the legend with its margin in inches, without and with an entry for the centre crop."""
_CHARACTER = 0.063
"""Mean width of a character of the bar's note in inches."""


def draw_outlines(axes: Any, outlines: Outlines, size: tuple[int, int]) -> None:
    """Draw boxes and masks over a picture of `size` = (width, height). `axes` are in its pixels."""
    if outlines.seen is not None:
        _box(axes, outlines.seen, size, _SEEN_COLOR, linewidth=1.0, linestyle=(0, (1, 1.5)))
    # Each line is drawn twice: first a wider one in the colour of the casing.
    solid = ((BLACK, _CASING, "solid"), (TRUE_COLOR, _LINE, "solid"))
    dashed = ((WHITE, _CASING, _dashes(_CASING, 0.7)), (PREDICTED_COLOR, _LINE, _dashes(_LINE)))
    for strokes, mask, boxes in (
        (solid, outlines.true_mask, outlines.true_boxes),
        (dashed, outlines.predicted_mask, outlines.predicted_boxes),
    ):
        for color, width, linestyle in strokes:
            if mask is not None and mask.any():
                _contour(axes, mask, color, width, linestyle)
        for box in boxes:
            for color, width, linestyle in strokes:
                _box(axes, box, size, color, linewidth=width, linestyle=linestyle, capstyle="butt")
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)


def _box(
    axes: Any, box: Float[np.ndarray, "4"], size: tuple[int, int], color: tuple[int, int, int], **style: Any
) -> None:
    """Draw a box, cut at the picture. A line on the edge of the picture is not cut."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = np.clip(np.asarray(box, dtype=np.float64), 0, [*size, *size])
    if right <= left or bottom <= top:
        return
    style = {"fill": False, "clip_on": False, "joinstyle": "miter", "edgecolor": unit(color), **style}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


def _dashes(width: float, more: float = 0.0) -> tuple[float, tuple[float, float]]:
    """Return dashes that begin and end `more` points outside of those of another line."""
    # matplotlib multiplies these lengths by the line width.
    return more / width, ((_DASH + 2 * more) / width, (_DASH - 2 * more) / width)


def _contour(
    axes: Any, mask: Bool[np.ndarray, "h w"], color: tuple[int, int, int], width: float, linestyle: Any
) -> None:
    padded = np.pad(mask.astype(np.float64), 1)  # so that a line runs along the edge of the picture
    columns, rows = np.arange(padded.shape[1]) - 0.5, np.arange(padded.shape[0]) - 0.5
    style = {"colors": [unit(color)], "linewidths": width, "linestyles": [linestyle]}
    axes.contour(columns, rows, padded, [0.5], **style)


def draw_text(
    figure: Any, x: float, y: float, text: str, room: float, *, va: str = "top", **style: Any
) -> None:
    """Draw text from (x, y) to the right (rotated: upwards).

    Lines are shortened to fit into `room`, in inches.
    """
    width, height = figure.get_size_inches()
    lines = text.split("\n")
    # parse_math is off, because an id may contain a dollar sign.
    drawn = figure.text(x / width, y / height, text, va=va, parse_math=False, **style)
    while max(map(len, lines)) > 1:
        extent = drawn.get_window_extent()
        if (extent.height if "rotation" in style else extent.width) <= room * figure.dpi:
            break
        longest = max(map(len, lines))
        lines = [shorten(each, min(len(each), longest - 1)) for each in lines]
        drawn.set_text("\n".join(lines))


def foot_width(scale: MapScale | None, *, boxes: bool, cropped: bool) -> float:
    """Return the width of legend and colour bar with its note, in inches."""
    legend = _LEGEND[cropped] if boxes else 0.0
    if scale is None:
        return legend
    return legend + _BAR + 0.12 + _CHARACTER * max(map(len, _note(scale).split("\n")))


def _note(scale: MapScale) -> str:
    return f"map ({COLORMAP}, alpha {scale.strength:g})" + (f"\n{scale.note}" if scale.note else "")


def legend_and_bar(figure: Any, scale: MapScale | None, *, boxes: bool, cropped: bool) -> None:
    """Draw the legend of boxes at the foot of a figure, and right of it the colour bar of the maps."""
    handles = _handles(with_map=scale is not None, cropped=cropped) if boxes else []
    width, height = figure.get_size_inches()
    if scale is None:
        if handles:
            _legend(figure, handles, 0.5, "lower center")
        return
    left = (width - foot_width(scale, boxes=boxes, cropped=cropped)) / 2 + (
        _LEGEND[cropped] if boxes else 0.0
    )
    if handles:
        _legend(figure, handles, (left - 0.3) / width, "center right", 0.27 / height)
    axes = figure.add_axes((left / width, 0.22 / height, _BAR / width, 0.12 / height))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=COLORMAP, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], scale.labels, fontsize=7)
    axes.tick_params(length=2, pad=1.5, width=0.6)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
    for value, label in scale.marks:
        axes.plot([value], [1.25], "v", color="black", markersize=4, clip_on=False)
        axes.axvline(value, color="white", linewidth=0.9)
        axes.text(value, 1.75, label, fontsize=7.5, ha="center", va="bottom", parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    figure.text(
        (left + _BAR + 0.12) / width, 0.28 / height, _note(scale), fontsize=7.5, va="center", parse_math=False
    )


def _handles(*, with_map: bool, cropped: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    dashed: dict[str, Any] = {"linewidth": 2.5, "linestyle": (0, (2, 1))}
    found = [Line2D([], [], color=unit(TRUE_COLOR), linewidth=2.5, label="true")]
    if with_map:
        found.append(Line2D([], [], color=unit(PREDICTED_COLOR), label="predicted", **dashed))
    if cropped:
        found.append(Line2D([], [], color="0.5", linewidth=1.2, linestyle=(0, (1, 1.5)), label="centre crop"))
    return found


def _legend(figure: Any, handles: list[Any], x: float, loc: str, y: float = 0.0) -> None:
    figure.legend(
        handles=handles,
        loc=loc,
        bbox_to_anchor=(x, y),
        ncols=len(handles),
        fontsize=9,
        frameon=False,
        borderaxespad=0.2,
    )


def shorten(text: str, length: int) -> str:
    """Return `text` in one line of at most `length` characters. One character replaces the middle.

    >>> shorten("001.Black_footed_Albatross/0001_796111.jpg", 20)
    '001.Black_…96111.jpg'
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[len(text) - half :]}"


def unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Return a colour of 8 bits in [0, 1]."""
    return color[0] / 255, color[1] / 255, color[2] / 255
