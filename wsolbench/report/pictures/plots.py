"""Pictures of a run: box accuracy over the threshold, the error breakdown, and sheets of images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.catalog import metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.protocol import DELTA, EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.report.board.tables import run_title, sort_policies
from wsolbench.report.pictures.figure_files import save_figures
from wsolbench.report.pictures.grid_parts import shorten
from wsolbench.report.pictures.sheets import SHEETS, write_sheets
from wsolbench.system.files import atomic_path, make_folder
from wsolbench.types import Dataset, ScoreMap

PICTURES = (*SHEETS, "accuracy", "errors")
"""File names, without suffix, that `write_pictures` can write."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which people with a colour vision deficiency can distinguish."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
_MARKERS = {"oracle": "o", "fixed": "^", "transfer": "D"}


def write_pictures(
    folder: Path,
    record: RunRecord,
    scores: ScoreTable,
    dataset: Dataset,
    maps_of: Callable[[list[int]], Sequence[ScoreMap]],
    *,
    count: int = 9,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write those of `PICTURES` that the scores allow into `folder`, and return their paths.

    Other files with these names and formats are removed. Sheets show the images with the highest and the
    lowest IoU, and some evenly spaced over all ranks. IoU and predicted box are those of GT-known at its
    oracle threshold. If no image has a ground-truth box, they are the pixel IoU and the region at Peak-T.

    Args:
        folder: output folder, created if needed.
        record: record of the run; gives protocol, thresholds and title.
        scores: per-image scores, in the order of `dataset`.
        dataset: the images that were scored.
        maps_of: returns the raw maps of the true class of the images with these indices, in that order. It
            is called once.
        count: number of images on a sheet.
        formats: some of `wsolbench.report.pictures.figure_files.FORMATS`.

    Raises `DataError` if scores and data set are of different images, and `UsageError` if the folder is
    read-only.
    """
    # Check that the scores are those of the images.
    ids = scores.column(lambda part: part.ids).tolist()
    if list(dataset.ids) != ids:
        raise DataError(
            f"the {len(ids)} scores are not of the {len(dataset)} images of {dataset.name}/{dataset.split}: "
            "their ids differ; expected the scores of this split"
        )
    # Write what the scores allow, and remove the rest.
    make_folder(folder)
    written = write_sheets(folder, record, scores, dataset, maps_of, count=count, formats=formats)

    def named(name: str) -> list[Path]:
        return [folder / f"{name}.{kind}" for kind in formats]

    if _has_boxes(scores):
        accuracy_curve(record, scores, named("accuracy"))
        written += named("accuracy")
    if _error_shares(record, "oracle") is not None:
        error_bars([(str(record.method["name"]), record)], named("errors"))
        written += named("errors")
    for path in (path for name in PICTURES for path in named(name)):
        if path not in written:
            path.unlink(missing_ok=True)
    return written


def add_pictures(
    folder: Path,
    record: RunRecord,
    scores: ScoreTable,
    dataset: Dataset,
    maps_of: Callable[[list[int]], Sequence[ScoreMap]],
    *,
    formats: Sequence[str] = ("png",),
) -> tuple[Path, list[Path]]:
    """Write the pictures of a run, as `write_pictures`, into a folder of its own below `folder`.

    The folder is named as the record, DATASET/RECORD, so runs with another result never replace pictures.
    Returns the folder and the paths of the pictures.
    """
    make_folder(folder)
    own = folder / record.path.with_suffix("")
    with tempfile.TemporaryDirectory() as place:
        found = write_pictures(Path(place), record, scores, dataset, maps_of, formats=formats)
        new = {path.name: path.read_bytes() for path in found}
    for name, content in new.items():
        with atomic_path(own / name) as temporary:
            temporary.write_bytes(content)
    return own, [own / name for name in new]


def accuracy_curve(record: RunRecord, scores: ScoreTable, paths: Path | Sequence[Path]) -> None:
    """Write a plot of box accuracy over the threshold tau, with one line per IoU threshold delta.

    The left panel uses the protocol's rule for MaxBoxAccV2 (every region gives a box). The right panel uses
    its rule for one box per image. The thresholds of the record's policies are marked on the lines that a
    metric is read from. Raises `DataError` if no image has a ground-truth box, and `UsageError` if the file
    cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not _has_boxes(scores):
        raise DataError(
            "no image has a ground-truth box, so there is no box accuracy to plot; expected scores of a "
            "split with boxes"
        )
    # Layout: one panel per box rule.
    protocol = record.map_protocol
    policies = sort_policies(metric.policy for metric in record.metrics if metric.policy is not None)
    deltas = tuple(sorted({*protocol.deltas, DELTA}))
    figure: Any = Figure(figsize=(10.0, 4.9), dpi=100)
    panels = figure.subplots(1, 2, sharey=True)
    rules = (
        (
            f"Boxes: {protocol.components} ({metric_title('max_box_acc_v2')})",
            "best_iou",
            protocol.deltas,
            "max_box_acc_v2",
        ),
        (
            f"One box per image: {protocol.single_box} ({metric_title('gt_known')})",
            "single_iou",
            deltas,
            "gt_known",
        ),
    )
    # Lines, and marks at the thresholds of the policies.
    for axes, (title, iou, drawn, name) in zip(panels, rules, strict=True):
        curves = _curves(scores, iou, drawn, protocol)
        for delta, curve in zip(drawn, curves, strict=True):
            style = deltas.index(delta)
            axes.plot(
                protocol.taus,
                100 * curve,
                color=_pick(COLORS, style),
                linestyle=_pick(LINES, style),
                linewidth=1.8,
            )
        read_at = protocol.deltas if name == "max_box_acc_v2" else (DELTA,)
        for policy in policies:
            metric = record.metric(name, policy)
            for delta, tau in zip(read_at, metric.tau or () if metric else (), strict=False):
                height = np.interp(tau, protocol.taus, curves[drawn.index(delta)])
                color = _pick(COLORS, deltas.index(delta))
                axes.plot(
                    tau,
                    100 * height,
                    _marker(policy),
                    color=color,
                    markeredgecolor="black",
                    markersize=8,
                    clip_on=False,
                    zorder=3,
                )
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_xlabel("threshold tau")
        axes.set_xlim(protocol.taus[0], max(protocol.taus[-1], protocol.taus[0] + 1e-3))
        axes.set_ylim(-2, 102)  # so that lines at either end are fully visible
        axes.grid(alpha=0.3)
    # Legend.
    panels[0].set_ylabel("images whose box passes (%)")
    test = "≥" if protocol.iou_test == ">=" else ">"
    lines = [
        Line2D(
            [],
            [],
            color=_pick(COLORS, i),
            linestyle=_pick(LINES, i),
            linewidth=1.8,
            label=f"IoU {test} {delta:g}",
        )
        for i, delta in enumerate(deltas)
    ]
    marks = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=_marker(policy),
            color="white",
            markeredgecolor="black",
            markersize=8,
            label=policy,
        )
        for policy in policies
    ]
    _finish(figure, record, [*lines, *marks])
    save_figures(figure, paths)


