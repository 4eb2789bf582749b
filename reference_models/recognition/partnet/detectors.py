"""PartNet's two streams: which class a box shows, and which part detector it belongs to.

Y. Zhang, K. Jia, Z. Wang, arXiv:1806.06198; released code: Gorilla-Lab-SCUT/PartNet. Equations have the
numbers of `method.py`.

    x_r      pooled               (B, R, V)
    c_r      classes              (B, R, Y)       without background
    d_rp     detections           (B, R, P)       without background
    w_rp     detection_weights    (B, R, P)       columns sum to 1
    s_y      image_scores         (B, Y)          their sum is below 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.layers.second_order import in_full_precision

DetectionNorm = Literal["softmax", "linear"]


@in_full_precision
def drop_background(logits: Float[Tensor, "b r k"]) -> Float[Tensor, "b r n"]:
    """Return the probabilities of all categories except the last one, the background, eq. (3) and (4)."""
    return logits.softmax(dim=2)[..., :-1]


@in_full_precision
def detection_weights(
    detections: Float[Tensor, "b r p"], norm: DetectionNorm = "softmax"
) -> Float[Tensor, "b r p"]:
    """Return w, which sums to 1 over the boxes for each detector, eq. (4).

    `softmax` is a second softmax, of probabilities: weights of an image differ by a factor of e at most.
    `linear` divides by the sum.
    """
    if norm == "softmax":
        return detections.softmax(dim=1)
    return detections / detections.sum(dim=1, keepdim=True).clamp_min(torch.finfo(detections.dtype).tiny)


@in_full_precision
def image_scores(classes: Float[Tensor, "b r y"], weights: Float[Tensor, "b r p"]) -> Float[Tensor, "b y"]:
    """Return s: for each detector the weighted mean of the boxes' classes, then the mean, eq. (5)."""
    return torch.einsum("bry,br->by", classes, weights.mean(dim=2))


@in_full_precision
def score_loss(scores: Float[Tensor, "b y"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of s, the mean over all classes and images, eq. (6)."""
    wanted = torch.zeros_like(scores).scatter_(1, labels[:, None], 1.0)
    loss: Tensor = F.binary_cross_entropy(scores.clamp(0, 1), wanted)
    return loss


@torch.no_grad()
def bound_singular_values(weight: Float[Tensor, "m n"], factor: float) -> Float[Tensor, "m n"]:
    """Return the matrix with its singular values clamped to [1 / factor, factor] (SVB), eq. (7)."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    bounded: Tensor = left * values.clamp(1 / factor, factor) @ right
    return bounded.to(weight.dtype)


@dataclass(frozen=True, eq=False)
class Detected:
    """What the detectors find: F (B, C, h, w), the boxes (B, R, 4), c (B, R, Y), and d (B, R, P)."""

    features: Tensor
    boxes: Tensor
    classes: Tensor
    detections: Tensor


class Stream(nn.Module):
    """Linear layer, ReLU, dropout, and a linear layer to some categories and a background."""

    def __init__(self, inputs: int, hidden: int, categories: int, dropout: float) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, categories + 1)
        self.dropout = dropout

    def forward(
        self, pooled: Float[Tensor, "b r v"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b r k"]:
        """Return logits of the categories and, last, of the background. No generator: no dropout."""
        x = self.hidden(pooled).relu()
        if generator is not None and self.dropout > 0:
            drawn = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
            x = x * (drawn >= self.dropout) / (1 - self.dropout)
        logits: Tensor = self.last(x)
        return logits


class Detectors(nn.Module):
    """Both streams, eq. (2)."""

    def __init__(self, inputs: int, hidden: int, classes: int, parts: int, dropout: float) -> None:
        super().__init__()
        self.classification = Stream(inputs, hidden, classes, dropout)
        self.detection = Stream(inputs, hidden, parts, dropout)

    def forward(
        self, pooled: Float[Tensor, "b r v"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b r y"], Float[Tensor, "b r p"]]:
        """Return c and d."""
        return (
            drop_background(self.classification(pooled, generator)),
            drop_background(self.detection(pooled, generator)),
        )

    @torch.no_grad()
    def bound(self, factor: float) -> None:
        """Apply SVB to the last layers of both streams."""
        for stream in (self.classification, self.detection):
            stream.last.weight.copy_(bound_singular_values(stream.last.weight, factor))
