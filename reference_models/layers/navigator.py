"""Anchors, the network that scores them, and the loss that makes its order that of a classifier: NTS-Net's
Navigator.

Z. Yang, T. Luo, D. Wang, Z. Hu, J. Gao, L. Wang, "Learning to navigate for fine-grained classification", ECCV
2018; released code: yangze0930/NTS-Net. SSANET takes it over.

    F       features                (B, C, N, N)    the last stage; no gradient goes back to it
    s       scores                  (B, A)          one for each anchor
            anchors                 (A, 4)          xyxy pixels of the input, not cut off at its border
    c       costs                   (B, M)          -log p(label) of a classifier that sees one part alone
    L_rank  rank_loss(s, c)         ()

At an input of 448 with F of 14x14 the levels have strides 32, 64 and 128: 6 * 14^2 + 6 * 7^2 + 9 * 4^2 = 1614
anchors. On other networks the first level has the grid of F and each further one about half of it; sides are
scaled by the size of the input over 448.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.core.outputs import Proposals
from reference_models.layers.regions import NmsRule, select
from wsolbench.exceptions import UsageError
from wsolbench.methods.device import constants

AnchorKind = Literal["nts", "single"]
NavigatorInit = Literal["even", "torch"]

RATIOS = (0.667, 1.0, 1.5)
"""Width over height: released code."""

SIDES: Mapping[AnchorKind, tuple[tuple[float, ...], ...]] = MappingProxyType(
    {
        "nts": (
            tuple(48 * 2 ** (n / 3) for n in (1, 2)),
            tuple(96 * 2 ** (n / 3) for n in (1, 2)),
            tuple(192 * 2 ** (n / 3) for n in (0, 1, 2)),
        ),
        "single": ((64.0, 128.0, 256.0),),
    }
)
"""Sides of squares with the area of an anchor, for each level, at an input of 448. `nts`: released code.
`single`: one level with three sides, as SSANET's text has it; the numbers are this project's.
"""


@dataclass(frozen=True, eq=False)
class Scored:
    """Anchors, the same for all images, and their scores."""

    scores: Float[Tensor, "b a"]
    anchors: Float[Tensor, "a 4"]


def anchor_boxes(
    kind: AnchorKind,
    grids: Sequence[tuple[int, int]],
    stride: int,
    image_size: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Float[Tensor, "a 4"]:
    """All anchors, in the order of the scores: level, side, ratio, row, column.

    Args:
        kind: which sides.
        grids: (height, width) of each level.
        stride: pixels from one anchor to the next on the first level; twice as many on each further one.
        image_size: side of the input.
        device: where they are wanted.
    """
    levels = []
    for number, (sides, (height, width)) in enumerate(zip(SIDES[kind], grids, strict=True)):
        step = stride * 2**number
        shapes = [(side * math.sqrt(ratio), side / math.sqrt(ratio)) for side in sides for ratio in RATIOS]
        half = torch.stack(
            [constants(shape, device, torch.float64) for shape in shapes]
        )  # (sides * ratios, 2)
        half = half * (image_size / 448 / 2)  # x, y
        rows, columns = (
            (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * step
            for count in (height, width)
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack([x, y], dim=-1).flatten(0, 1)  # (h * w, 2)
        levels.append(torch.cat([centres - half[:, None], centres + half[:, None]], dim=-1).flatten(0, 1))
    return torch.cat(levels).float()


def nominate(scored: Scored, image_size: int, k: int, iou: float, rule: NmsRule = "gt") -> Proposals:
    """The k best anchors of each image that do not overlap; scores keep their graph.

    With `ge`, NTS-Net's code, overlaps are those of boxes with whole pixels (cut towards 0 after half a side
    is added for its padding). Raises `UsageError` where there are not k anchors.
    """
    if k > len(scored.anchors):
        raise UsageError(
            f"{k} parts are wanted of only {len(scored.anchors)} anchors; use a larger image, or fewer parts"
        )
    pad = image_size // 2
    boxes = scored.anchors if rule == "gt" else (scored.anchors + pad).trunc() - pad
    chosen = select(boxes, scored.scores, k, iou, rule)
    return Proposals(
        boxes=scored.anchors[chosen.index],
        scores=scored.scores.take_along_dim(chosen.index, dim=1),
        padded=chosen.padded,
    )


def part_costs(logits: Float[Tensor, "b m c"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b m"]:
    """c: cross-entropy of each part's logits, in float32."""
    return F.cross_entropy(logits.float().mT, labels[:, None].expand(logits.shape[:2]), reduction="none")


def rank_loss(scores: Float[Tensor, "b m"], costs: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """L_rank = sum over i, j with c_j > c_i of max(0, 1 - s_i + s_j), mean over the images; no gradient goes
    to the costs.
    """
    worse = costs[:, None, :] > costs[:, :, None]  # (B, i, j): j costs more than i
    hinge = (1 - scores[:, :, None] + scores[:, None, :]).relu()
    return (hinge * worse).sum(dim=(1, 2)).mean()


def best_cover(scored: Scored, grid: tuple[int, int], image_size: int) -> Float[Tensor, "b h w"]:
    """At each cell's centre the highest sigmoid of the scores of the anchors around it; 0 where there is
    none.
    """
    boxes = scored.anchors
    y, x = ((torch.arange(count, device=boxes.device) + 0.5) * (image_size / count) for count in grid)
    across = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])  # (A, w)
    down = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])  # (A, h)
    around = down[:, :, None] & across[:, None, :]  # (A, h, w)
    return (scored.scores.sigmoid()[:, :, None, None] * around).amax(dim=1)


class Navigator(nn.Module):
    """Features -> scores of all anchors: 3x3 convolutions with ReLU, a 1x1 convolution on each level; always
    in float32.

    Half precision would give many anchors the same score. With `init="torch"`, the default of the layers and
    so of NTS-Net's code, scores of each further level vary less than those of the level before: at first all
    chosen anchors are of the smallest level, and the loss, which compares chosen ones, does not reach the
    others. `even` lets scores vary alike on all levels.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        kind: AnchorKind = "nts",
        init: NavigatorInit = "even",
        width: int = 128,
    ) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride
        sides = SIDES[kind]
        self.down = nn.ModuleList(
            nn.Conv2d(width if level else channels, width, 3, stride=2 if level else 1, padding=1)
            for level in range(len(sides))
        )
        self.score = nn.ModuleList(nn.Conv2d(width, len(some) * len(RATIOS), 1) for some in sides)
        for layers, after in ((self.down, "relu"), (self.score, "linear")):
            for layer in layers if init == "even" else ():
                nn.init.kaiming_normal_(layer.weight, nonlinearity=after)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "b c h w"], image_size: int) -> Scored:
        """s, level by level; on a level all cells of the first side and ratio come first."""
        scores, grids = [], []
        with torch.autocast(features.device.type, enabled=False):
            x = features.detach().float()
            for down, score in zip(self.down, self.score, strict=True):
                x = down(x).relu()
                scores.append(score(x).flatten(1))
                grids.append((x.shape[2], x.shape[3]))
        return Scored(
            torch.cat(scores, dim=1), anchor_boxes(self.kind, grids, self.stride, image_size, features.device)
        )