def _has_boxes(scores: ScoreTable) -> bool:
    return any(part.has_boxes.any() for part in scores)


def _curves(
    scores: ScoreTable, iou: str, deltas: tuple[float, ...], protocol: EvalProtocol
) -> Float64[np.ndarray, "d t"]:
    """Return box accuracy over the threshold, (D, T), from the IoUs of this name."""
    counted = MaxBoxAcc(protocol, deltas=deltas)
    for part in scores:
        for index in np.flatnonzero(part.has_boxes):
            counted.update(getattr(part, iou)[index], int(part.labels[index]))
    return counted.curve()


def error_bars(
    runs: Sequence[tuple[str, RunRecord]], paths: Path | Sequence[Path], *, policy: str = "oracle"
) -> None:
    """Plot the error breakdown of one or several named runs, side by side, with 95 % intervals.

    Raises `UsageError` for a run without an error breakdown under `policy`, and if no run is given.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not runs:
        raise UsageError("no run to plot the error breakdown of; expected at least one")
    figure: Any = Figure(
        figsize=(max(7.0, 1.6 + 0.9 * len(ERROR_NAMES) * max(1.0, len(runs) / 2)), 4.6), dpi=100
    )
    axes = figure.subplots()
    # Bars of each run.
    width = 0.8 / len(runs)
    for number, (name, record) in enumerate(runs):
        shares = _error_shares(record, policy)
        if shares is None:
            raise UsageError(
                f"run {name!r} has no error breakdown under the threshold policy {policy!r}; expected a run "
                "with predicted labels and boxes"
            )
        places = np.arange(len(ERROR_NAMES)) + width * (number - (len(runs) - 1) / 2)
        values, low, high = 100 * shares
        axes.bar(places, values, 0.92 * width, color=_pick(COLORS, number), edgecolor="black", linewidth=0.6)
        spans = np.stack([np.maximum(values - low, 0), np.maximum(high - values, 0)])
        axes.errorbar(places, values, spans, fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        for place, value, top in zip(places, values, high, strict=True):
            axes.annotate(
                f"{value:.1f}",
                (place, max(value, top)),
                (0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
    # Axes, then the legend.
    axes.set_xticks(range(len(ERROR_NAMES)), [metric_title(f"error_{name}") for name in ERROR_NAMES])
    axes.set_ylabel("share of images (%)")
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.05, 10))
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
    handles = [
        Patch(facecolor=_pick(COLORS, number), edgecolor="black", label=shorten(name, 40))
        for number, (name, _) in enumerate(runs)
    ]
    same = all(
        record.key["dataset"] == runs[0][1].key["dataset"] and record.protocol == runs[0][1].protocol
        for _, record in runs
    )
    _finish(
        figure,
        runs[0][1],
        handles if len(runs) > 1 else [],
        title=None if len(runs) == 1 else _shared_title(runs[0][1], same=same),
    )
    save_figures(figure, paths)


def _shared_title(record: RunRecord, *, same: bool) -> str:
    if not same:
        return "Error breakdown · runs with different data sets or protocols"
    return f"Error breakdown · {record.dataset['name']}/{record.dataset['split']} · {record.protocol.name}"


def _error_shares(record: RunRecord, policy: str) -> Float64[np.ndarray, "3 6"] | None:
    """Return value, low and high end of each category as fractions, (3, 6), or None without a breakdown."""
    rows = []
    for name in ERROR_NAMES:
        metric = record.metric(f"error_{name}", policy)
        if metric is None or metric.value is None:
            return None
        value = metric.value
        rows.append(
            (
                value,
                value if metric.low is None else metric.low,
                value if metric.high is None else metric.high,
            )
        )
    return np.transpose(np.array(rows, dtype=np.float64))


def _finish(figure: Any, record: RunRecord, handles: list[Any], title: str | None = None) -> None:
    figure.suptitle(shorten(title or run_title(record), 110), fontsize=11, parse_math=False)
    figure.tight_layout(rect=(0, 0.07 if handles else 0, 1, 1))
    if handles:
        legend = figure.legend(
            handles=handles, loc="lower center", ncols=min(len(handles), 6), fontsize=9, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _marker(policy: str) -> str:
    return _MARKERS.get(policy.partition(":")[0], "s")


def _pick(values: tuple[Any, ...], index: int) -> Any:
    return values[index % len(values)]
