"""One table of methods and metrics, as papers print it: a row per method, a column per metric.

All rows share images, annotations, protocol and threshold policy. Runs that differ only in their seed are one
row, with the mean over seeds. The best value of a column is bold. Rows that a paired test does not separate
from the best one are marked. Published rows form sections of their own and are never bold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.records.budget import Budgets
from wsolbench.report.board.board import DISPUTED, NOT_WHOLE, Cell, Numbers, Table, is_official
from wsolbench.report.board.comparisons import SIGNIFICANT
from wsolbench.report.board.leaderboard import COLUMNS
from wsolbench.report.board.method_rows import (
    TIE,
    MethodRow,
    Spread,
    find_paper,
    mark_cell,
    measured_rows,
    published_rows,
    value_of,
)
from wsolbench.report.board.repetitions import Run, one_of_each_seed, source_of, source_title
from wsolbench.report.board.tables import describe_protocol, sort_policies
from wsolbench.report.board.ties import compare_rows, mark_tested
from wsolbench.system.progress import track

_MOST_NAMED = 3
"""Most files that an error names for each value of a field."""

_SAME: dict[str, tuple[Callable[[Run], Any], str]] = {
    "data set": (lambda run: run.record.dataset["name"], "Choose one with --dataset"),
    "split": (lambda run: run.record.dataset["split"], "Choose one with --split"),
    "transform": (lambda run: run.record.dataset.get("transform") or "none", "Name the records of one"),
    "number of images": (lambda run: run.record.dataset.get("images"), "Name the records of one"),
    "fingerprint of the annotations": (
        lambda run: run.record.dataset.get("fingerprint"),
        "Name the records of one",
    ),
    "protocol": (lambda run: describe_protocol(run.record.protocol), "Choose one with --protocol"),
}
"""What all records of a table share: how it is read, and the way out if it differs."""

_LABELS = ("method", "settings", "supervision", "backbone", "init", "source")
"""Columns that name a row. Those after the first are left out where they say nothing."""


@dataclass(frozen=True, kw_only=True)
class MethodTable:
    """The table, and one message per thing that it lacks."""

    table: Table
    messages: tuple[str, ...]


def method_table(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = (),
    policy: str | None = None,
    spread: Spread = "interval",
    published: Numbers | None = None,
    sources: Sequence[str] = (),
    ties: bool = True,
    resamples: int = 1000,
) -> MethodTable:
    """Return the table of these runs.

    Args:
        runs: the runs, in the order of the rows.
        metrics: names of the columns, or none for those of the leaderboard that the runs have.
        policy: threshold policy. None: `oracle`, or the only one that all runs share.
        spread: what follows the mean: the standard deviation over seeds, the interval over images, or
            nothing.
        published: published numbers, if `sources` names any.
        sources: keys or names of papers whose rows are added.
        ties: whether rows are tested against the best one.
        resamples: resamples of the images in these tests.

    Raises `DataError` naming the field and the files of records that differ in more than the method, and
    `UsageError` for an unknown metric, policy or source.
    """
    if not runs:
        raise UsageError("found no record to tabulate; expected at least one")
    for name in metrics:
        metric_info(name)
    _refuse_mixtures(runs)
    policy = _choose_policy(runs, policy)
    names = list(dict.fromkeys(metrics)) or _default_metrics(runs, policy)
    _refuse_versions(runs, names)
    # Measured rows.
    shown = one_of_each_seed(runs, of_each_source=policy == "transfer")
    messages = (
        [f"left out: {len(runs) - len(shown)} records that repeat a seed"] if len(shown) < len(runs) else []
    )
    rows = measured_rows(shown, names, policy, spread)
    messages += _missing(shown, names, policy)
    best = {name: found for name in names if (found := _best(rows, name)) is not None}
    for name, row in best.items():
        for each in rows:
            if each.means.get(name) == row.means[name] and each.can_be_best:
                each.cells[name] = mark_cell(each.cells[name], best=True)
    messages += _mark_ties(rows, best, policy, resamples) if ties else []
    # Published rows.
    sections = []
    for paper in [find_paper(source, published) for source in dict.fromkeys(sources)]:
        sections.append((len(rows), f"Published: {paper.name}, {paper.venue_and_year}".rstrip(", ")))
        rows += published_rows(paper, published, runs[0], names)
    notes = _notes(rows, names, runs[0], policy, spread)
    table = _laid_out(rows, names, sections, runs[0], policy, notes)
    return MethodTable(table=table, messages=tuple(messages))


# --- what may be in one table -------------------------------------------------------------------------------


def _refuse_mixtures(runs: Sequence[Run]) -> None:
    """Raise `DataError` for the first field of `_SAME` that differs, naming values and files."""
    for what, (read, way_out) in _SAME.items():
        by_value: dict[Any, list[Run]] = defaultdict(list)
        for run in runs:
            by_value[read(run)].append(run)
        if len(by_value) > 1:
            raise DataError(_differ(what, by_value, way_out))
    if len({run.record.protocol for run in runs}) > 1:
        raise DataError(
            "the records have one name for protocols that differ; name the records of one protocol"
        )


def _differ(what: str, by_value: Mapping[Any, Sequence[Run]], way_out: str) -> str:
    found = "; ".join(
        f"{value} ({', '.join(str(run.path) for run in runs[:_MOST_NAMED])}"
        f"{f' and {len(runs) - _MOST_NAMED} more' if len(runs) > _MOST_NAMED else ''})"
        for value, runs in by_value.items()
    )
    return f"the records differ in the {what}: {found}; expected one for all rows of a table. {way_out}"


def _policies(run: Run) -> list[str]:
    return sort_policies(metric.policy for metric in run.record.metrics if metric.policy is not None)


def _choose_policy(runs: Sequence[Run], wanted: str | None) -> str | None:
    """Return the policy of the table, or None if no run has thresholds."""
    having = [run for run in runs if _policies(run)]
    if not having:
        if wanted is not None:
            raise UsageError(f"found --policy {wanted}, but no record has a threshold; leave it out")
        return None
    every = {policy for run in having for policy in _policies(run)}
    if wanted is None:
        common = [
            policy for policy in sort_policies(every) if all(policy in _policies(run) for run in having)
        ]
        if "oracle" not in common and len(common) != 1:
            by_value: dict[str, list[Run]] = defaultdict(list)
            for run in having:
                by_value[", ".join(_policies(run))].append(run)
            raise DataError(_differ("threshold policy", by_value, "Choose one with --policy"))
        wanted = common[0]  # oracle comes first
    if wanted not in every:
        raise unknown_name("threshold policy", wanted, every)
    if wanted == "transfer":
        sources: dict[str, list[Run]] = defaultdict(list)
        for run in having:
            if wanted in _policies(run):
                sources[f"thresholds{source_title(source_of(run))}"].append(run)
        if len(sources) > 1:
            way_out = "Name the records of one split, or choose --policy oracle"
            raise DataError(_differ("split that thresholds are transferred from", sources, way_out))
    return wanted


def _default_metrics(runs: Sequence[Run], policy: str | None) -> list[str]:
    names = [name for name in COLUMNS if any(value_of(run, name, policy) is not None for run in runs)]
    if not names:
        raise UsageError("no record has a metric of the leaderboard; name some with --metrics")
    return names


def _refuse_versions(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise `DataError` for records with several versions of a metric's definition."""
    for name in names:
        by_version: dict[int, list[Run]] = defaultdict(list)
        for run in runs:
            for version in {metric.version for metric in run.record.metrics if metric.name == name}:
                by_version[version].append(run)
        if len(by_version) > 1:
            raise DataError(_differ(f"version of {name}", by_version, "Evaluate the older ones again"))


