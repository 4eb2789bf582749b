"""NTS-Net's Navigator: anchors, the network that scores them, and its ranking loss.

Z. Yang, T. Luo, D. Wang, Z. Hu, J. Gao, L. Wang, "Learning to navigate for fine-grained classification", ECCV
2018; released code: yangze0930/NTS-Net. SSANET reuses it.

    F       features                (B, C, N, N)    the last stage; no gradient goes back to it
    s       scores                  (B, A)          one for each anchor
            anchors                 (A, 4)          xyxy pixels of the input, not clipped to it
    c       costs                   (B, M)          -log p(label) of a classifier that sees one part alone
    L_rank  rank_loss(s, c)         ()

At an input of 448 with F of 14x14 the levels have strides 32, 64 and 128: 6 * 14^2 + 6 * 7^2 + 9 * 4^2 = 1614
anchors. On other networks the first level has the grid of F, and each further one about half of it. Sides are
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
"""Square root of the anchors' areas, for each level, at an input of 448.

`nts`: released code. `single`: one level with three sides, as in SSANET's text; the values are this
project's.
"""

NTS_SIDE, NTS_STRIDE, NTS_GRIDS = 448, 32, ((14, 14), (7, 7), (4, 4))
"""Input of NTS-Net, and the grids of its anchors."""


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
    """Return all anchors, in the order of the scores: level, side, ratio, row, column.

    Args:
        kind: which sides.
        grids: (height, width) of each level.
        stride: pixels from one anchor to the next on the first level. It doubles on each further level.
        image_size: side of the input.
        device: device of the result.
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


def nts_anchors(image_size: int, device: torch.device) -> Float[Tensor, "1614 4"]:
    """Return the anchors of NTS-Net's input of 448 pixels, scaled to this one, whatever the network's grid.

    Some reach beyond the image.
    """
    return anchor_boxes("nts", NTS_GRIDS, NTS_STRIDE, NTS_SIDE, device) * (image_size / NTS_SIDE)


def nominate(scored: Scored, image_size: int, k: int, iou: float, rule: NmsRule = "gt") -> Proposals:
    """Select the k best anchors of each image that do not overlap. Scores keep their graph.

    With `ge`, NTS-Net's code, overlaps are those of boxes with whole pixels (truncated towards 0 after half a
    side is added for its padding). Raises `UsageError` if there are fewer than k anchors.
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
    """Return c, the cross-entropy of each part's logits, in float32."""
    return F.cross_entropy(logits.float().mT, labels[:, None].expand(logits.shape[:2]), reduction="none")


def rank_loss(scores: Float[Tensor, "b m"], costs: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Return L_rank, which orders scores by costs. No gradient goes to the costs.

    It is the sum over i, j with c_j > c_i of max(0, 1 - s_i + s_j), averaged over the images.
    """
    worse = costs[:, None, :] > costs[:, :, None]  # (B, i, j): j costs more than i
    hinge = (1 - scores[:, :, None] + scores[:, None, :]).relu()
    return (hinge * worse).sum(dim=(1, 2)).mean()


def best_cover(scored: Scored, grid: tuple[int, int], image_size: int) -> Float[Tensor, "b h w"]:
    """Return for each cell the highest sigmoid score of the anchors that cover its centre, or 0."""
    boxes = scored.anchors
    y, x = ((torch.arange(count, device=boxes.device) + 0.5) * (image_size / count) for count in grid)
    across = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])  # (A, w)
    down = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])  # (A, h)
    around = down[:, :, None] & across[:, None, :]  # (A, h, w)
    return (scored.scores.sigmoid()[:, :, None, None] * around).amax(dim=1)


class Navigator(nn.Module):
    """Features -> scores of all anchors: 3x3 convolutions with ReLU, and a 1x1 convolution on each level.

    It always runs in float32, because half precision would give many anchors the same score. `init="torch"`
    is the layers' default and so that of NTS-Net's code. With it, scores vary less on each further level. At
    first all chosen anchors are then of the smallest level, and the loss, which compares chosen ones, does
    not reach the others. With `even`, scores vary equally on all levels.
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
        """Return s, level by level. Within a level, all cells of the first side and ratio come first."""
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
