"""The attention crop of RA-CNN: a square with soft edges, its derivatives, and how its place learns.

J. Fu, H. Zheng, T. Mei, "Look closer to see better: recurrent attention convolutional neural network for
fine-grained image recognition", CVPR 2017. Equation numbers are those of `method.py`.

    t_x, t_y, t_l   place       (B, 3)          centre and half side, in sides of the view
    h, k            step, k                     logistic step and its slope, per side of the view
    M               box_mask    (B, n, n)       at positions x (B, n) and y (B, n)
    w               weight      (B, n, n)       size of the loss's gradient at each pixel of the crop
    g               AttentionProposal           features to t
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.layers.regions import crop_resize
from reference_models.recognition.ra_cnn.settings import RaCnnConfig

HALF = 0.25
"""Half side of the square that `weak_place` gives: half of the view, as in the paper."""


def corners(place: Float[Tensor, "b 3"]) -> Float[Tensor, "b 4"]:
    """Return the square as xyxy in sides of the view, eq. (2), without what lies outside the view."""
    x, y, half = place.unbind(1)
    return torch.stack([x - half, y - half, x + half, y + half], dim=1).clamp(0, 1)


def compose(outer: Float[Tensor, "b 4"], inner: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Return a box that is given in sides of `outer` in the coordinates that `outer` is given in."""
    origin, side = outer[:, :2], outer[:, 2:] - outer[:, :2]
    return origin.repeat(1, 2) + side.repeat(1, 2) * inner


def positions(boxes: Float[Tensor, "b 4"], size: int) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Return x and y of the centres of the pixels of enlarged boxes."""
    part = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
    x, y = (boxes[:, i, None] + (boxes[:, i + 2, None] - boxes[:, i, None]) * part for i in (0, 1))
    return x, y


def _window(
    at: Float[Tensor, "b n"], centre: Float[Tensor, "b 1"], half: Float[Tensor, "b 1"], k: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one factor of M, and h' at both of its edges."""
    first, last = torch.sigmoid(k * (at - centre + half)), torch.sigmoid(k * (at - centre - half))  # (5)
    return first - last, k * first * (1 - first), k * last * (1 - last)


def box_mask(
    x: Float[Tensor, "b n"], y: Float[Tensor, "b m"], place: Float[Tensor, "b 3"], k: float
) -> Float[Tensor, "b m n"]:
    """Return M, which is near 1 in the square and near 0 outside, eq. (4)."""
    across = _window(x, place[:, :1], place[:, 2:], k)[0]
    down = _window(y, place[:, 1:2], place[:, 2:], k)[0]
    return down[:, :, None] * across[:, None]


def mask_derivatives(
    x: Float[Tensor, "b n"], y: Float[Tensor, "b m"], place: Float[Tensor, "b 3"], k: float
) -> Float[Tensor, "b 3 m n"]:
    """Return the derivatives of M by t_x, t_y and t_l, eq. (9)."""
    across, left, right = (each[:, None] for each in _window(x, place[:, :1], place[:, 2:], k))
    down, top, bottom = (each[:, :, None] for each in _window(y, place[:, 1:2], place[:, 2:], k))
    by_x, by_y = (right - left) * down, (bottom - top) * across
    return torch.stack([by_x, by_y, (left + right) * down + (top + bottom) * across], dim=1)


def surrogate_gradient(
    weight: Float[Tensor, "b m n"], derivatives: Float[Tensor, "b 3 m n"], offset: float | None
) -> Float[Tensor, "b 3"]:
    """Return the sums over the pixels that stand for dL/dt, eq. (10).

    Args:
        weight: w.
        derivatives: those of `mask_derivatives`.
        offset: b_l. None: the mean of dM/dt_l over the pixels, so that equal weights do not change the side.
    """
    pull = torch.einsum("bmn,btmn->bt", weight, derivatives)
    total = weight.sum(dim=(1, 2))
    balance = derivatives[:, 2].mean(dim=(1, 2)) if offset is None else torch.full_like(total, offset)
    return -torch.cat([pull[:, :2], (pull[:, 2] - balance * total)[:, None]], dim=1)


def pixel_weights(gradient: Float[Tensor, "b c m n"], kind: str) -> Float[Tensor, "b m n"]:
    """Return w: the squared norm of a pixel's gradient, divided by its maximum over the image.

    With `absolute` it is the sum of absolute values, of which each channel is divided by its maximum. An
    image without gradient has weights 0.
    """
    if kind == "squared":
        sizes = gradient.square().sum(dim=1)
        return sizes / sizes.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
    sizes = gradient.abs()
    largest = sizes.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
    return (sizes / largest).sum(dim=1)


def sample_box(
    view: Float[Tensor, "b c S S"], place: Float[Tensor, "b 3"], size: int
) -> Float[Tensor, "b c n n"]:
    """Return the enlarged square, eq. (6), with the derivative of bilinear sampling by the place."""
    x, y = positions(corners(place), size)
    count = len(view)
    grid = torch.stack([x[:, None].expand(count, size, size), y[:, :, None].expand(count, size, size)], dim=3)
    return F.grid_sample(view, 2 * grid - 1, mode="bilinear", padding_mode="border", align_corners=False)


