"""The request of an evaluation: the arguments of `evaluate`, and the plan that they give."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from made_up import MadeUpSource, dataset, eval_request

from wsolbench.evaluation.evaluate import conclude, evaluate, score
from wsolbench.evaluation.request import EvalRequest, RunOptions
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.protocol import EvalProtocol
from wsolbench.system.files import sha256_of_json

PROTOCOL = EvalProtocol()


def test_evaluate_takes_the_fields_of_a_request() -> None:
    arguments = inspect.signature(evaluate).parameters
    assert {item.name for item in fields(EvalRequest) if item.name != "metadata"} <= set(arguments)
    positional = [each.name for each in arguments.values() if each.kind is not each.KEYWORD_ONLY]
    assert positional == ["dataset", "source", "protocol"]


def test_evaluate_gives_the_record_of_its_request() -> None:
    more = {
        "limit": 9,
        "fixed_tau": 0.5,
        "transfer_from": dataset(8, "val", 1),
        "options": RunOptions(resamples=100, batch_size=3),
    }
    asked = eval_request(dataset(), MadeUpSource(), PROTOCOL, **more)
    direct = evaluate(dataset(), MadeUpSource(), PROTOCOL, **more)
    assert direct.record.digest == conclude(score(asked)).record.digest
    assert direct.record.dataset["limit"] == 9
    assert direct.record.dataset["transfer_from"]["split"] == "val"


def test_a_request_is_frozen_and_has_keywords_only() -> None:
    asked = eval_request(dataset(), MadeUpSource(), PROTOCOL)
    with pytest.raises(FrozenInstanceError):
        asked.limit = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        EvalRequest(dataset(), MadeUpSource(), PROTOCOL)  # type: ignore[misc]


# Digests of plans as they were written first, without the program, which changes with the code: chunks of
# runs that were killed are found by them.
PLANS = {
    "DEFAULTS": {},
    "LIMIT": {"limit": 7, "fixed_tau": 0.5, "metadata": {"transform": "rotate90"}},
    "VAL": {
        "transfer_from": dataset(8, "val", 1),
        "options": RunOptions(resamples=100, batch_size=3),
    },
}
DIGESTS = {
    "DEFAULTS": "475c9d832af99c4f7ca5531924bf0fcb23841c24823248c4bff5e27d4bf2eb18",
    "LIMIT": "ac0d58c381510b673477620c6876cf5b045067c12c64320a378d61ab75ae4551",
    "VAL": "dc54a0f665135f66109f89b5f15909cfa3f58309decbac98ab59cd26b719474e",
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_has_the_bytes_that_stored_runs_have(name: str) -> None:
    plan = eval_request(dataset(), MadeUpSource(), PROTOCOL, **PLANS[name]).plan().to_json()
    del plan["program"], plan["sha256"]
    assert sha256_of_json(plan) == DIGESTS[name]


def test_a_plan_names_the_folder_of_maps(tmp_path: Path) -> None:
    options = RunOptions(save_maps=MapFolder(tmp_path / "x" / ".." / "maps"))
    asked = eval_request(dataset(), MadeUpSource(), PROTOCOL, options=options)
    assert asked.plan().maps == str((tmp_path / "maps").resolve())
    assert asked.plan().digest == asked.writing_maps(None).plan().digest


def test_a_request_that_cannot_be_scored_is_refused_before_the_work() -> None:
    source = MadeUpSource()
    with pytest.raises(UsageError, match=r"0\.9"):
        eval_request(dataset(), source, EvalProtocol(taus=(0.2, 0.5)), fixed_tau=0.9).plan()
    with pytest.raises(DataError, match="has no image in split 'test'"):
        eval_request(dataset(0), source, PROTOCOL).plan()
    assert source.loads == []


def test_thresholds_of_images_that_the_method_learned_from_are_refused() -> None:
    class Learned(MadeUpSource):
        def describe(self) -> dict:
            return {**super().describe(), "training": {"dataset": {"fingerprint": val.fingerprint}}}

    val = dataset(8, "val", 1)
    with pytest.raises(
        UsageError, match=r"transferred from made-up val, which the method was trained on.*--no-transfer"
    ):
        eval_request(dataset(), Learned(), PROTOCOL, transfer_from=val).plan()
    eval_request(dataset(), Learned(), PROTOCOL).plan()
