"""RA-CNN: the views, the ranking, and the stages of a run. `test_ra_cnn_crop.py` has the squares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.config import parse_settings
from reference_models.core.recipes import RECIPES
from reference_models.layers.regions import crop_resize
from reference_models.recognition.ra_cnn.attention_crop import box_mask, corners, positions, sample_box
from reference_models.recognition.ra_cnn.method import RaCnn
from reference_models.recognition.ra_cnn.settings import RaCnnConfig
from tests.reference_models.conftest import toy_backbone, toy_batch
from tests.reference_models.recognition.training_checks import (
    check_one_step,
    check_stopped_run,
    module_of,
    reached_by,
)
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

CLASSES = 5
EPOCHS = 12
STAGES = {"A": 0, "B": 4, "C even": 5, "C odd": 6, "D": 11}


def ra_cnn(**settings) -> RaCnn:
    """A model whose squares differ from image to image."""
    config = parse_settings(RaCnnConfig, {key: str(value) for key, value in settings.items()}, what="ra-cnn")
    model = RaCnn(toy_backbone(), CLASSES, config)
    for proposal in model.proposals:
        torch.nn.init.normal_(proposal.hidden.weight, std=0.3)
        torch.nn.init.normal_(proposal.place.weight, std=0.1)
        torch.nn.init.constant_(proposal.place.bias, -0.5)
    for classifier in (*model.classifiers, model.fusion_classifier):
        torch.nn.init.normal_(classifier.weight, std=0.5)
    return model.eval()


def at_epoch(model: RaCnn, epoch: int, epochs: int = EPOCHS) -> RaCnn:
    model.train().on_epoch(epoch, epochs)
    return model


# --- views --------------------------------------------------------------------------------------------------


def crop_by_loops(image: list[list[float]], box: list[float], size: int) -> list[list[float]]:
    """Bilinear samples at the centres of size x size cells of a box in pixels, one pixel after another."""
    last = len(image) - 1

    def value(y: float, x: float) -> float:
        y, x = min(max(y - 0.5, 0.0), last), min(max(x - 0.5, 0.0), last)
        top, left = min(int(y), last - 1), min(int(x), last - 1)
        down, right = y - top, x - left
        return sum(
            weight * image[top + dy][left + dx]
            for dy, dx, weight in (
                (0, 0, (1 - down) * (1 - right)),
                (0, 1, (1 - down) * right),
                (1, 0, down * (1 - right)),
                (1, 1, down * right),
            )
        )

    x0, y0, x1, y1 = box
    return [
        [
            value(y0 + (row + 0.5) / size * (y1 - y0), x0 + (column + 0.5) / size * (x1 - x0))
            for column in range(size)
        ]
        for row in range(size)
    ]


@pytest.mark.parametrize("crop_grad", ["surrogate", "sampler"])
def test_the_next_view_is_the_bilinear_enlargement_of_the_square_pixel_by_pixel(crop_grad):
    model, images = ra_cnn(crop_grad=crop_grad), torch.randn(3, 3, 32, 32)
    seen = []
    handle = model.finer[0].steps["one"].register_forward_pre_hook(lambda _step, given: seen.append(given[0]))
    _, zooms = model.look(images)
    handle.remove()
    assert seen[0].shape == (3, 3, 16, 16)
    for number, (x, y, half) in enumerate(zooms[0].place.tolist()):
        box = [32 * each for each in (x - half, y - half, x + half, y + half)]
        assert min(box) > -1e-4
        assert max(box) < 32 + 1e-4
        for channel in range(3):
            expected = torch.tensor(crop_by_loops(images[number, channel].tolist(), box, 16))
            torch.testing.assert_close(seen[0][number, channel], expected, atol=2e-4, rtol=1e-4)
    assert (zooms[0].place[0] - zooms[0].place[1]).abs().max() > 1e-3


def test_the_released_crop_has_whole_pixels_and_stays_in_the_view():
    model = ra_cnn(variant="official")
    torch.nn.init.constant_(model.proposals[0].place.bias, 2.0)  # a square that reaches beyond the view
    _, zooms = model.look(torch.randn(4, 3, 32, 32))
    box = 32 * zooms[0].box
    torch.testing.assert_close(box, box.round(), atol=1e-4, rtol=0)
    assert box.max() == 32
    assert zooms[0].place[:, 2].max() > 0.5
    assert zooms[0].k == pytest.approx(0.05 * 32)


def test_a_new_network_looks_at_the_whole_view():
    model = RaCnn(toy_backbone(), CLASSES, RaCnnConfig()).eval()
    boxes = model.localize(torch.randn(2, 3, 32, 32)).propose().boxes
    torch.testing.assert_close(boxes, torch.tensor([0.0, 0, 32, 32]).expand(2, 2, 4), atol=0.2, rtol=0)


# --- the ranking --------------------------------------------------------------------------------------------


def rank_model(crop_grad: str, **settings) -> tuple[RaCnn, torch.Tensor, torch.Tensor]:
    model = at_epoch(ra_cnn(crop_grad=crop_grad, margin=1.0, scales=2, **settings), STAGES["C odd"])
    return model, torch.randn(4, 3, 32, 32), torch.arange(4)


def test_the_gradient_of_the_ranking_is_equation_10_on_the_crop():
    model, images, labels = rank_model("surrogate")
    looks, zooms = model.look(images, learns=True)
    place = zooms[0].place
    found = torch.autograd.grad(model.rank_terms(looks, zooms, labels)["rank1"], place, retain_graph=True)[0]
    # The same by the crop's pixels, one after another.
    crop = zooms[0].handle
    sure = looks[1].logits.softmax(dim=1)[torch.arange(4), labels]
    (gradient,) = torch.autograd.grad(-sure.sum(), crop)
    for number in range(4):
        x, y, half = place[number].tolist()
        weights = gradient[number].square().sum(dim=0)
        weights = weights / weights.max()
        slopes = torch.zeros(3, 16, 16)
        for row in range(16):
            for column in range(16):
                t = place[number].detach().clone().requires_grad_()
                at_x, at_y = (
                    torch.tensor([[start - half + (cell + 0.5) / 16 * 2 * half]])
                    for start, cell in ((x, column), (y, row))
                )
                (slope,) = torch.autograd.grad(box_mask(at_x, at_y, t[None], 10.0).sum(), t)
                slopes[:, row, column] = slope
        slopes[2] -= slopes[2].mean()
        expected = -(weights * slopes).sum(dim=(1, 2)) / 256 / 4
        torch.testing.assert_close(found[number], expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("crop_grad", ["mask", "sampler"])
def test_the_exact_gradients_of_the_ranking_are_those_of_autograd(crop_grad):
    model, images, labels = rank_model(crop_grad)
    looks, zooms = model.look(images, learns=True)
    found = torch.autograd.grad(model.rank_terms(looks, zooms, labels)["rank1"], zooms[0].place)[0]
    place = zooms[0].place.detach().clone().requires_grad_()
    if crop_grad == "sampler":
        view = sample_box(images, place, 16)
    else:
        fixed = corners(place.detach())
        view = crop_resize(images, 32 * fixed[:, None], 16)
        view = view * box_mask(*positions(fixed, 16), place, 10.0)[:, None]
    logits = model.classifiers[1](model.finer[0].run(view).mean(dim=(2, 3)))
    (expected,) = torch.autograd.grad(-logits.softmax(dim=1)[torch.arange(4), labels].mean(), place)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_each_square_learns_from_its_own_term_also_where_both_terms_are_active():
    model = at_epoch(ra_cnn(crop_grad="sampler", margin=1.0), STAGES["C odd"])
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    looks, zooms = model.look(images, learns=True)
    terms = model.rank_terms(looks, zooms, labels)
    (found,) = torch.autograd.grad(terms["rank1"], zooms[0].place, retain_graph=True)
    sure = looks[1].logits.softmax(dim=1)[torch.arange(4), labels].mean()
    (expected,) = torch.autograd.grad(-sure, zooms[0].handle)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert found.abs().max() > 1e-5


@pytest.mark.parametrize("alternate", ["epoch", "joint"])
def test_images_whose_closer_view_is_surer_push_nothing(alternate):
    """Also where batch norm in training makes the probability of an image depend on the others."""
    model, images, _ = rank_model("surrogate", alternate=alternate)
    assert model.finer[0].training == (alternate == "joint")
    looks, zooms = model.look(images, learns=True)
    coarse, fine = (look.logits.detach().softmax(dim=1) for look in looks)
    best = (fine - coarse).argmax(dim=1)
    gaps = (coarse - fine).gather(1, best[:, None])[:, 0]
    model.config = replace(model.config, margin=max(0.0, -float(gaps.median()) + 1e-6))
    expected = (gaps + model.config.margin).clamp_min(0)
    terms = model.rank_terms(looks, zooms, best)
    assert terms["rank1"].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    push = torch.autograd.grad(terms["rank1"], zooms[0].place)[0]
    assert (push.abs().amax(dim=1) > 0).tolist() == (expected > 0).tolist()
    assert 0 < (expected > 0).sum() < 4


# --- the stages of a run ------------------------------------------------------------------------------------

LEARNS = {
    "A": {"backbone", "classifiers.0"},
    "B": {"proposals.0", "proposals.1"},
    "C even": {"backbone", "finer.0", "finer.1", "classifiers.0", "classifiers.1", "classifiers.2"},
    "C odd": {"proposals.0", "proposals.1"},
    "D": {"fusion_classifier"},
}


LISTS = ("classifiers", "finer", "proposals")


@pytest.mark.parametrize("stage", LEARNS)
def test_a_stage_trains_its_modules_and_leaves_the_others_to_the_bit(stage):
    model = at_epoch(ra_cnn(margin=1.0), STAGES[stage])
    check_one_step(model, toy_batch(4, classes=CLASSES), LEARNS[stage], LISTS)


@pytest.mark.parametrize("crop_grad", ["surrogate", "mask", "sampler"])
def test_in_a_joint_step_each_loss_reaches_only_its_modules(crop_grad):
    model = at_epoch(ra_cnn(margin=1.0, alternate="joint", crop_grad=crop_grad), STAGES["C even"])
    terms = model.loss(toy_batch(4, classes=CLASSES))
    for kind, stage in (("rank", "C odd"), ("class", "C even")):
        loss = sum(term for name, term in terms.items() if name.startswith(kind))
        assert reached_by(model, loss, LISTS) == LEARNS[stage]


def test_the_finer_scales_start_from_the_first_one():
    model = ra_cnn()
    torch.nn.init.normal_(model.backbone.steps["one"][0].weight)
    model.backbone.steps["one"][1].running_mean.fill_(3.0)
    at_epoch(model, STAGES["A"])
    assert not torch.equal(model.classifiers[1].weight, model.classifiers[0].weight)
    at_epoch(model, STAGES["B"])
    for network in model.finer:
        assert all(map(torch.equal, network.state_dict().values(), model.backbone.state_dict().values()))
    assert torch.equal(model.classifiers[2].weight, model.classifiers[0].weight)


def test_epochs_of_both_losses_take_turns_except_in_the_control():
    def terms(epoch: int, **settings: str) -> str:
        return "+".join(sorted(ra_cnn(**settings).terms_at(epoch, EPOCHS)))

    assert [terms(epoch) for epoch in range(EPOCHS)] == [
        *["coarse"] * 4,
        "place",
        *["class", "rank"] * 3,
        "fusion",
    ]
    assert {terms(epoch, crop_grad="none") for epoch in range(5, 11)} == {"class"}
    assert {terms(epoch, alternate="joint") for epoch in range(5, 11)} == {"class+rank"}


def test_a_run_of_fewer_epochs_than_stages_trains_everything():
    model = at_epoch(ra_cnn(margin=1.0), 0, 3)
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_each_stage_has_the_recipe_s_schedule():
    model, recipe = ra_cnn(), RaCnn.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (100, 16, 1e-3, 5e-4)
    times = (0, 17.9, 18.1, 29.9, 30, 32.9, 33.1, 35, 67.9, 68.1, 90, 95.9, 96.1)
    factors = [1, 1, 0.1, 0.1, 1, 1, 0.1, 1, 1, 0.1, 1, 1, 0.1]
    assert [model.lr_factor(recipe, time / 100) for time in times] == pytest.approx(factors)
    assert RaCnn.recipe_for("resnet50", 200, {"stage_epochs": "3,1,4,1"}).epochs == 9
    assert RaCnn.recipe_for("tiny", 200, {}) == RECIPES["tiny"]


def test_copies_of_the_network_have_its_rate_and_its_frozen_stages():
    model, recipe = ra_cnn(), replace(RaCnn.recipe_for("resnet50", 200, {}), new_factor=10.0)
    new = {module_of(name, LISTS) for name, _ in model.named_parameters() if model.is_new(name, recipe)}
    classifiers = {"classifiers.0", "classifiers.1", "classifiers.2", "fusion_classifier"}
    assert new == {*classifiers, "proposals.0", "proposals.1"}
    model.backbone.frozen = ("one",)
    at_epoch(model, STAGES["C even"])
    for network in (model.backbone, *model.finer):
        assert [step.training for step in network.steps.values()] == [False, True, True]
        assert not network.steps["one"][0].weight.requires_grad


@pytest.mark.parametrize("settings", [{}, {"shared": "true", "norm_statistics": "per_input"}])
def test_a_run_that_was_stopped_in_any_stage_ends_as_an_unbroken_one(tmp_path, monkeypatch, settings):
    own = {"stage_epochs": "1,1,3,1", "apn_width": "8", **settings}
    found = check_stopped_run(
        RaCnn,
        lambda name: request(tmp_path / name, epochs=6, val=None, settings=own),
        (1, 3, 5),
        monkeypatch,
    )
    assert "fusion_classifier.weight" in found


# --- one network for all scales -----------------------------------------------------------------------------


def test_a_shared_network_sees_all_views_with_statistics_of_each_if_asked():
    model = ra_cnn(shared="true", norm_statistics="per_input")
    assert len(model.finer) == 0
    mean = model.backbone.steps["one"][1].running_mean
    mean.fill_(0.5)
    at_epoch(model, STAGES["B"])
    own = [next(iter(statistics.layers.values())).running_mean for statistics in model.part_statistics]
    assert all(torch.equal(each, mean) for each in own)
    at_epoch(model, STAGES["C even"])
    model.loss(toy_batch(4, classes=CLASSES))
    assert not torch.equal(own[0], own[1])
    assert not torch.equal(own[0], mean)
    shared = at_epoch(ra_cnn(shared="true"), STAGES["C even"])
    shared.loss(toy_batch(4, classes=CLASSES))
    assert shared.backbone.steps["one"][1].num_batches_tracked == 3


# --- results ------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_setting():
    model, images = ra_cnn(), torch.randn(3, 3, 32, 32)
    looks, _ = model.look(images)
    logits = {}
    for kind in ("fusion", "sum", "scale1", "scale2", "scale3"):
        model.config = replace(model.config, predict=kind)
        logits[kind] = model.localize(images).logits
    for scale in range(3):
        torch.testing.assert_close(logits[f"scale{scale + 1}"], looks[scale].logits)
    mean = sum(look.logits.softmax(dim=1) for look in looks) / 3
    torch.testing.assert_close(logits["sum"].softmax(dim=1), mean)
    unit = [10 * look.pooled / look.pooled.norm(dim=1, keepdim=True) for look in looks]
    torch.testing.assert_close(logits["fusion"], model.fusion_classifier(torch.cat(unit, dim=1)))


def test_proposals_are_the_nested_squares_with_the_probability_of_the_scale_that_saw_them():
    model, images = ra_cnn(), torch.randn(8, 3, 32, 32)
    for classifier in model.classifiers:
        torch.nn.init.normal_(classifier.weight, std=20)
    looks, zooms = model.look(images)
    found = model.localize(images).propose()
    sure = torch.stack([look.logits.softmax(dim=1).amax(dim=1) for look in looks[1:]], dim=1)
    torch.testing.assert_close(found.scores, sure.sort(dim=1, descending=True).values)
    for number in range(8):
        first = [0, 1] if sure[number, 0] >= sure[number, 1] else [1, 0]
        outer, inner = found.boxes[number, first.index(0)], found.boxes[number, first.index(1)]
        torch.testing.assert_close(outer, 32 * zooms[0].box[number])
        torch.testing.assert_close(
            (inner[2] - inner[0]).item(),
            32 * 4 * float(zooms[0].place[number, 2] * zooms[1].place[number, 2]),
        )
        assert (inner[:2] >= outer[:2] - 1e-4).all()
        assert (inner[2:] <= outer[2:] + 1e-4).all()
    assert len(set(sure.argmax(dim=1).tolist())) == 2


def test_extra_maps_are_the_mean_activation_and_the_mask_at_the_centres_of_the_cells():
    model, images = ra_cnn(), torch.randn(2, 3, 32, 32)
    looks, zooms = model.look(images)
    maps = model.localize(images).extra_maps
    torch.testing.assert_close(maps["response"], looks[0].features.mean(dim=1))
    at = ((torch.arange(8) + 0.5) / 8).expand(2, 8)
    torch.testing.assert_close(maps["mask"], box_mask(at, at, zooms[0].place, 10.0))


def test_class_maps_are_those_of_scale_1():
    model, images = ra_cnn(), torch.randn(2, 3, 32, 32)
    looks, _ = model.look(images)
    classes = torch.tensor([[0, 3], [2, 1]])
    maps = model.localize(images).score_maps(classes)
    biases = model.classifiers[0].bias[classes]
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + biases, looks[0].logits.gather(1, classes))


def test_the_attention_of_the_paper_has_three_times_the_weights_of_a_resnet():
    with torch.device("meta"):
        backbone = toy_backbone(448)
        backbone.layout = (replace(backbone.layout[-1], stride=32, channels=2048),)
        model = RaCnn(backbone, 200, RaCnnConfig(shared=True))
        light = RaCnn(backbone, 200, RaCnnConfig(shared=True, apn_width=256, apn_pool=2))
    assert [proposal.hidden.weight.numel() for proposal in model.proposals] == [2048 * 49 * 1024] * 2
    assert [proposal.hidden.weight.numel() for proposal in light.proposals] == [2048 * 4 * 256] * 2


def test_the_class_probability_decides_in_single_precision_under_autocast():
    model = at_epoch(ra_cnn(margin=1.0), STAGES["C odd"])
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(toy_batch(4, classes=CLASSES))
    assert all(term.dtype == torch.float32 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.proposals.parameters())


def test_places_are_computed_in_single_precision_under_autocast():
    proposal, features = ra_cnn().proposals[0], torch.rand(16, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = proposal(features)
        hidden = torch.tanh(proposal.hidden(F.max_pool2d(features, 2).flatten(1)))
    expected = torch.sigmoid(hidden.float() @ proposal.place.weight.T + proposal.place.bias)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_half_precision_does_not_lose_the_push_of_a_small_gradient():
    pushes = []
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        model, images, labels = rank_model("surrogate")
        torch.nn.init.normal_(
            model.classifiers[1].weight, std=3e-5
        )  # probabilities hardly depend on the crop
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            looks, zooms = model.look(images, learns=True)
            loss = model.rank_terms(looks, zooms, labels)["rank1"]
        pushes.append(torch.autograd.grad(loss, zooms[0].place)[0])
    assert F.cosine_similarity(*pushes, dim=1).min() > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": "1,2,3"}, "has 3 lengths"),
        ({"scales": "2", "predict": "scale3"}, "expected a scale that exists"),
        ({"norm_statistics": "per_input"}, "shared=true"),
        ({"part_size": "1"}, "at least 2 pixels"),
        ({"crop": "whole_pixels", "crop_grad": "sampler"}, "corners in whole pixels have no derivative"),
        ({"least_half_side": "0.6"}, r"in \[0.01, 0.5\]"),
        ({"scales": "1"}, r"in \[2, 3\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ra_cnn(**settings)
