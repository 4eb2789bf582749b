"""NL-CCAM: the blocks, the weights of the ranks, and the one map that they make of all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.backbone import load_backbone
from reference_models.core.outputs import Batch
from reference_models.layers.heads import class_activation_maps
from reference_models.localization.nl_ccam import (
    NlCcam,
    NlCcamConfig,
    NonLocalBlock,
    combined_map,
    find_insertion_points,
    put_first,
    rank_classes,
    rank_weights,
)
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError

CLASSES = 6
KINDS = ["quadratic", "linear", "t1b1", "t1b0"]


def nl_ccam(classes: int = CLASSES, **settings) -> NlCcam:
    model = NlCcam(toy_backbone(), classes, NlCcamConfig(**settings)).eval()
    torch.nn.init.normal_(model.head.classifier.weight)
    torch.nn.init.normal_(model.head.classifier.bias)
    return model


def class_maps(model: NlCcam, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the plain maps of all classes (B, C, h, w)."""
    result = model.localize(images)
    ids = torch.arange(model.num_classes).expand(len(images), -1)
    return result.logits, class_activation_maps(
        result.penultimate, model.head.classifier.weight.detach(), ids
    )


def filled(channels: int) -> NonLocalBlock:
    """A block that is not the identity."""
    block = NonLocalBlock(channels).eval()
    biases = (layer.bias for layer in (block.query, block.key, block.value, block.out))
    for layer in (*biases, block.norm.weight, block.norm.bias, block.norm.running_mean):
        torch.nn.init.normal_(layer)
    return block


# --- the blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_new_block_changes_nothing(training):
    block, x = NonLocalBlock(16).train(training), torch.randn(3, 16, 5, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_block_adds_what_each_pixel_attends_to(channels):
    block, x = filled(channels), torch.randn(2, channels, 3, 5)
    flat = x.flatten(2)

    def project(layer, values):
        return torch.einsum("oc,bcn->bon", layer.weight[:, :, 0, 0], values) + layer.bias[:, None]

    q, k, v = (project(layer, flat) for layer in (block.query, block.key, block.value))
    assert q.shape[1] == max(1, channels // 8)
    attention = torch.einsum("bci,bcj->bij", q, k).softmax(dim=2)  # row i: what pixel i attends to
    seen = torch.einsum("bcj,bij->bci", v, attention)
    expected = x + block.norm(project(block.out, seen).view_as(x))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)
    before = block(x)
    block.query.bias.data += 3.0  # what pixels attend to depends on it
    assert (block(x) - before).abs().max() > 1e-4


def test_new_blocks_and_the_classifier_on_vgg_are_drawn_as_torch_draws_them():
    block = NonLocalBlock(512)
    for layer in (block.query, block.key, block.value, block.out):
        assert layer.weight.std().item() == pytest.approx(
            1 / (3 * 512) ** 0.5, rel=0.02
        )  # 0.0255; Xavier's rule has 0.059 for the query
        assert layer.weight.abs().max() <= 512**-0.5
        assert 0 < layer.bias.abs().max() <= 512**-0.5
    assert not block.norm.weight.any()
    assert not block.norm.bias.any()
    head = NlCcam.create(
        backbone="vgg16", num_classes=200, weights="none", settings={}, image_size=32
    ).head.classifier
    assert head.weight.std().item() == pytest.approx(1 / (3 * 512) ** 0.5, rel=0.02)
    assert head.bias.any()


def test_a_block_moves_with_its_pixels():
    block, x = filled(16), torch.randn(2, 16, 6, 5)
    shift = {"shifts": (2, 1), "dims": (2, 3)}
    torch.testing.assert_close(block(x.roll(**shift)), block(x).roll(**shift), atol=1e-5, rtol=1e-4)


def test_attention_keeps_products_that_half_precision_cannot_hold(monkeypatch):
    block, x, seen = filled(16), 500 * torch.randn(1, 16, 4, 4), []
    expected = block(x)
    attend = F.scaled_dot_product_attention
    # What half precision would do here depends on the device: so look at what attention is given.
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *qkv, **how: seen.append((torch.is_autocast_enabled("cpu"), *qkv)) or attend(*qkv, **how),
    )
    with torch.autocast("cpu", dtype=torch.float16):
        made = block(x)
    ((cast, *qkv),) = seen
    assert not cast
    assert all(each.dtype == torch.float32 for each in qkv)
    assert torch.isfinite(made).all()
    torch.testing.assert_close(made.float(), expected, atol=20.0, rtol=0.05)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("vgg16", {"pool2": 128, "pool3": 256, "pool4": 512, "relu5_3": 512}),
        ("resnet50", {"layer2_3": 512, "layer3_5": 1024, "layer4_2": 2048}),
        ("inception_v3", {"pool2": 192, "Mixed_5d": 288, "Mixed_6e": 768}),
        ("tiny", {"stage1": 48, "stage2": 64, "stage3": 64}),
    ],
)
def test_blocks_stand_after_the_published_steps_and_the_last_three_stages_elsewhere(name, places):
    backbone = load_backbone(name, weights="none")
    assert find_insertion_points(backbone) == places
    assert set(places) <= set(backbone.steps)


