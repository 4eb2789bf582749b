"""Regions of an image: crop them, select them by score, draw them as a map.

Boxes are xyxy, continuous pixels of the square input [0, S] x [0, S]: pixel i covers [i, i + 1). No gradient
goes through a box.

S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", NIPS 2015 (anchors, suppression); K. He, G. Gkioxari, P.
Dollar, R. Girshick, "Mask R-CNN", ICCV 2017 (RoIAlign). Used as in NTS-Net, SSANET and
Focus-and-Discriminate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import roi_align

from reference_models.core.outputs import Proposals

CropMode = Literal["half_pixel", "align_corners"]
NmsRule = Literal["gt", "ge"]
RegionFit = Literal["shift", "pad"]

PEAK_SIDE = 160 / 448
"""Side of the square around a peak, relative to the image, as in Focus-and-Discriminate."""


@dataclass(frozen=True, eq=False)
class Selected:
    """Positions of the selected boxes, best first."""

    index: Int[Tensor, "b k"]
    padded: Bool[Tensor, "b k"]
    """True for boxes that a better box overlaps, selected because there were fewer than k others."""


def select(
    boxes: Float[Tensor, "a 4"] | Float[Tensor, "b a 4"],
    scores: Float[Tensor, "b a"],
    k: int,
    iou: float,
    rule: NmsRule = "gt",
) -> Selected:
    """Select the k best boxes of each image that do not overlap.

    Greedy suppression by descending score; of equal scores, the first box wins. If fewer than k survive, the
    best suppressed boxes follow, marked `padded`. The first boxes do not depend on k.

    Args:
        boxes: (A, 4), the same for all images, or (B, A, 4).
        scores: (B, A).
        k: at most A.
        iou: overlap at which a box is suppressed by a selected one.
        rule: `gt`: suppressed if the IoU is greater than `iou`. `ge`: if it is at least `iou` (NTS-Net's
            code).
    """
    count, width = scores.shape
    with torch.no_grad():
        order = scores.argsort(dim=1, descending=True, stable=True)  # (B, A)
        ranked = boxes.double().expand(count, width, 4).take_along_dim(order[..., None], dim=1)
        rank = torch.arange(width, device=scores.device)
        suppressed = torch.zeros(count, width, dtype=torch.bool, device=scores.device)
        taken = suppressed.clone()
        places, padded = [order[:, :0]], [suppressed[:, :0]]
        for _ in range(k):  # the best one left of every image
            best = (rank + width * suppressed + 2 * width * taken).argmin(dim=1, keepdim=True)  # (B, 1)
            places.append(best)
            padded.append(suppressed.gather(1, best))
            taken.scatter_(1, best, value=True)
            overlap = _iou(ranked, ranked.take_along_dim(best[..., None], dim=1))
            suppressed = suppressed | (overlap > iou if rule == "gt" else overlap >= iou)
        return Selected(index=order.gather(1, torch.cat(places, dim=1)), padded=torch.cat(padded, dim=1))


def _iou(boxes: Float[Tensor, "b a 4"], one: Float[Tensor, "b 1 4"]) -> Float[Tensor, "b a"]:
    """Return the IoU of each box with one box of its image."""
    sides = (torch.minimum(boxes[..., 2:], one[..., 2:]) - torch.maximum(boxes[..., :2], one[..., :2])).clamp(
        min=0
    )
    areas = [(part[..., 2:] - part[..., :2]).prod(dim=-1) for part in (boxes, one)]
    shared = sides.prod(dim=-1)
    return shared / (areas[0] + areas[1] - shared)


def first_maximum(values: Float[Tensor, "*a n"]) -> Int[Tensor, "*a"]:
    """Return the first position of the maximum along the last axis."""
    positions = torch.arange(values.shape[-1], device=values.device)
    highest = values == values.amax(dim=-1, keepdim=True)
    return torch.where(highest, positions, values.shape[-1] - 1).amin(dim=-1)


def crop_resize(
    images: Float[Tensor, "b c S S"], boxes: Float[Tensor, "b k 4"], size: int, mode: CropMode = "half_pixel"
) -> Float[Tensor, "b*k c p p"]:
    """Crop each box and resize it to `size` x `size`. Pixels outside the image are 0, the mean colour.

    The result is float32, or float64 if the images are.

    Args:
        images: squares of side S.
        boxes: K of each image.
        size: side of a crop, at least 2 with `align_corners`.
        mode: `half_pixel`: bilinear samples at the centres of `size` x `size` cells of the box.
            `align_corners`: NTS-Net's code. Its boxes have whole pixels (truncated towards 0 after half a
            side is added for its padding), and its outermost samples are the box's outermost pixels.
    """
    with torch.no_grad():
        pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        flat = boxes.to(pixels.dtype).flatten(0, 1)
        image = torch.arange(len(boxes), device=images.device, dtype=flat.dtype).repeat_interleave(
            boxes.shape[1]
        )[:, None]
        if mode == "align_corners":
            pad = images.shape[-1] // 2
            whole = (flat + pad).trunc() - pad
            start, end = whole[:, :2], whole[:, 2:] - 1  # centres of the outermost pixels
            half = (end - start) / (size - 1) / 2
            # RoIAlign repeats the border for half a pixel beyond it; with a border of zeros it does not.
            flat, pixels = torch.cat([start - half + 1, end + half + 1], dim=1), F.pad(pixels, (1, 1, 1, 1))
        cut: Tensor = roi_align(
            pixels, torch.cat([image, flat], dim=1), size, sampling_ratio=1, aligned=mode == "half_pixel"
        )
        if (
            mode == "half_pixel"
            # here that border is needed inside of the image, where a sample lies beyond the last pixel's
            # centre
        ):
            part = (torch.arange(size, device=cut.device, dtype=cut.dtype) + 0.5) / size
            x, y = (
                flat[:, axis, None] + (flat[:, axis + 2, None] - flat[:, axis, None]) * part
                for axis in (0, 1)
            )  # (B K, p)
            inside = [(at >= 0) & (at <= side) for at, side in ((x, images.shape[-1]), (y, images.shape[-2]))]
            cut = cut * (inside[0][:, None, None, :] & inside[1][:, None, :, None])
    return cut


def cell_boxes(
    grid: tuple[int, int],
    image_size: int,
    side: float,
    device: torch.device | None = None,
    fit: RegionFit = "shift",
) -> Float[Tensor, "n 4"]:
    """Return a square of `side` pixels around each cell's centre, row by row.

    `shift` moves it into the image, `pad` does not.
    """
    height, width = grid
    y, x = (
        (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (image_size / count)
        for count in (height, width)
    )
    if fit == "shift":
        y, x = (centres.clamp(side / 2, image_size - side / 2) for centres in (y, x))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=-1).flatten(0, 1)


@torch.no_grad()
def peak_regions(
    maps: Float[Tensor, "b h w"],
    image_size: int,
    *,
    side: float,
    k: int,
    iou: float = 0.25,
    rule: NmsRule = "gt",
    fit: RegionFit = "shift",
) -> Proposals:
    """Return squares around the highest cells of each map, without overlapping ones.

    There are fewer than k if the map has fewer cells.
    """
    grid = (maps.shape[1], maps.shape[2])
    boxes, scores = cell_boxes(grid, image_size, side, maps.device, fit), maps.float().flatten(1)
    chosen = select(boxes, scores, min(k, len(boxes)), iou, rule)
    return Proposals(
        boxes=boxes[chosen.index], scores=scores.take_along_dim(chosen.index, dim=1), padded=chosen.padded
    )


@torch.no_grad()
def predicted_peaks(
    logits: Float[Tensor, "b c"], maps_of: Callable[[Tensor], Tensor], image_size: int, k: int = 4
) -> Proposals:
    """Return the k best regions of the predicted class's map.

    These are the proposals of a network that has only class maps.
    """
    maps = maps_of(logits.argmax(dim=1, keepdim=True))[:, 0]
    return peak_regions(maps, image_size, side=PEAK_SIDE * image_size, k=k)


@torch.no_grad()
def coverage(proposals: Proposals, image_size: int) -> Float[Tensor, "b S S"]:
    """Return the weighted coverage of each pixel by the boxes, slightly smoothed.

    The weights are the softmax of the scores.
    """
    boxes, weights = proposals.boxes, proposals.scores.float().softmax(dim=1)
    centres = torch.arange(image_size, device=boxes.device) + 0.5
    inside = [
        ((centres >= boxes[..., axis, None]) & (centres < boxes[..., axis + 2, None])).float()
        for axis in (0, 1)
    ]  # 2 x (B, K, S)
    with torch.autocast(boxes.device.type, enabled=False):
        covered = torch.einsum("bk,bky,bkx->byx", weights, inside[1], inside[0])
    return smooth(covered, sigma=image_size / 28)


@torch.no_grad()
def union(proposals: Proposals, image_size: int) -> Float[Tensor, "b S S"]:
    """Return the smallest box around all boxes as a map: the fraction of each pixel inside it."""
    first, last = proposals.boxes[..., :2].amin(dim=1), proposals.boxes[..., 2:].amax(dim=1)  # (B, 2)
    edges = torch.arange(image_size, device=first.device)
    inside = (torch.minimum(last[..., None], edges + 1) - torch.maximum(first[..., None], edges)).clamp(
        0, 1
    )  # (B, 2, S)
    return inside[:, 1, :, None] * inside[:, 0, None, :]


def smooth(maps: Float[Tensor, "b h w"], *, sigma: float, size: int | None = None) -> Float[Tensor, "b h w"]:
    """Smooth maps by a Gaussian, with `sigma` in cells and repeated borders. Sigma 0: unchanged.

    `size`, odd, is the kernel's side. None: 3 sigma in each direction.
    """
    if sigma <= 0:
        return maps
    reach = (size or 2 * math.ceil(3 * sigma) + 1) // 2
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-((offsets / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps.float()[:, None], (reach, reach, reach, reach), mode="replicate")
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]
