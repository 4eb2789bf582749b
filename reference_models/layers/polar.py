"""Where the cells of a map lie as seen from one of them: polar coordinates, a head that predicts them, the
losses (SCL).

M. Zhou, Y. Bai, W. Zhang, T. Zhao, T. Mei, "Look-into-Object: Self-supervised structure modeling for object
recognition", CVPR 2020, section 3.2; equations have the paper's numbers. Released code: JDAI-CV/LIO.

    paper             name                            shape
    f                 features                        (B, C, N, N)
    h                 SpatialContext.structure(f)     (B, C1, N, N)
    x, y              reference                       (B,)           row * N + column
    Gamma, theta      polar_coordinates               (B, N, N)      truth: distance and direction from the
                                                                     reference
    Gamma', theta'    gamma, theta: predict           (B, N, N)
    m'                weight                          (B, N, N)      how much a cell counts; no gradient goes
                                                                     into it
    theta_Delta       angle_gaps                      (B, N, N)

Repairs and open readings
    (5)   By the formula theta is in (0, 1] and 1 stands for the direction 0: it is taken modulo 1, which
          leaves [0, 1). It is then the
          direction from the reference to the cell in turns, 0 to the right, 1/4 down. Gamma is at most (N -
              1) / N. At the
          reference there is no direction (the formula says 0.5): that cell does not count (`ref_cell`).
    (7)   (8) A weight can be 0 everywhere: then all cells count alike. 1e-12 under the roots: their gradient
          at 0 is infinite.
    (8)   theta' is not bounded by 1, and gaps next to 0 and 1 are far apart though the directions are close:
          taken as
          printed; `angle_stat=circular` is the circular standard deviation instead.
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
    """Settings of SCL; the config of a method that uses it inherits from this one."""

    scl_form: Literal["paper", "official"] = "paper"
    """`paper`: (7) and (8), weighted root mean square and standard deviation. `official`: weighted squares,
    their mean over all cells without a root, gaps compared to their plain mean.
    """
    gamma_norm: GammaNorm = "diagonal"
    """What (5) divides distances by: sqrt(2) N (paper) or N (released code)."""
    axis: Axis = "column"
    """x of (5): the column (paper), or the row with angles in (0, 1] from the cell to the reference (released
    code).
    """
    ref_cell: Literal["excluded", "forced"] = "excluded"
    """The reference itself does not count, or is predicted as 0 by force and counts with the angle 0.5
    (released code).
    """
    angle_stat: AngleStat = "literal"
    """Spread of the gaps in (8): standard deviation as printed, or the circular one (this project)."""
    coord_act: Literal["relu", "sigmoid", "none"] = "relu"
    """Activation of the predicted coordinates: ReLU in the paper and in the released code."""


def polar_coordinates(
    reference: Int[Tensor, " b"], side: int, *, gamma_norm: GammaNorm = "diagonal", axis: Axis = "column"
) -> tuple[Float[Tensor, "b {side} {side}"], Float[Tensor, "b {side} {side}"]]:
    """(5): Gamma and theta of all cells of a side x side grid as seen from cell `reference` = row * side +
    column.
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
    """(8): theta' - theta, and one more where that is negative."""
    gap = predicted - theta
    return torch.where(gap < 0, gap + 1.0, gap)


def weighted_mean(values: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"]) -> Float[Tensor, " b"]:
    """Sum of w v over the sum of w, image by image."""
    return (weight * values).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))


def distance_loss(
    predicted: Float[Tensor, "b n n"], gamma: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"]
) -> Float[Tensor, " b"]:
    """(7), image by image."""
    return (weighted_mean((predicted - gamma).square(), weight) + EPS).sqrt()


def angle_loss(
    gaps: Float[Tensor, "b n n"], weight: Float[Tensor, "b n n"], stat: AngleStat = "literal"
) -> Float[Tensor, " b"]:
    """(8), image by image: how much the gaps differ, whatever they are. In turns."""
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
    """L_dis and L_angle of predicted coordinates, image by image; their sum is (9)."""
    side = gamma.shape[1]
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
    """Where the mean of h over its channels is highest, the first of equals; outside of `inside` it counts as
    0.
    """
    strength = h.mean(dim=1)
    return (strength if inside is None else strength * inside).flatten(1).argmax(dim=1)


@dataclass(frozen=True, eq=False)
class Context:
    """What SCL says about a batch.

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
    """SCL: h by a 1x1 convolution, coordinates by a linear layer on [h at the reference; h at the cell], and
    their losses.

    Everything is computed in float32. Raises `UsageError` on settings that exclude each other.
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
        """h."""
        h: Tensor = F.relu(self.project(features))
        return h

    def predict(self, h: Float[Tensor, "b d n n"], reference: Int[Tensor, " b"]) -> Float[Tensor, "b 2 n n"]:
        """Gamma' and theta'. The product with the reference's half of the weights is the same for all cells:
        it is made once.
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
        """Coordinates and their losses.

        Args:
            features: f.
            weight: m'; None: every cell counts alike.
            reference: the cell from which coordinates are measured; None: where h is strongest.
            inside: where h may be strongest; None: anywhere.
        """
        with torch.autocast(features.device.type, enabled=False):
            h = self.structure(features.float())
            reference = strongest_cell(h, inside) if reference is None else reference
            gamma, theta = self.predict(h, reference).unbind(dim=1)
            weight = torch.ones_like(gamma) if weight is None else weight.detach().float()
            distance, angle = polar_losses(gamma, theta, reference, weight, self.config)
        return Context(distance, angle, gamma, theta, reference)
