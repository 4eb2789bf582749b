"""Mixed precision and torch.compile, from a training to its record: what changes, and what names a run."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_models.localization.cam import Cam
from reference_models.training import loop
from reference_models.training.run_folder import LAST, STATE
from tests.reference_models.conftest import squares
from tests.reference_models.training.test_loop import interrupt, request, same_weights
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import Numerics, numerics
from wsolbench.protocol import EvalProtocol, tau_grid

BF16 = Numerics(amp="bf16")


def test_a_run_in_bfloat16_is_another_run_than_one_in_float32(tmp_path, monkeypatch):
    plain, mixed = request(tmp_path / "plain", epochs=2), request(tmp_path / "mixed", epochs=2, numerics=BF16)
    Cam.fit(plain)
    interrupt(monkeypatch, mixed, before=1)
    with pytest.raises(UsageError, match=r"numerics.amp is 'bf16' there and None here"):
        Cam.fit(request(mixed.out, epochs=2))
    Cam.fit(mixed)
    assert not same_weights(plain.out / LAST, mixed.out / LAST)
    sidecars = [json.loads((run.out / "last.json").read_text()) for run in (plain, mixed)]
    assert [each["training"].get("numerics") for each in sidecars] == [None, {"amp": "bf16"}]
    assert [each["run"]["numerics"]["amp"] for each in sidecars] == ["off", "bfloat16"]
    for asked, there in ((plain, mixed), (mixed, plain)):
        with pytest.raises(UsageError, match=r"belongs to another run: numerics\.amp is"):
            Cam.fit(request(there.out, epochs=2, numerics=asked.numerics))
    # Options without an effect on the CPU name no other run.
    Cam.fit(request(plain.out, epochs=2, numerics=Numerics(precision="ieee", deterministic=False)))
    for refused in (Numerics(amp="fp16"), Numerics(precision="tf32")):
        with pytest.raises(UsageError, match="needs CUDA"):
            Cam.fit(request(tmp_path / "refused", numerics=refused))
    assert not (tmp_path / "refused" / LAST).exists()


def test_a_record_in_bfloat16_is_another_record_and_its_maps_are_close(tmp_path, monkeypatch):
    path = Cam.fit(request(tmp_path, epochs=2))
    data, protocol = squares(12, split="test"), EvalProtocol(taus=tau_grid(0.1), frame_size=32)

    whole, mixed_passes = Cam.localize, []

    def localize(self, images, **options):
        mixed_passes.append(torch.is_autocast_enabled("cpu"))
        return whole(self, images, **options)

    monkeypatch.setattr(Cam, "localize", localize)

    def record_of(amp):
        mixed_passes.clear()
        source = ModelSource(
            Cam.load(path, device="cpu"), protocol, num_classes=3, device="cpu", numerics=Numerics(amp=amp)
        )
        record = evaluate(data, source, protocol).record
        assert set(mixed_passes) == {amp == "bf16"}
        return source, record

    (exact, plain), (_, off), (mixed, half) = map(record_of, ("auto", "off", "bf16"))
    assert "numerics" not in plain.method
    assert plain.digest == off.digest
    assert half.method["numerics"] == {"amp": "bf16"}
    assert half.settings == {**plain.settings, "eval.amp": "bf16"}
    assert half.provenance["numerics"] == {"amp": "bfloat16", "compile": False}
    assert plain.provenance["numerics"] == {"amp": "off", "compile": False}
    assert half.digest != plain.digest
    batch = exact.collate([exact.load(sample) for sample in data.samples])
    one, two = (
        torch.from_numpy(np.stack(source.maps(data.samples, batch).maps)) for source in (exact, mixed)
    )
    assert 0 < (one - two).abs().max() < 0.05 * one.abs().max()


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch):
    """Trace the program and run it without inductor, whose C++ compiler takes most of the time."""
    for module in (loop, numerics):
        monkeypatch.setattr(module, "COMPILE", {"backend": "eager"})
    yield
    torch._dynamo.reset()


def check_compiled(tmp_path, monkeypatch, **tolerance):
    plain, whole, broken = (
        request(tmp_path / name, epochs=2, numerics=Numerics(compile=name != "plain"))
        for name in ("plain", "whole", "broken")
    )
    Cam.fit(plain)
    Cam.fit(whole)
    interrupt(monkeypatch, broken, before=1)
    assert (broken.out / STATE).exists()
    with pytest.raises(UsageError, match="compile True there and False here"):
        Cam.fit(request(broken.out, epochs=2))
    Cam.fit(broken)
    assert same_weights(whole.out / LAST, broken.out / LAST)
    eager, compiled = load_file(plain.out / LAST), load_file(whole.out / LAST)
    assert eager.keys() == compiled.keys()
    assert not any(re.search("_orig_mod|_compiled", name) for name in compiled)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, **tolerance)
    assert json.loads((whole.out / "last.json").read_text())["run"]["numerics"]["compile"] is True
    Cam.load(whole.out / LAST, device="cpu")


def test_a_compiled_run_has_the_same_checkpoint_and_resumes(tmp_path, monkeypatch, quick_compiler):
    check_compiled(tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_run_of_the_real_compiler_differs_in_the_last_bits(tmp_path, monkeypatch):
    check_compiled(tmp_path, monkeypatch, atol=1e-3, rtol=1e-3)
    torch._dynamo.reset()
