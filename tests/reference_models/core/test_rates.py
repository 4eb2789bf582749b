"""What the optimiser does in a training: rates of groups and times, decay, clipping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference_models.localization.cam import Cam
from reference_models.training import loop as train
from tests.reference_models.training.test_loop import request


def test_each_step_has_the_rate_of_its_group_and_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Cam.fit(request(tmp_path / "first", epochs=1))
    seen, step = [], train._step

    def spy(run, batch, weight):
        seen.append(
            {
                group["name"]: (group["lr"], group["weight_decay"], group["nesterov"])
                for group in run.optimizers[0].param_groups
            }
        )
        return step(run, batch, weight)

    monkeypatch.setattr(train, "_step", spy)
    settings = {
        "recipe.optimizer": "sgd",
        "recipe.schedule": "step",
        "recipe.milestones": "0.5",
        "recipe.warmup": "0",
        "recipe.weight_decay": "0.03",
        "recipe.bias_factor": "2",
    }
    Cam.fit(request(tmp_path / "second", weights=str(first), epochs=2, lr=0.001, settings=settings, val=None))
    assert len(seen) == 6
    for number, groups in enumerate(seen):
        for name, factor in {
            "backbone weights": 1,
            "backbone biases": 2,
            "new weights": 10,
            "new biases": 20,
        }.items():
            assert groups[name] == (pytest.approx((0.001 if number < 3 else 0.0001) * factor), 0.03, True)


def test_the_step_of_a_clipped_gradient_is_at_most_as_long_as_asked(tmp_path: Path) -> None:
    first = Cam.fit(request(tmp_path / "first", epochs=1))
    settings = {
        "recipe.optimizer": "sgd",
        "recipe.momentum": "0",
        "recipe.weight_decay": "0",
        "recipe.new_factor": "1",
        "recipe.bias_factor": "1",
        "recipe.clip_norm": "0.001",
    }
    second = Cam.fit(
        request(tmp_path / "second", weights=str(first), epochs=1, lr=0.1, settings=settings, val=None)
    )
    before, after = (
        dict(Cam.load(path, device="cpu").backbone.named_parameters()) for path in (first, second)
    )
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
    assert 0 < moved <= 3 * 0.1 * 0.001