def test_stages_are_those_after_the_blocks_and_feed_what_follows():
    model, images = nl_ccam(), torch.randn(2, 3, 32, 32)
    for block in model.blocks.values():
        torch.nn.init.normal_(block.norm.weight)
    stages = model.localize(images).stages
    x = images
    for name, step in model.backbone.steps.items():
        x = model.blocks[name](step(x))
        torch.testing.assert_close(stages[name], x)


def test_vgg_has_leaky_activations_and_no_convolution_before_the_classifier():
    model = NlCcam(load_backbone("vgg16", weights="none", image_size=32), CLASSES, NlCcamConfig())
    slopes = [
        step.negative_slope for step in model.backbone.steps.values() if isinstance(step, torch.nn.LeakyReLU)
    ]
    assert slopes == [0.2] * 13
    assert not any(isinstance(step, torch.nn.ReLU) for step in model.backbone.steps.values())
    assert model.head.classifier.in_features == 512
    plain = NlCcam(load_backbone("vgg16", weights="none", image_size=32), CLASSES, NlCcamConfig(leaky=0.0))
    assert sum(isinstance(step, torch.nn.ReLU) for step in plain.backbone.steps.values()) == 13


# --- the weights of the ranks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "top", "expected"),
    [
        (4, 2, [1, 0, 0, -1]),
        (6, 3, [1, 0.25, 0, 0, -0.25, -1]),
        (5, 3, [1, 0.25, 0, 0, -1]),
        (3, 2, [1, 0, -1]),
        (2, 1, [1, -1]),
        (1, 1, [1]),
    ],
)
def test_quadratic_weights_fall_from_one_to_zero_and_from_zero_to_minus_one(count, top, expected):
    torch.testing.assert_close(
        rank_weights("quadratic", count, top), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
    )


def test_the_other_weights():
    torch.testing.assert_close(rank_weights("linear", 5, 1), torch.tensor([1, 0.5, 0, -0.5, -1]))
    assert rank_weights("t1b0", 4, 1).tolist() == [1, 0, 0, 0]
    assert rank_weights("t1b1", 4, 1).tolist() == [1, 0, 0, -1]


@given(st.sampled_from(["quadratic", "linear"]), st.integers(1, 100), st.integers(1, 99))
def test_the_first_rank_counts_one_and_the_last_minus_one(kind, half, top):
    count = 2 * half
    for t in (half, min(top, count - 1)):
        g = rank_weights(kind, count, t)
        assert (g[0], g[-1]) == (1, -1)
        assert (g.diff() <= 1e-6).all()
    symmetric = rank_weights(kind, count, half)
    torch.testing.assert_close(symmetric, -symmetric.flip(0), atol=1e-6, rtol=0)


def test_half_of_the_classes_count_for_unless_told_otherwise():
    assert nl_ccam(classes=5).g.tolist() == rank_weights("quadratic", 5, 2).tolist()
    assert nl_ccam(classes=5, top=4).g.tolist() == rank_weights("quadratic", 5, 4).tolist()


# --- the map ------------------------------------------------------------------------------------------------


def test_ranks_count_the_classes_with_a_higher_score_and_a_class_asked_for_comes_first():
    rank = rank_classes(torch.tensor([[0.1, 0.9, 0.5, 0.5]]))
    assert rank.tolist() == [[3, 0, 1, 2]]
    assert put_first(rank, torch.tensor([[1, 2, 0]])).tolist() == [[[3, 0, 1, 2], [3, 1, 0, 2], [0, 1, 2, 3]]]


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_putting_a_class_first_keeps_the_order_of_the_others(count, seed):
    rank = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[None]
    for label in range(count):
        (moved,) = put_first(rank, torch.tensor([[label]]))[0]
        assert sorted(moved.tolist()) == list(range(count))
        order, before = moved.argsort().tolist(), rank[0].argsort().tolist()
        assert order == [label, *(other for other in before if other != label)]


@pytest.mark.parametrize("kind", ["quadratic", "linear"])
def test_the_map_is_the_weighted_sum_over_the_ranks_whatever_class_is_asked_for(kind):
    model, images = nl_ccam(g=kind), torch.randn(3, 3, 32, 32)
    logits, maps = class_maps(model, images)
    asked = torch.tensor([[0, 5], [2, 2], [4, 1]])
    made = model.score_maps(images, asked)
    for image in range(3):
        order = sorted(range(CLASSES), key=lambda label: -float(logits[image, label]))
        expected = sum(
            float(weight) * maps[image, label] for weight, label in zip(model.g, order, strict=True)
        )
        for column in range(2):
            torch.testing.assert_close(made[image, column], expected, atol=1e-4, rtol=1e-4)


