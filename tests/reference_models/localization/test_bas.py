"""BAS: what is left of the class in the background, its price, and a tail whose parameters are constants."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.localization.bas import Bas, BasConfig, masked_scores, mean_of_top, residual, run_frozen
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method

CLASSES = 5


def bas(classes: int = CLASSES, **settings) -> Bas:
    """A model whose activations are all above 0, in train mode."""
    model = Bas(toy_backbone(), classes, BasConfig(**settings)).train()
    torch.nn.init.constant_(model.classifier[0].bias, 1.0)
    return model


def with_map_of(model: Bas, value: float) -> Bas:
    """The same model, whose generator gives `value`, 0 or 1, everywhere."""
    torch.nn.init.zeros_(model.generator.weight)
    torch.nn.init.constant_(model.generator.bias, 200.0 if value else -200.0)
    return model


def reference_terms(model: Bas, batch, strict: bool) -> dict[str, torch.Tensor]:
    """The loss with copies of the layers, one image at a time behind the tail."""
    stages, pooled, net = [], None, model.backbone.steps
    features = net["two"](net["one"](batch.images))
    pooled = F.max_pool2d(features, 2)
    stages = net["three"](pooled)
    activation = model.classifier(model.trunk(stages))
    maps = torch.sigmoid(F.conv2d(features, model.generator.weight, model.generator.bias, padding=1))
    masks = torch.stack([maps[row, label] for row, label in enumerate(batch.labels)])[:, None]
    third, trunk, classifier = (copy.deepcopy(each) for each in (net["three"], model.trunk, model.classifier))
    erased = F.max_pool2d(features.detach() * (1 - masks), 2)
    erased = classifier(trunk(third(erased)))
    ratios, inside = [], []
    for row, label in enumerate(batch.labels):
        b, s = erased[row, label].mean(), activation[row, label].mean().detach()
        above = b > s if strict else b >= s
        ratios.append(torch.zeros(()) if above else b / (s + 1e-8))
        small = F.avg_pool2d(masks[row], 2)
        inside.append((activation[row] * small).mean(dim=(1, 2)))
    return {
        "cross_entropy": F.cross_entropy(activation.mean(dim=(2, 3)), batch.labels),
        "background": torch.stack(ratios).mean(),
        "area": model.area * masks.mean(),
        "foreground": model.foreground * F.cross_entropy(torch.stack(inside), batch.labels),
    }


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equal", ["one", "zero"])
def test_terms_and_gradients_are_those_of_a_network_with_copied_layers(equal):
    model, batch = bas(equal=equal, area=0.9, foreground=0.6), toy_batch(6, classes=CLASSES)
    other = copy.deepcopy(model)
    found, expected = model.loss(batch), reference_terms(other, batch, equal == "one")
    assert set(found) == set(expected)
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, msg=name)
    sum(found.values()).backward()
    sum(expected.values()).backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_the_erased_pass_changes_no_running_statistics():
    model, batch = bas(), toy_batch(4, classes=CLASSES)
    other = copy.deepcopy(model)
    model.loss(batch)
    other(batch.images)  # the whole images alone
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name


def test_an_empty_map_leaves_exactly_the_activation_of_the_image():
    model, batch = with_map_of(bas(), 0), toy_batch(4, classes=CLASSES)
    stages, features = model.features(batch.images)
    whole = model.classifier(model.trunk(stages["three"]))
    assert torch.equal(model.activation_left(features), whole)
    terms = model.loss(batch)
    assert terms["area"] == 0
    torch.testing.assert_close(terms["background"], torch.tensor(1.0))
    # In the program for CUB it costs nothing at all.
    assert with_map_of(bas(equal="zero"), 0).loss(batch)["background"] == 0


def test_a_full_map_leaves_the_tail_of_zeros_and_costs_its_area():
    model, batch = with_map_of(bas(area=0.75), 1), toy_batch(4, classes=CLASSES)
    _, features = model.features(batch.images)
    left = model.activation_left(torch.zeros_like(features)).mean(dim=(2, 3))
    whole = model(batch.images).logits
    rows = torch.arange(4)
    expected = residual(left[rows, batch.labels], whole[rows, batch.labels])
    terms = model.loss(batch)
    torch.testing.assert_close(terms["background"], expected.mean())
    assert terms["area"] == 0.75
    torch.testing.assert_close(terms["foreground"], model.foreground * terms["cross_entropy"])


def test_the_background_term_trains_the_generator_and_its_input_but_not_the_tail():
    model, batch = bas(), toy_batch(4, classes=CLASSES)
    model.loss(batch)["background"].backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        if name == "generator.weight":
            rows = torch.zeros(CLASSES, dtype=torch.bool)
            rows[batch.labels] = True
            assert parameter.grad.flatten(1).any(dim=1).equal(rows)  # the maps of other classes do not count
        else:
            assert reached == name.startswith(("generator", "backbone.steps.one", "backbone.steps.two")), name


def test_no_gradient_goes_through_the_erased_features():
    model, batch = bas(), toy_batch(4, classes=CLASSES)
    maps_of = model.foreground_maps
    model.foreground_maps = lambda features: maps_of(features.detach())
    model.loss(batch)["background"].backward()
    reached = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert reached == {"generator.weight", "generator.bias"}


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=6))
def test_what_is_left_is_a_fraction_without_gradient_where_it_exceeds_the_whole(pairs):
    left, whole = torch.tensor(pairs).unbind(1)
    left.requires_grad_()
    for equal in ("one", "zero"):
        (gradient,) = torch.autograd.grad(residual(left, whole, equal).sum(), left)
        shares = residual(left, whole, equal).detach()
        assert bool(((shares >= 0) & (shares <= 1)).all())
        assert not gradient[left.detach() > whole].any()
        assert not shares[left.detach() > whole].any()
        assert bool((gradient[left.detach() < whole] > 0).all())
    assert residual(torch.tensor([2.0]), torch.tensor([2.0])) == 1
    assert residual(torch.tensor([2.0]), torch.tensor([2.0]), "zero") == 0
    assert residual(torch.zeros(1), torch.zeros(1)) == 0


def test_scores_inside_a_mask_are_the_mean_over_its_cells():
    activation = torch.rand(2, 3, 2, 2)
    mask = torch.zeros(2, 1, 4, 4)
    torch.testing.assert_close(masked_scores(activation, mask + 1), activation.mean(dim=(2, 3)))
    mask[:, :, :2, :2] = 1
    torch.testing.assert_close(masked_scores(activation, mask), activation[:, :, 0, 0] / 4)
    mask[:, :, 0] = 0  # half of the cell is left
    torch.testing.assert_close(masked_scores(activation, mask), activation[:, :, 0, 0] / 8)
    same = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(masked_scores(activation, same), (activation * same).mean(dim=(2, 3)))


def test_a_weight_of_0_leaves_the_foreground_out():
    batch = toy_batch(4, classes=CLASSES)
    assert set(bas(foreground=0.0).loss(batch)) == {"cross_entropy", "background", "area"}
    assert bas(area=0.0).loss(batch)["area"] == 0


def test_constants_take_no_gradient_and_keep_the_graph_of_their_input():
    layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3)).train()
    x = torch.randn(2, 2, 3, 3, requires_grad=True)
    before = copy.deepcopy(layer.state_dict())
    output = run_frozen(layer, x)
    assert torch.equal(output, copy.deepcopy(layer)(x))
    output.square().sum().backward()
    assert x.grad.any()
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert all(
        torch.equal(one, two) for one, two in zip(before.values(), layer.state_dict().values(), strict=True)
    )


# --- maps ---------------------------------------------------------------------------------------------------


def test_with_all_classes_an_image_has_one_map_which_is_the_mean():
    model, images = bas(maps="top").eval(), toy_batch(3, classes=CLASSES).images
    _, features = model.features(images)
    every = torch.arange(CLASSES).expand(3, -1)
    maps = model.localize(images).score_maps(every)
    expected = model.foreground_maps(features).mean(dim=1)
    for number in range(CLASSES):
        torch.testing.assert_close(maps[:, number], expected)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_the_map_of_the_best_class_alone_is_that_of_the_predicted_class():
    model, images = bas(maps="top", top=1).eval(), toy_batch(4, classes=CLASSES).images
    own = Bas(toy_backbone(), CLASSES, replace(model.config, maps="class")).eval()
    own.load_state_dict(model.state_dict())
    asked = torch.tensor([[3, 0]] * 4)
    best = own.localize(images).logits.argmax(dim=1, keepdim=True)
    maps = model.localize(images).score_maps(asked)
    assert torch.equal(maps[:, :1], own.localize(images).score_maps(best))
    assert torch.equal(maps[:, 0], maps[:, 1])
    of_class = own.localize(images).score_maps(asked)
    assert not torch.equal(of_class[:, 0], of_class[:, 1])


def test_the_mean_is_over_the_classes_with_the_highest_logits():
    maps, logits = torch.rand(2, 4, 3, 3), torch.tensor([[1.0, 4, 3, 2], [4.0, 1, 2, 3]])
    found = mean_of_top(maps, logits, 2)
    torch.testing.assert_close(found[0, 0], (maps[0, 1] + maps[0, 2]) / 2)
    torch.testing.assert_close(found[1, 0], (maps[1, 0] + maps[1, 3]) / 2)


def test_a_constant_image_has_finite_maps_and_terms():
    batch = replace(toy_batch(2, classes=CLASSES), images=torch.zeros(2, 3, 32, 32))
    model = bas()
    torch.nn.init.constant_(model.classifier[0].bias, -1.0)  # no activation at all
    terms = model.loss(batch)
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["background"] == 0
    assert torch.isfinite(model.eval().localize(batch.images).score_maps(batch.labels[:, None])).all()


# --- networks and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "step", "map_side", "last_side"),
    [
        ("vgg16", "relu4_3", 28, 14),
        ("resnet50", "layer3_5", 28, 14),
        ("inception_v3", "Mixed_5d", 28, 14),
        ("efficientnet_lite0", "blocks4_2", 14, 14),
    ],
)
def test_grids_at_224_pixels(backbone, step, map_side, last_side):
    method = load_method("bas")
    with torch.device("meta"):
        model = method.create(backbone=backbone, num_classes=3, weights="none", settings={})
        stages, features = model.features(torch.zeros(1, 3, 224, 224))
    assert model.step.name == step
    assert features.shape[-2:] == (map_side, map_side)
    assert next(reversed(stages.values())).shape[-2:] == (last_side, last_side)
    assert model.tail[-1] == list(model.backbone.steps)[-1]


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_on_a_network_whose_steps_cannot_be_run_the_tail_is_the_classifier(name):
    settings = {"grid": "tokens"} if "vit" in name else {}
    model = load_method("bas").create(backbone=name, num_classes=3, weights="none", settings=settings)
    assert model.tail == ()
    batch = replace(toy_batch(2, classes=3), images=torch.randn(2, 3, 64, 64))
    terms = model.train().loss(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert model.generator.weight.grad.any()
    _, features = model.features(batch.images)
    assert torch.equal(model.activation_left(features), model.classifier(model.trunk(features)))


@pytest.mark.parametrize(
    ("backbone", "classes", "area", "foreground", "averages", "top"),
    [
        ("vgg16", 200, 0.7, 0.0, True, 80),
        ("resnet50", 200, 1.2, 0.5, True, 200),
        ("inception_v3", 200, 1.0, 0.5, True, 200),
        ("vgg16", 1000, 1.0, 0.05, False, 400),
        ("resnet50", 1000, 2.0, 1.0, False, 1000),
        ("inception_v3", 1000, 2.5, 1.0, False, 1000),
    ],
)
def test_unset_values_are_the_released_ones(backbone, classes, area, foreground, averages, top):
    method = load_method("bas")
    with torch.device("meta"):
        model = method.create(backbone=backbone, num_classes=classes, weights="none", settings={})
    assert (model.config.area, model.config.foreground) == (area, foreground)
    assert (model.averages, model.top) == (averages, top)
    recipe = method.recipe_for(backbone, classes, {})
    assert (recipe.epochs, recipe.batch_size) == ((100, 32) if classes == 200 else (9, 128))
    assert [recipe.lr_factor(epoch / recipe.epochs) for epoch in (0, 3, 6)] == pytest.approx(
        [1, 1, 1] if classes == 200 else [1, 0.1, 0.01]
    )


def test_more_classes_than_there_are_cannot_be_averaged():
    with pytest.raises(UsageError, match=r"setting top of method 'bas' is 6; expected at most .* 5"):
        bas(top=CLASSES + 1)


def test_training_on_squares_lowers_the_loss(train_set, tmp_path):
    request = TrainRequest(
        train=train_set,
        out=tmp_path,
        backbone="tiny",
        weights="none",
        epochs=4,
        batch_size=8,
        image_size=32,
        workers=0,
        device="cpu",
    )
    load_method("bas").fit(request)
    losses = [float(row["train_loss"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.1
