"""Gradient maps: identities, brute force by central differences, and the maps of a library."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.core.outputs import ForwardPass
from reference_models.localization.cam import Cam
from reference_models.postprocess.grad_cam_pp import pixel_weights
from tests.reference_models.conftest import squares
from tests.reference_models.localization.token_models import VIT, VIT_LAST_BLOCKS
from tests.reference_models.postprocess.gradient_networks import (
    ASKED,
    KINDS,
    from_library,
    maps,
    network,
    stretched,
)
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import Numerics, load_post
from wsolbench.protocol import EvalProtocol

# --- against definitions ------------------------------------------------------------------------------------


def brute_force(kind: str, a: np.ndarray, g: np.ndarray, log_odds_factor: float) -> np.ndarray:
    """The map of one image and class, pixel by pixel and channel by channel, in float64."""
    channels, height, width = a.shape
    made = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for d in range(channels):
                share = g[d, i, j] * a[d, i, j]
                if kind == "grad-cam":
                    made[i, j] += sum(g[d].ravel()) / g[d].size * a[d, i, j]
                elif kind == "hirescam":
                    made[i, j] += share
                elif kind == "grad-cam-elementwise":
                    made[i, j] += max(share, 0)
                elif kind == "layercam":
                    made[i, j] += max(g[d, i, j], 0) * a[d, i, j]
                elif kind == "grad-cam-pp":
                    total, weight = a[d].sum(), 0.0
                    for slope in g[d].ravel():
                        if slope > 0:
                            weight += slope**2 / (2 * slope**2 + slope**3 * total) * slope
                    made[i, j] += weight * a[d, i, j]
                else:
                    factor = 1 + (g[d] * a[d]).mean()
                    made[i, j] += max(factor * share, 0) / log_odds_factor
    return made if kind == "hirescam" else np.maximum(made, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_its_definition_with_gradients_from_central_differences(kind):
    count, channels, side, classes = 2, 3, 4, 3
    tail = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 5, 3, padding=1), torch.nn.Softplus(), torch.nn.Conv2d(5, classes, 1)
    ).double()

    def scores(at: torch.Tensor) -> torch.Tensor:
        return 3 * tail(at).square().mean(dim=(2, 3))

    a = torch.rand(count, channels, side, side, dtype=torch.float64)
    stage = a.clone().requires_grad_()
    result = ForwardPass(
        logits=scores(stage), maps_of=lambda ids: ids, stages=OrderedDict(only=stage), penultimate=None
    )
    found = load_post(kind).create({"stage": "-1"}).maps(result, ASKED)
    assert found.abs().max() > 1e-3
    for image in range(count):
        for column, label in enumerate(ASKED[image].tolist()):

            def score(at: torch.Tensor, image: int = image, label: int = label) -> float:
                values = scores(at)[image]
                return float((values.log_softmax(0) if kind == "bagcams" else values)[label])

            gradient = np.zeros((channels, side, side))
            with torch.no_grad():
                probability = float(scores(a)[image].softmax(0)[label])
                for place in np.ndindex(gradient.shape):
                    step = torch.zeros_like(a)
                    step[(image, *place)] = 1e-5
                    gradient[place] = (score(a + step) - score(a - step)) / 2e-5
            expected = brute_force(kind, a[image].numpy(), gradient, 1 - probability)
            np.testing.assert_allclose(found[image, column], expected, atol=1e-5 * float(found.abs().max()))


# --- identities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "stage"), [("fc", "-1"), ("conv1x1", "-1"), ("conv", "penultimate")])
def test_with_mean_pooling_and_a_linear_layer_both_maps_are_cam(head, stage):
    model, images = network(head), torch.randn(2, 3, 64, 64)
    bias = 0 if head == "fc" else model.head.classifier.bias[ASKED][..., None, None]
    cam = (model.score_maps(images, ASKED) - bias).detach()
    cells = cam[0, 0].numel()
    limit = 1e-5 * float(cam.abs().max())
    hirescam = maps("hirescam", model, images, ASKED, stage=stage)
    torch.testing.assert_close(cells * hirescam, cam, atol=limit, rtol=0)
    grad_cam = maps("grad-cam", model, images, ASKED, stage=stage)
    torch.testing.assert_close(cells * grad_cam, cam.relu(), atol=limit, rtol=0)
    assert (cam < 0).any()


def test_with_mean_pooling_and_a_linear_layer_the_weight_of_grad_cam_pp_has_a_closed_form():
    """relu(w) / (2 + w mean A) of each channel, whatever the number of cells."""
    model, images = network(), torch.randn(2, 3, 64, 64)
    a = model.localize(images).penultimate.double()
    w = model.head.classifier.weight.detach().double()[ASKED]  # (B, K, D)
    weights = w.relu() / (2 + w * a.mean(dim=(2, 3))[:, None])
    expected = torch.einsum("bkd,bdhw->bkhw", weights, a).relu()
    found = maps("grad-cam-pp", model, images, ASKED)
    torch.testing.assert_close(found.double(), expected, atol=1e-5 * float(expected.max()), rtol=0)


@pytest.mark.parametrize("stage", ["-1", "-2", "-3", "stem"])
def test_without_biases_the_shares_of_the_score_add_up_to_it(stage):
    """Convolutions, ReLUs and linear layers are homogeneous: the sum of gradient times features is the score."""
    model, images = network(), torch.randn(2, 3, 64, 64)
    scores = model.localize(images).logits.gather(1, ASKED)
    assert scores.abs().min() > 1e-3
    sums = maps("hirescam", model, images, ASKED, stage=stage).sum(dim=(2, 3))
    torch.testing.assert_close(sums, scores, atol=1e-4, rtol=1e-4)


def test_on_features_that_are_not_negative_layercam_is_the_element_wise_map_and_bounds_hirescam():
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    element_wise, layercam, hirescam = (
        maps(kind, model, images, ASKED, stage="-2")
        for kind in ("grad-cam-elementwise", "layercam", "hirescam")
    )
    torch.testing.assert_close(layercam, element_wise)
    assert (element_wise >= hirescam.relu() - 1e-9).all()
    assert (element_wise > hirescam.relu() + 1e-6).any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"grad-cam-pp", "bagcams"}])
def test_scores_in_another_unit_give_the_same_normalised_map(kind):
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    result, post = model.localize(images, gradients=True), load_post(kind).create({"stage": "-2"})
    scaled = replace(result, logits=7 * result.logits)
    torch.testing.assert_close(
        stretched(post.maps(scaled, ASKED)), stretched(post.maps(result, ASKED)), atol=1e-5, rtol=0
    )


def test_the_unit_of_the_scores_moves_grad_cam_pp():
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    result, post = model.localize(images, gradients=True), load_post("grad-cam-pp").create({"stage": "-2"})
    scaled = replace(result, logits=1000 * result.logits)
    difference = stretched(post.maps(scaled, ASKED)) - stretched(post.maps(result, ASKED))
    assert difference.abs().max() > 1e-3


def test_the_weights_of_grad_cam_pp_are_eq_19_where_it_is_defined():
    a, g = torch.randn(2, 3, 5, 5).double(), torch.randn(2, 3, 5, 5).double()
    g[0, 0, 0, 0] = 0.0
    a[1, 0] = 0.0
    a[1, 0, 0, 0], g[1, 0, 2, 2] = -4.0, 0.5  # 2 + g sum A is 0
    with np.errstate(invalid="ignore", divide="ignore"):
        squared, total = g.numpy() ** 2, a.numpy().sum(axis=(2, 3), keepdims=True)
        expected = squared / (2 * squared + g.numpy() ** 3 * total)
    expected[0, 0, 0, 0] = expected[1, 0, 2, 2] = 0.0
    np.testing.assert_allclose(pixel_weights(a, g).numpy(), expected, rtol=1e-9)


def planted() -> ForwardPass:
    """Channel 0 is an object at the upper left, which speaks for class 0; channel 1, elsewhere, against it."""
    features = torch.zeros(1, 2, 6, 6)
    features[0, 0, :3, :3] = 1.0
    features[0, 1, 3:, 3:] = 1.0
    stage = features.requires_grad_()
    pooled = stage.mean(dim=(2, 3))
    logits = torch.stack([pooled[:, 0] - pooled[:, 1], pooled[:, 1] - pooled[:, 0]], dim=1)
    return ForwardPass(logits=logits, maps_of=lambda ids: ids, stages=OrderedDict(only=stage))


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_high_on_what_speaks_for_the_class(kind):
    found = load_post(kind).create({"stage": "-1"}).maps(planted(), torch.tensor([[0, 1]]))[0]
    corners = [found[:, :3, :3].amin(dim=(1, 2)), found[:, 3:, 3:].amin(dim=(1, 2))]
    others = found[:, :3, 3:].amax(dim=(1, 2))
    assert corners[0][0] > others[0]
    assert corners[1][1] > others[1]
    against = torch.stack([found[0, 3:, 3:], found[1, :3, :3]])
    assert (against < 0).all() if kind == "hirescam" else not against.any()


# --- numerics and networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_computed_in_float32_under_autocast(kind):
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    expected = maps(kind, model, images, ASKED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(maps(kind, model, images, ASKED), expected)
    data = squares(2)
    sources = [
        ModelSource(
            model,
            EvalProtocol(),
            num_classes=3,
            device="cpu",
            batch_size=2,
            post=load_post(kind).create({}),
            numerics=Numerics(amp=amp),
        )
        for amp in ("off", "bf16")
    ]
    off, mixed = (
        each.maps(data.samples, each.collate([each.load(sample) for sample in data.samples]))
        for each in sources
    )
    np.testing.assert_array_equal(off.maps, mixed.maps)


def test_a_compiled_network_is_refused():
    post = load_post("grad-cam").create({})
    with pytest.raises(UsageError, match="leave --compile out"):
        ModelSource(
            network(), EvalProtocol(), num_classes=3, device="cpu", post=post, numerics=Numerics(compile=True)
        )


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [
        *((kind, "tiny") for kind in KINDS),
        # Signed features bring the denominator of Grad-CAM++ near 0, where rounding matters.
        *((kind, VIT) for kind in KINDS if kind != "grad-cam-pp"),
    ],
)
def test_the_map_of_an_image_does_not_depend_on_its_batch(kind, backbone):
    settings = {"grid": "tokens"} if backbone == VIT else {}
    model, images = network("conv", backbone, **settings), torch.randn(3, 3, 64, 64)
    asked = torch.tensor([[0], [1], [2]])
    together = maps(kind, model, images, asked, stage="-3")
    for row in range(3):
        alone = maps(kind, model, images[row : row + 1], asked[row : row + 1], stage="-3")
        torch.testing.assert_close(
            alone[0], together[row], atol=1e-4 * float(together.abs().max()), rtol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_features_has_a_map_of_zeros(kind):
    """A constant image of the mean colour is 0 after normalisation, and so is everything made of it."""
    found = maps(kind, network(), torch.zeros(2, 3, 64, 64), ASKED, stage="-2")
    assert found.shape == (2, 2, 8, 8)
    assert not found.any()


@pytest.mark.parametrize("stage", [VIT_LAST_BLOCKS[0], "-3", "patches"])
def test_gradients_reach_every_stage_of_a_vision_transformer(stage):
    """The stage is a view of the patch tokens; the reference differentiates by all tokens."""
    model, images = network("conv", VIT, grid="tokens"), torch.randn(2, 3, 64, 64)
    backbone, name = model.backbone, {"-3": VIT_LAST_BLOCKS[1]}.get(stage, stage)
    with torch.no_grad():
        entered = backbone.run(images, until=name)
    leaf = entered.clone().requires_grad_()
    scores = model.head(leaf if name == "patches" else backbone.run(leaf, after=name)).logits
    expected = []
    for column in range(2):
        chosen = scores.gather(1, ASKED[:, column : column + 1]).sum()
        (gradient,) = torch.autograd.grad(chosen, leaf, retain_graph=True)
        shares = gradient * entered
        expected.append(shares.sum(dim=1) if name == "patches" else shares.sum(dim=2)[:, 1:].reshape(2, 4, 4))
    found = maps("hirescam", model, images, ASKED, stage=stage)
    scale = float(gradient.abs().max() * entered.abs().max())
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-5 * scale, rtol=1e-4)
    assert found.abs().max() > 1e-4 * scale


def test_stages_of_a_vision_transformer_are_the_same_with_and_without_gradients():
    model, images = network("fc", VIT, grid="tokens"), torch.randn(2, 3, 64, 64)
    plain, differentiable = (model.localize(images, gradients=gradients) for gradients in (False, True))
    assert list(plain.stages) == list(differentiable.stages) == [*VIT_LAST_BLOCKS, "patches"]
    assert all(torch.equal(plain.stages[name], differentiable.stages[name]) for name in plain.stages)
    assert torch.equal(plain.logits, differentiable.logits)


def test_before_a_layer_norm_the_channels_of_hirescam_cancel():
    """Layer norm ignores the length of a token, so its score has no slope in that direction."""
    model, images = network("fc", VIT, grid="tokens"), torch.randn(2, 3, 64, 64)
    signed, positive = (
        maps(kind, model, images, ASKED, stage=VIT_LAST_BLOCKS[-1])
        for kind in ("hirescam", "grad-cam-elementwise")
    )
    assert signed.abs().max() < 1e-5 * positive.max()


def test_inner_stages_of_a_network_that_gives_copies_of_them_are_refused():
    model = Cam.create(backbone=VIT, num_classes=3, weights="none", settings={"head": "fc"})
    images = torch.randn(1, 3, 224, 224)
    assert maps("grad-cam", model, images, ASKED[:1]).any()
    with pytest.raises(UsageError, match=r"stage=-2 of post-process 'grad-cam'.*--set grid=tokens"):
        maps("grad-cam", model, images, ASKED[:1], stage="-2")


# --- against a library --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "stage"), [("stage3", "-1"), ("stage1", "-3")])
@pytest.mark.parametrize(
    ("kind", "library"),
    [
        ("grad-cam", "GradCAM"),
        ("hirescam", "HiResCAM"),
        ("grad-cam-elementwise", "GradCAMElementWise"),
        ("layercam", "LayerCAM"),
    ],
)
def test_raw_maps_are_those_of_pytorch_grad_cam(kind, library, step, stage):
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    expected = from_library(getattr(pytorch_grad_cam, library), model, step, images, [0, 2])
    found = maps(kind, model, images, torch.tensor([[0], [2]]), stage=stage)[:, 0].numpy()
    expected = expected if kind == "hirescam" else np.maximum(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_grad_cam_pp_of_pytorch_grad_cam_is_another_map_unless_gradients_are_large():
    """Its denominator has 1e-6 added, which is large next to squared gradients of real scores."""
    library = pytest.importorskip("pytorch_grad_cam").GradCAMPlusPlus
    model, images, asked = network("conv"), torch.randn(2, 3, 64, 64), torch.tensor([[0], [2]])

    def difference() -> float:
        theirs = torch.from_numpy(from_library(library, model, "stage3", images, [0, 2])).relu()
        ours = maps("grad-cam-pp", model, images, asked)[:, 0]
        return float((stretched(ours) - stretched(theirs)).abs().max())

    model.head.classifier.weight.data.div_(100)
    assert difference() > 0.02
    model.head.classifier.weight.data.mul_(1e5)
    assert difference() < 1e-3
