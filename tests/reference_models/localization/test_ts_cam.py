"""TS-CAM: scores of patch tokens, attention of the class token, and their product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.tokens import TokenBackbone
from reference_models.layers.maps import min_max
from reference_models.layers.token_maps import read_attention, sum_attention
from reference_models.localization import ts_cam
from reference_models.localization.ts_cam import couple
from tests.reference_models.conftest import squares
from tests.reference_models.localization.token_models import (
    CLASSES,
    DEIT,
    SIDE,
    VIT,
    losses_of_steps,
    small_model,
    square_batch,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method

EVERY = torch.arange(CLASSES).expand(2, -1)


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE)


@pytest.mark.parametrize("backbone", [VIT, DEIT])
def test_the_mean_of_a_class_s_scores_is_its_logit_and_without_attention_its_map_is_a_cam(backbone, images):
    model = small_model("ts-cam", backbone, coupled=False)
    result = model.localize(images)
    maps = result.score_maps(EVERY)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), result.logits, atol=1e-6, rtol=1e-5)
    # The convolution written out: a linear layer on the 3 x 3 neighbours of each token.
    patches = model.backbone.run(images)
    columns = F.unfold(patches, 3, padding=1)  # (B, 9 D, N)
    layer = model.head.classifier
    linear = layer.weight.flatten(1) @ columns + layer.bias[:, None]
    torch.testing.assert_close(maps.flatten(2), linear, atol=1e-5, rtol=1e-4)


def test_attention_is_shared_by_all_classes(images):
    model, plain = small_model("ts-cam"), small_model("ts-cam", coupled=False)
    plain.load_state_dict(model.state_dict())
    result = model.localize(images)
    maps, scores = result.score_maps(EVERY), plain.score_maps(images, EVERY)
    summed = result.extra_maps["attention"]
    assert (summed > 0).all()
    torch.testing.assert_close(maps, summed[:, None] * scores, atol=1e-6, rtol=1e-5)
    # Two classes: the maps have the ratio of the scores in every patch.
    torch.testing.assert_close(maps[:, 0] * scores[:, 1], maps[:, 1] * scores[:, 0], atol=1e-6, rtol=1e-4)
    assert torch.equal(couple(torch.ones(2, 1, 4, 4), scores), scores)


def test_the_sum_and_the_mean_over_the_blocks_give_one_map(images):
    model = small_model("ts-cam")
    with torch.no_grad():
        _, attention = read_attention(model.backbone, images)
    scores = torch.randn(2, CLASSES, 4, 4)
    summed, mean = couple(sum_attention(attention), scores), couple(attention.mean(1, keepdim=True), scores)
    torch.testing.assert_close(min_max(summed), min_max(mean), atol=1e-6, rtol=1e-5)


def test_the_loss_reaches_every_parameter_and_does_not_look_at_attention(monkeypatch):
    model = small_model("ts-cam").train()

    def refuse(*_):
        raise AssertionError("the loss reads attention")

    monkeypatch.setattr(ts_cam, "read_attention", refuse)
    monkeypatch.setattr(ts_cam, "sum_attention", refuse)
    (loss,) = model.loss(square_batch()).values()
    loss.backward()
    # The token of the class is no patch: in the last block only its keys and values matter, so all are reached.
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    with pytest.raises(AssertionError, match="reads attention"):
        model.eval()(torch.zeros(1, 3, SIDE, SIDE))


def test_a_constant_image_has_finite_maps():
    maps = small_model("ts-cam").score_maps(torch.zeros(1, 3, SIDE, SIDE), EVERY[:1])
    assert torch.isfinite(maps).all()


def test_a_few_steps_on_squares_lower_the_loss():
    losses = losses_of_steps(small_model("ts-cam", side=32), 20, square_batch(side=32), lr=1e-3)
    assert losses[0] > 0.8
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_skips_blocks_as_its_recipe_says(tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(TokenBackbone, "set_drop_path", lambda _, rate: rates.append(rate))
    values = {
        "backbone": VIT,
        "weights": "none",
        "image_size": 32,
        "epochs": 1,
        "batch_size": 6,
        "workers": 0,
    }
    for name, settings in (("a", {}), ("b", {"recipe.drop_path": "0.3"})):
        request = TrainRequest(
            train=squares(12), out=tmp_path / name, settings=settings, device="cpu", **values
        )
        load_method("ts-cam").fit(request)
    assert rates == [0.1, 0.3]


def test_matrices_decay_and_vectors_positions_and_tokens_do_not():
    model = small_model("ts-cam")
    recipe = model.recipe_for(VIT, CLASSES, {})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group.get("weight_decay", recipe.weight_decay)
        for group in model.parameter_groups(recipe)
        for parameter in group["params"]
    }
    assert set(decay) == set(names.values())
    kept = {name.rpartition(".")[2] for name, value in decay.items() if value == 0}
    assert kept == {"bias", "weight", "cls_token", "pos_embed"}
    for name, parameter in model.named_parameters():
        assert decay[name] == (0.05 if name.endswith("weight") and parameter.ndim > 1 else 0), name
    everything = model.recipe_for(VIT, CLASSES, {"recipe.decay_vectors": "true"})
    assert not any("weight_decay" in group for group in model.parameter_groups(everything))


def test_the_rate_falls_before_the_epochs_whose_number_a_step_divides():
    kind = load_method("ts-cam")
    for classes, epochs, falls in ((200, 60, (30, 60)), (1000, 20, (10, 12, 20))):
        recipe = kind.recipe_for(DEIT, classes, {})
        assert recipe.epochs == epochs
        for epoch in range(1, epochs + 1):
            expected = 0.1 ** sum(epoch >= fall for fall in falls)
            assert recipe.lr_factor((epoch - 0.5) / epochs) == pytest.approx(expected), epoch


def test_a_network_without_a_class_token_is_refused():
    with pytest.raises(UsageError, match="method 'ts-cam' needs a class token"):
        small_model("ts-cam", "timm:vit_little_patch16_reg1_gap_256")
