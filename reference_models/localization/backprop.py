"""Backprop: gradient magnitude of the class score at each input pixel.

K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification
models and saliency maps", ICLR workshop 2014. The CAM paper (B. Zhou et al., CVPR 2016) lists it as a
localization baseline.

Idea. The score of a class is nearly linear in the image around it. The slope at a pixel says how much the
score would change with that pixel. The object is where the slope is large. Only the classifier is trained, as
for `cam`.

    paper      name                            shape
    I          images                          (B, 3, H, W)
    S_c(I)     class_score                     (B,)             before softmax
    w          gradient                        (B, 3, H, W)
    M          maps_of(class_ids)              (B, K, H, W)     not negative

    w = dS_c / dI    at the image; the paper's Section 3
    M_ij = max over the channels |w_ij|

Departures from the paper. It segments the image with GraphCut, seeded by quantiles of M. Here the
evaluation's thresholds give the boxes, as for every other method. Its classifiers have fully connected layers
on a 7x7 grid. Here the classifier is that of `cam`. The numbers that tables quote (ILSVRC, VGG-16: errors
61.12 and 51.46, in Table 1 of SPA, CVPR 2021) come from the CAM paper, which does not describe how they were
made.

Cost. Maps need a forward pass with a graph and K backward passes. They run only when maps are requested.
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
GROUP = "class activation"

Channel = Literal["max", "sum", "l2"]


@dataclass(frozen=True, kw_only=True)
class BackpropConfig(HeadConfig):
    """Settings of `backprop`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"score", "channel", "smooth_sigma"})

    score: Literal["logit", "logprob"] = "logit"
    """Differentiated quantity: the score before softmax (the paper), or the log probability."""
    channel: Channel = "max"
    """Reduction over the colours: `max` of the magnitudes (the paper), their `sum`, or the `l2` norm."""
    smooth_sigma: Sigma = 0.0
    """Standard deviation of the Gaussian that smooths the map, in input pixels.

    0 (the paper): no smoothing.
    """


def saliency(gradient: Float[Tensor, "b 3 H W"], channel: Channel) -> Float[Tensor, "b H W"]:
    """Return M of a gradient: its magnitude, reduced over the colours, Section 3.1 of the paper."""
    size = gradient.abs()
    if channel == "max":
        return size.amax(dim=1)
    return size.sum(dim=1) if channel == "sum" else size.square().sum(dim=1).sqrt()


def smooth_maps(maps: Float[Tensor, "b k H W"], sigma: float) -> Float[Tensor, "b k H W"]:
    """Smooth maps by a Gaussian that is truncated at three `sigma`.

    On a map smaller than that it is truncated at the map's border.
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
        """Return the classifier's logits. Maps are computed when they are requested."""
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
            # In evaluation mode scores depend on their own image only: the gradient of the sum over the
            # batch is that of each image.
            sums = scores.gather(1, class_ids).sum(dim=0)  # (K,)
            last = len(sums) - 1
            # `autograd.grad` leaves the parameters' own gradients alone.
            gradients = [
                torch.autograd.grad(one, image, retain_graph=number < last)[0]
                for number, one in enumerate(sums)
            ]
        maps = torch.stack([saliency(gradient, self.config.channel) for gradient in gradients], dim=1)
        return smooth_maps(maps, self.config.smooth_sigma) if self.config.smooth_sigma > 0 else maps
