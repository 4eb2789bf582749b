"""HSnet, a re-reading: an LSTM searches for boxes and fuses what it saw.

M. Lam, B. Mahasseni, S. Todorovic, "Fine-grained recognition as HSnet search for informative image parts",
CVPR 2017. There is no released code. The numbers of the equations are those of this file.

A re-reading: only the abstract of the paper was read. It describes a search: a state is a set of boxes, a
successor function proposes the next boxes, and a heuristic function says how informative they are. One LSTM
computes both, and its memory fuses the parts. The network, the moves and the loss are this project's. The
paper's numbers are of training with part annotations, and this method has none: it has no published number.

Idea. The first box is the image. At each step an LSTM sees the mean features of the box. From its state come
the classes, the value of the box (the heuristic function), and the next box (the successor function). Values
weigh the classes of all steps. All of it is differentiable, so the search learns from labels.

    symbol     name                     shape
    F          features                 (B, D, h, w)    the last stage
    b_t        search.boxes             (B, T, 4)       centre and sides in [0, 1]; b_1 is the image; T = 4
    x_t        region_means             (B, D)
    h_t        LSTM state               (B, N)          N = 512
    o_t        successor(h_t)           (B, 4)          in (-1, 1)
    v_t        search.values            (B, T)          in (0, 1)
    y_t        search.scores            (B, T, C)

    (1)  x_t = mean of F over the box b_t, where a cell counts by the share of it inside
    (2)  h_t = LSTM(x_t, h_{t-1})
    (3)  o_t = tanh(S h_t); the centre moves by half a side times o_xy, each side is multiplied by exp(o_wh /
         2). Sides stay in [1/8, 1] of the image's, and boxes inside of it.
    (4)  v_t = sigmoid(H h_t), y_t = W h_t
    (5)  y = sum_t softmax(v)_t y_t
    (6)  L = CE(y) + mean_t CE(y_t) + 0.1 sum_t max(0, p_{t-1} - p_t + 0.05), with p_t the label's probability
         in y_t

Both cross-entropies of (6) reach F, so F gets about twice the baseline's gradient. The last term of (6) asks
each step to be surer than the one before, whose probability gets no gradient. S starts with a bias that
shrinks boxes, because the first box can only shrink.

Maps. Class maps are those of a linear classifier on the mean of F. It learns from the labels, and no gradient
goes from it to F. The extra map `heuristic` is at each cell the sum of the values of the boxes around it,
divided by T. `propose` gives the boxes after the first one, by their values.

Controls: `successor=none`, where all boxes are the image; `steps=1`, the baseline through one LSTM cell. The
plain network: `baseline` with this recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.cells import cell_shares
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.second_order import in_full_precision
from wsolbench.ranges import Channels, Range, Share, Weight

PAPER = "hsnet"

LEAST_SIDE = 1 / 8
"""Smallest side of a box, relative to the image's."""
STEP = 0.5
"""Largest move of the centre in sides, and of the logarithm of a side."""


@dataclass(frozen=True, kw_only=True)
class HsnetConfig(MethodConfig):
    """Settings of `hsnet`. All values are this project's."""

    steps: Annotated[int, Range(1, 16)] = 4
    """T, boxes of a search with the image itself."""
    hidden: Channels = 0
    """N, length of the LSTM's state. 0: 512, but at most four times the channels of F."""
    successor: Literal["learned", "none"] = "learned"
    """Whether the next box comes from the LSTM. If not, all boxes are the image."""
    rise_weight: Weight = 0.1
    """Weight of the last term of (6)."""
    margin: Share = 0.05
    """By how much each step has to be surer than the one before."""


@dataclass(frozen=True, eq=False)
class Search:
    """Boxes (B, T, 4) as centre and sides, values (B, T), and class scores (B, T, C) of each step."""

    boxes: Tensor
    values: Tensor
    scores: Tensor

    def fused(self) -> Float[Tensor, "b c"]:
        """Return y, eq. (5)."""
        return torch.einsum("bt,btc->bc", self.values.softmax(dim=1), self.scores)


def to_corners(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Return boxes as xyxy."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def region_means(features: Float[Tensor, "b d h w"], boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b d"]:
    """Return the mean of F over one box per image, differentiable in F and in the box, eq. (1)."""
    x0, y0, x1, y1 = to_corners(boxes).unbind(dim=1)
    across, down = cell_shares(x0, x1, features.shape[3]), cell_shares(y0, y1, features.shape[2])
    sums = torch.einsum("bdhw,bh,bw->bd", features, down, across)
    return sums / (across.sum(dim=1) * down.sum(dim=1))[:, None]


