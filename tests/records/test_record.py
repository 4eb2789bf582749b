"""Records: written once, read back equal, and refused when they are broken."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsolbench.exceptions import DataError
from wsolbench.methods import Supervision
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord, find_records, provenance, read_record, read_records


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


STORED = EvalProtocol().to_json()
GT_KNOWN = {"name": "gt_known", "value": 0.5, "n": 1, "policy": "oracle"}
FIXED = GT_KNOWN | {"policy": "fixed:0.5"}


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
            for name in ("value", "low", "high")
        ),
        ({"metrics": [GT_KNOWN | {"n": "0.5"}]}, "gt_known has n '0.5'; expected a whole number"),
        ({"metrics": [GT_KNOWN | {"value": True}]}, "value True; expected a number"),
        ({"metrics": [GT_KNOWN | {"low": float("nan")}]}, "low nan; expected a number"),
        ({"metrics": [GT_KNOWN | {"n": None}]}, "n None; expected a whole number"),
        ({"metrics": [GT_KNOWN | {"tau": 0.5}]}, "tau 0.5; expected a list"),
        ({"metrics": [GT_KNOWN | {"tau": ["0.5"]}]}, "expected a list"),
        ({"metrics": [GT_KNOWN | {"policy": 1}]}, "policy 1; expected a text"),
        *(
            ({"method": {"name": "cam", name: ["x"]}}, f"method has {name}")
            for name in ("config", "post", "training")
        ),
        ({"method": {"name": "cam", "training": {"recipe": "x"}}}, "method.training has recipe 'x'"),
        ({"method": {"name": "cam", "post": {"config": 1}}}, "method.post has config 1"),
        ({"method": {"name": 1}}, "method.name is 1; expected a text"),
        *(
            (
                {"method": {"name": "cam", "supervision": found}},
                "method has supervision .*; expected labels, boxes",
            )
            for found in (
                1,
                {"boxes": True},
                {"labels": 1, "boxes": True, "masks": False, "used_for": "training"},
                {"labels": True, "boxes": True, "masks": False, "used_for": "test"},
            )
        ),
        ({"method": {"name": "cam", "backbone": 50}}, "method.backbone is 50; expected a text"),
        ({"method": {"name": "cam", "training": {"seed": "0"}}}, "seed '0'; expected a whole number"),
        ({"method": {"name": "cam", "training": {"seed": True}}}, "seed True; expected a whole number"),
        ({"dataset": {"name": "cub", "split": ["test"], "fingerprint": "ab"}}, "dataset.split is"),
        ({"dataset": {"name": "cub", "split": "test"}}, "dataset.fingerprint is None; expected a text"),
        (
            {"dataset": {"name": "cub", "split": "test", "fingerprint": "ab", "transform": 90}},
            "dataset.transform is 90",
        ),
        (
            {"dataset": {"name": "cub", "split": "test", "fingerprint": "ab", "images": 0}},
            "dataset.images is 0",
        ),
        (
            {"dataset": {"name": "cub", "split": "test", "fingerprint": "ab", "limit": -1}},
            "dataset.limit is -1",
        ),
        (
            {"dataset": {"name": "cub", "split": "test", "fingerprint": "ab", "transfer_from": "val"}},
            "transfer_from is 'val'",
        ),
        ({"schema": True}, "schema True"),
        (
            {"metrics": [GT_KNOWN | {"low": 0.6, "high": 0.4}]},
            "low 0.6 and high 0.4; expected a value, and low not above",
        ),
        ({"metrics": [GT_KNOWN | {"low": 0.4}]}, "one end of an interval"),
        ({"metrics": [GT_KNOWN | {"low": -0.1, "high": 0.4}]}, "low -0.1; expected 0 to 1"),
        ({"metrics": [GT_KNOWN | {"low": 0.1, "high": 1.4}]}, "high 1.4; expected 0 to 1"),
        ({"metrics": [GT_KNOWN | {"n": 0}]}, "n is 0 images; expected 1 or more"),
        ({"metrics": [GT_KNOWN | {"n": -5}]}, "n -5; expected a whole number that is not negative"),
        ({"metrics": [GT_KNOWN | {"n": 2.5}]}, "n 2.5; expected a whole number"),
        ({"metrics": [GT_KNOWN | {"tau": [1.5]}]}, "thresholds in .0, 1."),
        ({"metrics": [GT_KNOWN | {"tau": []}]}, "thresholds in .0, 1."),
        *(
            (
                {"metrics": [GT_KNOWN | {"policy": policy}]},
                f"policy '{policy}'; expected oracle, transfer, or fixed:T",
            )
            for policy in (
                "best",
                "fixed",
                "fixed:",
                "fixed:2",
                "fixed:nan",
                "fixed:-0.1",
                "fixed:x",
                "Oracle",
                "",
            )
        ),
        ({"metrics": [GT_KNOWN | {"version": 2}]}, "version 2; expected 1 to 1"),
        ({"metrics": [GT_KNOWN | {"version": 0}]}, "version 0"),
        ({"metrics": [GT_KNOWN, GT_KNOWN]}, "gt_known occurs twice under policy oracle"),
        (
            {"metrics": [GT_KNOWN | {"policy": None}]},
            "gt_known has policy None; expected oracle, transfer, or fixed:T",
        ),
        ({"metrics": [GT_KNOWN | {"n": 601}]}, "n 601 images; expected at most 600"),
        (
            {"metrics": [FIXED | {"low": 0.6, "high": 0.7}]},
            "value 0.5; expected one in its interval, 0.6 to 0.7",
        ),
        (
            {"metrics": [FIXED | {"policy": "transfer", "low": 0.1, "high": 0.4}]},
            "expected one in its interval",
        ),
        (
            {"metrics": [{"name": "top1_cls", "value": 0.5, "n": 1, "low": 0.6, "high": 0.7}]},
            "expected one in its interval",
        ),
        ({"metrics": {}}, "metrics is '{}'; expected a list"),
        ({"provenance": []}, r"provenance is '\[\]'; expected an object"),
        ({"schema": 1.0}, r"schema 1\.0"),
        ({"method": {"name": " "}}, "method.name is ' '; expected a text that is not empty"),
        *(
            (
                {"dataset": {"name": "cub", "split": "test", "fingerprint": "ab"} | {name: ""}},
                f"dataset.{name} is ''",
            )
            for name in ("name", "split", "fingerprint")
        ),
        ({"metrics": [GT_KNOWN | {"name": "gt_known@0.5"}]}, "no such part"),
        ({"metrics": [GT_KNOWN | {"name": "max_box_acc_v2@x"}]}, "no such part"),
        ({"metrics": [GT_KNOWN | {"name": 1}]}, "lacks or misspells"),
        ({"metrics": 1}, "lacks or misspells"),
        ({"metrics": [1]}, "lacks or misspells"),
        (
            {"method": {"name": "cam", "config": {"alpha": float("inf")}}},
            r"method\.config\.alpha inf; expected a number that is finite",
        ),
        ({"provenance": {"seconds": 10**400}}, r"provenance\.seconds a whole number of that size"),
        ({"method": {"name": "a\ud800"}}, r"method\.name .*without lone surrogates"),
        ({"method": {"name": "cam", "\ud800": 1}}, "without lone surrogates"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = record().write(tmp_path)
    edit(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({}, "a stored protocol lacks"),
        ([], "protocol"),
        ({"name": "spa"}, "a stored protocol lacks"),
        ({"name": "coco", "detection": {}}, "a stored protocol lacks"),
        ({"detection": 1}, "protocol"),
        (STORED | {"taus": {"start": 0.0, "stop": 1.0, "step": 1e-9}}, "makes more than 10,000 thresholds"),
        (STORED | {"taus": {"start": 0.0, "stop": 1.0, "step": 0.0}}, "step"),
        (STORED | {"taus": [2.0]}, "taus"),
        (STORED | {"frame_size": 0}, "frame_size"),
    ],
)
def test_a_record_with_a_protocol_that_cannot_be_is_named(
    tmp_path: Path, protocol: object, message: str
) -> None:
    path = record().write(tmp_path)
    edit(path, protocol=protocol)
    with pytest.raises(DataError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_thresholds_policies_and_parts_that_exist_are_read(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    names = (
        "max_box_acc_v2@0.3",
        "max_box_acc_v2@1",
        "max_box_acc_v2@1e-05",
        "keypoint_distance@1",
        "keypoint_distance_px@4",
    )
    metrics = [GT_KNOWN | {"name": name} for name in names]
    metrics += [
        GT_KNOWN | {"policy": policy, "tau": [0.2]}
        for policy in ("oracle", "transfer", "fixed:0", "fixed:0.25", "fixed:1")
    ]
    edit(path, metrics=metrics)
    assert len(read_record(path).metrics) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply; expected at most 64 levels"),
        (b'{"schema":' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"schema": 1e999}', "schema inf; expected a number that is finite"),
        (b'{"schema": 1, "schema": 1}', "'schema' occurs twice"),
        (b"", "is not JSON"),
    ],
    ids=["other encoding", "depth", "depth that json reads", "digits", "overflow", "name twice", "empty"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_record(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


def test_what_is_no_file_is_named_and_nothing_waits_for_it(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    inside = tmp_path / "folder.json" / "x.json"
    path.rename(inside)
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "gone.json").symlink_to("nothing")
    (tmp_path / "around").symlink_to(tmp_path, target_is_directory=True)
    found = find_records(tmp_path)
    assert [path for path, _ in found.records] == [inside]
    assert [
        message.partition(str(tmp_path))[2].partition(" ")[0].rstrip(":") for message in found.problems
    ] == [f"/{name}.json" for name in ("folder", "gone", "loop", "pipe")]
    assert "is a named pipe; expected a file" in found.problems[3]
    assert "is a folder; expected a file" in found.problems[0]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scandir = record().write(tmp_path), os.scandir
    (tmp_path / "closed").mkdir()

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_records(tmp_path)
    assert [each for each, _ in found.records] == [path]
    assert found.problems == [f"the folder {tmp_path / 'closed'} cannot be listed: Permission denied"]


def test_a_broken_record_does_not_hide_the_others(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    found = find_records(tmp_path)
    assert [each for each, _ in found.records] == [path]
    assert len(found.problems) == 1
    with pytest.raises(DataError, match=r"a\.json"):
        read_records(tmp_path)


def test_a_record_that_was_changed_by_hand_is_named(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    edit(path, metrics=[GT_KNOWN | {"value": 0.55}])
    found = find_records(tmp_path)
    assert found.records == []
    assert len(found.problems) == 1
    assert f"record {path} was changed or renamed after it was written" in found.problems[0]
    record().write(tmp_path)
    assert [kept for kept, _ in find_records(tmp_path).records] == [path]


def test_a_copied_record_counts_once_and_is_named(tmp_path: Path) -> None:
    path = record().write(tmp_path)
    for name in ("a.json", "toybirds/z.json"):
        values = json.loads(path.read_text())
        values["provenance"] = {"date": "1970-01-01"}
        (tmp_path / name).write_text(json.dumps(values, indent=1))
    found = find_records(tmp_path)
    assert [each for each, _ in found.records] == [path]
    assert found.copies == [
        f"record {tmp_path / name} is a copy of {path}; it counts once"
        for name in ("a.json", "toybirds/z.json")
    ]
    assert not found.problems


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "mine", "backbone": 50}},
        {"method": {"name": "mine", "config": {"a": float("nan")}}},
        {"method": {"name": "mine\ud800"}},
        {"method": {"name": "mine", "object": object()}},
        {"metrics": (MetricValue(name="gt_known", value=1.5, n=1),)},
        {"metrics": (MetricValue(name="gt_known", value=0.5, n=0),)},
        {"dataset": {"name": "toybirds", "split": "test", "fingerprint": 1}},
    ],
    ids=["backbone", "nan", "surrogate", "object", "value", "n", "fingerprint"],
)
def test_a_record_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"the record of method .* cannot be written: it "):
        replace(record(), **changes).write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"{}"])
def test_a_record_that_was_cut_short_is_written_again(tmp_path: Path, content: bytes) -> None:
    path = record().write(tmp_path)
    path.write_bytes(content)
    assert record().write(tmp_path) == path
    assert read_record(path).digest == record().digest


def test_long_names_give_a_file_that_can_be_written(tmp_path: Path) -> None:
    long = replace(record(), method={"name": "é" * 300}, dataset={**record().dataset, "name": "d" * 300})
    assert read_record(long.write(tmp_path)).method == long.method


def test_text_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("method", "start", "init"),
    [
        ({"training": {"weights": "none"}}, "none", "none"),
        ({"training": {"weights": "imagenet"}, "weights": {"name": "torchvision"}}, "imagenet", "imagenet"),
        ({"training": {"weights": "last.safetensors 0a1b"}}, "checkpoint", "checkpoint"),
        ({"weights": {"name": "torchvision"}}, None, "pretrained"),
        ({}, None, None),
    ],
)
def test_a_record_says_what_its_weights_come_from(
    method: dict[str, Any], start: str | None, init: str | None
) -> None:
    method = {"name": "cam", **method}
    found = RunRecord(method=method, dataset={}, protocol=EvalProtocol(), metrics=(), provenance={})
    assert (found.start, found.init) == (start, init)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, None),
        ("ground-truth boxes of the evaluated images", Supervision(boxes=True, used_for="prediction")),
        (
            "ground-truth boxes of the training images",
            Supervision(labels=True, boxes=True, used_for="training"),
        ),
        (
            "ground-truth masks or boxes of the split 'train'",
            Supervision(boxes=True, masks=True, used_for="training"),
        ),
        (
            {"labels": True, "boxes": False, "masks": True, "used_for": "training"},
            Supervision(labels=True, masks=True, used_for="training"),
        ),
    ],
)
def test_a_record_states_the_ground_truth_that_was_read(
    tmp_path: Path, stored: object, expected: Supervision | None
) -> None:
    given = record()
    if stored is not None:
        given = replace(given, method={**given.method, "supervision": stored})
    assert read_record(given.write(tmp_path)).supervision == expected
