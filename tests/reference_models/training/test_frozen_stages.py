"""Frozen stages keep their pretrained values and statistics, whatever a method switches on and off."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from reference_models.localization.cam import Cam
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method

FROZEN = {"recipe.frozen_stages": "2", "head": "conv", "width": "8"}


def steps_of(model, stages: int) -> list[str]:
    names = list(model.backbone.steps)
    return names[: names.index(model.backbone.layout[stages - 1].name) + 1] if stages else []


@pytest.mark.parametrize("name", ["cam", "spg", "nts-net", "ssanet", "gc-net"])
def test_training_leaves_exactly_the_frozen_steps_as_they_were(tmp_path, name):
    start = Cam.fit(request(tmp_path / "start", epochs=1))
    kind = load_method(name)
    settings = {"recipe.frozen_stages": "2"}
    end = kind.fit(
        request(tmp_path / "end", epochs=3, weights=str(start), settings=settings, image_size=64, val=None)
    )
    before, after = load_file(start), load_file(end)
    frozen = {f"backbone.steps.{step}." for step in steps_of(kind.load(end, device="cpu", settings={}), 2)}
    assert frozen
    for key in before:
        if key.startswith("backbone.") and not key.endswith("num_batches_tracked"):
            stays = key.startswith(tuple(frozen))
            assert torch.equal(before[key], after[key]) == stays, key


def test_frozen_stages_have_no_graph_and_the_stages_after_them_have_one(tmp_path):
    start = Cam.fit(request(tmp_path, epochs=1))
    model = Cam.create(backbone="tiny", num_classes=3, weights=str(start), settings={})
    model.backbone.freeze(2)
    model.train()
    found = list(model.backbone.stages(torch.zeros(2, 3, 64, 64)).values())
    assert [stage.requires_grad for stage in found] == [False] * 2 + [True] * (len(found) - 2)
    # Switching the whole backbone on, as methods with stages do, leaves them frozen; 0 releases them.
    model.backbone.requires_grad_(False).requires_grad_(True).train(True)
    assert not next(iter(model.backbone.stages(torch.zeros(2, 3, 64, 64)).values())).requires_grad
    model.backbone.freeze(0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.backbone.modules())


def test_an_interrupted_run_keeps_its_frozen_stages(tmp_path, monkeypatch):
    start = Cam.fit(request(tmp_path / "start", epochs=1))
    wanted = {"weights": str(start), "settings": FROZEN, "epochs": 2, "val": None}
    whole = Cam.fit(request(tmp_path / "whole", **wanted))
    with monkeypatch.context() as patch:
        patch.setattr(Cam, "on_epoch", lambda self, epoch, epochs: [][epoch - 1] if epoch else None)
        with pytest.raises(IndexError):
            Cam.fit(request(tmp_path / "broken", **wanted))
    resumed = Cam.fit(request(tmp_path / "broken", **wanted))
    one, two = load_file(whole), load_file(resumed)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("weights", "stages", "message"),
    [("none", "1", "would keep random weights of tiny"), ("start", "8", "tiny has 4 stages")],
)
def test_frozen_stages_that_make_no_sense_are_refused(tmp_path, weights, stages, message):
    if weights == "start":
        weights = str(Cam.fit(request(tmp_path / "start", epochs=1)))
    settings = {"recipe.frozen_stages": stages}
    with pytest.raises(UsageError, match=message):
        Cam.fit(request(tmp_path / "end", weights=weights, settings=settings))
