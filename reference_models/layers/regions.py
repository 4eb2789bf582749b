"""Regions of an image: cut out of it, chosen by score, drawn as a map.

Boxes are xyxy, continuous pixels of the square input [0, S] x [0, S]: pixel i covers [i, i + 1). No gradient goes through a box.

S. Ren, K. He, R. Girshick, J. Sun, "Faster R-CNN", NIPS 2015 (anchors, suppression); K. He, G. Gkioxari, P. Dollar, R. Girshick,
"Mask R-CNN", ICCV 2017 (RoIAlign). As NTS-Net, SSANET and Focus-and-Discriminate use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from reference_models.base import Proposals

CropMode = Literal["half_pixel", "align_corners"]
NmsRule = Literal["gt", "ge"]


@dataclass(frozen=True, eq=False)
class Selected:
    """Positions of the boxes that were chosen, best first."""

    index: Int[Tensor, "b k"]
    padded: Bool[Tensor, "b k"]
    """Chosen although a better box overlaps them, because there were not k others."""


def select(
    boxes: Float[Tensor, "a 4"] | Float[Tensor, "b a 4"], scores: Float[Tensor, "b a"], k: int, iou: float, rule: NmsRule = "gt"
) -> Selected:
    """The k best boxes of each image that do not overlap: greedy suppression by descending score, of equal scores the first.

    Args:
        boxes: (A, 4), the same for all images, or (B, A, 4).
        scores: (B, A).
        k: at most A.
        iou: a box is suppressed where its IoU with a chosen one is greater than this (`gt`), or at least this (`ge`, NTS-Net's code).

    Where fewer than k survive, the best of the suppressed follow, marked `padded`.
    """
    count, width = scores.shape
    with torch.no_grad():
        order = scores.argsort(dim=1, descending=True, stable=True)  # (B, A)
        ranked = boxes.double().expand(count, width, 4).take_along_dim(order[..., None], dim=1).flatten(0, 1)
        rank = torch.arange(width, device=scores.device)
        image = torch.arange(count, device=scores.device).repeat_interleave(width)
        limit = iou if rule == "gt" else math.nextafter(iou, -math.inf)
        kept = torch.zeros(count * width, dtype=torch.bool, device=scores.device)
        kept[batched_nms(ranked, -rank.double().repeat(count), image, limit)] = True
        suppressed = ~kept.view(count, width)
        first = (rank + width * suppressed).argsort(dim=1)[:, :k]  # those kept, then those suppressed, each by rank
        return Selected(index=order.take_along_dim(first, dim=1), padded=suppressed.take_along_dim(first, dim=1))


def crop_resize(
    images: Float[Tensor, "b c S S"], boxes: Float[Tensor, "b k 4"], size: int, mode: CropMode = "half_pixel"
) -> Float[Tensor, "b*k c p p"]:
    """Each box as an image of `size` x `size`; what lies outside of the image is 0, the mean colour of normalised pixels.

    Args:
        images: squares of side S.
        boxes: K of each image.
        size: side of what is cut out.
        mode: `half_pixel`: bilinear samples at the centres of `size` x `size` cells of the box. `align_corners`: NTS-Net's code, whose
            boxes have whole pixels (cut towards 0 after half a side is added for its padding) and whose outermost samples
            are the box's outermost pixels.
    """
    with torch.no_grad():
        flat, pixels = boxes.detach().float().flatten(0, 1), images.float()
        image = torch.arange(len(boxes), device=images.device, dtype=flat.dtype).repeat_interleave(boxes.shape[1])[:, None]
        if mode == "align_corners":
            pad = images.shape[-1] // 2
            whole = (flat + pad).trunc() - pad
            start, end = whole[:, :2], whole[:, 2:] - 1  # centres of the outermost pixels
            half = (end - start) / (size - 1) / 2
            # RoIAlign repeats the border for half a pixel beyond it; with a border of zeros it does not.
            flat, pixels = torch.cat([start - half + 1, end + half + 1], dim=1), F.pad(pixels, (1, 1, 1, 1))
        cut: Tensor = roi_align(pixels, torch.cat([image, flat], dim=1), size, sampling_ratio=1, aligned=mode == "half_pixel")
    return cut


def cell_boxes(grid: tuple[int, int], image_size: int, side: float, device: torch.device | None = None) -> Float[Tensor, "n 4"]:
    """A square of `side` pixels around each cell's centre, row by row, moved so that it lies inside of the image."""
    height, width = grid
    centres = [(torch.arange(count, device=device, dtype=torch.float32) + 0.5) * (image_size / count) for count in (height, width)]
    y, x = (c.clamp(side / 2, image_size - side / 2) for c in torch.meshgrid(*centres, indexing="ij"))
    return torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dim=-1).flatten(0, 1)


def peak_regions(maps: Float[Tensor, "b h w"], image_size: int, *, side: float, k: int, iou: float = 0.25) -> Proposals:
    """Squares around the highest cells of each map, of which none overlaps a better one."""
    boxes, scores = cell_boxes(maps.shape[1:], image_size, side, maps.device), maps.float().flatten(1)  # type: ignore[arg-type]
    chosen = select(boxes, scores, min(k, len(boxes)), iou)
    return Proposals(boxes=boxes[chosen.index], scores=scores.take_along_dim(chosen.index, dim=1), padded=chosen.padded)


def coverage(proposals: Proposals, image_size: int, k: int) -> Float[Tensor, "b S S"]:
    """How much of the first k boxes' weight covers each pixel, smoothed a little: weights are the softmax of the scores."""
    boxes, weights = proposals.boxes[:, :k], proposals.scores[:, :k].float().softmax(dim=1)
    centres = torch.arange(image_size, device=boxes.device) + 0.5
    inside = [(centres >= boxes[..., axis, None]) & (centres < boxes[..., axis + 2, None]) for axis in (0, 1)]  # 2 x (B, K, S)
    covered = torch.einsum("bk,bky,bkx->byx", weights, inside[1].to(weights.dtype), inside[0].to(weights.dtype))
    return smooth(covered, sigma=image_size / 28)


def smooth(maps: Float[Tensor, "b h w"], *, sigma: float, size: int | None = None) -> Float[Tensor, "b h w"]:
    """Gaussian smoothing in cells, borders repeated; `size`, odd, is the kernel's side (None: 3 sigma each way); sigma 0: unchanged."""
    if sigma <= 0:
        return maps
    reach = (size or 2 * math.ceil(3 * sigma) + 1) // 2
    offsets = torch.arange(-reach, reach + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps.float()[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]
