"""Score-CAM: features weighted by class scores of masked images.

H. Wang, Z. Wang, M. Du, F. Yang, Z. Zhang, S. Ding, P. Mardziel, X. Hu, "Score-CAM: score-weighted visual
explanations for convolutional neural networks", CVPR workshops 2020. Released code: haofanwang/Score-CAM
(MIT).

Idea. Gradients are noisy and vanish where the classifier is sure. The importance of a channel is measured
directly: the image is shown through the channel's map as a mask, and the class score of what is left is the
channel's weight.

    paper       name          shape
    A^k         a             (B, D, h, w)    features of a stage, one channel k at a time
    H^k         masks         (B, D, H, W)    in [0, 1], on the grid of the image X
    f^c         scores        (B, K)          class score before softmax
    alpha^c     weights       (B, K, D)
    L^c         weighted_sum  (B, K, h, w)    not negative

    (1)  H^k = min-max over the pixels of A^k, upsampled bilinearly
    (2)  C^k = f^c(X * H^k)
    (3)  weights=softmax:      alpha = softmax of C over the channels
         weights=probability:  alpha^k = softmax over the classes of the scores of X * H^k, at class c
    (4)  L = relu( sum_k alpha^k A^k )

`weights=softmax` is the paper, as the library pytorch-grad-cam reads it, too; its text was not at hand.
`weights=probability` is the released code (`variant=official`), in which a constant channel has the weight 0.

Departures. The paper subtracts the score of a baseline image in (2), which cancels in the softmax. X is the
normalised input, so a mask of 0 shows the mean colour, as in the released code. A constant channel has a mask
of 0. The released code adds the upsampled channels; here the sum and its positive part are on their own grid.

Cost. Every channel is a forward pass of each image: 2,048 on the last stage of ResNet-50. Use `--limit`.
No gradient is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import find_stage
from reference_models.layers.maps import min_max
from wsolbench.exceptions import UsageError
from wsolbench.methods import Localization

PAPER = "score-cam"


@dataclass(frozen=True, kw_only=True)
class ScoreCamConfig(PostConfig):
    """Settings of `score-cam`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": MappingProxyType({}),
            "official": MappingProxyType({"weights": "probability"}),
        }
    )

    variant: Literal["paper", "official"] = "paper"
    """`paper`: softmax over the channels. `official`: released code."""
    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one), or `penultimate`.

    Both sources take the last convolution. `penultimate` is the input of the last linear layer.
    """
    weights: Literal["softmax", "probability"] = "softmax"
    """Weights of the channels, eq. (3)."""


def upsampled_mask(
    channel: Float[Tensor, "b h w"], images: Float[Tensor, "b c H W"]
) -> Float[Tensor, "b 1 H W"]:
    """Return H of one channel, on the grid of the images, eq. (1). A constant channel gives 0."""
    constant = channel.amax(dim=(1, 2)) == channel.amin(dim=(1, 2))  # upsampling would add rounding to it
    large = F.interpolate(channel[:, None], images.shape[2:], mode="bilinear", align_corners=False)
    return min_max(large).masked_fill(constant[:, None, None, None], 0.0)  # (1)


def weighted_sum(a: Float[Tensor, "b d h w"], weights: Float[Tensor, "b k d"]) -> Float[Tensor, "b k h w"]:
    """Return L, the positive part of the weighted sum of the channels, eq. (4)."""
    return torch.einsum("bkd,bdhw->bkhw", weights, a).relu()  # (4)


class ScoreCam(PostProcess):
    """See the module."""

    method_name = "score-cam"
    Config = ScoreCamConfig
    needs_reruns = True
    map_kind = "nonneg"
    config: ScoreCamConfig

    @torch.no_grad()
    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        if result.logits is None:
            raise _no_scores()
        _, features = find_stage(result, self.config.stage, who=self.method_name)
        if features.requires_grad:
            raise RuntimeError(
                "post-process 'score-cam' was given features with a graph: call model.eval() and use what "
                "model.localize() gives"
            )
        a = features.float()
        weights = torch.stack(
            [self._weights(result, channel, class_ids) for channel in a.unbind(dim=1)], dim=2
        )  # (B, K, D)
        if self.config.weights == "softmax":
            weights = weights.softmax(dim=2)  # (3)
        with torch.autocast(a.device.type, enabled=False):
            return weighted_sum(a, weights)

    def _weights(
        self, result: Localization, channel: Float[Tensor, "b h w"], class_ids: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        """Return C of a channel, eq. (2), or its weight if that does not depend on the others, eq. (3)."""
        if result.rerun is None:
            raise _no_scores()
        masked = result.rerun(lambda images: images * upsampled_mask(channel, images))  # (2)
        if masked.logits is None:
            raise _no_scores()
        scores = masked.logits.float()
        if self.config.weights == "softmax":
            return scores.gather(1, class_ids)
        constant = channel.amax(dim=(1, 2)) == channel.amin(dim=(1, 2))
        return scores.softmax(dim=1).gather(1, class_ids).masked_fill(constant[:, None], 0.0)  # (3)


def _no_scores() -> UsageError:
    return UsageError(
        "post-process 'score-cam' needs class scores of changed images; this method gives none, so it cannot "
        "be used with it"
    )
