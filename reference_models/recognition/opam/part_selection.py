"""OPAM's choice of object and parts: the box of a map, the best pair of candidates, and groups of filters.

Y. Peng, X. He, J. Zhao, arXiv:1704.01740; released code: PKU-ICST-MIPL/OPAM_TIP2018. Equations have the
numbers of `method.py`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.core.outputs import Proposals
from reference_models.layers.k_means import k_means
from reference_models.layers.regions import first_maximum

INSIDE, COVERED = 0.7, 0.4
"""Least share of a candidate inside of the object, and of the object inside of a candidate: released code."""
CANDIDATES = 200
"""Most candidates of an image: released code."""
PARTS = 2


# --- the object, (1) ----------------------------------------------------------------------------------------


@torch.no_grad()
def object_box(maps: Float[Tensor, "b h w"], threshold: float, image_size: int) -> Float[Tensor, "b 4"]:
    """Return the largest box around a connected region of values above a share of the maximum, eq. (1).

    The first of equal boxes counts. Of a map without positive values it is the box of the image.
    """
    height, width = maps.shape[1:]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    on = (maps >= threshold * highest) & ((maps > 0) | (highest <= 0))
    y, x = (torch.arange(count, device=maps.device, dtype=torch.float32) for count in (height, width))
    rows, columns = y[:, None].expand(height, width), x.expand(height, width)
    # Each cell learns how far its region reaches in the four directions, one cell in each round.
    outside = ~on[:, None]
    reach = torch.stack([-columns, columns, -rows, rows]).masked_fill(outside, -torch.inf)  # (B, 4, h, w)
    for _ in range(height * width // 2 + 1):
        reach = F.max_pool2d(reach, 3, stride=1, padding=1).masked_fill(outside, -torch.inf)
    sides = (reach[:, 0] + reach[:, 1] + 1) * (reach[:, 2] + reach[:, 3] + 1)  # area of the region's box
    best = first_maximum(sides.masked_fill(~on, 0).flatten(1))
    left, right, top, bottom = reach.flatten(2).take_along_dim(best[:, None, None], dim=2)[..., 0].unbind(1)
    cell = image_size / width, image_size / height
    return torch.stack(
        [-left * cell[0], -top * cell[1], (right + 1) * cell[0], (bottom + 1) * cell[1]], dim=1
    )


# --- the pair of parts, (2) and (3) -------------------------------------------------------------------------


def areas(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return the area of each box, 0 for an empty one."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1)


def shared_box(one: Float[Tensor, "*#n 4"], other: Float[Tensor, "*#n 4"]) -> Float[Tensor, "*n 4"]:
    """Return the intersection of two boxes; the area of an empty one is 0."""
    return torch.cat(
        [torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])], dim=-1
    )


def integrals(
    maps: Float[Tensor, "b h w"], boxes: Float[Tensor, "b n 4"], image_size: int
) -> Float[Tensor, "b n"]:
    """Return the integral of a map over each box, in pixels. Cells have one value each."""
    covered = []
    for axis, count in ((0, maps.shape[2]), (1, maps.shape[1])):
        edges = torch.arange(count, device=maps.device, dtype=boxes.dtype) * (image_size / count)
        first, last = boxes[..., axis, None], boxes[..., axis + 2, None]
        ends = torch.minimum(last, edges + image_size / count) - torch.maximum(first, edges)
        covered.append(ends.clamp_min(0))
    return torch.einsum("bny,byx,bnx->bn", covered[1], maps, covered[0])


def pair_scores(
    boxes: Float[Tensor, "b r 4"], around: Float[Tensor, "b 4"], maps: Float[Tensor, "b h w"], image_size: int
) -> Float[Tensor, "b r r"]:
    """Return the score of each pair of boxes, eq. (3); -inf for equal boxes.

    A_U - A_I - A_O is the sum of both areas within the object without twice their intersection.
    """
    count, number = boxes.shape[:2]
    clipped = shared_box(boxes, around[:, None])
    inner = areas(shared_box(clipped[:, :, None], clipped[:, None]))
    gain = areas(clipped)[:, :, None] + areas(clipped)[:, None] - 2 * inner
    both = shared_box(boxes[:, :, None], boxes[:, None])  # (B, R, R, 4)
    total, single = integrals(maps, both.flatten(1, 2), image_size).view(count, number, number), areas(boxes)
    alone = integrals(maps, boxes, image_size)
    salient = (alone[:, :, None] + alone[:, None] - total) / (
        single[:, :, None] + single[:, None] - areas(both)
    )
    return gain.clamp_min(0).log() + salient.clamp_min(torch.finfo(salient.dtype).tiny).log()


@torch.no_grad()
def part_pair(
    boxes: Float[Tensor, "r 4"], around: Float[Tensor, "b 4"], maps: Float[Tensor, "b h w"], image_size: int
) -> tuple[Float[Tensor, "b 2 4"], Bool[Tensor, " b"]]:
    """Return the best pair of candidates, and whether there were two, eq. (2) and (3)."""
    inside = areas(shared_box(boxes, around[:, None]))  # (B, R)
    share, cover = inside / areas(boxes).clamp_min(1e-6), inside / areas(around)[:, None]
    strict, loose = (share > INSIDE) & (cover > COVERED), cover > COVERED
    allowed = torch.where(strict.sum(dim=1, keepdim=True) >= 2, strict, loose)
    # At most 200 of them, in their first order: (B, K).
    saliency = integrals(maps, shared_box(boxes, around[:, None]), image_size).masked_fill(~allowed, -1.0)
    kept = saliency.argsort(dim=1, descending=True, stable=True)[:, :CANDIDATES].sort(dim=1).values
    chosen = boxes[kept]
    valid = allowed.gather(1, kept)
    scores = pair_scores(chosen, around, maps, image_size)
    pairs = (valid[:, :, None] & valid[:, None]) & torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(~pairs, -torch.inf).flatten(1)
    best, count = first_maximum(scores), kept.shape[1]
    pair = kept.gather(1, torch.stack([best // count, best % count], dim=1))
    # The last resort: the two that lie most within the object.
    found = scores.amax(dim=1) > -torch.inf
    resort = share.argsort(dim=1, descending=True, stable=True)[:, :PARTS]
    return boxes[torch.where(found[:, None], pair, resort)], found


def halves(boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 2 4"]:
    """Return the upper and the lower half of each box: the control."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    middle = (y0 + y1) / 2
    return torch.stack(
        [torch.stack([x0, y0, x1, middle], dim=1), torch.stack([x0, middle, x1, y1], dim=1)], dim=1
    )


