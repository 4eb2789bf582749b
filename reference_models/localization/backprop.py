"""Backprop: gradient magnitude of the class score at each input pixel.

K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification
models and saliency maps", ICLR workshop 2014. As a baseline of localization it is in the tables of the CAM
paper (B. Zhou et al., CVPR 2016).

Idea. The score of a class is nearly linear in the image around it; the slope at a pixel says how much the
score would change with that pixel. Where the slope is large is the object. Nothing is trained but the
classifier, as for `cam`.

    paper      name                            shape
    I          images                          (B, 3, H, W)
    S_c(I)     class_score                     (B,)             before softmax
    w          gradient                        (B, 3, H, W)
    M          maps_of(class_ids)              (B, K, H, W)     not negative

    w = dS_c / dI    at the image; the paper's Section 3
    M_ij = max over the channels |w_ij|

Departures from the paper. It segments the image with GraphCut, seeded by quantiles of M; here the
evaluation's thresholds make the boxes, as for every other method. Its classifiers have fully connected layers
on a 7x7 grid; here the classifier is that of `cam`. The numbers that tables quote (ILSVRC, VGG-16: errors
61.12 and 51.46, in Table 1 of SPA, CVPR 2021) come from the CAM paper and were made in a way that is not
described.

Cost. A forward pass with a graph and K backward passes, when maps are asked for and not before; the logits
alone need none of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import ForwardPass
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Sigma

PAPER = "backprop"

Channel = Literal["max", "sum", "l2"]


@dataclass(frozen=True, kw_only=True)
class BackpropConfig(HeadConfig):
    """Settings of `backprop`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"score", "channel", "smooth_sigma"})

    score: Literal["logit", "logprob"] = "logit"
    """What is differentiated: the score before softmax (the paper), or the logarithm of the probability."""
    channel: Channel = "max"
    """How the three colours become one value: `max` of the sizes (the paper), their `sum`, or the `l2`
    norm.
    """
    smooth_sigma: Sigma = 0.0
    """Standard deviation, in pixels of the input, of a Gaussian that smooths the map; 0 (the paper): not
    smoothed.
    """


def saliency(gradient: Float[Tensor, "b 3 H W"], channel: Channel) -> Float[Tensor, "b H W"]:
    """M of a gradient: the paper's Section 3.1."""
    size = gradient.abs()
    if channel == "max":
        return size.amax(dim=1)
    return size.sum(dim=1) if channel == "sum" else size.square().sum(dim=1).sqrt()


def smoothed(maps: Float[Tensor, "b k H W"], sigma: float) -> Float[Tensor, "b k H W"]:
    """Maps convolved with a Gaussian that is cut off at three `sigma`, and where the map is small, at its
    border.
    """
    radius = min(math.ceil(3 * sigma), min(maps.shape[-2:]) - 1)
    blurred: Tensor = gaussian_blur(maps, [2 * radius + 1] * 2, [sigma, sigma])
    return blurred


class Backprop(HeadLocalizer):
    """See the module; training is that of `head_localizer.py`."""

    method_name = "backprop"
    Config = BackpropConfig
    map_kind = "nonneg"
    config: BackpropConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: BackpropConfig) -> None:
        if not 0 <= config.smooth_sigma < math.inf:
            raise UsageError(
                f"setting smooth_sigma={config.smooth_sigma} of method 'backprop': expected a number of "
                "pixels, or 0: not smoothed"
            )
        super().__init__(backbone, num_classes, config)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """The classifier's logits; maps are made when they are asked for."""
        return replace(super().forward(images), maps_of=lambda class_ids: self._maps(images, class_ids))

    def _maps(
        self, images: Float[Tensor, "b 3 H W"], class_ids: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k H W"]:
        # In float32: half precision has no room for the small slopes of a deep network.
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            image = images.detach().float().requires_grad_()
            scores = super().forward(image).logits
            assert scores is not None
            if self.config.score == "logprob":
                scores = scores.log_softmax(dim=1)
            # In evaluation mode no image has a part in another's score: the sum over the batch has the
            # gradients of all at once.
            sums = scores.gather(1, class_ids).sum(dim=0)  # (K,)
            last = len(sums) - 1
            # `autograd.grad` leaves the parameters' own gradients alone.
            gradients = [
                torch.autograd.grad(one, image, retain_graph=number < last)[0]
                for number, one in enumerate(sums)
            ]
        maps = torch.stack([saliency(gradient, self.config.channel) for gradient in gradients], dim=1)
        return smoothed(maps, self.config.smooth_sigma) if self.config.smooth_sigma > 0 else maps
