"""Classifiers of single parts: SSANET's scale and orientation alignment, one after the other.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, sections 3.2 and 3.3. The modules are in `scale_alignment.py` and
`oriented_pooling.py`, the pyramids for comparison in `pyramids.py`.

    boxes               (B, K, 4)           proposed parts
    candidates          (B, K, A, 4)        each at A scales
    X                   (B, K, A, D, h, h)  features of the candidates
    phi                 (B, K, A, L)        all of X, or its pooled vector
    y_DSM               (B, K, C)           its class, or the label in training, selects the aligned candidate
    y_OP                (B, K, C)           on the aligned candidate; without DSM on the part as proposed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.core.config import MethodConfig
from reference_models.recognition.ssanet.oriented_pooling import OpVariant, OrientedHead
from reference_models.recognition.ssanet.pyramids import (
    FeaturePyramid,
    LinearPart,
    Pool,
    SpatialPyramid,
    pool_parts,
)
from reference_models.recognition.ssanet.scale_alignment import DsmForm, ScaleMining, scale_candidates
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Positive, Scales

Fuse = Literal["logits", "softmax"]

PYRAMID_STAGES = 4
"""Stages of the backbone that the feature pyramid uses: C2 to C5 of a ResNet."""


@dataclass(frozen=True, kw_only=True)
class PartHeadConfig(MethodConfig):
    """Settings of the classifiers. If no source is named, the paper does not give the value."""

    part_pool: Pool = "mean"
    """The pooled vector of a part, for FC and `dsm_feature=gap`: GAP or GMP of Table 4."""
    dsm: Literal["full", "fixed", "one", "spp", "fpn", "fc", "none"] = "full"
    """DSM, its variants of Table 5, a pyramid in its place (Table 5), or nothing.

    `fc`, a control: the part classifier, trained again in the place of DSM.
    """
    dsm_feature: Literal["flatten", "gap"] = "flatten"
    """phi: all cells (Figure 3), or the pooled vector."""
    dsm_form: DsmForm = "circulant"
    """Computation of (7); the results are the same."""
    dsm_share: bool = True
    """Whether all parts share one weight. The paper's index i also allows one per part."""
    scales: Scales = 5
    """A, odd: the paper."""
    alpha: Positive = 2**0.25
    """Ratio of the sides of neighbouring scales."""
    op: bool = True
    """False: no OP (Table 3)."""
    op_variant: OpVariant = "equations"
    """(11) and (12) as printed, or rotated maps, as in the text."""
    op_patches: Channels = 3
    """N_H = N_W: the paper."""
    op_patch: Channels = 0
    """h = w, 3 in the paper. 0: the smallest that leaves no gap, which is 3 on 7x7."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Scores of each part, with its box and features."""

    features: Float[Tensor, "b k d h h"]
    """X of the aligned candidate, or of the part as proposed."""
    boxes: Float[Tensor, "b k 4"]
    scales: Float[Tensor, "b k c"] | None
    """y_DSM, or the pyramid's logits."""
    orientations: Float[Tensor, "b k c"] | None
    """y_OP."""


def fuse_scores(scores: list[Tensor], how: Fuse) -> Float[Tensor, "b c"]:
    """Return the sum of the scores (B, C), or the logarithm of the mean of their softmax."""
    all_scores = torch.stack(scores).float()
    return (
        all_scores.sum(dim=0)
        if how == "logits"
        else all_scores.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(scores))
    )


