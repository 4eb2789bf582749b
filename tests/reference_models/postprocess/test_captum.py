"""Gradient maps against captum, on the same network, layer and class.

Conventions that differ, and how each test treats them:

- ReLU. `LayerGradCam` is signed by default, as is the sum of `LayerGradientXActivation`. `grad-cam` and
  `layercam` keep the positive part of the sum, `grad-cam-elementwise` that of each summand, `hirescam` neither.
- Normalisation. Neither side has any, so that values are compared, and not shapes.
- Upsampling. captum leaves it to `LayerAttribution.interpolate`, which takes the nearest cell by default; here
  the protocol resizes. Maps are compared on the grid of the layer.
- Class. captum's `target` is one class per image, the maps of this project have K.
- Guided ReLU. captum's `GuidedBackprop` acts on modules `nn.ReLU` only, this project also on ReLU6 and on
  functions. The network of the test has modules.

captum has neither LayerCAM nor Grad-CAM++ nor Score-CAM. LayerCAM is compared where features are not negative:
there it is the element-wise map.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_models.localization.backprop import Backprop
from tests.reference_models.postprocess.gradient_networks import Scores, maps, network, stretched

captum = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")

LAYERS = [("stage3", "-1"), ("stage2", "-2"), ("stage1", "-3")]
LABELS = torch.tensor([0, 2])
ASKED = LABELS[:, None]


def assert_equal_maps(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same values, within 1e-5 of the largest one, which is not 0."""
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def of_captum(kind: str, model: nn.Module, step: str, images: torch.Tensor) -> torch.Tensor:
    """Attributions of a layer: (B, 1, h, w) of Grad-CAM, or (B, D, h, w) of gradient times features."""
    attribution = getattr(captum, kind)(Scores(model), model.backbone.steps[step])
    return attribution.attribute(images, target=LABELS).detach()


@pytest.mark.parametrize("head", ["fc", "conv"])
@pytest.mark.parametrize(("step", "stage"), LAYERS)
def test_grad_cam_is_the_positive_part_of_captums(step, stage, head):
    model, images = network(head), torch.randn(2, 3, 64, 64)
    signed = of_captum("LayerGradCam", model, step, images)
    assert (signed < 0).any()
    assert_equal_maps(maps("grad-cam", model, images, ASKED, stage=stage), signed.relu())


@pytest.mark.parametrize("head", ["fc", "conv"])
@pytest.mark.parametrize(("step", "stage"), LAYERS)
def test_maps_of_gradient_times_features_are_sums_of_captums(step, stage, head):
    model, images = network(head), torch.randn(2, 3, 64, 64)
    shares = of_captum("LayerGradientXActivation", model, step, images)
    assert (shares < 0).any()
    assert_equal_maps(maps("hirescam", model, images, ASKED, stage=stage), shares.sum(1, keepdim=True))
    positive = shares.relu().sum(dim=1, keepdim=True)
    assert_equal_maps(maps("grad-cam-elementwise", model, images, ASKED, stage=stage), positive)
    assert_equal_maps(maps("layercam", model, images, ASKED, stage=stage), positive)


class Tail(nn.Module):
    """The layers of a network above one of its steps, whose input are features."""

    def __init__(self, model: nn.Module, step: str) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.head(self.model.backbone.run(features, after=self.step)).logits


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_released_bagcams_weigh_features_by_captums_guided_gradient():
    """With the derivative 1 / s of the log of a score s, and the factor 1 + mean over the pixels of G F.

    Classes have positive scores. For others 1 / s turns the signs, and a guided ReLU drops other gradients.
    """
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.backbone.run(images, until="stage2")
        scores, labels = Scores(model)(images).max(dim=1)
    assert (scores > 1e-3).all()
    tail, per_image = Tail(model, "stage2"), scores[:, None, None, None]
    guided = captum.GuidedBackprop(tail).attribute(features, target=labels).detach() / per_image
    plain = captum.Saliency(tail).attribute(features, target=labels, abs=False).detach() / per_image
    expected, without = (
        ((1 + (g * features).mean(dim=(2, 3), keepdim=True)) * g * features).relu().sum(dim=1, keepdim=True)
        for g in (guided, plain)
    )
    assert (stretched(expected) - stretched(without)).abs().max() > 0.05
    asked = labels[:, None]
    assert_equal_maps(maps("bagcams", model, images, asked, stage="-2", variant="official"), expected)
    assert_equal_maps(maps("bagcams", model, images, asked, stage="-2", score="log"), without)


@pytest.mark.parametrize("channel", ["max", "sum"])
def test_backprop_is_captums_saliency_reduced_over_the_colours(channel):
    model = Backprop.create(
        backbone="tiny", num_classes=3, weights="none", settings={"channel": channel}, image_size=64
    )
    images = torch.randn(2, 3, 64, 64)
    size = captum.Saliency(Scores(model)).attribute(images, target=LABELS)
    expected = size.amax(dim=1, keepdim=True) if channel == "max" else size.sum(dim=1, keepdim=True)
    found = model.score_maps(images, ASKED)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.max()), rtol=1e-4)
