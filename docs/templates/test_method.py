"""My method: what its paper claims, equation by equation. `wsolbench.testing` checks the rest."""

from __future__ import annotations

import torch
from reference_models.localization.my_method import MyMethod, area_loss

from reference_models.core.outputs import Batch
from wsolbench.methods import load_method


def model(**settings: str) -> MyMethod:
    made: MyMethod = load_method("my-method").create(
        backbone="tiny", num_classes=3, weights="none", settings=settings, image_size=64
    )
    return made


def batch(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randn(count, 3, 64, 64, generator=generator),
        labels=torch.arange(count) % 3,
        indices=torch.arange(count),
        epoch=0,
        epochs=1,
        step=0,
        generator=generator,
    )


def test_the_area_of_an_empty_map_is_0_and_of_a_full_map_1() -> None:
    empty, full = torch.full((2, 1, 4, 4), -50.0), torch.full((2, 1, 4, 4), 50.0)
    torch.testing.assert_close(area_loss(empty), torch.tensor(0.0))
    torch.testing.assert_close(area_loss(full), torch.tensor(1.0))
    torch.testing.assert_close(area_loss(torch.cat([empty, full])), torch.tensor(0.5))


def test_a_step_against_the_area_makes_the_map_of_the_true_class_smaller() -> None:
    method, given = model(area_weight="1").train(), batch()
    before = method.loss(given)["area"]
    before.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    assert method.loss(given)["area"] < before


def test_without_its_weight_the_area_is_not_in_the_loss() -> None:
    terms = model(area_weight="0").train().loss(batch())
    assert terms["area"] == 0
    assert terms["cross_entropy"] > 0
