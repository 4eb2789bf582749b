"""PartNet-Full: the boxes whose parts are classified, the sum of all scores, and maps of the detectors.

Y. Zhang, K. Jia, Z. Wang, arXiv:1806.06198; released code: Gorilla-Lab-SCUT/PartNet. Equations have the
numbers of `method.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.core.outputs import Proposals
from reference_models.layers.cells import cell_shares
from reference_models.layers.regions import first_maximum

GOLDEN_RATIO = (5**0.5 - 1) / 2


@torch.no_grad()
def best_boxes(detections: Float[Tensor, "b r p"]) -> Int[Tensor, "b p"]:
    """Return the box of each part with the highest d, eq. (8) at test."""
    return first_maximum(detections.mT)


@torch.no_grad()
def draw_boxes(
    detections: Float[Tensor, "b r p"], candidates: int, generator: torch.Generator
) -> Int[Tensor, "b p"]:
    """Draw one of the boxes of each part with the highest d, eq. (8) in training.

    No more boxes than there are can be candidates.
    """
    count, boxes, parts = detections.shape
    candidates = min(candidates, boxes)
    ranked = detections.argsort(dim=1, descending=True, stable=True)[:, :candidates]
    drawn = torch.randint(candidates, (count, 1, parts), generator=generator, device=generator.device)
    return ranked.gather(1, drawn.to(ranked.device))[:, 0]


def fixed_boxes(detections: Float[Tensor, "b r p"]) -> Int[Tensor, "b p"]:
    """Return the boxes of the control at test: far from each other, and of the same numbers in all images."""
    count, boxes, parts = detections.shape
    steps = torch.arange(1, parts + 1, device=detections.device) * GOLDEN_RATIO
    return (steps % 1 * boxes).long().expand(count, parts)


def fused_scores(
    image: Float[Tensor, "b y"], parts: Float[Tensor, "b p y"], scores: Float[Tensor, "b y"]
) -> Float[Tensor, "b y"]:
    """Return q of the logits of image and parts and of s, eq. (9)."""
    share = scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    summed = image.float().softmax(dim=1) + parts.float().softmax(dim=2).sum(dim=1) + share
    return summed / (parts.shape[1] + 2)


def mean_detections(
    boxes: Float[Tensor, "b r 4"], detections: Float[Tensor, "b r p"], grid: tuple[int, int], image_size: int
) -> Float[Tensor, "b p h w"]:
    """Return for each cell the mean d of the boxes on it, or 0 without any.

    A box counts by the share of the cell that it covers. Boxes end in the middle of cells: a rule that counts
    whole cells would count those on one side alone.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        x0, y0, x1, y1 = (boxes / image_size).unbind(dim=2)
        down, across = cell_shares(y0, y1, grid[0]), cell_shares(x0, x1, grid[1])
        weights = torch.cat([detections, torch.ones_like(detections[..., :1])], dim=2)
        sums = torch.einsum("brp,brhw->bphw", weights, down[..., None] * across[:, :, None])
    return sums[:, :-1] / sums[:, -1:].clamp_min(torch.finfo(sums.dtype).tiny)


@torch.no_grad()
def ranked_boxes(
    boxes: Float[Tensor, "b p 4"], scores: Float[Tensor, "b p"], chosen: Int[Tensor, "b p"]
) -> Proposals:
    """Return the boxes of the parts, best first. A box that a better detector chose, too, is `padded`."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    index = chosen.gather(1, order)
    same = (index[:, :, None] == index[:, None]).tril(diagonal=-1).any(dim=2)
    return Proposals(
        boxes=boxes.take_along_dim(order[..., None], dim=1), scores=scores.gather(1, order), padded=same
    )
