"""SPG: what guides, what is guided, and that the sides are gone at test."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.localization.spg import (
    Spg,
    SpgConfig,
    find_insertion_points,
    guidance,
    guided_loss,
    object_levels,
    upsample,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
SIZE = 24
"""Side of the masks here; 8x8 at the grids of the toy network."""
SIDES = ("side1", "side2", "shared", "side_c")


def spg(**settings) -> Spg:
    return Spg(toy_backbone(), CLASSES, SpgConfig(**{"mask_size": SIZE, "dropout": 0.0, **settings})).eval()


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def levels(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]


def test_pixels_are_object_above_the_high_level_background_below_the_low_one_and_unknown_between():
    m = torch.tensor([0.02, 0.3, 0.9, 0.04, 0.6]).view(1, 1, 5)
    assert guidance(m, levels(0.7), 0.05).flatten().tolist() == [0, 255, 1, 0, 255]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_guidance_is_zero_one_or_unknown(one, two, seed):
    m = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(seed))
    low, high = sorted((one, two))
    made = guidance(m, levels(high, high), low)
    assert set(made.unique().tolist()) <= {0.0, 1.0, 255.0}
    assert torch.equal(made == 1, m > torch.tensor(high))
    assert torch.equal(made == 0, m < torch.tensor(low))


@given(st.integers(0, 10**6), st.sampled_from(["per_image", "leak"]))
def test_guidance_is_that_of_two_passes_over_a_mask_object_first_and_background_last(seed, scope):
    generator = torch.Generator().manual_seed(seed)
    m = torch.rand(4, 6, 7, generator=generator) * torch.tensor([1.0, 0.2, 0.06, 0.6])[:, None, None]
    mask, level = torch.full_like(m, 255.0), 0.5
    for image, target in zip(m, mask, strict=True):
        level = level if scope == "leak" else 0.5
        inside = image > level
        if inside.sum() < 30:
            level = 0.7 * image.max()
            inside = image > level
        target[inside] = 1
    mask[m < 0.05] = 0
    assert torch.equal(guidance(m, object_levels(m, 0.5, SpgConfig(fallback_scope=scope)), 0.05), mask)


def test_at_the_levels_themselves_nothing_is_known():
    m = torch.tensor([[[0.5, 0.25]]])
    assert guidance(m, levels(0.5), 0.25).flatten().tolist() == [255, 255]


def test_an_image_with_too_few_pixels_above_the_level_gets_one_of_its_own():
    m = torch.zeros(3, 10, 10)
    m[0, :3] = 0.8  # 30 pixels
    m[1, :3] = 0.8
    m[1, 0, 0] = 0.1  # 29
    m[2] = 0.4
    found = object_levels(m, 0.7, SpgConfig()).flatten()
    torch.testing.assert_close(found, torch.tensor([0.7, 0.7 * 0.8, 0.7 * 0.4]))


def test_in_the_authors_code_a_lowered_level_stays_for_the_images_after_it():
    m = torch.stack([torch.full((10, 10), value) for value in (0.9, 0.5, 0.9, 0.4, 0.2, 0.6)])
    config = SpgConfig(fallback_scope="leak")
    # 0.9 is above 0.7; 0.5 is not: 0.35, which 0.9 and 0.4 are above; 0.2 is not: 0.14
    torch.testing.assert_close(
        object_levels(m, 0.7, config).flatten(), torch.tensor([0.7, 0.35, 0.35, 0.35, 0.14, 0.14])
    )
    alone = torch.cat([object_levels(image[None], 0.7, config) for image in m])
    torch.testing.assert_close(alone, object_levels(m, 0.7, SpgConfig()))
    m[0, 3:] = 0  # 30 pixels are enough
    assert object_levels(m, 0.7, config)[0].item() == pytest.approx(0.7)
    m[0, 0, 0] = 0
    assert object_levels(m, 0.7, config)[0].item() == pytest.approx(0.63)


def test_below_the_low_level_there_is_background_even_above_a_lowered_one():
    m = torch.tensor([[[0.04, 0.03], [0.02, 0.001]]])
    levels_of = object_levels(m, 0.5, SpgConfig())
    assert levels_of.item() == pytest.approx(0.028)
    assert guidance(m, levels_of, 0.05).flatten().tolist() == [0, 0, 0, 0]
    assert guidance(m, levels_of, 0.025).flatten().tolist() == [1, 1, 0, 0]


def test_the_loss_is_the_mean_over_the_known_pixels_of_the_batch():
    scores = torch.tensor([[[2.0, -1.0]], [[0.5, 3.0]]])
    target = torch.tensor([[[1.0, 255.0]], [[0.0, 1.0]]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(-3))) / 3
    assert guided_loss(scores, target).item() == pytest.approx(expected, rel=1e-6)


def test_scores_of_unknown_pixels_do_not_matter_whatever_they_are():
    target = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    target[target == 2] = 255
    scores, changed = torch.randn(2, 5, 5, requires_grad=True), torch.randn(2, 5, 5)
    changed[0, 0, 0], changed[1, 4, 4] = 1e30, -1e30
    other = torch.where(target == 255, changed, scores.detach())
    assert (target == 255).any()
    torch.testing.assert_close(guided_loss(scores, target), guided_loss(other, target))
    (gradient,) = torch.autograd.grad(guided_loss(scores, target), scores)
    assert not gradient[target == 255].any()
    assert gradient[target != 255].all()


def test_sure_scores_that_agree_cost_nothing_and_without_known_pixels_the_loss_is_zero():
    target = torch.tensor([[[1.0, 0.0, 255.0]]])
    assert guided_loss(torch.tensor([[[1e4, -1e4, 7.0]]]), target).item() == 0
    assert guided_loss(torch.tensor([[[-1e4, 1e4, 7.0]]]), target).item() == 1e4
    scores = torch.randn(1, 2, 2, requires_grad=True)
    nothing = guided_loss(scores, torch.full((1, 2, 2), 255.0))
    assert nothing.item() == 0
    (gradient,) = torch.autograd.grad(nothing, scores)
    assert not gradient.any()


def test_each_branch_is_guided_by_the_one_of_its_equation():
    model, given_batch = spg(), batch()
    for side in (
        model.shared,
        model.side_c,
    ):  # scores of all sizes, so that all three values are in each mask
        norm = torch.nn.InstanceNorm2d(1, affine=True)
        torch.nn.init.constant_(norm.weight, 5.0)
        side.append(norm)
    terms = model.loss(given_batch)
    stages = model.backbone.stages(given_batch.images)
    head = model.head(stages["three"])

    def up(scores):
        return F.interpolate(scores, size=(SIZE, SIZE), mode="bilinear")[:, 0]

    def guide(m, high, low):
        made = torch.full_like(m, 255.0)
        for image, target in zip(m, made, strict=True):
            level = high if (image > high).sum() >= 30 else 0.7 * image.max()
            target[image > level] = 1
            target[image < low] = 0
        assert set(made.unique().tolist()) == {0.0, 1.0, 255.0}
        return made

    def cost(scores, target):
        known = target != 255
        return F.binary_cross_entropy(scores.sigmoid()[known], target[known])

    maps = up(head.maps_of(given_batch.labels[:, None]))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    b1, b2 = (
        up(model.shared(side(stages[stage])))
        for side, stage in ((model.side1, "two"), (model.side2, "three"))
    )
    c = up(model.side_c(head.penultimate))
    expected = {
        "cross_entropy": F.cross_entropy(head.logits, given_batch.labels),
        "guided_b2": cost(b2, guide((maps - low) / (high - low), 0.7, 0.05)),
        "guided_b1": cost(b1, guide(b2.sigmoid(), 0.5, 0.05)),
        "guided_c": cost(c, guide((b1.sigmoid() + b2.sigmoid()) / 2, 0.7, 0.1)),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("term", "moved"),
    [
        ("cross_entropy", {"head"}),
        ("guided_b2", {"side2", "shared"}),
        ("guided_b1", {"side1", "shared"}),
        ("guided_c", {"side_c", "head"}),
    ],
)
def test_what_guides_gets_no_gradient_from_what_it_guides(term, moved):
    model = spg().train()
    model.loss(batch())[term].backward()
    reached = {
        part
        for part in (*SIDES, "head")
        if any(p.grad is not None and p.grad.any() for p in getattr(model, part).parameters())
    }
    assert reached == moved
    assert model.head.classifier.weight.grad is None or term == "cross_entropy"
    assert model.backbone.steps["one"][0].weight.grad.any()


def test_masks_have_the_given_size_and_keep_the_corners_apart():
    assert upsample(torch.randn(2, 1, 8, 8), 20).shape == (2, 20, 20)
    assert upsample(torch.tensor([[[[0.0, 1.0]]]]), 4)[0, 0].tolist() == [0, 0.25, 0.75, 1]


def test_at_test_the_maps_are_those_of_the_classifier_and_the_sides_are_not_run():
    model, images, ids = spg(dropout=0.5), torch.randn(2, 3, 32, 32), torch.tensor([[0, 4], [3, 3]])
    for side in SIDES:
        getattr(model, side).register_forward_hook(lambda *_: pytest.fail("a side branch was run"))
    result = model.localize(images)
    head = model.head(model.backbone.run(images))
    assert torch.equal(result.logits, head.logits)
    maps = result.score_maps(ids)
    assert torch.equal(maps, head.maps_of(ids))
    torch.testing.assert_close(maps.mean((2, 3)), head.logits.gather(1, ids))


@pytest.mark.parametrize(
    ("name", "places", "channels", "width"),
    [
        ("vgg16", ("pool4", "relu5_3"), (512, 512), 512),
        ("resnet50", ("layer3_0", "layer3_5"), (1024, 1024), 1024),
        ("inception_v3", ("Mixed_5d", "Mixed_6d"), (288, 768), 512),
        ("tiny", ("stage2", "stage3"), (64, 64), 32),
        ("timm:resnet10t", ("stage4", "stage5"), (256, 512), 512),
    ],
)
def test_sides_read_the_published_places_and_the_last_two_stages_elsewhere(name, places, channels, width):
    size = 96 if name == "inception_v3" else 64
    backbone = load_backbone(name, weights="none", image_size=size).eval()
    assert find_insertion_points(backbone) == (places, channels)
    model = Spg(backbone, CLASSES, SpgConfig(mask_size=16))
    with torch.no_grad():
        features, one, two = model.features(torch.randn(1, 3, size, size))
        assert model.shared(model.side1(one)).shape == (1, 1, *one.shape[2:])
        assert model.shared(model.side2(two)).shape == (1, 1, *two.shape[2:])
    assert (one.shape[1], two.shape[1]) == channels
    assert features.shape[1] == backbone.channels[-1]
    assert model.side1[0].out_channels == width


def test_the_classifier_is_that_of_the_network():
    def kinds(name):
        head = Spg(load_backbone(name, weights="none", image_size=64), CLASSES, SpgConfig()).head
        layers = [layer for layer in [*head.trunk, head.classifier] if isinstance(layer, torch.nn.Conv2d)]
        drops = {layer.p for layer in head.trunk if isinstance(layer, torch.nn.Dropout)}
        return [layer.out_channels for layer in layers], drops

    assert kinds("vgg16") == ([512, 512, CLASSES], {0.0})
    assert kinds("resnet50") == ([CLASSES], {0.0})
    assert kinds("inception_v3") == ([1024, 1024, CLASSES], {0.5})


def test_variants_differ_in_the_documented_settings_only():
    default, official, clovaai = (
        parse_settings(SpgConfig, {"variant": variant}, what="method 'spg'")
        for variant in ("default", "official", "clovaai")
    )
    assert default == SpgConfig()
    assert official == SpgConfig(variant="official", fallback_scope="leak", recipe="spg_official")
    assert clovaai == SpgConfig(variant="clovaai", low=(0.01, 0.05, 0.1))


def test_the_official_recipe_trains_new_layers_like_old_ones():
    official, default = (
        Spg.recipe_for("inception_v3", 1000, settings) for settings in ({"variant": "official"}, {})
    )
    assert (official.new_factor, default.new_factor) == (1.0, 10.0)
    assert (default.epochs, default.batch_size, default.lr) == (5, 20, 1e-3)
    assert Spg.recipe_name("vgg16", 200) == "spa_cub"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"high": (0.7, 0.5)}, "three numbers each"),
        ({"low": (0.8, 0.05, 0.1)}, "low not above high"),
        ({"high": (1.5, 0.5, 0.7)}, r"in \[0, 1\]"),
        ({"fallback": 1.0}, "fallback of method 'spg' is 1.0"),
        ({"min_fg_px": -1}, "min_fg_px=-1"),
        ({"mask_size": 0}, "mask_size=0"),
        ({"dropout": 1.0}, "dropout of method 'spg' is 1.0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        spg(**setting)
