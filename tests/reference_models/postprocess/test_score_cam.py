"""Score-CAM: against loops over images and channels, and the weights of a library."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference_models.core.outputs import ForwardPass
from tests.reference_models.postprocess.gradient_networks import ASKED, from_library, maps, network
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_post


@torch.no_grad()
def brute_force(model, image: torch.Tensor, label: int, official: bool) -> torch.Tensor:
    """The map of one image and class, one channel after the other."""
    channels = model.localize(image[None]).stages["stage3"][0]
    weights = []
    for channel in channels:
        mask = F.interpolate(channel[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0]
        span = mask.max() - mask.min()
        shown = image * (mask - mask.min()) / span if span > 0 else torch.zeros_like(image)
        scores = model(shown[None]).logits[0]
        if official:
            weights.append(scores.softmax(0)[label] if span > 0 else torch.tensor(0.0))
        else:
            weights.append(scores[label])
    weights = torch.stack(weights) if official else torch.stack(weights).softmax(0)
    return (weights[:, None, None] * channels).sum(0).relu()


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_map_is_that_of_the_loops(variant):
    model, images = network(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.backbone.steps["stage3"][0].weight[5] = 0.0  # a constant channel
    found = maps("score-cam", model, images, ASKED, variant=variant)
    for row in range(2):
        for column in range(2):
            expected = brute_force(model, images[row], int(ASKED[row, column]), variant == "official")
            torch.testing.assert_close(found[row, column], expected, atol=1e-5, rtol=1e-4)


def test_weights_are_those_of_pytorch_grad_cam_with_the_released_upsampling(monkeypatch):
    library = pytest.importorskip("pytorch_grad_cam").ScoreCAM
    monkeypatch.setattr(
        torch.nn, "UpsamplingBilinear2d", lambda size: torch.nn.Upsample(size=size, mode="bilinear")
    )
    model, images = network(), torch.randn(2, 3, 32, 32)
    expected = np.maximum(from_library(library, model, "stage3", images, [0, 2]), 0)
    found = maps("score-cam", model, images, torch.tensor([[0], [2]]))[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_the_weights_of_equal_channels_add_up_to_the_channel():
    """The paper's weights sum to 1 over the channels, the released ones over the classes."""
    shape = torch.rand(1, 1, 4, 4).expand(2, 6, 4, 4)
    asked = torch.arange(3).expand(2, 3)

    def rerun(change):
        return replace(result, logits=change(images).mean(dim=(1, 2, 3))[:, None] * torch.arange(3.0))

    images = torch.randn(2, 3, 16, 16)
    result = ForwardPass(
        logits=torch.zeros(2, 3), maps_of=lambda ids: ids, stages=OrderedDict(only=shape), rerun=rerun
    )
    paper = load_post("score-cam").create({}).maps(result, asked)
    torch.testing.assert_close(paper, shape[:, :1].expand(2, 3, 4, 4))
    official = load_post("score-cam").create({"variant": "official"}).maps(result, asked)
    torch.testing.assert_close(official.sum(dim=1), 6 * shape[:, 0])


def test_every_channel_is_one_forward_pass_without_gradients_and_a_constant_one_shows_nothing():
    shown = []

    def rerun(change):
        assert not torch.is_grad_enabled()
        shown.append(change(images))
        return result

    images = torch.rand(2, 3, 16, 16) + 1
    stage = torch.rand(2, 4, 4, 4)
    stage[:, 1] = 0.3
    result = ForwardPass(
        logits=torch.zeros(2, 3), maps_of=lambda ids: ids, stages=OrderedDict(only=stage), rerun=rerun
    )
    load_post("score-cam").create({}).maps(result, ASKED)
    assert [bool(each.any()) for each in shown] == [True, False, True, True]
    for each in shown:
        shares = each / images
        assert shares.min() >= 0
        assert shares.max() <= 1 + 1e-6
        assert torch.equal(shares[:, 0] > 0, shares[:, 1] > 0)


def test_a_result_that_cannot_be_run_again_is_refused():
    result = replace(network().localize(torch.randn(2, 3, 64, 64)), rerun=None)
    with pytest.raises(UsageError, match="'score-cam' needs class scores of changed images"):
        load_post("score-cam").create({}).maps(result, ASKED)


def test_a_method_is_run_again_on_changed_images():
    model, images = network("conv"), torch.randn(2, 3, 64, 64)
    result = model.localize(images, gradients=True)
    again = result.rerun(lambda seen: seen.flip(3))
    assert torch.equal(again.logits, model.localize(images.flip(3)).logits)
    assert torch.equal(again.score_maps(ASKED), model.score_maps(images.flip(3), ASKED))
    assert not again.logits.requires_grad
    assert torch.equal(again.rerun(lambda seen: seen.flip(3)).logits, model.localize(images).logits)