class PartHeads(nn.Module):
    """DSM or a pyramid, and OP.

    Args:
        channels: of the backbone's stages.
        side: of the grid of a part's features.
        num_classes: C.
        parts: K.
        config: which classifiers there are.
        who: the method, for messages.

    Raises `UsageError` on settings that do not fit the grid or each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        side: int,
        num_classes: int,
        parts: int,
        config: PartHeadConfig,
        *,
        who: str,
    ) -> None:
        if config.scales < 1 or config.scales % 2 == 0 or not config.alpha > 0:
            raise UsageError(
                f"settings scales={config.scales} and alpha={config.alpha} of method {who!r}: expected an "
                "odd number, and one above 0"
            )
        if config.op_patches < 1 or config.op_patch < 0:
            raise UsageError(
                f"settings op_patches={config.op_patches} and op_patch={config.op_patch} of method {who!r}: "
                "expected at least one patch, and a number of cells, or 0"
            )
        super().__init__()
        self.config = config
        self.mining: ScaleMining | None = None
        self.pyramid: SpatialPyramid | FeaturePyramid | LinearPart | None = None
        # DSM, or another classifier in its place.
        if config.dsm == "spp":
            self.pyramid = SpatialPyramid(channels[-1], num_classes)
        elif config.dsm == "fpn":
            self.pyramid = FeaturePyramid(channels[-PYRAMID_STAGES:], num_classes)
        elif config.dsm == "fc":
            self.pyramid = LinearPart(channels[-1], num_classes, config.part_pool)
        elif config.dsm != "none":
            length = channels[-1] * (side**2 if config.dsm_feature == "flatten" else 1)
            kinds = 1 if config.dsm_share else parts
            self.mining = ScaleMining(
                num_classes, config.scales, length, mode=config.dsm, form=config.dsm_form, kinds=kinds
            )
        # OP.
        self.orienting = (
            OrientedHead(
                channels[-1],
                side,
                num_classes,
                patches=config.op_patches,
                patch=config.op_patch,
                variant=config.op_variant,
            )
            if config.op
            else None
        )

    @property
    def depth(self) -> int:
        """Number of the backbone's last stages that are used."""
        return PYRAMID_STAGES if self.config.dsm == "fpn" else 1

    def pool(self, features: Float[Tensor, "*b d h h"]) -> Float[Tensor, "*b d"]:
        """Pool features over their grid, by mean or maximum."""
        return pool_parts(features, self.config.part_pool)

    def start_from(self, classifier: nn.Linear) -> None:
        """Initialise DSM on pooled vectors, or the layer in its place, as a linear classifier of them."""
        if self.mining is not None and self.config.dsm_feature == "gap":
            self.mining.start_from(classifier.weight)
        if isinstance(self.pyramid, LinearPart):
            self.pyramid.start_from(classifier)

    def forward(
        self,
        look: Callable[[Tensor], list[Tensor]],
        boxes: Float[Tensor, "b k 4"],
        classes: Int[Tensor, " b"] | None = None,
        *,
        orient: bool = True,
    ) -> Reading:
        """Extract features of the parts and classify them.

        Args:
            look: maps (B, n, 4) boxes to the last `depth` stages (B, n, D, h, w) of each.
            boxes: proposed parts.
            classes: class of each image for which a candidate is aligned. None: the one that DSM predicts.
            orient: False skips OP.
        """
        scales = orientations = None
        # DSM: score the candidates and pick the aligned one.
        if self.mining is not None:
            candidates = scale_candidates(boxes, self.config.alpha, self.config.scales)  # (B, K, A, 4)
            seen = look(candidates.flatten(1, 2))[-1]
            features = seen.view(*candidates.shape[:3], *seen.shape[2:])  # (B, K, A, D, h, h)
            phi = features.flatten(3) if self.config.dsm_feature == "flatten" else self.pool(features)
            scored = self.mining(phi)
            scales = scored.logits
            best = self.mining.pick_aligned(
                phi, scored.shift, scales.sum(dim=1).argmax(dim=1) if classes is None else classes
            )
            boxes = candidates.take_along_dim(best[..., None, None], dim=2)[:, :, 0]
            features = features.take_along_dim(best[:, :, None, None, None, None], dim=2)[:, :, 0]
        else:
            # A pyramid, or nothing.
            stages = look(boxes)
            features = stages[-1]
            if self.pyramid is not None:
                scales = (
                    self.pyramid([stage.flatten(0, 1) for stage in stages]).float().view(*boxes.shape[:2], -1)
                )
        # OP on the picked features (B, K, D, h, h).
        if self.orienting is not None and orient:
            orientations = self.orienting(features.flatten(0, 1))[0].view(*boxes.shape[:2], -1)
        return Reading(features, boxes, scales, orientations)
