"""The dense CRF term of F-CAM: a price of different labels of pixels that are near and alike in colour.

M. Tang, F. Perazzi, A. Djelouah, I. Ben Ayed, C. Schroers, Y. Boykov, "On regularized losses for
weakly-supervised CNN segmentation", ECCV 2018.

    S_k     shares      (B, K, h, w)    softmax of the scores, sum 1 over K
    p_i     place       (2,)            pixel i
    c_i     colours     (3,)            in [0, 255]
    W_ij    affinity    (N, N)          symmetric, 1 on the diagonal

    (1)  W_ij = exp( -|p_i - p_j|^2 / (2 sigma_xy^2) - |c_i - c_j|^2 / (2 sigma_rgb^2) )
    (2)  E = sum over k of S_k' W (1 - S_k) = sum over i, j of W_ij (1 - sum over k of S_ki S_kj)

The released loss is the sum over k of -S_k' W S_k, with a fast filter in place of W. It is E less the sum of
all W_ij, which no share changes, so its gradient at the scores is that of E.

Here W is exact, and computed for some rows at a time. It has the square of the number of pixels, so images
and shares are averaged to a coarser grid first. A cell stands for all of its pixels: distances are those of
the image, and E is multiplied by the square of the number of pixels in a cell. On a grid as fine as the image
this is (2) itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ENTRIES = 2**24
"""Most entries of W that are in memory at once."""


def pair_energy(
    colours: Float[Tensor, "b 3 h w"],
    shares: Float[Tensor, "b k h w"],
    *,
    sigma_rgb: float,
    sigma_xy: float,
    entries: int = _ENTRIES,
) -> Float[Tensor, " b"]:
    """Return E of each image, eq. (2), with `sigma_xy` in cells of this grid.

    Only the shares get a gradient. `entries` bounds the memory, and changes last bits only.
    """
    b, _, h, w = colours.shape
    with torch.no_grad():
        # Places and colours in units of their standard deviations.
        rows, columns = torch.meshgrid(
            torch.arange(h, device=colours.device), torch.arange(w, device=colours.device), indexing="ij"
        )
        places = torch.stack([rows, columns]).to(colours) / sigma_xy  # (2, h, w)
        points = torch.cat([places.expand(b, -1, -1, -1), colours / sigma_rgb], dim=1).flatten(2)  # (B, 5, N)
        length = points.square().sum(dim=1)  # (B, N)
        # W times the shares and times ones, for some rows of W at a time.
        own = torch.cat(
            [shares.detach().flatten(2), torch.ones_like(length)[:, None]], dim=1
        )  # (B, K + 1, N)
        products = torch.empty_like(own)  # (B, K + 1, N)
        step = max(1, entries // (b * h * w))
        for start in range(0, h * w, step):
            part = slice(start, start + step)
            distance = (
                length[:, part, None] + length[:, None] - 2 * points[:, :, part].transpose(1, 2) @ points
            )
            affinity = (-0.5 * distance.clamp(min=0)).exp()  # (1), rows of it
            products[:, :, part] = (affinity @ own.transpose(1, 2)).transpose(1, 2)
        filtered, total = products[:, :-1], products[:, -1].sum(dim=1)  # W S_k, and the sum of W
        agreement = (own[:, :-1] * filtered).sum(dim=(1, 2))
    # W is symmetric, so the gradient of S' W S is 2 W S. This has that value and that gradient.
    linear = 2 * (shares.flatten(2) * filtered).sum(dim=(1, 2)) - agreement
    return total - linear  # (2)


def dense_crf_loss(
    colours: Float[Tensor, "b 3 H W"],
    shares: Float[Tensor, "b k H W"],
    *,
    sigma_rgb: float,
    sigma_xy: float,
    side: int,
) -> Float[Tensor, ""]:
    """Return the mean over the images of E, estimated on a grid of `side` cells at most.

    `sigma_xy` is in pixels of the images.
    """
    height, width = colours.shape[-2:]
    shrink = min(1.0, side / max(height, width))
    grid = max(1, round(height * shrink)), max(1, round(width * shrink))
    pixels = (height * width) / (grid[0] * grid[1])  # in a cell
    energy = pair_energy(
        F.adaptive_avg_pool2d(colours, grid),
        F.adaptive_avg_pool2d(shares, grid),
        sigma_rgb=sigma_rgb,
        sigma_xy=sigma_xy * shrink,
    )
    return pixels**2 * energy.mean()
