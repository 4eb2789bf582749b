"""F-CAM: the barrier, the loss of drawn pixels, a decoder of full resolution, and its two stages."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.recipes import RECIPES
from reference_models.localization.f_cam.decoder import UNetDecoder, enlarge
from reference_models.localization.f_cam.method import FCam, FCamConfig, area_loss, log_barrier, seed_loss
from reference_models.localization.f_cam.seeds import draw_seeds
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method
from wsolbench.testing import run_check, squares

CLASSES = 5
SMALL = {"erosion": 3}
FIRST, SECOND, LAST = (0, 4), (2, 4), (3, 4)
"""Epochs of both stages, and the number of epochs."""


def f_cam(**settings) -> FCam:
    return FCam(toy_backbone(), CLASSES, FCamConfig(**{**SMALL, **settings})).train()


def request(train, out, *, epochs: int = 4, val=None) -> TrainRequest:
    return TrainRequest(
        train=train,
        val=val,
        out=out,
        backbone="tiny",
        weights="none",
        epochs=epochs,
        batch_size=8,
        image_size=32,
        workers=0,
        device="cpu",
        settings={"erosion": "3", "recipe.lr": "0.01"},
    )


# --- the barrier, eq. (4) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, 1.01, 2.5, 10.0])
def test_the_barrier_has_no_jump_in_value_or_slope(t):
    t = torch.tensor(t, dtype=torch.float64)
    knee, step = float(-1 / t**2), 1e-7
    z = torch.tensor([knee - step, knee, knee + step], dtype=torch.float64, requires_grad=True)
    values = log_barrier(z, t)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    torch.testing.assert_close(values, values[1].expand(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(slopes, t.expand(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(values[1], 2 * t.log() / t)  # -log(1 / t^2) / t


def test_the_barrier_is_a_logarithm_far_below_0_and_a_line_above():
    t = torch.tensor(2.0)
    far = torch.tensor([-5e4, -100.0, -1.0])
    torch.testing.assert_close(log_barrier(far, t), -(-far).log() / 2)
    above = torch.tensor([0.0, 1.0, 7.0], requires_grad=True)
    values = log_barrier(above, t)
    torch.testing.assert_close(values.diff(), torch.tensor([2.0, 12.0]))
    values.sum().backward()
    assert torch.equal(above.grad, torch.full((3,), 2.0))
    z = torch.linspace(-3, 3, 200)
    assert (log_barrier(z, t).diff().diff() > -1e-5).all()  # convex
    assert (log_barrier(z, t).diff() > 0).all()


def test_an_empty_foreground_is_the_most_expensive_one():
    t = torch.tensor(1.0)
    prices = [
        float(area_loss(torch.tensor([0.0, logit])[None, :, None, None].expand(1, 2, 16, 16), t))
        for logit in (-60.0, -3.0, 0.0, 3.0, 60.0)
    ]
    assert prices[2] == min(prices)
    assert prices == pytest.approx(prices[::-1], rel=1e-5)
    assert prices[2] == pytest.approx(-math.log(128), rel=1e-5)  # half of the pixels each
    assert prices[0] == pytest.approx((1 - math.log(256)) / 2, rel=1e-5)


def test_an_empty_foreground_has_a_finite_gradient_towards_more():
    scores = torch.zeros(2, 2, 8, 8)
    scores[:, 1] = -200.0
    scores[1, 1] = -4.0
    scores.requires_grad_()
    area_loss(scores, torch.tensor(3.0)).backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[1, 1] < 0).all()


# --- the loss -----------------------------------------------------------------------------------------------


def reference_terms(model: FCam, batch) -> dict[str, torch.Tensor]:
    """Both terms of the decoder, pixel by pixel."""
    frozen = copy.deepcopy(model)
    steps = frozen.backbone.steps
    one = steps["one"](batch.images)
    two = steps["two"](one)
    f = steps["three"](two)
    maps = []
    for image, label in zip(f, batch.labels, strict=True):
        cam = sum(w * channel for w, channel in zip(model.head.classifier.weight[label], image, strict=True))
        maps.append((cam - cam.min()) / (cam.max() - cam.min()))
    cams = F.interpolate(torch.stack(maps)[:, None].detach(), size=(32, 32), mode="bilinear")[:, 0]
    generator = torch.Generator().manual_seed(0)
    inside, outside = draw_seeds(cams, generator, erosion=3, background=0.1, side=3)
    # The blocks of the decoder, and their skips.
    blocks = model.decoder.blocks
    x = blocks[0](torch.cat([f, two], dim=1))
    x = blocks[1](torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), one], dim=1))
    x = blocks[2](x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    probabilities = model.decoder.output(x).softmax(dim=1)
    costs, areas = [], []
    for row in range(len(batch.images)):
        for y in range(32):
            for x in range(32):
                for number, chosen in enumerate((outside, inside)):
                    if chosen[row, y, x]:
                        costs.append(-probabilities[row, number, y, x].log())
        areas += [log_barrier(-probabilities[row, number].sum(), model.barrier) for number in (1, 0)]
    return {
        "seeds": torch.stack(costs).mean(),
        "area": model.config.area * torch.stack(areas).reshape(-1, 2).sum(dim=1).mean() / 2,
    }


def test_terms_are_those_of_the_equations_pixel_by_pixel():
    model, batch = f_cam(area=0.3, barrier_start=1.4), toy_batch(4, classes=CLASSES)
    model.on_epoch(*SECOND)
    expected = reference_terms(model, batch)
    found = model.decoder_loss(batch)
    assert set(found) == set(expected)
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, msg=name)


def test_only_drawn_pixels_have_a_gradient_of_the_cross_entropy():
    scores = torch.randn(2, 2, 6, 6, requires_grad=True)
    inside, outside = torch.zeros(2, 2, 6, 6, dtype=torch.bool)
    inside[0, 1, 1] = inside[1, 2, 2] = outside[0, 5, 5] = True
    seed_loss(scores, inside, outside).backward()
    reached = scores.grad.abs().sum(dim=1) > 0
    assert torch.equal(reached, inside | outside)
    assert (scores.grad[:, 1][inside] < 0).all()
    assert (scores.grad[:, 1][outside] > 0).all()


def test_without_any_pixel_the_cross_entropy_is_0():
    scores = torch.randn(2, 2, 6, 6, requires_grad=True)
    nothing = torch.zeros(2, 6, 6, dtype=torch.bool)
    loss = seed_loss(scores, nothing, nothing)
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()


def test_features_of_zeros_have_no_pixels_and_finite_terms():
    model = f_cam()
    model.on_epoch(*SECOND)
    torch.nn.init.zeros_(model.head.classifier.weight)
    terms = model.decoder_loss(toy_batch(3, classes=CLASSES))
    assert terms["seeds"] == 0
    sum(terms.values()).backward()
    assert all(each.grad.isfinite().all() for each in model.decoder.parameters())
    constant = replace(toy_batch(2, classes=CLASSES), images=torch.zeros(2, 3, 32, 32))
    assert all(torch.isfinite(term) for term in f_cam().loss(constant).values())


# --- the map ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (64, 64), (50, 38)])
def test_a_map_has_the_size_of_the_image_and_is_the_same_for_every_class(size):
    model = load_method("f-cam").create(backbone="tiny", num_classes=3, weights="none", settings={})
    maps = model.localize(torch.randn(2, 3, *size)).score_maps(torch.tensor([[0, 1, 2], [2, 0, 0]]))
    assert maps.shape == (2, 3, *size)
    assert torch.equal(maps[:, :1].expand_as(maps), maps)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert model.map_kind == "unit"
    assert not model.ready


def test_every_cell_of_the_next_grid_has_the_nearest_feature():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert enlarge(x, (2, 2)) is x
    expected = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(enlarge(x, (6, 6)), expected)


@pytest.mark.parametrize(
    ("backbone", "grid", "inputs", "skips"),
    [
        ("resnet50", "std28", 2048, (64, 256, 512, 1024)),
        ("vgg16", "std28", 1024, (128, 256)),
        ("vgg16", "std14", 1024, (128, 256, 512)),
    ],
)
def test_the_decoder_joins_the_steps_of_the_released_one(backbone, grid, inputs, skips):
    method = load_method("f-cam")
    with torch.device("meta"):
        model = method.create(backbone=backbone, num_classes=20, weights="none", settings={"grid": grid})
        _, found, head = model.features(torch.zeros(1, 3, 224, 224))
        scores = model.decoder(head.penultimate, found, (224, 224))
    assert scores.shape == (1, 2, 224, 224)
    assert tuple(skip.shape[1] for skip in found) == skips
    widths = (256, 128, 64, 32, 16)[: len(skips) + 1]
    convolutions = [block[0] for block in model.decoder.blocks]
    assert tuple(each.out_channels for each in convolutions) == widths
    joined = [inputs + skips[-1], *(w + s for w, s in zip(widths, skips[-2::-1], strict=False))]
    assert [each.in_channels for each in convolutions] == [*joined, widths[-2]]
    centre = [each for each in model.decoder.centre.modules() if isinstance(each, torch.nn.Conv2d)]
    assert [each.in_channels for each in centre] == ([1024, 1024] if backbone == "vgg16" else [])


@pytest.mark.parametrize(("name", "grid"), [("timm:test_resnet", "std14"), ("timm:test_vit", "tokens")])
def test_networks_of_timm_have_the_ends_of_their_stages(name, grid):
    model = load_method("f-cam").create(backbone=name, num_classes=3, weights="none", settings={"grid": grid})
    assert [skip.name for skip in model.skips] == [stage.name for stage in model.backbone.layout[:-1]]
    images = torch.randn(2, 3, 64, 64)
    terms = model.train().loss(replace(toy_batch(2, classes=3), images=images))
    assert all(torch.isfinite(term) for term in terms.values())


def test_a_decoder_without_skips_is_one_block():
    decoder = UNetDecoder(8, [], width=32)
    assert len(decoder.blocks) == 1
    assert decoder(torch.randn(2, 8, 4, 4), [], (16, 16)).shape == (2, 2, 16, 16)


# --- the stages of a run ------------------------------------------------------------------------------------


def test_the_decoder_learns_everywhere_and_the_classifier_gets_nothing():
    model, batch = f_cam(), toy_batch(6, classes=CLASSES)
    model.on_epoch(*SECOND)
    before = copy.deepcopy(model.state_dict())
    sum(model.decoder_loss(batch).values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("decoder."):
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed  # statistics of its batch norm
    assert all(name.startswith("decoder.") for name in changed)


def test_each_stage_is_due_in_its_epochs_and_a_single_epoch_has_both():
    model = f_cam()
    one, two = model.objectives(RECIPES["tiny"])
    for epoch, expected in enumerate([(True, False), (True, False), (False, True), (False, True)]):
        batch = replace(toy_batch(2, classes=CLASSES), epoch=epoch, epochs=4)
        assert (one.is_due(batch), two.is_due(batch)) == expected
        model.train()
        model.on_epoch(epoch, 4)
        assert model.head.training == model.backbone.training == expected[0]
        assert model.decoder.training == expected[1]
        assert {each.requires_grad for each in model.decoder.parameters()} == {expected[1]}
    assert all(objective.is_due(toy_batch(2, classes=CLASSES)) for objective in (one, two))


def test_the_classifier_is_the_same_to_the_bit_after_the_second_stage(
    train_set, val_set, tmp_path, monkeypatch
):
    states, freeze = {}, FCam.on_epoch

    def watch(model, epoch, epochs):
        states[epoch] = copy.deepcopy(model.state_dict())
        freeze(model, epoch, epochs)

    monkeypatch.setattr(FCam, "on_epoch", watch)
    method = load_method("f-cam")
    model = method.load(method.fit(request(train_set, tmp_path, epochs=8, val=val_set)), device="cpu")
    found = model.state_dict()
    own = [name for name in found if name.startswith(("backbone.", "head."))]
    assert any("running_mean" in name for name in own)
    assert all(torch.equal(found[name], states[4][name]) for name in own)
    assert not all(torch.equal(states[4][name], states[0][name]) for name in own)
    decoder = [name for name in found if name.startswith("decoder.")]
    assert all(torch.equal(states[4][name], states[0][name]) for name in decoder)
    assert not any(torch.equal(found[name], states[4][name]) for name in decoder if name.endswith("weight"))
    # The log has the terms of each stage; nothing is validated.
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [bool(row["cross_entropy"]) for row in rows] == [True] * 4 + [False] * 4
    assert [bool(row["seeds"]) for row in rows] == [False] * 4 + [True] * 4
    assert float(rows[3]["cross_entropy"]) < float(rows[0]["cross_entropy"])
    assert float(rows[7]["seeds"]) < float(rows[4]["seeds"])
    assert not (tmp_path / "best.safetensors").exists()


def test_t_rises_after_each_epoch_of_the_second_stage_up_to_its_limit():
    model = f_cam(barrier_growth=1.01, barrier_limit=1.03)
    found = []
    for epoch in range(12):
        model.after_epoch(epoch, 12)
        found.append(float(model.barrier))
    assert found[:6] == [1.0] * 6
    assert found[6:] == pytest.approx([1.01, 1.01**2, 1.03, 1.03, 1.03, 1.03])
    assert "barrier" in model.state_dict()


def test_a_resumed_run_goes_on_with_t_and_has_the_same_weights(tmp_path, monkeypatch):
    method, rise, few = load_method("f-cam"), FCam.after_epoch, squares(6)

    def cut(model, epoch, epochs):
        rise(model, epoch, epochs)
        if epoch == 3 and stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(FCam, "after_epoch", cut)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        method.fit(request(few, tmp_path / "cut"))
    stop = False
    resumed, whole = (
        method.load(method.fit(request(few, tmp_path / name)), device="cpu") for name in ("cut", "whole")
    )
    assert float(resumed.barrier) == pytest.approx(1.01**2)
    for (name, one), two in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_a_gpu_would_not_wait_in_the_second_stage(monkeypatch):
    freeze = FCam.on_epoch
    monkeypatch.setattr(FCam, "on_epoch", lambda model, _, epochs: freeze(model, epochs - 1, epochs))
    seen, loss = [], FCam.decoder_loss
    monkeypatch.setattr(FCam, "decoder_loss", lambda model, batch: seen.append(model) or loss(model, batch))
    run_check("f-cam", "fake_gpu", settings={"erosion": "3"})
    assert seen


# --- recipes and settings -----------------------------------------------------------------------------------


def test_both_stages_have_the_released_rates():
    method = load_method("f-cam")
    with torch.device("meta"):
        model = method.create(backbone="resnet50", num_classes=200, weights="none", settings={})
    recipe = method.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (100, 32, 1.7e-3, 1e-4)
    one, two = model.objectives(recipe)
    assert (two.recipe.lr, two.recipe.optimizer, two.recipe.momentum) == (0.01, "sgd", 0.9)
    for epoch, falls in ((0, 0), (14.9, 0), (15, 1), (30, 2), (45, 3), (49.9, 3)):
        assert model.lr_factor(one.recipe, epoch / 100) == pytest.approx(0.1**falls)
    assert {model.lr_factor(two.recipe, epoch / 100) for epoch in (50, 75, 99.9)} == {1}
    grouped = [id(each) for group in [*one.groups, *two.groups] for each in group["params"]]
    assert sorted(grouped) == sorted(id(each) for each in model.parameters())
    # Other lengths; and the recipe of CAM, whose epochs both stages share.
    assert method.recipe_for("resnet50", 200, {"stage_epochs": "20,5"}).epochs == 25
    assert method.recipe_for("vgg16", 200, {"stage_epochs": "20,5"}).epochs == 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": (1, 2, 3)}, "has 3 lengths"),
        ({"erosion": 4}, "expected an odd number"),
        ({"dilation": 2}, "expected an odd number"),
        ({"barrier_start": 11.0}, "not above the limit"),
        ({"barrier_growth": 0.5}, "barrier_growth"),
        ({"background": 0.0}, "background"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        FCamConfig(**settings)
