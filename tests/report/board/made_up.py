"""Made-up runs and published numbers for tests of the board."""

from __future__ import annotations

from typing import Any

from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.published import Paper, PublishedNumber
from wsolbench.report.board.board import (
    Numbers,
    Table,
)
from wsolbench.report.board.repetitions import Run

PAPERS = {
    "p": Paper(key="p", name="P", title="A paper", file="published/p.csv", year=2021),
    "q": Paper(key="q", name="Q", title="B", file=""),
}


def number(**changes: Any) -> PublishedNumber:
    values: dict[str, Any] = {
        "paper": "p",
        "table": "Table 1",
        "row": 1,
        "label": "",
        "dataset": "cub",
        "split": "test",
        "method": "CAM",
        "ours": "cam",
        "backbone": "vgg16",
        "metric": "top1_loc",
        "value": "40.5",
        "unit": "percent",
        "evidence": "own",
        "protocol": "",
        "note": "",
    }
    return PublishedNumber(**{**values, **changes})


def run(
    value: float = 0.5,
    *,
    seed: int = 0,
    images: int = 5794,
    metric: str = "top1_loc",
    version: int = 1,
    **method: Any,
) -> Run:
    description = {
        "name": "cam",
        "backbone": "vgg16",
        "config": {"head": "conv"},
        "training": {"seed": seed, "weights": "imagenet", "recipe": {"epochs": 3}},
        **method,
    }
    measured = MetricValue(
        name=metric,
        value=value,
        n=images,
        low=value - 0.02,
        high=value + 0.04,
        policy="oracle",
        tau=(0.2,),
        version=version,
    )
    data = {
        "name": "cub",
        "split": "test",
        "fingerprint": "ab",
        "images": images,
        "limit": None,
        "transfer_from": None,
    }
    record = RunRecord(
        method=description,
        dataset=data,
        protocol=EvalProtocol(),
        metrics=(measured,),
        provenance={"date": "2024-05-01"},
    )
    return Run(record, f"../measured/{description['name']}-{seed}-{value}.json")


def published(*numbers: PublishedNumber) -> Numbers:
    return Numbers(numbers=numbers, papers=PAPERS)


def texts(table: Table) -> list[dict[str, str]]:
    return [{name: cell.text for name, cell in zip(table.columns, row, strict=True)} for row in table.rows]
