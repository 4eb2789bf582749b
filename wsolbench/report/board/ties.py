"""Paired tests of the rows of a table against its best row, stored by the digests of their records.

A test resamples images and seeds, so it takes longer than writing the table. `ties.json` of the leaderboard
keeps its p-value; it holds for these records only, and is made again for others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from wsolbench.evaluation.compare import compare_records
from wsolbench.exceptions import DataError
from wsolbench.metrics.seed_intervals import holm
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.records.budget import Budgets
from wsolbench.records.comparison import Comparison
from wsolbench.report.board.comparisons import SIGNIFICANT
from wsolbench.report.board.method_rows import MethodRow, mark_cell
from wsolbench.system.files import sha256_of_json
from wsolbench.system.stored import read_json

TIES = "ties.json"
"""File of the leaderboard with the p-values."""
RESAMPLES = 1000


class TieTests:
    """Tests of this leaderboard. `known` are p-values by `key_of`, `used` those that its tables have."""

    def __init__(self, folder: Path, records: Sequence[RunRecord]) -> None:
        """Read the stored tests of a leaderboard. A damaged file counts as missing."""
        self.budgets = Budgets(records)
        self.known: dict[str, float | None] = {}
        self.used: dict[str, float | None] = {}
        try:
            stored = read_json(folder / TIES, "file")
        except DataError:
            return
        if isinstance(stored, dict):
            self.known = {
                key: value
                for key, value in stored.items()
                if value is None or (isinstance(value, float) and 0 <= value <= 1)
            }

    def mark(self, rows: Sequence[MethodRow], name: str) -> int:
        """Mark the rows that a test does not separate from the best of a column.

        The p-values are corrected together (Holm). Returns the number of rows that could not be tested,
        because a row lacks per-image scores, the data differ, or it was trained from another checkpoint.
        """
        shown = [row for row in rows if name in row.means]
        candidates = [row for row in shown if row.can_be_best]
        if not candidates:
            return 0
        best = max(candidates, key=lambda row: row.means[name])
        others = [row for row in shown if row.can_be_tested and row.means[name] != best.means[name]]
        tested = [(row, self._test(best, row, name) if row.starts_with(best) else None) for row in others]
        found = [(row, p) for row, p in tested if p is not None]
        mark_tested(found, name)
        return len(tested) - len(found)

    def text(self) -> str:
        """Return the content of `ties.json`: the tests that the tables have."""
        return json.dumps(self.used, indent=1, sort_keys=True) + "\n"

    def _test(self, best: MethodRow, row: MethodRow, name: str) -> float | None:
        key = key_of(best, row, name)
        if key not in self.known:
            self.known[key] = self._compare(best, row, name)
        self.used[key] = self.known[key]
        return self.known[key]

    def _compare(self, best: MethodRow, row: MethodRow, name: str) -> float | None:
        try:
            comparison = compare_rows(best, row, [name], budgets=self.budgets, resamples=RESAMPLES)
        except DataError:
            return None
        if comparison is None or not comparison.differences:
            return None
        return round(comparison.differences[0].test, 6)


def compare_rows(
    best: MethodRow, row: MethodRow, names: Sequence[str], *, budgets: Budgets, resamples: int
) -> Comparison | None:
    """Compare two rows image by image in these metrics, whatever their budgets.

    Returns None if one lacks per-image scores. Raises as `wsolbench.evaluation.compare.compare_records`.
    """
    is_of_maps = isinstance(row.runs[0].record.protocol, EvalProtocol)
    if not (is_of_maps and row.has_scores and best.has_scores):
        return None
    return compare_records(
        *({run.path: run.record for run in each.runs} for each in (best, row)),
        resamples=resamples,
        budgets=budgets,
        allow_unequal_budget=True,
        only=names,
    )


def mark_tested(tested: Sequence[tuple[MethodRow, float]], name: str) -> None:
    """Mark the cells of a column with the results of the tests against its best row.

    `tested` are the rows and their p-values, which are corrected together (Holm).
    """
    corrected = holm([p for _, p in tested])
    for (row, _), p in zip(tested, corrected, strict=True):
        row.cells[name] = mark_cell(row.cells[name], tie=p >= SIGNIFICANT)


def key_of(best: MethodRow, row: MethodRow, name: str) -> str:
    """Return what a test depends on, as one digest: records, metric and number of resamples."""
    digests = [sorted(run.record.digest for run in each.runs) for each in (best, row)]
    return sha256_of_json([*digests, name, RESAMPLES])[:16]
