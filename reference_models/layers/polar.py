"""Spatial-context learning (SCL): polar coordinates of the cells of a map, a head that predicts them, losses.

M. Zhou, Y. Bai, W. Zhang, T. Zhao, T. Mei, "Look-into-Object: Self-supervised structure modeling for object
recognition", CVPR 2020, section 3.2; equations have the paper's numbers. Released code: JDAI-CV/LIO.

    paper             name                            shape
    f                 features                        (B, C, N, N)
    h                 SpatialContext.structure(f)     (B, C1, N, N)
    x, y              reference                       (B,)           row * N + column
    Gamma, theta      polar_coordinates               (B, N, N)      target: distance and direction from the
                                                                     reference
    Gamma', theta'    gamma, theta: predict           (B, N, N)
    m'                weight                          (B, N, N)      weight of a cell, without gradient
    theta_Delta       angle_gaps                      (B, N, N)

Repairs and open readings
    (5)   By the formula theta is in (0, 1] and 1 stands for the direction 0. It is taken modulo 1, which
          leaves [0, 1). It is then the direction from the reference to the cell in turns: 0 to the right, 1/4
          down. Gamma is at most (N - 1) / N. The reference itself has no direction (the formula says 0.5), so
          that cell does not count (`ref_cell`).
    (7)   (8) A weight can be 0 everywhere. Then all cells count alike. 1e-12 is added under the roots, whose
          gradient at 0 is infinite.
    (8)   theta' is not bounded by 1, and gaps close to 0 and to 1 are far apart although the directions are
          close. This is kept as printed. `angle_stat=circular` is the circular standard deviation instead.

The bias of the predictor starts at 0.5, because a ReLU that gives 0 everywhere would never learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wsolbench.exceptions import UsageError
from wsolbench.ranges import Ranged

GammaNorm = Literal["diagonal", "side"]
Axis = Literal["column", "row"]
AngleStat = Literal["literal", "circular"]
EPS = 1e-12
SMALLEST_WEIGHT = 1e-6
"""A sum of weights below it counts as 0."""


@dataclass(frozen=True, kw_only=True)
class PolarConfig(Ranged):
    """Settings of SCL. The config of a method that uses it inherits from this one."""

    scl_form: Literal["paper", "official"] = "paper"
    """Form of the losses.

    `paper`: (7) and (8), weighted root mean square and standard deviation. `official`: weighted squares,
    averaged over all cells without a root, with gaps compared to their unweighted mean.
    """
    gamma_norm: GammaNorm = "diagonal"
    """Divisor of distances in (5): sqrt(2) N (paper) or N (released code)."""
    axis: Axis = "column"
    """x of (5): the column (paper), or the row (released code).

    With the row, angles are in (0, 1] and point from the cell to the reference.
    """
    ref_cell: Literal["excluded", "forced"] = "excluded"
    """Treatment of the reference cell.

    `excluded`: it does not count. `forced`: its prediction is set to 0 and it counts with the angle 0.5
    (released code).
    """
    angle_stat: AngleStat = "literal"
    """Spread of the gaps in (8): standard deviation as printed, or the circular one (this project)."""
    coord_act: Literal["relu", "sigmoid", "none"] = "relu"
    """Activation of the predicted coordinates: ReLU in the paper and in the released code."""


def polar_coordinates(
    reference: Int[Tensor, " b"], side: int, *, gamma_norm: GammaNorm = "diagonal", axis: Axis = "column"
) -> tuple[Float[Tensor, "b {side} {side}"], Float[Tensor, "b {side} {side}"]]:
    """Return Gamma and theta of all cells of a side x side grid, eq. (5).

    They are measured from the cell `reference` = row * side + column.
    """
    place = torch.arange(side, device=reference.device)
    down = (place - (reference // side)[:, None])[:, :, None].float()  # (B, N, 1)
    right = (place - (reference % side)[:, None])[:, None, :].float()  # (B, 1, N)
    distance = (down.square() + right.square()).sqrt()
    gamma = distance / (side * math.sqrt(2.0) if gamma_norm == "diagonal" else side)
    if axis == "row":
        return gamma, (torch.atan2(right, down) + math.pi) / (2 * math.pi)
    # atan2 of the opposite vector is half a turn away: with the + pi of (5) it is this one, which is exactly
    # 0 to the right.
    turns = torch.remainder(torch.atan2(down, right) / (2 * math.pi), 1.0)
    return gamma, torch.where(distance > 0, turns, 0.5)


def angle_gaps(predicted: Float[Tensor, "b n n"], theta: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    """Return theta' - theta modulo one turn, eq. (8): 1 is added to negative values."""
    gap = predicted - theta
    return torch.where(gap < 0, gap + 1.0, gap)


def weighted_mean(values: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"]) -> Float[Tensor, " b"]:
    """Return the weighted mean of each image."""
    return (weight * values).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))


def distance_loss(
    predicted: Float[Tensor, "b n n"], gamma: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"]
) -> Float[Tensor, " b"]:
    """Return the weighted root mean square error of the distances of each image, eq. (7)."""
    return (weighted_mean((predicted - gamma).square(), weight) + EPS).sqrt()