# --- which part is which, (4) and (5) -----------------------------------------------------------------------


def filter_similarity(weight: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "d d"]:
    """Return the cosines of flattened filters; those of a filter of zeros are 0."""
    lengths = np.linalg.norm(weight, axis=1, keepdims=True)
    unit = weight / np.maximum(lengths, np.finfo(weight.dtype).tiny)
    return np.asarray(unit @ unit.T)


def spectral_groups(similarity: Float[np.ndarray, "d d"], count: int) -> Int[np.ndarray, " d"]:
    """Return the cluster of each filter, eq. (4)."""
    weights = similarity + similarity.T
    laplacian = np.diag(weights.sum(axis=1)) - weights
    vectors = np.linalg.eigh(laplacian).eigenvectors[:, 1 : count + 1]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return k_means(vectors / np.maximum(lengths, 1e-12), count, np.random.default_rng(0))


@torch.no_grad()
def align_parts(
    features: Float[Tensor, "b d h w"],
    boxes: Float[Tensor, "b 2 4"],
    group: Int[Tensor, " d"],
    image_size: int,
) -> Float[Tensor, "b 2 4"]:
    """Return the pair in the order of the groups, eq. (5)."""
    member = F.one_hot(group, PARTS).to(features.dtype)
    of_group = torch.einsum("bdhw,dp->pbhw", features, member / member.sum(dim=0).clamp_min(1))
    active = torch.stack(
        [integrals(one, boxes, image_size) / areas(boxes).clamp_min(1e-6) for one in of_group], dim=1
    )  # (B, group, box)
    swap = active[:, 0, 0] + active[:, 1, 1] < active[:, 0, 1] + active[:, 1, 0]
    return torch.where(swap[:, None, None], boxes.flip(1), boxes)


@torch.no_grad()
def ranked_parts(
    parts: Float[Tensor, "b 2 4"], maps: Float[Tensor, "b h w"], found: Bool[Tensor, " b"], image_size: int
) -> Proposals:
    """Return the parts by the mean of M in them; those of images without candidates are `padded`."""
    scores = integrals(maps, parts, image_size) / areas(parts).clamp_min(1e-6)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Proposals(
        boxes=parts.take_along_dim(order[..., None], dim=1),
        scores=scores.gather(1, order),
        padded=~found[:, None].expand_as(scores),
    )
