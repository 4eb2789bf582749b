"""Training curves of runs: a figure with one panel per quantity, and a table as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsolbench.records.training_log import TITLES, TrainingCurves, run_names
from wsolbench.report.pictures.figure_files import check_picture_path, save_figure
from wsolbench.report.pictures.grid_parts import shorten
from wsolbench.report.pictures.plots import COLORS, LINES
from wsolbench.system.text import one_line

_LEGEND_CHARACTERS = 70


def draw_curves(runs: Sequence[TrainingCurves], path: Path) -> None:
    """Write a figure of loss, learning rate and validation metrics over epochs, one line per run.

    A quantity that no run has gets no panel. Raises `UsageError` for another suffix than that of a PNG, JPEG
    or PDF file, and if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    check_picture_path(path)
    shown = [name for name in TITLES if any(run.points(name)[0] for run in runs)]
    names = [shorten(one_line(name), _LEGEND_CHARACTERS).replace("$", r"\$") for name in run_names(runs)]
    rows = -(-len(shown) // 2)
    # Panels, then one legend for all of them.
    below = 0.22 * len(runs) + 0.3
    height = 2.9 * rows + below
    figure: Any = Figure(figsize=(10.0, height), dpi=100)
    panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
    for panel, name in zip(panels, shown, strict=False):
        for place, run in enumerate(runs):
            panel.plot(
                *run.points(name),
                color=COLORS[place % len(COLORS)],
                linestyle=LINES[place // len(COLORS) % len(LINES)],
                marker=".",
                label=names[place],
            )
        panel.set_title(TITLES[name], fontsize=10)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelbottom=True)
        panel.grid(alpha=0.3)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.tight_layout(rect=(0, below / height, 1, 1))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", fontsize=8, frameon=False)
    save_figure(figure, path)


def epochs_table(run: TrainingCurves) -> str:
    """Return the epochs of one run as a text table."""
    names = [name for name in (*TITLES, "seconds") if run.points(name)[0]]
    found = {name: dict(zip(*run.points(name), strict=True)) for name in names}
    heads = ["epoch", *(TITLES.get(name, "time, s") for name in names)]
    rows = [[str(epoch), *(_number(name, found[name].get(epoch)) for name in names)] for epoch in run.epochs]
    return _aligned([heads, *rows])


def runs_table(runs: Sequence[TrainingCurves]) -> str:
    """Return one line per run: its epochs, last loss, last and best validation metrics, and time."""
    metrics = [name for name in ("val_accuracy", "val_gt_known") if any(run.points(name)[0] for run in runs)]
    heads = ["run", "epochs", "loss"]
    for name in metrics:
        heads += [TITLES[name], "best (epoch)"]
    rows = [[*heads, "time, s"]]
    for run, title in zip(runs, run_names(runs), strict=True):
        cells = [one_line(title), str(run.epochs[-1]), _last("train_loss", run)]
        for name in metrics:
            epochs, values = run.points(name)
            best = max(range(len(values)), key=values.__getitem__, default=None)
            cells.append(_last(name, run))
            cells.append("" if best is None else f"{_number(name, values[best])} ({epochs[best]})")
        rows.append([*cells, f"{sum(run.points('seconds')[1]):.0f}"])
    return _aligned(rows)


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