def angle_loss(
    gaps: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"], stat: AngleStat = "literal"
) -> Float[Tensor, " b"]:
    """Return the weighted standard deviation of the angle gaps of each image in turns, eq. (8).

    A constant offset costs nothing.
    """
    if stat == "literal":
        mean = weighted_mean(gaps, weight)[:, None, None]
        return (weighted_mean((gaps - mean).square(), weight) + EPS).sqrt()
    parts = [weighted_mean(wave(2 * math.pi * gaps), weight) for wave in (torch.cos, torch.sin)]
    squared_length = (parts[0].square() + parts[1].square()).clamp(
        EPS**2, 1.0
    )  # R^2; rounding can make R more than 1
    return (EPS - squared_length.log()).sqrt() / (2 * math.pi)  # sqrt(-2 ln R)


def polar_losses(
    gamma: Float[Tensor, "b n n"],
    theta: Float[Tensor, "b n n"],
    reference: Int[Tensor, " b"],
    weight: Float[Tensor, "b n n"],
    config: PolarConfig,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return L_dis and L_angle of predicted coordinates for each image. Their sum is eq. (9)."""
    side = gamma.shape[1]
    # Targets, and the cells that count.
    true_gamma, true_theta = polar_coordinates(
        reference, side, gamma_norm=config.gamma_norm, axis=config.axis
    )
    counted = torch.ones_like(true_gamma)
    elsewhere = (
        (torch.arange(side * side, device=reference.device) != reference[:, None])
        .view_as(counted)
        .to(counted.dtype)
    )
    if config.ref_cell == "forced":
        gamma, theta = gamma * elsewhere, theta * elsewhere
    else:
        counted = elsewhere
    # Losses, (7) and (8).
    weight, gaps = weight * counted, angle_gaps(theta, true_theta)
    if config.scl_form == "official":
        spread = (gaps - weighted_mean(gaps, counted)[:, None, None]).square()
        return (weight * (gamma - true_gamma).square()).mean(dim=(1, 2)), (weight * spread).mean(dim=(1, 2))
    empty = weight.sum(dim=(1, 2), keepdim=True) < SMALLEST_WEIGHT
    weight = torch.where(empty, counted, weight)
    return distance_loss(gamma, true_gamma, weight), angle_loss(gaps, weight, config.angle_stat)


def strongest_cell(
    h: Float[Tensor, "b c n n"], inside: Bool[Tensor, "b n n"] | None = None
) -> Int[Tensor, " b"]:
    """Return the cell where the mean of h over its channels is highest, the first of equals.

    Outside of `inside` the mean counts as 0.
    """
    strength = h.mean(dim=1)
    return (strength if inside is None else strength * inside).flatten(1).argmax(dim=1)


@dataclass(frozen=True, eq=False)
class Context:
    """Result of SCL on a batch.

    Attributes:
        distance, angle: (B,) L_dis and L_angle of each image.
        gamma, theta: (B, N, N) predicted coordinates.
        reference: (B,) row * N + column.
    """

    distance: Tensor
    angle: Tensor
    gamma: Tensor
    theta: Tensor
    reference: Tensor


class SpatialContext(nn.Module):
    """SCL: predict the coordinates of each cell from h at the reference and h at the cell.

    A 1x1 convolution gives h, and a linear layer the coordinates. Everything is computed in float32. Raises
    `UsageError` on settings that exclude each other.
    """

    def __init__(self, channels: int, width: int, config: PolarConfig) -> None:
        super().__init__()
        if config.angle_stat == "circular" and config.scl_form == "official":
            raise UsageError(
                "setting angle_stat=circular needs scl_form=paper: the mean of squares (official) has no "
                "circular form"
            )
        self.config = config
        self.project = nn.Conv2d(channels, width, 1)
        self.predictor = nn.Linear(2 * width, 2)
        nn.init.constant_(self.predictor.bias, 0.5)

    def structure(self, features: Float[Tensor, "b c n n"]) -> Float[Tensor, "b d n n"]:
        """Return h, the structure features."""
        h: Tensor = F.relu(self.project(features))
        return h

    def predict(self, h: Float[Tensor, "b d n n"], reference: Int[Tensor, " b"]) -> Float[Tensor, "b 2 n n"]:
        """Return the predicted coordinates Gamma' and theta'.

        The product with the reference's half of the weights is the same for all cells, so it is computed
        once.
        """
        cells = h.flatten(2)  # (B, C1, N N)
        at_reference = cells.take_along_dim(reference[:, None, None], dim=2)  # (B, C1, 1)
        first, second = self.predictor.weight.chunk(2, dim=1)
        raw = first @ at_reference + second @ cells + self.predictor.bias[:, None]  # (B, 2, N N)
        acts: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": F.relu,
            "sigmoid": torch.sigmoid,
            "none": lambda values: values,
        }
        return acts[self.config.coord_act](raw).view(len(h), 2, *h.shape[2:])

    def forward(
        self,
        features: Float[Tensor, "b c n n"],
        weight: Float[Tensor, "b n n"] | None = None,
        reference: Int[Tensor, " b"] | None = None,
        inside: Bool[Tensor, "b n n"] | None = None,
    ) -> Context:
        """Predict the coordinates and compute their losses.

        Args:
            features: f.
            weight: m'. None: all cells have the same weight.
            reference: the cell from which coordinates are measured. None: the strongest cell of h.
            inside: cells among which the strongest is chosen. None: all.
        """
        with torch.autocast(features.device.type, enabled=False):
            h = self.structure(features.float())
            reference = strongest_cell(h, inside) if reference is None else reference
            gamma, theta = self.predict(h, reference).unbind(dim=1)
            weight = torch.ones_like(gamma) if weight is None else weight.detach().float()
            distance, angle = polar_losses(gamma, theta, reference, weight, self.config)
        return Context(distance, angle, gamma, theta, reference)
