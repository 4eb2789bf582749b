"""Step 6 of CoSeq: the object's box and the boxes of its parts in an image without annotation.

The paper detects both with an R-CNN for each region. Here the parts are those of the training images whose
object has the most similar pose, each mirrored or not: medians of their boxes relative to the object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CAM_SHARE = 0.2
"""Threshold of a class map, relative to its maximum: CAM."""
FINER = 4
"""Factor by which a class map is enlarged before its threshold."""
LEAST_SIDE = 1 / 16
"""Least side of an object's box, relative to the image."""


def whole_images(count: int, like: Tensor) -> Float[Tensor, "b 4"]:
    """Return [0, 1] x [0, 1] for each image, on the device of a tensor."""
    boxes = like.new_zeros(count, 4)
    boxes[:, 2:] = 1
    return boxes


def mirror_boxes(boxes: Float[Tensor, "*n 4"], width: int | float = 1.0) -> Float[Tensor, "*n 4"]:
    """Mirror boxes at the vertical centre line of an image."""
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=-1)


def relative_to(boxes: Float[Tensor, "b k 4"], outer: Float[Tensor, "b 4"]) -> Float[Tensor, "b k 4"]:
    """Return boxes in coordinates in which `outer` is [0, 1] x [0, 1]."""
    start, sides = outer[:, None, :2], (outer[:, None, 2:] - outer[:, None, :2])
    return (boxes - start.repeat(1, 1, 2)) / sides.repeat(1, 1, 2)


def placed_in(boxes: Float[Tensor, "b k 4"], outer: Float[Tensor, "b 4"]) -> Float[Tensor, "b k 4"]:
    """Invert `relative_to`."""
    start, sides = outer[:, None, :2], (outer[:, None, 2:] - outer[:, None, :2])
    return boxes * sides.repeat(1, 1, 2) + start.repeat(1, 1, 2)


def scaled_boxes(boxes: Float[Tensor, "*n 4"], factor: float) -> Float[Tensor, "*n 4"]:
    """Scale boxes about their centres."""
    centres, halves = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 * factor
    return torch.cat([centres - halves, centres + halves], dim=-1)


def nearest_poses(
    poses: Float[Tensor, "b 2 d"], known: Float[Tensor, "n d"], count: int
) -> tuple[Tensor, Bool[Tensor, "b k"]]:
    """Return the images (B, K) of the most similar pose, and whether each is mirrored.

    Args:
        poses: unit vectors of each image and of its mirror image.
        known: unit vectors of the training images.
        count: K, at most N.
    """
    similarity = torch.einsum("bmd,nd->bmn", poses.float(), known.float())
    best = similarity.amax(dim=1)  # (B, N)
    index = best.topk(min(count, len(known)), dim=1).indices
    mirrored = (similarity[:, 1] > similarity[:, 0]).gather(1, index)
    return index, mirrored


def transfer_parts(
    index: Tensor, mirrored: Bool[Tensor, "b n"], parts: Float[Tensor, "m k 4"]
) -> Float[Tensor, "b k 4"]:
    """Return medians of the parts of some training images, whose boxes are relative to their objects."""
    found = parts[index].float()  # (B, n, K, 4)
    found = torch.where(mirrored[:, :, None, None], mirror_boxes(found), found)
    return found.quantile(0.5, dim=1)  # of an even number the mean of the two in the middle


def flood(mask: Bool[Tensor, "b h w"], start: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """Return the cells of a mask that are connected with `start`, by as many steps as the map has sides.

    A part that is connected only by a longer winding path can be missing.
    """
    inside, found = mask[:, None].float(), (start & mask)[:, None].float()
    for _ in range(mask.shape[1] + mask.shape[2]):
        found = F.max_pool2d(found, 3, stride=1, padding=1) * inside
    return found[:, 0] > 0


@torch.no_grad()
def box_of_map(maps: Float[Tensor, "b h w"], size: int) -> Float[Tensor, "b 4"]:
    """Return the box, in pixels of the image, around the peak of each map.

    It is the box of the connected cells above `CAM_SHARE` of the maximum, on the map enlarged four times.
    """
    fine = F.interpolate(maps[:, None].float(), scale_factor=FINER, mode="bilinear")[:, 0]
    top = fine.amax(dim=(1, 2), keepdim=True)
    mask = flood(fine >= CAM_SHARE * top, fine >= top)
    edges = []
    for axis in (1, 2):  # the columns, then the rows
        found = mask.any(dim=axis)  # (B, n)
        count = found.shape[1]
        places = torch.arange(count, device=maps.device)
        first = torch.where(found, places, count).amin(dim=1)
        last = torch.where(found, places, -1).amax(dim=1)
        edges += [first * (size / count), (last + 1) * (size / count)]
    left, right, top_edge, bottom = edges
    return valid_boxes(torch.stack([left, top_edge, right, bottom], dim=1), size)


def valid_boxes(boxes: Float[Tensor, "*n 4"], size: int) -> Float[Tensor, "*n 4"]:
    """Cut boxes to the image. A side below a sixteenth of the image grows to that."""
    least = LEAST_SIDE * size
    cut = boxes.clamp(min=0, max=size)
    middle = ((cut[..., :2] + cut[..., 2:]) / 2).clamp(least / 2, size - least / 2)
    half = ((cut[..., 2:] - cut[..., :2]) / 2).clamp(min=least / 2)
    return torch.cat([(middle - half).clamp(min=0), (middle + half).clamp(max=size)], dim=-1)


def random_part_of_boxes(
    boxes: Float[Tensor, "b 4"], share: float, draws: Float[Tensor, "b 2"]
) -> Float[Tensor, "b 4"]:
    """Return a random part of each box with `share` of its sides: the random crop of training."""
    start, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    corner = start + draws * (1 - share) * sides
    return torch.cat([corner, corner + share * sides], dim=1)


def box_coverage(boxes: Float[Tensor, "b k 4"], grid: tuple[int, int], size: int) -> Float[Tensor, "b k h w"]:
    """Return the share of each cell inside each box, divided by its mean: each map has the mean 1.

    A box must overlap the image.
    """
    shares = []
    for axis, count in ((1, grid[0]), (0, grid[1])):
        step = size / count
        start = torch.arange(count, device=boxes.device, dtype=boxes.dtype) * step
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        shares.append((torch.minimum(high, start + step) - torch.maximum(low, start)).clamp(min=0) / step)
    covered = shares[0][..., :, None] * shares[1][..., None, :]
    return covered / covered.mean(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