def _missing(runs: Sequence[Run], names: Sequence[str], policy: str | None) -> list[str]:
    """Return one message that names the metrics that records lack, if any."""
    lacking = {name: [run for run in runs if value_of(run, name, policy) is None] for name in names}
    texts = [
        f"{name} of {', '.join(str(run.path) for run in found[:_MOST_NAMED])}"
        f"{f' and {len(found) - _MOST_NAMED} more' if len(found) > _MOST_NAMED else ''}"
        for name, found in lacking.items()
        if found
    ]
    under = "" if policy is None else f" under policy {policy}"
    return [f"empty cells, because records have no value{under}: {'; '.join(texts)}"] if texts else []


# --- the best of a column, and its ties ---------------------------------------------------------------------


def _best(rows: Sequence[MethodRow], name: str) -> MethodRow | None:
    """Return the best row of a column. None for a metric that is better in neither direction."""
    better = metric_info(name).better
    found = [row for row in rows if name in row.means and row.can_be_best]
    if better == "neither" or not found:
        return None
    return (min if better == "lower" else max)(found, key=lambda row: row.means[name])


def _mark_ties(
    rows: Sequence[MethodRow], best: Mapping[str, MethodRow], policy: str | None, resamples: int
) -> list[str]:
    """Mark the cells that a paired test does not separate from the best of their column.

    Returns messages on rows that could not be tested. The p-values of a column
    are corrected together (Holm). Comparisons are at oracle thresholds, so numbers under another policy have
    no tests.
    """
    of_policy = {
        name
        for name, row in best.items()
        if any(metric.name == name and metric.policy is not None for metric in row.runs[0].record.metrics)
    }
    testable = [name for name in best if policy == "oracle" or name not in of_policy]
    messages = []
    if len(testable) < len(best):
        messages.append(f"no tests under policy {policy}, because comparisons are at oracle thresholds")
    # Compare each row with the best ones, for the columns that these are the best of.
    p_values: dict[str, list[tuple[MethodRow, float]]] = {name: [] for name in testable}
    budgets, without = Budgets(run.record for row in rows for run in row.runs), 0
    candidates = [row for row in rows if row.can_be_tested]
    for row in track(candidates if testable else [], "comparing", unit="rows"):
        rivals: dict[int, list[str]] = defaultdict(list)
        for name in testable:
            if name in row.means and row.means[name] != best[name].means[name]:
                rivals[rows.index(best[name])].append(name)
        without += any(not (row.has_scores and rows[rival].has_scores) for rival in rivals)
        for rival, names in rivals.items():
            try:
                comparison = compare_rows(rows[rival], row, names, budgets=budgets, resamples=resamples)
            except DataError as error:
                messages.append(f"not tested against the best: {error}")
                continue
            for difference in () if comparison is None else comparison.differences:
                p_values[difference.name].append((row, difference.test))
    # Correct the p-values of each column, and mark.
    for name, found in p_values.items():
        mark_tested(found, name)
    if without:
        messages.append(
            f"not tested against the best, because they or it lack per-image scores: {without} rows"
        )
    return messages