def next_box(boxes: Float[Tensor, "b 4"], move: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Return the box after a move in [-1, 1], eq. (3)."""
    sides = (boxes[:, 2:] * (STEP * move[:, 2:]).exp()).clamp(LEAST_SIDE, 1)
    centres = boxes[:, :2] + STEP * boxes[:, 2:] * move[:, :2]
    return torch.cat([torch.maximum(torch.minimum(centres, 1 - sides / 2), sides / 2), sides], dim=1)


@in_full_precision
def rise_loss(scores: Float[Tensor, "b t c"], labels: Int[Tensor, " b"], margin: float) -> Float[Tensor, ""]:
    """Return the sum over steps of max(0, p_{t-1} - p_t + margin), the mean over images, eq. (6)."""
    sure = scores.softmax(dim=2).take_along_dim(labels[:, None, None], dim=2)[..., 0]  # (B, T)
    return (sure[:, :-1].detach() - sure[:, 1:] + margin).relu().sum(dim=1).mean()


class Memory(nn.Module):
    """LSTM cell, eq. (2), in plain operations: the same ones on every device.

    `recurrent=False` leaves out the weights of the state before, for a single step.
    """

    def __init__(self, inputs: int, hidden: int, *, recurrent: bool = True) -> None:
        super().__init__()
        self.of_input = nn.Linear(inputs, 4 * hidden)
        self.of_state = nn.Linear(hidden, 4 * hidden, bias=False) if recurrent else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(
        self, x: Float[Tensor, "b d"], state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Return output and cell state. No state stands for zeros."""
        gates = self.of_input(x)
        if state is not None:
            assert self.of_state is not None
            gates = gates + self.of_state(state[0])
        enter, keep, value, out = gates.chunk(4, dim=1)
        cell = enter.sigmoid() * value.tanh()
        if state is not None:
            cell = cell + keep.sigmoid() * state[1]
        return out.sigmoid() * cell.tanh(), cell


class Hsnet(Recognizer):
    """See the module."""

    method_name = "hsnet"
    Config = HsnetConfig
    config: HsnetConfig
    recipes = MappingProxyType({"hsnet": FINE_GRAINED["hsnet"]})

    def __init__(self, backbone: Backbone, num_classes: int, config: HsnetConfig) -> None:
        super().__init__(backbone, num_classes, config)
        width = backbone.channels[-1]
        hidden = config.hidden or min(512, 4 * width)
        self.image_classifier = nn.Linear(width, num_classes)
        self.memory = Memory(width, hidden, recurrent=config.steps > 1)
        self.value = nn.Linear(hidden, 1) if config.steps > 1 else None
        self.classifier = nn.Linear(hidden, num_classes)
        self.successor: nn.Linear | None = None
        if config.successor == "learned" and config.steps > 1:
            self.successor = nn.Linear(hidden, 4)
            nn.init.normal_(self.successor.weight, std=0.01)
            with torch.no_grad():
                self.successor.bias.zero_()[2:] = -1.0

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return this project's recipe."""
        return "hsnet"

    def search(self, features: Float[Tensor, "b d h w"]) -> Search:
        """Look at one box after another, eq. (1)-(4). It is computed in float32."""
        count = len(features)
        with torch.autocast(features.device.type, enabled=False):
            f = features.float()
            box = torch.cat([f.new_full((count, 2), 0.5), f.new_ones(count, 2)], dim=1)
            state: tuple[Tensor, Tensor] | None = None
            boxes, values, scores = [], [], []
            for step in range(self.config.steps):
                state = self.memory(region_means(f, box), state)
                boxes.append(box)
                value = self.value(state[0])[:, 0] if self.value is not None else f.new_zeros(count)
                values.append(value.sigmoid())
                scores.append(self.classifier(state[0]))
                if self.successor is not None and step + 1 < self.config.steps:
                    box = next_box(box, self.successor(state[0]).tanh())
        return Search(torch.stack(boxes, dim=1), torch.stack(values, dim=1), torch.stack(scores, dim=1))

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return y, maps of the linear classifier, and the boxes of the search."""
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        found = self.search(features)
        return ForwardPass(
            logits=found.fused(),
            maps_of=lambda class_ids: class_activation_maps(
                features, self.image_classifier.weight, class_ids
            ),
            stages=stages,
            penultimate=features,
            propose=lambda: ranked_boxes(found, images.shape[-1]),
            extra_maps={"heuristic": heuristic_map(found, (features.shape[2], features.shape[3]))},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of (6), and the cross-entropy of the linear classifier of the maps."""
        labels, features = batch.labels, self.backbone.run(batch.images)
        found = self.search(features)
        steps = [cross_entropy(one, labels) for one in found.scores.unbind(dim=1)]
        terms = {
            "fused": cross_entropy(found.fused(), labels),
            "steps": torch.stack(steps).mean(),
            "maps": cross_entropy(self.image_classifier(features.detach().mean(dim=(2, 3))), labels),
        }
        if len(steps) > 1 and self.config.rise_weight > 0:
            terms["rise"] = self.config.rise_weight * rise_loss(found.scores, labels, self.config.margin)
        return terms


@torch.no_grad()
def ranked_boxes(found: Search, image_size: int) -> Proposals:
    """Return the boxes after the first one in pixels, by their values. Equal boxes are `padded`."""
    values, order = found.values[:, 1:].sort(dim=1, descending=True, stable=True)
    boxes = to_corners(found.boxes[:, 1:]).take_along_dim(order[..., None], dim=1) * image_size
    same = (boxes[:, :, None] == boxes[:, None]).all(dim=3).tril(diagonal=-1).any(dim=2)
    return Proposals(boxes=boxes, scores=values, padded=same)


@torch.no_grad()
def heuristic_map(found: Search, grid: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """Return the sum of the values of the boxes around each cell, divided by their number."""
    x0, y0, x1, y1 = to_corners(found.boxes).unbind(dim=2)
    across, down = cell_shares(x0, x1, grid[1]), cell_shares(y0, y1, grid[0])
    with torch.autocast(down.device.type, enabled=False):
        return torch.einsum("bt,bth,btw->bhw", found.values, down, across) / found.values.shape[1]
