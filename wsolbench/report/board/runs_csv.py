"""The CSV file of a data set: every run and threshold policy with all its metrics, as numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from wsolbench.metrics.catalog import all_metrics, metric_info
from wsolbench.protocol import DetectionProtocol, EvalProtocol
from wsolbench.report.board.formats import escape_formula
from wsolbench.report.board.repetitions import Run, different_settings
from wsolbench.report.board.tables import sort_policies, supervision_text
from wsolbench.system.files import sha256_of_json

FACTS = (
    "dataset",
    "split",
    "transform",
    "fingerprint",
    "images",
    "protocol",
    "protocol_sha256",
    "method",
    "settings",
    "supervision",
    "backbone",
    "init",
    "seed",
    "record",
    "policy",
)
"""First columns of the CSV files. Those of the metrics follow."""

_ENDS = ("", "_low", "_high", "_tau")


def runs_csv(runs: Sequence[Run]) -> str:
    """Return one CSV row per run and policy: for each metric its value, interval and thresholds.

    Values are fractions with six digits. Thresholds are separated by spaces. A metric without a threshold
    appears in the rows of every policy. Undefined values are empty.
    """
    names = [info.name for info in all_metrics()]
    rows = []
    # One row per run and policy.
    for run in sorted(runs, key=lambda run: run.link):
        record = run.record
        facts = {
            "dataset": record.dataset["name"],
            "split": record.dataset["split"],
            "transform": record.dataset.get("transform"),
            "fingerprint": record.dataset.get("fingerprint"),
            "images": record.dataset.get("images"),
            "protocol": record.protocol.name,
            "protocol_sha256": _protocol_digest(record.protocol),
            "method": record.method["name"],
            "settings": different_settings(run, runs),
            "supervision": supervision_text(record),
            "backbone": record.method.get("backbone"),
            "init": record.init,
            "seed": record.training.get("seed"),
            "record": run.link,
        }
        policies: Sequence[str | None] = sort_policies(
            metric.policy for metric in record.metrics if metric.policy
        )
        for policy in policies or [None]:
            numbers: dict[str, str] = {}
            for metric in (metric for metric in record.metrics if metric.policy in (policy, None)):
                ends = {"": metric.value, "_low": metric.low, "_high": metric.high}
                numbers |= {
                    metric.name + end: f"{value:.6g}" for end, value in ends.items() if value is not None
                }
                if metric.tau:
                    numbers[f"{metric.name}_tau"] = " ".join(f"{tau:.6g}" for tau in metric.tau)
            rows.append(
                {name: escape_formula(value) for name, value in {**facts, "policy": policy}.items()} | numbers
            )
    # Columns in table order.
    found = {name for row in rows for name in row}.difference(FACTS)

    def place(column: str) -> tuple[int, str, int]:
        name = next((column.removesuffix(end) for end in _ENDS if end and column.endswith(end)), column)
        return names.index(metric_info(name).name), name, _ENDS.index(column.removeprefix(name))

    stream = io.StringIO()
    writer = csv.DictWriter(stream, (*FACTS, *sorted(found, key=place)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _protocol_digest(protocol: EvalProtocol | DetectionProtocol) -> str:
    """Return a short digest of all fields of a protocol. Equal digests may be compared."""
    return sha256_of_json(protocol.to_json())[:12]
