"""Number formats that a device lacks, and devices that are not there, are refused before data are read."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dataset", "cub", "--method", "cam"),
        ("eval", "--dataset", "cub", "--method", "cam"),
        ("train-detector", "--data-root", "nowhere"),
        ("eval-detector", "--data-root", "nowhere", "--train"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--amp", "fp16", "--device", "cpu"), "--amp fp16 needs CUDA"),
        (("--precision", "tf32", "--device", "cpu"), "--precision tf32 needs CUDA; found device cpu"),
        (("--device", "cuda:77"), "device 'cuda:77' is not available"),
    ],
    ids=["fp16", "tf32", "cuda:77"],
)
def test_what_the_device_lacks_is_refused_before_any_data(
    run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], wrong: tuple[str, ...], message: str
) -> None:
    for name in ("WSOLBENCH_DATA", "WSOLBENCH_CUB_ROOT", "WSOLBENCH_COCO_ROOT"):
        monkeypatch.delenv(name, raising=False)
    result = run(*command, *wrong)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("fast", [True, False])
def test_emulated_bfloat16_is_said_to_be_slow(run, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.delenv("WSOLBENCH_CUB_ROOT", raising=False)
    monkeypatch.delenv("WSOLBENCH_DATA", raising=False)
    monkeypatch.setattr("wsolbench.cli.numerics.cpu_has_bfloat16", lambda: fast)
    result = run("train", "--dataset", "cub", "--method", "cam", "--amp", "bf16", "--device", "cpu")
    assert ("slow: this processor has no fast bfloat16" in result.err) is not fast
