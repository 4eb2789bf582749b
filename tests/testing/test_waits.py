"""The training loops and the evaluation on the fake GPU: where the host waits, and that waits are seen."""

from __future__ import annotations

import pytest

from benchmarks.bench_syncs import detector_training, evaluation, training
from reference_models.training import detector_loop, loop
from wsolbench.methods import Numerics
from wsolbench.testing.fake_cuda import FakeCuda


@pytest.mark.parametrize("amp", ["auto", "fp16"])
def test_a_step_of_the_training_loop_never_waits(amp: str) -> None:
    assert training("cam", "tiny", Numerics(amp=amp)) == []


def test_a_blocking_copy_or_a_look_in_each_step_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "_is_pinned", lambda *_: False)
    assert {event.kind for event in training("cam", "tiny", Numerics())} == {"copy"}
    monkeypatch.undo()
    monkeypatch.setattr(loop, "LOOK_EVERY", 1)
    assert {event.kind for event in training("cam", "tiny", Numerics())} == {"read"}


def test_the_loop_of_detectors_adds_no_wait_to_those_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = detector_training("lio-mask-rcnn", Numerics())
    assert waits
    assert all(event.where.startswith("torchvision/") for event in waits)
    monkeypatch.setattr(detector_loop, "LOOK_EVERY", 1)
    assert len(detector_training("lio-mask-rcnn", Numerics())) > len(waits)


@pytest.mark.parametrize(("method", "post"), [("cam", None), ("cam", "scg"), ("lio", None)])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_batch_of_the_evaluation_waits_once_for_all_its_results(
    method: str, post: str | None, amp: str
) -> None:
    waits = evaluation(method, "tiny", Numerics(amp=amp), post)
    assert [event.where.partition(":")[0] for event in waits] == ["methods/transfers.py"]
