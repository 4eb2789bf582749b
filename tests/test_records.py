"""Records: written once, read back equal, and refused when they are broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wsolbench.exceptions import DataError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord, provenance, read_record, read_records


def record(value: float = 0.5) -> RunRecord:
    return RunRecord(
        method={"name": "cam", "backbone": "timm:resnet18", "config": {"head": "fc"}},
        dataset={"name": "toybirds", "split": "test", "fingerprint": "f00", "images": 600, "limit": None},
        protocol=EvalProtocol.preset("spa"),
        metrics=(
            MetricValue(name="gt_known", value=value, low=0.4, high=0.6, n=600, policy="oracle", tau=(0.25,)),
            MetricValue(name="pxap", value=None, n=0, reason="no image has a mask"),
        ),
        provenance=provenance(seconds={"model": 1.23456}, device="cpu"),
    )


def test_a_record_is_read_back_equal(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    assert read_record(path) == record_without_date(path, record())
    assert [found for found, _ in read_records(tmp_path)] == [path]


def record_without_date(path: Path, expected: RunRecord) -> RunRecord:
    """The date is of the second in which it was written."""
    return replace(expected, provenance=json.loads(path.read_text())["provenance"])


def test_the_path_tells_the_run_and_differs_with_result_and_protocol() -> None:
    paths = {record().path, record(0.6).path, replace(record(), protocol=EvalProtocol()).path}
    assert len(paths) == 3
    assert record().path.as_posix().startswith("toybirds/cam_timm-resnet18_test_spa_")


def test_provenance_does_not_enter_the_digest(tmp_path: Path) -> None:
    other = replace(record(), provenance=provenance(seconds={"model": 99.0}, device="another"))
    assert other.digest == record().digest


def test_a_record_is_never_edited(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    before = path.read_bytes()
    replace(record(), provenance=provenance(seconds={}, device="another")).write(tmp_path)
    assert path.read_bytes() == before


GT_KNOWN = {"name": "gt_known", "value": 0.5, "n": 1}


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"metrics": [{"name": "gt_known", "value": 63.0, "n": 1}]}, "63"),
        ({"metrics": [{"name": "gt_known", "value": None, "n": 1}]}, "neither a value nor a reason"),
        ({"metrics": [{"name": "gt_known"}]}, "lacks"),
        ({"method": {}}, "lacks"),
        *(
            ({"metrics": [GT_KNOWN | {name: "0.5"}]}, f"gt_known has {name} '0.5'; expected a number")
            for name in ("value", "low", "high", "n")
        ),
        ({"metrics": [GT_KNOWN | {"value": True}]}, "value True; expected a number"),
        ({"metrics": [GT_KNOWN | {"low": float("nan")}]}, "low nan; expected a number"),
        ({"metrics": [GT_KNOWN | {"n": None}]}, "n None; expected a number"),
        ({"metrics": [GT_KNOWN | {"tau": 0.5}]}, "tau 0.5; expected a list"),
        ({"metrics": [GT_KNOWN | {"tau": ["0.5"]}]}, "expected a list"),
        ({"metrics": [GT_KNOWN | {"policy": 1}]}, "policy 1; expected a text"),
        *(({"method": {"name": "cam", name: ["x"]}}, f"method has {name}") for name in ("config", "post", "training")),
        ({"method": {"name": "cam", "training": {"recipe": "x"}}}, "method.training has recipe 'x'"),
        ({"method": {"name": "cam", "post": {"config": 1}}}, "method.post has config 1"),
        ({"method": {"name": 1}}, "method.name is 1; expected a text"),
        ({"method": {"name": "cam", "backbone": 50}}, "method.backbone is 50; expected a text"),
        ({"method": {"name": "cam", "training": {"seed": "0"}}}, "seed '0'; expected a whole number"),
        ({"method": {"name": "cam", "training": {"seed": True}}}, "seed True; expected a whole number"),
        ({"dataset": {"name": "cub", "split": ["test"], "fingerprint": "ab"}}, "dataset.split is"),
        ({"dataset": {"name": "cub", "split": "test"}}, "dataset.fingerprint is None; expected a text"),
        ({"dataset": {"name": "cub", "split": "test", "fingerprint": "ab", "transform": 90}}, "dataset.transform is 90"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = record().write(tmp_path)
    edit(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_text_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("training", "start"),
    [
        ({"weights": "none"}, "none"),
        ({"weights": "imagenet"}, "imagenet"),
        ({"weights": "last.safetensors 0a1b"}, "checkpoint"),
        ({}, None),
    ],
)
def test_a_record_says_what_its_training_started_from(training: dict[str, str], start: str | None) -> None:
    method = {"name": "cam", **({"training": training} if training else {})}
    assert RunRecord(method=method, dataset={}, protocol=EvalProtocol(), metrics=(), provenance={}).start == start
