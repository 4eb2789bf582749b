"""Training curves of runs: a figure with one panel per quantity, and a table as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsolbench.records.training_log import TITLES, TrainingCurves, run_names
from wsolbench.report.pictures.figure_files import check_picture_path, png_bytes, save_figure
from wsolbench.report.pictures.grid_parts import shorten
from wsolbench.report.pictures.plots import COLORS, LINES
from wsolbench.system.text import one_line

_LEGEND_CHARACTERS = 70
_PANEL = (4.2, 2.9)
"""Width and height of a panel that is a picture of its own, in inches of 100 pixels."""
_PANEL_COLORS = 64
"""Colours of such a picture, which makes it small."""


def draw_curves(runs: Sequence[TrainingCurves], path: Path) -> None:
    """Write a figure of loss, learning rate and validation metrics over epochs, one line per run.

    A quantity that no run has gets no panel. Raises `UsageError` for another suffix than that of a PNG, JPEG
    or PDF file, and if the file cannot be written.
    """
    from matplotlib.figure import Figure

    check_picture_path(path)
    shown = shown_quantities(runs)
    names = [shorten(one_line(name), _LEGEND_CHARACTERS).replace("$", r"\$") for name in run_names(runs)]
    rows = -(-len(shown) // 2)
    # Panels, then one legend for all of them.
    below = 0.22 * len(runs) + 0.3
    height = 2.9 * rows + below
    figure: Any = Figure(figsize=(10.0, height), dpi=100)
    panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    for panel, name in zip(panels, shown, strict=False):
        _draw_panel(panel, name, runs, names)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.tight_layout(rect=(0, below / height, 1, 1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", fontsize=8, frameon=False)
    save_figure(figure, path)


def panel_pictures(runs: Sequence[TrainingCurves]) -> list[tuple[str, bytes]]:
    """Return the panels of `draw_curves` as pictures of their own: name of the quantity, and a PNG file.

    They have no legend. `line_style` says how the line of a run is drawn.
    """
    from matplotlib.figure import Figure

    pictures = []
    for name in shown_quantities(runs):
        figure: Any = Figure(figsize=_PANEL, dpi=100, layout="tight")
        _draw_panel(figure.subplots(), name, runs, ["" for _ in runs])
        pictures.append((name, png_bytes(figure, colors=_PANEL_COLORS)))
    return pictures


def shown_quantities(runs: Sequence[TrainingCurves]) -> list[str]:
    """Return the columns that have a panel, because a run has values of them."""
    return [name for name in TITLES if any(run.points(name)[0] for run in runs)]


def line_style(place: int) -> tuple[str, str]:
    """Return colour and dashes (`-`, `--`, `-.` or `:`) of the run at this place."""
    return COLORS[place % len(COLORS)], LINES[place // len(COLORS) % len(LINES)]


def _draw_panel(panel: Any, name: str, runs: Sequence[TrainingCurves], labels: Sequence[str]) -> None:
    """Draw one quantity over epochs, one line per run."""
    from matplotlib.ticker import MaxNLocator

    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        color, dashes = line_style(place)
        panel.plot(*run.points(name), color=color, linestyle=dashes, marker=".", label=label)
    panel.set_title(TITLES[name], fontsize=10)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.tick_params(labelbottom=True)
    panel.grid(alpha=0.3)


def epochs_table(run: TrainingCurves) -> str:
    """Return the epochs of one run as a text table."""
    names = [name for name in (*TITLES, "seconds") if run.points(name)[0]]
    found = {name: dict(zip(*run.points(name), strict=True)) for name in names}
    heads = ["epoch", *(TITLES.get(name, "time, s") for name in names)]
    rows = [[str(epoch), *(_number(name, found[name].get(epoch)) for name in names)] for epoch in run.epochs]
    return _aligned([heads, *rows])


def runs_table(runs: Sequence[TrainingCurves]) -> str:
    """Return one line per run: its epochs, last loss, last and best validation metrics, and time."""
    return _aligned(runs_rows(runs, run_names(runs)))


def runs_rows(runs: Sequence[TrainingCurves], names: Sequence[str]) -> list[list[str]]:
    """Return the cells of `runs_table`, with the heads first. `names` are those of the runs."""
    metrics = [name for name in ("val_accuracy", "val_gt_known") if any(run.points(name)[0] for run in runs)]
    heads = ["run", "epochs", "loss"]
    for name in metrics:
        heads += [TITLES[name], "best (epoch)"]
    rows = [[*heads, "time, s"]]
    for run, title in zip(runs, names, strict=True):
        cells = [one_line(title), str(run.epochs[-1]), _last("train_loss", run)]
        for name in metrics:
            epochs, values = run.points(name)
            best = max(range(len(values)), key=values.__getitem__, default=None)
            cells.append(_last(name, run))
            cells.append("" if best is None else f"{_number(name, values[best])} ({epochs[best]})")
        rows.append([*cells, f"{sum(run.points('seconds')[1]):.0f}"])
    return rows


def _last(name: str, run: TrainingCurves) -> str:
    values = run.points(name)[1]
    return _number(name, values[-1] if values else None)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if name in ("train_loss", "lr") else f"{value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