# --- layout -------------------------------------------------------------------------------------------------


_UNITS = {"level": "a level from 0 to 255", "pixels": "in pixels of a 448-pixel input", "number": "a number"}
"""Units of metrics that are not printed in percent."""


def _notes(
    rows: Sequence[MethodRow], names: Sequence[str], run: Run, policy: str | None, spread: Spread
) -> list[str]:
    """Return the notes below the table: units, spread, policy, marks, published rows."""
    over = {"sd": " ± standard deviation over seeds", "interval": " [95 % interval over images]", "none": ""}
    mean = ", mean over seeds" if any(len(row.runs) > 1 for row in rows) else ""
    notes = [f"Values in percent{mean}{over[spread]}."]
    for name in names:
        if (unit := metric_info(name).unit) in _UNITS:
            notes[0] += f" {metric_title(name)}: {_UNITS[unit]}."
    if policy == "oracle":
        notes[0] += " oracle: threshold tuned on this split (upper bound)."
    ends = any(row.runs and not row.can_be_best for row in rows)
    bold = f"Bold: best of the column{', without floors and ceilings' if ends else ''}."
    cells = [cell for row in rows for cell in row.cells.values()]
    if any((cell.numbers or {}).get("tie") is not None for cell in cells):
        bold += (
            f" {TIE}: not significantly different from it (paired test, p of {SIGNIFICANT:g} or more after "
            "Holm's correction for the tests of the column)."
        )
    notes.append(bold)
    if not all(row.runs for row in rows):
        notes.append("Published values are as printed, and are not measured here.")
        notes += [] if is_official(run.record) else [NOT_WHOLE]
    return notes + [DISPUTED] * any("†" in cell.text for cell in cells)


def _laid_out(
    rows: Sequence[MethodRow],
    names: Sequence[str],
    sections: Sequence[tuple[int, str]],
    run: Run,
    policy: str | None,
    notes: Sequence[str],
) -> Table:
    """Return the table with the label columns that tell rows apart."""
    texts = {label: [row.labels.get(label, "") for row in rows] for label in _LABELS}
    shown = [
        label
        for label, found in texts.items()
        if label == "method" or (len(set(found)) > 1 if label in ("backbone", "init") else any(found))
    ]
    data = run.record.dataset
    images = f"{data.get('images')} images"
    where = ", ".join(filter(None, (f"{data['name']}/{data['split']}", data.get("transform"), images)))
    source = source_title(source_of(run)) if policy == "transfer" else ""
    protocol = f"Protocol {describe_protocol(run.record.protocol)}"
    return Table(
        path=(where, protocol if policy is None else f"{protocol}, threshold: {policy}{source}"),
        columns=(*shown, *map(metric_title, names)),
        keys=(*shown, *names),
        rows=tuple(
            (
                *(
                    Cell(row.labels.get(label, ""), _link(row) if label == "method" else "")
                    for label in shown
                ),
                *(row.cells.get(name, Cell("")) for name in names),
            )
            for row in rows
        ),
        notes=tuple(notes),
        sections=tuple(sections),
    )


def _link(row: MethodRow) -> str:
    return row.runs[0].link if row.runs else ""
