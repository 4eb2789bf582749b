"""Channel groups of MA-CNN: clusters of peaks, the layers that imitate them, their maps and losses.

H. Zheng, J. Fu, T. Mei, J. Luo, "Learning multi-attention convolutional neural network for fine-grained image
recognition", ICCV 2017. Equation numbers are those of `method.py`.

    F       features                    (B, C, h, w)
    D       cluster_channels            (N, C)          0 or 1
    d       ChannelGroups               (B, N, C)
    e       evidence                    (B, N, h, w)    sum_c d_c F_c, before eq. (3)
    M       attention_maps              (B, N, h, w)    each has the sum 1
    t       peaks                       (B, N)          cells, row by row
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.layers.k_means import k_means

SEED = 0
"""Seed of k-means and of the random partition."""


def peaks(maps: Float[Tensor, "b n h w"]) -> Int[Tensor, "b n"]:
    """Return the strongest cell of each map, counted row by row."""
    return maps.flatten(2).argmax(dim=2)


def cell_centres(
    index: Int[Tensor, "*b"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Return x and y of cells in cells."""
    return (index % grid[1]) + 0.5, (index // grid[1]) + 0.5


def peak_vectors(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "c d"]:
    """Return the coordinates of each channel's peaks in a batch, in sides of the grid, eq. (1).

    They are NaN where a channel has the same value in all cells: most often 0, from a ReLU.
    """
    height, width = features.shape[2:]
    x, y = cell_centres(peaks(features), (height, width))
    constant = features.amax(dim=(2, 3)) == features.amin(dim=(2, 3))
    return torch.cat([x / width, y / height]).masked_fill(constant.repeat(2, 1), torch.nan).T


def cluster_channels(vectors: Float[np.ndarray, "c d"], count: int) -> Float[np.ndarray, "n c"]:
    """Return indicators of k-means clusters of channels, eq. (1), by the peaks that they have."""
    labels = k_means(vectors.astype(np.float32), count, np.random.default_rng(SEED))
    return np.asarray(np.eye(count, dtype=np.float32)[labels].T)


def random_partition(channels: int, count: int) -> Float[np.ndarray, "n c"]:
    """Return indicators of groups of nearly equal size, drawn at random."""
    labels = np.random.default_rng(SEED).permutation(np.arange(channels) % count)
    return np.asarray(np.eye(count, dtype=np.float32)[labels].T)


class ChannelGroups(nn.Module):
    """Layers that give each channel's share in each group from the mean of the features, eq. (2)."""

    def __init__(self, channels: int, parts: int, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(channels, width) for _ in range(parts))
        self.second = nn.ModuleList(nn.Linear(width, channels) for _ in range(parts))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Return d before the sigmoid."""
        mean = features.mean(dim=(2, 3))
        return torch.stack(
            [second(torch.tanh(first(mean))) for first, second in zip(self.first, self.second, strict=True)],
            dim=1,
        )


def evidence(shares: Float[Tensor, "b n c"], features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n h w"]:
    """Return the sums of the channels, weighted by their shares in each group."""
    return torch.einsum("bnc,bchw->bnhw", shares, features)


def attention_maps(
    summed: Float[Tensor, "b n h w"], channels: int, form: Literal["paper", "official"]
) -> Float[Tensor, "b n h w"]:
    """Return M, eq. (3) as printed or (3') as released, in float32."""
    argument = summed.float()
    if form == "paper":
        maps = torch.sigmoid(argument)
        return maps / maps.sum(dim=(2, 3), keepdim=True)
    squashed = F.softplus(torch.tanh(0.1 * argument / channels)).log()
    return (4 * squashed).flatten(2).softmax(dim=2).view_as(argument)


def part_features(
    maps: Float[Tensor, "b n h w"], features: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b n c"]:
    """Return P, the features averaged by each map, eq. (4)."""
    return torch.einsum("bnhw,bchw->bnc", maps, features)


def squared_distances(
    top: Int[Tensor, "b n"], grid: tuple[int, int], unit: Literal["side", "cell"]
) -> Float[Tensor, "b n h w"]:
    """Return the squared distance of each cell to a map's peak."""
    x, y = cell_centres(top, grid)
    columns = torch.arange(grid[1], device=top.device) + 0.5
    rows = torch.arange(grid[0], device=top.device) + 0.5
    across, down = columns - x[..., None], rows - y[..., None]  # (B, N, w), (B, N, h)
    if unit == "side":
        across, down = across / grid[1], down / grid[0]
    return down.square()[..., None] + across.square()[:, :, None]


def distance_loss(
    maps: Float[Tensor, "b n h w"], top: Int[Tensor, "b n"], unit: Literal["side", "cell"]
) -> Float[Tensor, "b n"]:
    """Return Dis, the spread of each map around its peak, eq. (7)."""
    distances = squared_distances(top, (maps.shape[2], maps.shape[3]), unit)
    return (maps * distances).sum(dim=(2, 3))


def cauchy_loss(
    maps: Float[Tensor, "b n h w"], top: Int[Tensor, "b n"], *, normalised: bool = True
) -> Float[Tensor, "b n"]:
    """Return half the squared error to 1 / (1 + r^2) around the peak, with r in cells.

    The target is divided by its sum, as the map is, unless `normalised` is False.
    """
    target = 1 / (1 + squared_distances(top, (maps.shape[2], maps.shape[3]), "cell"))
    if normalised:
        target = target / target.sum(dim=(2, 3), keepdim=True)
    return (maps - target).square().sum(dim=(2, 3)) / 2


def diversity_loss(maps: Float[Tensor, "b n h w"], margin: float) -> Float[Tensor, "b n"]:
    """Return Div, how much each map is where another one is strong, eq. (8)."""
    count = maps.shape[1]
    own = torch.eye(count, dtype=torch.bool, device=maps.device)[None, :, :, None, None]
    others = maps[:, None].expand(-1, count, -1, -1, -1).masked_fill(own, -torch.inf).amax(dim=2)
    return (maps * (others - margin)).sum(dim=(2, 3))
