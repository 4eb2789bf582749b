"""EIL: one batch, two streams, the same layers; and nothing of it at test."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.layers.attention import attention, is_kept
from reference_models.localization.cam import Cam
from reference_models.localization.eil import Eil, EilConfig, erase_attended, find_step
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5


def eil(**settings) -> Eil:
    return Eil(toy_backbone(), CLASSES, EilConfig(**settings)).eval()


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


@given(st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_all_channels_are_erased_from_gamma_times_the_maximum_of_their_mean_on(gamma, seed):
    features = torch.rand(3, 6, 5, 4, generator=torch.Generator().manual_seed(seed)) + 0.1
    left = erase_attended(features, gamma)
    for image, rest in zip(features, left, strict=True):
        mean = image.mean(0)
        attended = mean >= gamma * mean.max()
        assert attended.flatten()[mean.argmax()]
        assert not rest[:, attended].any()
        assert torch.equal(rest[:, ~attended], image[:, ~attended])


def test_each_image_has_its_own_maximum_and_the_comparison_is_strict():
    features = torch.tensor([[1.0, 2, 4, 0], [10, 20, 40, 0]]).view(2, 1, 2, 2)
    assert is_kept(attention(features), 0.5).flatten(1).tolist() == [[True, False, False, True]] * 2


def test_features_without_any_activation_stay_zero_and_negative_ones_are_left_alone():
    assert not erase_attended(torch.zeros(1, 3, 4, 4), 0.7).any()
    negative = -torch.rand(2, 3, 4, 4) - 0.5
    assert torch.equal(erase_attended(negative, 0.7), negative)


def test_above_one_both_streams_are_the_same():
    terms = eil(points=(3, 4, 5), gamma=1.1).train().loss(batch())
    assert list(terms) == ["cross_entropy", "erased_3", "erased_4", "erased_5"]
    for point in (3, 4, 5):
        torch.testing.assert_close(terms[f"erased_{point}"], terms["cross_entropy"])


@pytest.mark.parametrize(
    ("points", "steps"),
    [((4,), ["two"]), ((5,), ["three"]), ((4, 5), ["two", "three"]), ((5, 3), ["one", "three"])],
)
def test_each_stream_forks_off_the_one_without_erasing_and_goes_through_the_same_layers(points, steps):
    model, given_batch = (
        eil(points=points, sigma=0.5),
        batch(),
    )  # in eval mode streams do not meet in batch norm
    terms = model.loss(given_batch)
    whole = model(given_batch.images)
    torch.testing.assert_close(terms.pop("cross_entropy"), F.cross_entropy(whole.logits, given_batch.labels))
    assert list(terms) == [f"erased_{point}" for point in sorted(points)]
    for term, step in zip(terms.values(), steps, strict=True):
        rest = model.backbone.run(erase_attended(whole.stages[step], 0.7), after=step)
        torch.testing.assert_close(term, 0.5 * F.cross_entropy(model.head(rest).logits, given_batch.labels))
        assert not torch.equal(rest, whole.stages["three"])


def test_batch_norm_sees_both_streams_as_one_batch():
    model, given_batch = eil().train(), batch()
    model.loss(given_batch)
    fresh = toy_backbone()
    features = model.backbone.train().run(given_batch.images, until="two")
    norm = fresh.steps["three"][1].train()
    norm(model.backbone.steps["three"][0](torch.cat([features, erase_attended(features, 0.7)])))
    torch.testing.assert_close(model.backbone.steps["three"][1].running_mean, norm.running_mean)


def test_gradients_of_both_streams_add_up_in_the_shared_layers():
    model, given_batch = eil(), batch()

    def gradients(*names: str) -> list[torch.Tensor]:
        model.zero_grad()
        terms = model.loss(given_batch)
        sum(terms[name] for name in names).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    both = gradients("cross_entropy", "erased_4")
    for whole, one, two in zip(both, gradients("cross_entropy"), gradients("erased_4"), strict=True):
        torch.testing.assert_close(whole, one + two, atol=1e-6, rtol=1e-4)
        assert one.any()
        assert two.any()


def test_at_test_it_is_cam_to_the_bit_with_as_many_parameters():
    model, images, ids = eil(points=(4, 5)), torch.randn(3, 3, 32, 32), torch.tensor([[0, 4], [1, 1], [3, 2]])
    cam = Cam(toy_backbone(), CLASSES, HeadConfig(head="fc")).eval()
    cam.load_state_dict(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in cam.parameters())
    one, two = model.localize(images), cam.localize(images)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.score_maps(ids), two.score_maps(ids))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("vgg16", ["pool3", "pool4", "relu5_3"]),
        ("resnet50", ["layer2_3", "layer3_5", "layer4_2"]),
        ("inception_v3", ["pool2", "Mixed_6a", "Mixed_6e"]),
        ("tiny", ["stage1", "stage2", "stage3"]),
        ("efficientnet_lite0", ["blocks4_2", "blocks6_0", "head"]),
    ],
)
def test_points_are_the_ends_of_the_last_stages(name, steps):
    backbone = load_backbone(name, weights="none")
    assert [find_step(point, backbone) for point in (3, 4, 5)] == steps
    assert set(steps) <= set(backbone.steps)


def test_on_vgg_the_head_is_that_of_cam():
    backbone = load_backbone("vgg16", weights="none", image_size=32)
    assert Eil(backbone, CLASSES, EilConfig()).head.conv6[0].out_channels == 1024


def test_variants_differ_in_the_documented_settings_only():
    one, several = (
        parse_settings(EilConfig, {"variant": variant}, what="method 'eil'") for variant in ("eil", "meil")
    )
    assert one == EilConfig()
    assert several == EilConfig(variant="meil", points=(4, 5))


def test_the_recipe_is_the_authors_for_sets_like_cub():
    recipe = Eil.recipe_for("vgg16", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (80, 64, 1e-4)
    assert recipe.lr_factor(60 / 80) == pytest.approx(0.1)
    assert recipe.lr_factor(59.9 / 80) == 1.0
    assert Eil.recipe_name("vgg16", 1000) == "spa_ilsvrc"
    assert Eil.recipe_name("tiny", 200) == "tiny"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"points": ()}, "points of method 'eil' is ()"),
        ({"points": (2, 4)}, "expected one or more of 3, 4, 5"),
        ({"points": (4, 4)}, "each once"),
        ({"gamma": 0.0}, "gamma of method 'eil' is 0.0"),
        ({"sigma": -1.0}, "sigma of method 'eil' is -1.0"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        eil(**setting)


def test_a_network_of_timm_can_be_erased_in_front_of_the_head_only():
    backbone = load_backbone("timm:resnet10t", weights="none", image_size=64)
    with pytest.raises(UsageError, match="points=5"):
        Eil(backbone, CLASSES, EilConfig())
    model = Eil(backbone, CLASSES, EilConfig(points=(5,)))
    images = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([0, 1])
    given_batch = Batch(
        images=images, labels=labels, indices=labels, epoch=0, epochs=1, step=0, generator=torch.Generator()
    )
    assert set(model.train().loss(given_batch)) == {"cross_entropy", "erased_5"}
    assert model.eval().score_maps(images, labels[:, None]).shape == (2, 1, 4, 4)