def test_conditioned_on_a_class_the_map_of_the_best_one_is_that_of_all():
    free, bound = nl_ccam(), nl_ccam(class_conditioned=True)
    bound.load_state_dict(free.state_dict())
    images = torch.randn(3, 3, 32, 32)
    best = free.localize(images).logits.argsort(1, descending=True)[:, :2]
    torch.testing.assert_close(bound.score_maps(images, best[:, :1]), free.score_maps(images, best[:, :1]))
    assert (bound.score_maps(images, best[:, 1:]) - free.score_maps(images, best[:, 1:])).abs().max() > 1e-3


def test_t1b0_is_cam():
    model, images = nl_ccam(g="t1b0"), torch.randn(3, 3, 32, 32)
    _, maps = class_maps(model, images)
    torch.testing.assert_close(model.score_maps(images, torch.arange(CLASSES).expand(3, -1)), maps)


def test_t1b1_takes_the_last_of_the_other_classes_from_the_one_asked_for():
    model, images = nl_ccam(g="t1b1"), torch.randn(3, 3, 32, 32)
    logits, maps = class_maps(model, images)
    made = model.score_maps(images, torch.arange(CLASSES).expand(3, -1))
    for image in range(3):
        order = logits[image].argsort(descending=True).tolist()
        for label in range(CLASSES):
            last = order[-2] if order[-1] == label else order[-1]
            torch.testing.assert_close(
                made[image, label], maps[image, label] - maps[image, last], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("kind", ["quadratic", "linear"])
def test_a_map_added_to_those_of_all_classes_cancels(kind):
    features, weight = torch.randn(2, 16, 4, 4), torch.randn(CLASSES, 16)
    g, rank = rank_weights(kind, CLASSES, CLASSES // 2), rank_classes(torch.randn(2, CLASSES))[:, None]
    one = combined_map(features, weight, g, rank)
    two = combined_map(features, weight + torch.randn(16), g, rank)
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_mixed_precision_does_not_touch_the_combination_of_the_maps():
    features, weight, g = (
        torch.randn(2, 16, 4, 4),
        torch.randn(CLASSES, 16),
        rank_weights("quadratic", CLASSES, 3),
    )
    rank = rank_classes(torch.randn(2, CLASSES))[:, None]
    expected = combined_map(features, weight, g, rank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(combined_map(features, weight, g, rank), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_the_classes_do_not_matter(kind):
    model, images, order = nl_ccam(g=kind), torch.randn(2, 3, 32, 32), torch.randperm(CLASSES)
    before = model.score_maps(images, order.expand(2, -1))
    with torch.no_grad():
        model.head.classifier.weight.copy_(model.head.classifier.weight[order].clone())
        model.head.classifier.bias.copy_(model.head.classifier.bias[order].clone())
    after = model.score_maps(images, torch.arange(CLASSES).expand(2, -1))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


# --- training -----------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, images, labels = nl_ccam().train(), torch.randn(4, 3, 32, 32), torch.arange(4)
    given_batch = Batch(
        images=images, labels=labels, indices=labels, epoch=0, epochs=1, step=0, generator=torch.Generator()
    )
    terms = model.loss(given_batch)
    torch.testing.assert_close(sum(terms.values()), F.cross_entropy(model(images).logits, labels))


def test_only_the_classifier_learns_faster_than_the_backbone():
    model = nl_ccam()
    recipe = model.recipe_for("vgg16", 200, {})
    fast = {name for name, _ in model.named_parameters() if model.is_new(name, recipe)}
    assert fast == {"head.classifier.weight", "head.classifier.bias"}
    assert (recipe.optimizer, recipe.lr, recipe.new_factor, recipe.epochs) == ("adam", 5e-5, 10.0, 100)
    assert recipe.weight_decay == 0
    assert recipe.lr_factor(0.5) == pytest.approx(0.5**0.9)
    assert NlCcam.recipe_name("vgg16", 1000) == "spa_ilsvrc"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top": 7}, "top of method 'nl-ccam' is 7"),
        ({"top": -1}, "number of classes, 6"),
        ({"leaky": 1.0}, "leaky of method 'nl-ccam'"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        nl_ccam(**setting)


def test_a_network_whose_inside_cannot_be_changed_is_refused():
    with pytest.raises(UsageError, match="method 'nl-ccam' needs the role 'attend'"):
        NlCcam(load_backbone("timm:resnet10t", weights="none"), CLASSES, NlCcamConfig())
