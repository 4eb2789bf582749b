"""The result of an evaluation: record, per-image scores, and the numbers under one threshold policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsolbench.evaluation.runs import RunFolder
from wsolbench.evaluation.score_table import SCORES, ScoreTable
from wsolbench.evaluation.short_table import short_table
from wsolbench.records import MetricValue, RunRecord


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The record of a run, and the per-image scores that it was computed from. It prints a short table."""

    record: RunRecord
    scores: ScoreTable
    folders: tuple[RunFolder, ...] = ()
    """Folders with the chunks of this run."""
    policy: str = "oracle"
    """Threshold policy of `metrics`, which comes first in the printed table."""

    @property
    def metrics(self) -> Mapping[str, MetricValue]:
        """Metrics by name: value, interval (`low`, `high`), number of images, threshold.

        A metric that depends on a threshold is that of `policy`, or of the first policy that it has.
        """
        found: dict[str, MetricValue] = {}
        for metric in self.record.metrics:
            if metric.name not in found or metric.policy == self.policy:
                found[metric.name] = metric
        return found

    def save(self, folder: Path | str, *, scores: bool = True) -> Path:
        """Write the record below `folder` and, unless refused, the scores next to it.

        Returns the path of the record, which `wsolbench leaderboard` and `compare` read.
        """
        path = self.record.write(Path(folder))
        if scores:
            self.scores.write(path.with_suffix(SCORES), self.record)
        return path

    def finish(self) -> None:
        """Remove the chunks. Call it when the record is on disk and the scores are no longer needed."""
        for folder in self.folders:
            folder.remove()

    def __str__(self) -> str:
        """Return a title and at most four metrics, with the values under `policy` first."""
        return short_table(self.record, self.policy)

    __repr__ = __str__
