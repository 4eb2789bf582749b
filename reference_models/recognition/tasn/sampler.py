"""TASN's sampler: an image in which the attended rows and columns get more pixels.

    m       map                 (B, S, S)       at least 0, of the size of the image
    d       densities           2 x (B, S)      along x and y; 1 on average
    c       cumulative          (B, S)          c_j = d_0 + ... + d_j
    p       positions           2 x (B, s)      in pixels of the image: pixel j covers [j, j + 1)

    (1)  d_x(j) = max over rows of m_.j, d_y(i) = max over columns of m_i. , each divided by its mean
    (2)  min(d, t) + 1 - mean of min(d, t), with t such that the largest value is z on both axes,
         z = min(max d_x, max d_y, `max_zoom`)
    (3)  p(i) = j + (u - c_(j-1)) / d_j,  u = (i + 1/2) S / s,  j the pixel with c_(j-1) <= u < c_j
    (4)  view(i, k) = image at (p_y(i), p_x(k)), bilinear

(1), (3) and (4) are the paper's sampler: the inverse of the cumulative density, with the maximum over the
other axis in place of the sum, so that small parts count. (2) is from the released code, which limits the
magnification to four times that of a plain resize, and that of one axis to the largest of the other. It clips
in five rounds and spreads what is missing evenly; (2) is the distribution that such rounds aim at.

`released` has the five rounds, which end at up to one more than the limit, and the code's way from a map to
positions. The outermost cells of a map lie on the outermost pixels, and samples start one step early. For the
first sample the code reads the sum that lies before the image's own. That is the last one of the previous
image in the batch, so the first two rows are the same, and so are the first two columns. The first image of a
batch has no previous one, and its result is undefined; here it is treated as the others.

No gradient goes through positions. Densities are float64, because positions are small differences of sums.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SamplerKind = Literal["inverse", "released"]

FLOOR = 1e-6
"""Smallest density relative to a plain resize."""
ROUNDS = 5
"""Rounds of clipping in the released code."""

Axes = tuple[Float[Tensor, "b S"], Float[Tensor, "b S"]]
"""Densities along x and y."""


def normalise_density(density: Float[Tensor, "b S"]) -> Float[Tensor, "b S"]:
    """Divide by the mean, in float64. A density of zeros becomes uniform."""
    positive = density.double().clamp(min=torch.finfo(torch.float32).tiny)
    return (positive / positive.mean(dim=1, keepdim=True)).clamp(min=FLOOR)


def axis_densities(maps: Float[Tensor, "b h w"], size: int, power: int = 1, *, corners: bool = False) -> Axes:
    """Return d of maps that are resized to `size` and raised to a power, eq. (1).

    `corners`: the middle of a corner cell lies on that of a corner pixel. Otherwise cells are squares.
    """
    resized = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=corners)[:, 0]
    resized = resized**power
    return normalise_density(resized.amax(dim=1)), normalise_density(resized.amax(dim=2))


def flatten_to(density: Float[Tensor, "b S"], zoom: Float[Tensor, " b"]) -> Float[Tensor, "b S"]:
    """Clip a density and spread the rest evenly, so that its largest value is `zoom`, eq. (2).

    `zoom` lies between 1 and the largest value.
    """
    # With t between the sorted values v_k and v_(k+1), the largest value is 1 + (k t - v_1 - ... - v_k) / S.
    ordered = density.sort(dim=1).values
    sums, size = ordered.cumsum(dim=1), density.shape[1]
    rank = torch.arange(1, size + 1, device=density.device, dtype=density.dtype)
    largest = 1 + (rank * ordered - sums) / size  # (B, S), of t = v_k; it grows with k
    k = (largest <= zoom[:, None]).sum(dim=1).clamp(min=1)
    threshold = (size * (zoom - 1) + sums.gather(1, k[:, None] - 1)[:, 0]) / k
    clipped = density.minimum(threshold.clamp(min=0)[:, None])
    return (clipped + 1 - clipped.mean(dim=1, keepdim=True)).clamp(min=FLOOR)


def limit_zoom(densities: Axes, max_zoom: float) -> Axes:
    """Return densities with the same largest value on both axes, at most `max_zoom`, eq. (2)."""
    x, y = densities
    zoom = x.amax(dim=1).minimum(y.amax(dim=1)).clamp(min=1, max=max_zoom)
    return flatten_to(x, zoom), flatten_to(y, zoom)


def limit_zoom_in_rounds(densities: Axes, max_zoom: float) -> Axes:
    """Return densities after the rounds of the released code, in which only the first one has the limit."""
    x, y = densities
    for number in range(ROUNDS):
        threshold = x.amax(dim=1, keepdim=True).minimum(y.amax(dim=1, keepdim=True))
        if number == 0:
            threshold = threshold.clamp(max=max_zoom)
        x, y = x.minimum(threshold), y.minimum(threshold)
        x, y = x + 1 - x.mean(dim=1, keepdim=True), y + 1 - y.mean(dim=1, keepdim=True)
    return x, y


def sample_positions(density: Float[Tensor, "b S"], size: int) -> Float[Tensor, "b s"]:
    """Return the positions of `size` samples along an axis, eq. (3)."""
    cumulative = density.cumsum(dim=1)
    steps = (torch.arange(size, device=density.device, dtype=density.dtype) + 0.5) / size
    u = steps * cumulative[:, -1:]
    pixel = torch.searchsorted(cumulative, u, right=True).clamp(max=density.shape[1] - 1)
    share = density.gather(1, pixel)
    return pixel + (u - (cumulative.gather(1, pixel) - share)) / share


def released_positions(density: Float[Tensor, "b S"], size: int) -> Float[Tensor, "b s"]:
    """Return the positions of the released code, in the same pixels.

    Its sum starts at 1 instead of d_0. The sum before it is the last one of another image of the batch. All
    last ones are nearly the same, so here it is the last one of this image.
    """
    cumulative = torch.cat([torch.ones_like(density[:, :1]), density[:, 1:] * (size / density.shape[1])], 1)
    cumulative = cumulative.cumsum(dim=1)
    steps = torch.arange(size, device=density.device, dtype=density.dtype) / size
    u = steps * cumulative[:, -1:]
    pixel = torch.searchsorted(cumulative, u).clamp(max=density.shape[1] - 1)
    before = cumulative.roll(1, dims=1).gather(1, pixel)
    end = cumulative.gather(1, pixel)
    return pixel + (u - end) / (end - before) + 0.5  # the code counts from the centre of the first pixel


def places_in_view(density: Float[Tensor, "b S"], cells: int) -> Float[Tensor, "b n"]:
    """Return where the centres of `cells` equal cells of the image lie in a view, as a fraction of its side.

    It inverts eq. (3).
    """
    size = density.shape[1]
    at = (torch.arange(cells, device=density.device, dtype=density.dtype) + 0.5) * (size / cells)
    pixel = at.long().clamp(max=size - 1).expand(len(density), -1)
    cumulative, share = density.cumsum(dim=1), density.gather(1, pixel)
    return (cumulative.gather(1, pixel) - share * (1 - (at - pixel))) / cumulative[:, -1:]


def sample(
    images: Float[Tensor, "b c h w"], x: Float[Tensor, "b k"], y: Float[Tensor, "b n"]
) -> Float[Tensor, "b c n k"]:
    """Return bilinear samples at all pairs of y and x, fractions of the sides, eq. (4).

    Values of the outermost pixels are repeated beyond their centres.
    """
    shape = (len(images), y.shape[1], x.shape[1])
    across, down = x[:, None, :].expand(shape), y[:, :, None].expand(shape)
    where = (torch.stack([across, down], dim=-1) * 2 - 1).to(images.dtype)
    return F.grid_sample(images, where, mode="bilinear", padding_mode="border", align_corners=False)


def sample_view(
    images: Float[Tensor, "b c S S"], densities: Axes, size: int, kind: SamplerKind = "inverse"
) -> Float[Tensor, "b c s s"]:
    """Return the view of each image with these densities, whose magnification is limited already."""
    side = images.shape[-1]
    positions = released_positions if kind == "released" else sample_positions
    x, y = (positions(density, size) / side for density in densities)
    return sample(images, x, y)


@torch.no_grad()
def make_densities(
    maps: Float[Tensor, "b h w"],
    size: int,
    *,
    max_zoom: float,
    power: int = 1,
    kind: SamplerKind = "inverse",
) -> Axes:
    """Return the densities of maps for images of side `size`, eqs. (1) and (2)."""
    released = kind == "released"
    limit = limit_zoom_in_rounds if released else limit_zoom
    return limit(axis_densities(maps, size, power, corners=released), max_zoom)