def weak_place(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3"]:
    """Return the label that the attention starts from: a square around the strongest mean activation.

    Its side is half of the view's. It is moved into the view.
    """
    response = features.float().mean(dim=1)
    height, width = response.shape[1:]
    index = response.flatten(1).argmax(dim=1)
    x, y = (index % width + 0.5) / width, (index // width + 0.5) / height
    return torch.stack([x.clamp(HALF, 1 - HALF), y.clamp(HALF, 1 - HALF), torch.full_like(x, HALF)], dim=1)


class _Bound(torch.autograd.Function):
    """Clamp whose gradient passes at a bound if descent leads back into the interval."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(value, low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        value, low, high = ctx.saved_tensors
        outward = ((value <= low) & (gradients[0] > 0)) | ((value >= high) & (gradients[0] < 0))
        return gradients[0].masked_fill(outward, 0), None, None


def bound_place(place: Float[Tensor, "b 3"], least: float, *, inside: bool) -> Float[Tensor, "b 3"]:
    """Limit the half side to at least `least`, and with `inside` the square to the view.

    A gradient that would lead farther out of the limits is dropped; one that leads back is not.
    """
    half, centre = place[:, 2:], place[:, :2]
    low = torch.full_like(half, least)
    half = _Bound.apply(half, low, torch.full_like(half, 0.5 if inside else 1.0))
    if inside:
        edge = half.detach().expand_as(centre)
        centre = _Bound.apply(centre, edge, 1 - edge)
    return torch.cat([centre, half], dim=1)


def rank_loss(coarse: Float[Tensor, " b"], fine: Float[Tensor, " b"], margin: float) -> Float[Tensor, " b"]:
    """Return by how much the finer probability misses the coarser one plus a margin, eq. (8)."""
    return (coarse - fine + margin).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Zoom:
    """Step from one view to the next.

    Attributes:
        raw: (B, 3) the output of g.
        place: (B, 3) `raw` within its limits, with the graph of g.
        box: (B, 4) the crop as xyxy in sides of the view.
        handle: what the ranking is derived by, a leaf: the next view, or the place.
        k: slope of the mask per side of the view.
    """

    raw: Tensor
    place: Tensor
    box: Tensor
    handle: Tensor
    k: float


def zoom_in(
    view: Float[Tensor, "b 3 S S"],
    raw: Float[Tensor, "b 3"],
    config: RaCnnConfig,
    size: int,
    *,
    learns: bool,
) -> tuple[Zoom, Tensor]:
    """Return the step to the next view, and that view, eqs. (2) to (6).

    With `learns` the next view can be derived by the handle. No gradient goes into the pixels of `view`.
    """
    side = view.shape[-1]
    k = config.k * (side if config.k_unit == "pixel" else 1)
    place = bound_place(raw, config.least_half_side, inside=config.inside)
    box, handle = corners(place.detach()), place.detach().requires_grad_(learns)
    if config.crop_grad == "sampler":
        return Zoom(raw, place, box, handle, k), sample_box(view.float(), handle, size)
    if config.crop == "whole_pixels":
        whole = (box * side).trunc()
        box = torch.cat([whole[:, :2], torch.maximum(whole[:, 2:], whole[:, :2] + 1)], dim=1) / side
    following = crop_resize(view, (box * side)[:, None], size)
    if config.crop_grad == "mask":
        masked = following * box_mask(*positions(box, size), handle, k)[:, None]
        return Zoom(raw, place, box, handle, k), masked
    following.requires_grad_(learns)
    return Zoom(raw, place, box, following, k), following


def push_of(zoom: Zoom, gradient: Float[Tensor, "b 3 n n"], config: RaCnnConfig) -> Float[Tensor, "b 3"]:
    """Return what stands for the gradient by the place, eq. (10), a mean over pixels."""
    offset = None if config.offset == "mean" else zoom.k / 10
    with torch.autocast(gradient.device.type, enabled=False):
        derivatives = mask_derivatives(*positions(zoom.box, gradient.shape[-1]), zoom.place.detach(), zoom.k)
        weights = pixel_weights(gradient.float(), config.weighting)
        return surrogate_gradient(weights, derivatives, offset) / gradient[0, 0].numel()


class AttentionProposal(nn.Module):
    """g, eq. (1): max-pooled features to a place. A new one gives the whole view."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.hidden = nn.Linear(channels * side**2, width)
        self.place = nn.Linear(width, 3)
        for layer in (self.hidden, self.place):
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3"]:
        """Return t before it is limited, in float32."""
        pooled = F.adaptive_max_pool2d(features, self.side).flatten(1)
        hidden = torch.tanh(self.hidden(pooled))
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.sigmoid(self.place(hidden.float()))
