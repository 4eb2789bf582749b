"""ADL: the layer, where it stands, and that it is gone at test."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.localization import adl as module
from reference_models.localization.adl import IN_HEAD, Adl, AdlConfig, attention, attention_dropout, is_kept
from reference_models.localization.cam import Cam
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
DROP, WEIGHT = torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, 1, dtype=torch.bool)


def adl(**settings) -> Adl:
    return Adl(toy_backbone(), CLASSES, AdlConfig(**settings)).train()


def batch(count: int = 4, *, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def calls(model: Adl, given: Batch, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and coins of each use of the layer in one step."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recorded(features, drop, tau):
        found.append((features.detach(), drop))
        return attention_dropout(features, drop, tau)

    with monkeypatch.context() as patched:
        patched.setattr(module, "attention_dropout", recorded)
        model.loss(given)
    return found


def test_attention_is_the_mean_of_the_channels_and_pixels_near_its_maximum_are_dropped():
    features = torch.tensor([[1.0, 2, 3, 4], [1, 0, 1, 4]]).view(1, 2, 2, 2)
    seen = attention(features)
    assert seen.flatten().tolist() == [1, 1, 2, 4]
    assert is_kept(seen, 0.9).flatten().tolist() == [True, True, True, False]
    assert is_kept(seen, 0.5).flatten().tolist() == [True, True, False, False]  # 2 is not below 0.5 x 4
    weights = attention_dropout(features, WEIGHT, 0.9) / features
    expected = torch.tensor([0.731059, 0.731059, 0.880797, 0.982014]).view(1, 1, 2, 2).expand(1, 2, 2, 2)
    torch.testing.assert_close(weights[features > 0], expected[features > 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau", [0.3, 0.8, 1.0])
def test_dropping_erases_all_channels_at_the_pixels_near_the_maximum_and_leaves_the_rest_as_it_is(tau):
    features = torch.rand(3, 6, 5, 4) + 0.1
    dropped = attention_dropout(features, DROP, tau)
    for number in range(3):
        mean = features[number].mean(0)
        near = mean >= tau * mean.max()
        assert near.flatten()[mean.argmax()]
        assert not dropped[number][:, near].any()
        assert torch.equal(dropped[number][:, ~near], features[number][:, ~near])


def test_weighting_multiplies_by_the_sigmoid_of_the_attention_and_lets_its_gradient_through():
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    weighted = attention_dropout(features, WEIGHT, 0.9)
    torch.testing.assert_close(weighted, features * features.mean(1, keepdim=True).sigmoid())
    (gradient,) = torch.autograd.grad(weighted.sum(), features)
    value = features.detach().mean(1, keepdim=True).sigmoid()
    torch.testing.assert_close(
        gradient,
        (value + features.detach().sum(1, keepdim=True) * value * (1 - value) / 3).expand_as(features),
    )


def test_an_image_without_attention_is_erased_and_stays_finite():
    features = torch.zeros(2, 3, 4, 4)
    features[1] = torch.rand(3, 4, 4)
    for coin in (DROP, WEIGHT):
        changed = attention_dropout(features, coin, 0.9)
        assert torch.isfinite(changed).all()
        assert not changed[0].any()
        assert changed[1].any()


def test_half_precision_stays_what_it_is():
    features = torch.rand(2, 3, 4, 4).bfloat16()
    assert attention_dropout(features, WEIGHT, 0.9).dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("head", ["conv", "fc"])
def test_the_loss_is_the_cross_entropy_with_the_layer_after_each_of_the_last_three_stages(rate, head):
    model, given = adl(drop_rate=rate, head=head), batch()
    (loss,) = model.loss(given).values()
    x = given.images
    for step in model.backbone.steps.values():
        x = step(x)
        mean = x.mean(1, keepdim=True)
        x = x * (mean < 0.9 * mean.amax((2, 3), keepdim=True)) if rate == 1 else x * mean.sigmoid()
    torch.testing.assert_close(loss, F.cross_entropy(model.head(x).logits, given.labels))


def test_each_place_has_a_coin_for_the_batch_or_one_for_each_image(monkeypatch):
    for coin, size in (("batch", 1), ("sample", 4)):
        assert [drop.shape for _, drop in calls(adl(coin=coin), batch(), monkeypatch)] == [
            (size, 1, 1, 1)
        ] * 3
    model = adl()
    drops = (
        torch.stack(
            [drop for seed in range(100) for _, drop in calls(model, batch(2, seed=seed), monkeypatch)]
        )
        .view(100, 3)
        .double()
    )
    assert abs(float(drops.mean()) - 0.75) < 0.1
    assert (torch.corrcoef(drops.T) - torch.eye(3)).abs().max() < 0.35  # the places do not share a coin


def test_all_randomness_comes_from_the_generator_of_the_batch():
    model, state = adl(drop_rate=0.5), torch.get_rng_state()
    losses = [float(model.loss(batch(seed=seed))["cross_entropy"].detach()) for seed in (0, 0, 1, 2, 3)]
    assert losses[0] == losses[1]
    assert len(set(losses)) > 1
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("head", ["conv", "fc"])
def test_the_layer_is_gone_at_test(head):
    model, cam = adl(head=head).eval(), Cam(toy_backbone(), CLASSES, HeadConfig(head=head)).eval()
    cam.load_state_dict(model.state_dict())
    images, asked = batch().images, torch.arange(CLASSES).expand(4, CLASSES)
    assert torch.equal(model.localize(images).logits, cam.localize(images).logits)
    assert torch.equal(model.score_maps(images, asked), cam.score_maps(images, asked))


@pytest.mark.parametrize(
    ("name", "settings", "places", "tau"),
    [
        ("vgg16", {}, ("pool3", "relu4_3", "relu5_3"), 0.8),
        ("vgg16", {"variant": "official"}, ("pool3", "pool4", "relu5_3"), 0.8),
        ("vgg16", {"variant": "clovaai"}, ("pool3", "relu4_3", "relu5_3"), 0.9),
        ("resnet50", {}, ("layer3_0", "layer4_0", "layer4_2"), 0.9),
        ("inception_v3", {}, ("Mixed_5d", "Mixed_6e", IN_HEAD), 0.9),
        ("inception_v3", {"head": "fc"}, ("Mixed_5d", "Mixed_6e"), 0.9),
        ("efficientnet_lite0", {}, ("blocks4_2", "blocks6_0", "head"), 0.9),
        ("tiny", {}, ("stage1", "stage2", "stage3"), 0.9),
    ],
)
def test_places_and_threshold_are_those_of_the_backbone(name, settings, places, tau):
    model = Adl.create(backbone=name, num_classes=2, weights="none", settings={"width": "8", **settings})
    assert (model.places, model.tau) == (places, tau)
    assert {place for place in places if place != IN_HEAD} <= set(model.backbone.steps)


def test_on_vgg_the_second_place_is_before_or_after_the_pool(monkeypatch):
    sizes = {}
    for variant in ("default", "official"):
        model = Adl.create(
            backbone="vgg16", num_classes=2, weights="none", settings={"variant": variant, "width": "8"}
        ).train()
        sizes[variant] = [tuple(features.shape[1:]) for features, _ in calls(model, batch(2), monkeypatch)]
    assert sizes["default"] == [(256, 4, 4), (512, 4, 4), (512, 2, 2)]
    assert sizes["official"] == [(256, 4, 4), (512, 2, 2), (512, 2, 2)]


def test_on_inception_the_third_place_is_behind_the_second_convolution_of_the_head(monkeypatch):
    model = Adl.create(
        backbone="inception_v3", num_classes=2, weights="none", settings={"width": "8"}
    ).train()
    found = calls(model, batch(2), monkeypatch)
    assert [features.shape[1] for features, _ in found] == [288, 768, 8]


def test_variants_differ_in_the_documented_settings_only():
    default, official, clovaai = (
        parse_settings(AdlConfig, {"variant": variant}, what="method 'adl'")
        for variant in ("default", "official", "clovaai")
    )
    assert default == AdlConfig()
    assert official == AdlConfig(variant="official", position="original")
    assert clovaai == AdlConfig(variant="clovaai", tau=0.9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"drop_rate": 1.5}, "drop_rate of method 'adl' is 1.5"), ({"tau": 0.0}, "tau of method")],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        adl(**setting)


def test_a_network_whose_inside_cannot_be_changed_is_refused():
    with pytest.raises(
        UsageError,
        match=r"method 'adl' needs the role 'drop' .* timm:resnet10t .*its roles are: guides, patches, skips\.",
    ):
        Adl(load_backbone("timm:resnet10t", weights="none"), CLASSES, AdlConfig())
