"""CutMix: paste a box from another image and mix the labels by area.

S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe, Y. Yoo, "CutMix: Regularization strategy to train strong
classifiers with localizable features", ICCV 2019. Written from the re-implementation in
clovaai/wsolevaluation.

Idea. A box pasted over an image hides a part of the object, as in Hide-and-Seek, but no pixel is wasted. The
box shows a part of another object, which must be recognised, too. The two labels are weighted by the visible
area of each image.

    paper      name                                    shape
    x_A, x_B   images, images[order]                   (B, 3, H, W)
    lambda     kept, as drawn                          (n,)   n = 1: one for the batch; n = B: one per image
    M          pasted: M is 1 where this is False      (n, 1, H, W)
    lambda'    kept, as pasted                         (n,)
    M_c        maps_of(class_ids)                      (B, K, h, w), the map of CAM

    (1)  lambda ~ Beta(beta, beta)
    (2)  box: sides floor(H r), floor(W r) with r = sqrt(1 - lambda), around a random pixel, clipped
    (3)  x = M * x_A + (1 - M) * x_B
    (4)  lambda' = 1 - area of the clipped box / (H W)
    (5)  L = lambda' CE(S(x), y_A) + (1 - lambda') CE(S(x), y_B)

Both ends of the box are half a side, rounded down, from its centre, so an odd side loses a pixel.

Departures from the paper. Head and recipe are those of `cam`. Equations are numbered here, not in the paper.
Departures from released code: none known. As there, labels are weighted by the clipped box (4) and not by the
lambda that was drawn (1). `box_scope=sample` is this project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Positive, Share

PAPER = "cutmix"


@dataclass(frozen=True, kw_only=True)
class CutMixConfig(HeadConfig):
    """Settings of `cutmix`."""

    beta: Positive = 1.0
    """Both parameters of the Beta distribution: 1 in wsolevaluation (lambda is uniform)."""
    prob: Share = 1.0
    """Probability that a batch (`box_scope=sample`: an image) is mixed: wsolevaluation's default is 1."""
    box_scope: Literal["batch", "sample"] = "batch"
    """Draw one box for the batch (wsolevaluation), or one per image."""


def draw_lambda(count: int, beta: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Draw lambda from the Beta distribution, on the device of the generator, eq. (1)."""
    # torch.distributions draws only from the global generator; its Beta calls this function.
    both = torch._sample_dirichlet(torch.full((count, 2), beta, device=generator.device), generator=generator)
    return both[:, 0]


def clipped_box(
    kept: Float[Tensor, " n"],
    centre_y: Int[Tensor, " n"],
    centre_x: Int[Tensor, " n"],
    height: int,
    width: int,
) -> Bool[Tensor, "n 1 H W"]:
    """Return the clipped box as a mask, True inside, eq. (2)."""

    def inside(centre: Int[Tensor, " n"], length: int) -> Bool[Tensor, "n {length}"]:
        half = ((length * (1 - kept).sqrt()).long() // 2)[:, None]
        position = torch.arange(length, device=centre.device)
        return (position >= centre[:, None] - half) & (position < centre[:, None] + half)

    return (inside(centre_y, height)[:, :, None] & inside(centre_x, width)[:, None, :])[:, None]


def mixed_cross_entropy(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, " b"],
    others: Int[Tensor, " b"],
    kept: Float[Tensor, " n"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of mixed images with both labels, averaged over the batch, eq. (5).

    `others` are the labels of the pasted images.
    """
    scores = logits.float()
    own, other = (F.cross_entropy(scores, target, reduction="none") for target in (labels, others))
    return (kept * own + (1 - kept) * other).mean()


class CutMix(HeadLocalizer):
    """See the module. Network and maps are those of `head_localizer.py`."""

    method_name = "cutmix"
    Config = CutMixConfig
    config: CutMixConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: CutMixConfig) -> None:
        super().__init__(backbone, num_classes, config)
        if not config.beta > 0:
            raise UsageError(
                f"setting beta of method 'cutmix' is {config.beta}; expected a number greater than 0"
            )
        if not 0 <= config.prob <= 1:
            raise UsageError(
                f"setting prob of method 'cutmix' is {config.prob}; expected a probability in [0, 1]"
            )

    def draw_box(self, batch: Batch) -> Bool[Tensor, "n 1 H W"]:
        """Return where another image is pasted. Images that are not mixed have no True pixel."""
        generator, device = batch.generator, batch.images.device
        count, _, height, width = batch.images.shape
        drawn = count if self.config.box_scope == "sample" else 1
        kept = draw_lambda(drawn, self.config.beta, generator)  # (1)
        centre_y = torch.randint(height, (drawn,), generator=generator, device=device)
        centre_x = torch.randint(width, (drawn,), generator=generator, device=device)
        mixed = torch.rand(drawn, generator=generator, device=device) < self.config.prob
        return clipped_box(kept, centre_y, centre_x, height, width) & mixed[:, None, None, None]  # (2)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of mixed images with their two labels."""
        pasted = self.draw_box(batch)
        order = torch.randperm(len(batch.images), generator=batch.generator, device=batch.images.device)
        images = torch.where(pasted, batch.images[order], batch.images)  # (3)
        kept = 1 - pasted.float().mean(dim=(1, 2, 3))  # (4)
        return {
            "cross_entropy": mixed_cross_entropy(self(images).logits, batch.labels, batch.labels[order], kept)
        }  # (5)
