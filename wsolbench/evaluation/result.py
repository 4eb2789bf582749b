"""The result of an evaluation: record, per-image scores, and the numbers under one threshold policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsolbench.evaluation.runs import RunFolder
from wsolbench.evaluation.score_table import SCORES, ScoreTable
from wsolbench.metrics.catalog import metric_info
from wsolbench.records import MetricValue, RunRecord

_SHOWN = ("gt_known", "top1_loc", "max_box_acc_v2", "pxap", "top1_cls", "top5_loc", "max_box_acc", "peak_iou")
"""Metrics of the printed table, the most important first."""
_ROWS = 5


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The record of a run, and the per-image scores that it was computed from. It prints a short table."""

    record: RunRecord
    scores: ScoreTable
    folders: tuple[RunFolder, ...] = ()
    """Folders with the chunks of this run."""
    policy: str = "oracle"
    """Threshold policy of `metrics` and of the printed table. The record has all of them."""

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
        """Return a table of the most important metrics: a title and at most five rows."""
        data, metrics = self.record.dataset, self.metrics
        rows = [metrics[name] for name in _SHOWN if name in metrics and metrics[name].value is not None]
        if not rows:
            rows = [metric for metric in metrics.values() if metric.value is not None]
        title = (
            f"{self.record.method['name']} on {data['name']} {data['split']}: {data['images']:,} images, "
            f"protocol {self.record.protocol.name}, thresholds {self.policy}"
        )
        return "\n".join([title, *(_row(metric) for metric in rows[:_ROWS])])

    __repr__ = __str__


def _row(metric: MetricValue) -> str:
    """Format a metric: title, value, 95 % interval, threshold."""
    info = metric_info(metric.name)
    value, low, high = (
        "-" if number is None else f"{number * info.scale:.{info.decimals}f}"
        for number in (metric.value, metric.low, metric.high)
    )
    unit = "%" if info.unit == "fraction" else " "
    taus = "" if metric.tau is None else "  tau " + ", ".join(f"{tau:g}" for tau in metric.tau)
    return f"  {info.title:<14}{value:>6} {unit}  [{low}, {high}]{taus}"
