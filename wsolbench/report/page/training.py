"""Section of the page with training curves: the logs of run folders whose checkpoints were evaluated.

A record names the digest of its checkpoint. A log belongs to the records whose checkpoint is next to it, so
it cannot be shown for another training with the same settings.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsolbench.exceptions import DataError
from wsolbench.records.training_log import LOG, TITLES, TrainingCurves, find_logs, read_log
from wsolbench.report.board.repetitions import Run, different_settings, init_text
from wsolbench.report.board.tables import disambiguate
from wsolbench.report.page.html import Td, escape, row_of, table_block
from wsolbench.report.pictures.curves import line_style, panel_pictures, runs_rows
from wsolbench.report.pictures.plots import COLORS
from wsolbench.system.files import sha256_of_file
from wsolbench.system.progress import track

MOST_LINES = len(COLORS)
"""Most runs of a figure: one per colour."""
_DASHES = {"-": "", "--": "7 3", "-.": "7 3 2 3", ":": "2 3"}


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Trainings of a method on a data set: labels, and a log each."""

    dataset: str
    method: str
    labels: tuple[str, ...]
    curves: tuple[TrainingCurves, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingLogs:
    """Logs of evaluated trainings, one message per log that cannot be read, and logs without a record."""

    trainings: tuple[Trainings, ...] = ()
    problems: tuple[str, ...] = ()
    without_record: tuple[Path, ...] = ()


def default_runs() -> list[Path]:
    """Return the folder in which `wsolbench train` makes run folders, if it has a log."""
    folder = Path("runs")
    return [folder] if next(folder.rglob(LOG), None) is not None else []


def read_trainings(folders: Sequence[Path], runs: Sequence[Run]) -> TrainingLogs:
    """Return the logs below `folders` whose checkpoints these runs evaluated, by data set and method.

    Raises `UsageError` as `wsolbench.records.training_log.find_logs`.
    """
    by_checkpoint = _runs_by_checkpoint(runs)
    logs: dict[tuple[str, str], list[tuple[Run, TrainingCurves]]] = defaultdict(list)
    problems, without = [], []
    for path in track(find_logs(folders), "reading training logs", unit="logs"):
        run = _run_of(path.parent, by_checkpoint)
        if run is None:
            without.append(path)
            continue
        try:
            logs[str(run.record.dataset["name"]), _method(run)].append((run, read_log(path)))
        except DataError as error:  # the page is useful without this log, and shows the message
            problems.append(str(error))
    trainings = [
        Trainings(
            dataset=dataset,
            method=method,
            labels=tuple(_labels([run for run, _ in found])),
            curves=tuple(curves for _, curves in found),
        )
        for (dataset, method), unsorted in sorted(logs.items())
        for found in [_sorted_by_seed(unsorted)]
    ]
    return TrainingLogs(trainings=tuple(trainings), problems=tuple(problems), without_record=tuple(without))


def _runs_by_checkpoint(runs: Iterable[Run]) -> dict[tuple[str, str], Run]:
    """Return file name and digest of a checkpoint -> its run. The run without a post-process comes first."""
    found: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: (len(str(run.record.method["name"])), run.link)):
        checkpoint = run.record.training.get("checkpoint")
        if isinstance(checkpoint, dict):
            found.setdefault((str(checkpoint.get("file")), str(checkpoint.get("sha256"))), run)
    return found


def _run_of(folder: Path, by_checkpoint: dict[tuple[str, str], Run]) -> Run | None:
    """Return the run that evaluated a checkpoint of a run folder, or None."""
    for name in sorted({name for name, _ in by_checkpoint}):
        path = folder / name
        if Path(name).name == name and path.is_file():
            run = by_checkpoint.get((name, sha256_of_file(path)))
            if run is not None:
                return run
    return None


def _method(run: Run) -> str:
    """Return the name of the trained method, without post-process."""
    return str(run.record.training.get("method") or run.record.method["name"])


def _sorted_by_seed(found: Sequence[tuple[Run, TrainingCurves]]) -> list[tuple[Run, TrainingCurves]]:
    """Sort the trainings of a method by settings, then by seed."""
    runs = [run for run, _ in found]

    def key(each: tuple[Run, TrainingCurves]) -> tuple[str, int, Path]:
        run, curves = each
        settings = f"{run.backbone} {run.record.start} {different_settings(run, runs)}"
        return settings, -1 if run.seed is None else run.seed, curves.path

    return sorted(found, key=key)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a unique label for each training: backbone, init, settings that differ, and seed."""
    labels = []
    for run in runs:
        start = run.record.start
        parts = [run.backbone, None if start is None else init_text(start), different_settings(run, runs)]
        parts += [] if run.seed is None else [f"seed {run.seed}"]
        labels.append(" · ".join(str(part) for part in parts if part) or _method(run))
    return disambiguate(labels, [run.record.digest[:8] for run in runs])


def training_html(logs: TrainingLogs) -> str:
    """Return a figure and a table for each method and data set, or an empty text without a log."""
    if not (logs.trainings or logs.without_record or logs.problems):
        return ""
    text = (
        "<p>Loss, learning rate and validation metrics over epochs, from the <code>log.csv</code> of run "
        "folders. A log belongs to the record of the checkpoint next to it. "
        "<code>wsolbench curves</code> plots any logs.</p>"
    )
    left_out = [*logs.problems, *(f"{path} has no record of its checkpoint" for path in logs.without_record)]
    if left_out:
        lines = "".join(f"<li>{escape(line)}</li>" for line in left_out)
        text += f"<details><summary>Left out: {len(left_out)}</summary><ul>{lines}</ul></details>"
    for place, trainings in enumerate(logs.trainings):
        title = f"{trainings.dataset} · {trainings.method}"
        count = len(trainings.curves)
        text += f"<details{' open' if place == 0 else ''}><summary>{escape(title)}: {count} "
        text += f"training{'s' * (count != 1)}</summary>"
        for start in range(0, count, MOST_LINES):
            text += _figure(trainings, title, slice(start, start + MOST_LINES))
        text += "</details>"
    return text


def _figure(trainings: Trainings, title: str, part: slice) -> str:
    """Return the panels of some trainings, and a table that is their legend."""
    curves, labels = trainings.curves[part], trainings.labels[part]
    pictures = "".join(
        f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" width="420" height="290" '
        f'loading="lazy" alt="{escape(f"{TITLES[name]} over epochs. The table below has the values.")}">'
        for name, png in panel_pictures(curves)
    )
    heads, *lines = runs_rows(curves, labels)
    rows = [
        row_of([Td(f"{_line(place)} {escape(line[0])}"), *(Td(escape(text)) for text in line[1:])])
        for place, line in enumerate(lines)
    ]
    last = part.start + len(lines)
    which = f" · {part.start + 1} to {last}" if len(trainings.curves) > len(lines) else ""
    return f'<div class="panels">{pictures}</div>' + table_block(
        f"Trainings · {title}{which}", heads, rows, sortable=False
    )


def _line(place: int) -> str:
    """Return a sample of the line of a run."""
    color, dashes = line_style(place)
    return (
        '<svg class="sample" width="34" height="10" viewBox="0 0 34 10" aria-hidden="true">'
        f'<path d="M2 5H32" stroke="{color}" stroke-width="2" stroke-dasharray="{_DASHES[dashes]}"/></svg>'
    )
