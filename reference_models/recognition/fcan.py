"""FCAN, a re-reading: sampled parts, rewarded for right predictions.

X. Liu, T. Xia, J. Wang, Y. Yang, F. Zhou, Y. Lin, "Fully convolutional attention networks for fine-grained
recognition", arXiv:1603.06765, 2016. There is no released code.

This is a re-reading, not a reproduction. Only the abstract was available. Its three claims are kept: parts
are learnt from labels alone, by reinforcement; one convolutional pass scores all places for all parts; the
reward is greedy, so that a part is rewarded on its own. Sizes, numbers and the optimiser are this project's,
and so is the form of (1) to (6). No published number belongs in the row of this method. The row that other
papers print has the mark "+BBox", for ground-truth boxes, which this method does not read.

Idea. A small convolutional head turns the features of the image into one map of probabilities for each part.
In training, the place of a part is drawn from its map; at test it is the most probable one. The features in a
square around it are classified, and the prediction is the mean over the image and the parts so far. A part is
rewarded if this prediction is right and better than without the part. REINFORCE raises the probability of
places that are rewarded more than usual.

    symbol      name                    shape
    F           features                (B, C, h, w)    the last stage
    pi_t        part_maps               (B, T, h w)     t = 1 .. T
    l_t         places                  (B, M, T)       cells; M samples of each image, 1 at test
    s_0, s_t    image_classifier, part_classifiers      (B, Y), (B, M, T, Y)
    p_t         prefix_predictions      (B, M, T + 1, Y)    log-probabilities, t = 0 .. T
    R_t, b_t    rewards, usual_reward   (B, M, T), (T,)

    (1)  pi_t = softmax over cells of two 3x3 convolutions of F with a ReLU between; no gradient to F
    (2)  l_t ~ pi_t in training; at test the most probable cell whose square does not overlap an earlier one
    (3)  s_t = W_t (mean of F over the square around l_t) + w_t
    (4)  p_t = mean of softmax(s_0), ..., softmax(s_t);  L_t = - log p_t(y)
    (5)  R_t = 1 if p_t is right and (t = 1 or L_t < L_(t-1)), else 0
    (6)  L = L_0 + mean over samples and parts of L_t - mean over samples of sum_t (R_t - b_t) log pi_t(l_t)

Rewards are constants in (6), so the head learns from the last term alone, and everything else from the
others. With L_0 and the mean of L_t, F gets about twice the baseline's gradient. b_t is a running mean of
R_t. It reduces the variance, and changes no expectation.

Squares have 160 pixels at an input of 448, and are moved into the image. The mean over a square counts each
cell by its area inside. So all squares come from one pass over the image, and their features are a matrix
product (`square_weights`).

Controls: `reward=none` (places are drawn from a head that does not learn), `reward=plain` (every part is
rewarded if the final prediction is right), `parts=0` (the baseline). Logits are the log-probabilities p_T.
`maps_of` are the class activation maps of the image classifier. Extra maps: `attention1`, `attention2`, ...,
the maps pi_t. `propose` gives the T squares, with pi_t at their places as scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.cells import cell_shares
from reference_models.layers.heads import class_activation_maps
from reference_models.layers.regions import cell_boxes
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count, Positive, Range, Share, ShareBelow1

PAPER = "fcan"

PAPER_SIZE = 448
"""Side of the input to which the side of a square refers."""


@dataclass(frozen=True, kw_only=True)
class FcanConfig(MethodConfig):
    """Settings of `fcan`. All values are this project's."""

    parts: Annotated[int, Range(0, 16)] = 3
    """T. 0: the image alone, which is the baseline."""
    samples: Annotated[int, Range(1, 64)] = 4
    """M, draws of all places for each image of a batch."""
    hidden: Count = 64
    """Channels of the head for each part."""
    region_side: Positive = 160.0
    """Side of a square at an input of 448."""
    nms: Share = 0.25
    """Largest IoU with the squares of earlier parts at test."""
    reward: Literal["greedy", "plain", "none"] = "greedy"
    """(5), or 1 for all parts if the final prediction is right, or no learning of places, a control."""
    momentum: ShareBelow1 = 0.9
    """Share of b_t that is kept in each step."""


# --- equations ----------------------------------------------------------------------------------------------


def draw_places(
    log_maps: Float[Tensor, "b t n"], samples: int, generator: torch.Generator
) -> Int[Tensor, "b m t"]:
    """Draw cells by their probabilities, eq. (2): the smallest of exponential times divided by pi."""
    shape = (len(log_maps), samples, *log_maps.shape[1:])
    uniform = torch.rand(shape, generator=generator, device=generator.device).to(log_maps.device)
    times = (-torch.log1p(-uniform)).clamp(min=torch.finfo(uniform.dtype).tiny)
    return (log_maps[:, None] - times.log()).argmax(dim=3)


def best_places(
    log_maps: Float[Tensor, "b t n"], boxes: Float[Tensor, "n 4"], iou: float
) -> tuple[Int[Tensor, "b 1 t"], Bool[Tensor, "b t"]]:
    """Return the most probable cells whose squares do not overlap earlier ones, eq. (2) at test.

    Where all squares overlap, the most probable cell is taken that no earlier part has, and marked as padded.
    """
    first, last = boxes[:, :2], boxes[:, 2:]
    sides = torch.minimum(last[:, None], last) - torch.maximum(first[:, None], first)  # (N, N, 2)
    shared, area = sides.clamp(min=0).prod(dim=2), (last - first).prod(dim=1)
    overlaps = shared / (area[:, None] + area - shared) > iou  # (N, N)
    suppressed = torch.zeros(len(log_maps), len(boxes), dtype=torch.bool, device=boxes.device)
    taken, places, padded = suppressed.clone(), [], []
    for log_map in log_maps.unbind(dim=1):
        penalty = (suppressed.to(log_map.dtype) + taken.to(log_map.dtype)) * 1e4
        place = (log_map - penalty).argmax(dim=1, keepdim=True)  # (B, 1)
        places.append(place)
        padded.append(suppressed.gather(1, place))
        suppressed = suppressed | overlaps[place[:, 0]]
        taken = taken.scatter(1, place, value=True)
    return torch.stack(places, dim=2), torch.cat(padded, dim=1)


def square_weights(boxes: Float[Tensor, "n 4"], grid: tuple[int, int], size: int) -> Float[Tensor, "n hw"]:
    """Return for each square the share of its area that lies in each cell, eq. (3). Rows sum to 1."""
    shares = []
    for axis, count in ((1, grid[0]), (0, grid[1])):
        inside = cell_shares(boxes[:, axis] / size, boxes[:, axis + 2] / size, count)
        shares.append(inside / inside.sum(dim=1, keepdim=True))
    return (shares[0][:, :, None] * shares[1][:, None, :]).flatten(1)


def prefix_predictions(scores: Float[Tensor, "*b t y"]) -> Float[Tensor, "*b t y"]:
    """Return the logarithm of the mean softmax of the first 1, 2, ... scores, eq. (4)."""
    counts = torch.arange(1, scores.shape[-2] + 1, device=scores.device, dtype=scores.dtype)
    return scores.log_softmax(dim=-1).logcumsumexp(dim=-2) - counts.log()[:, None]


def greedy_rewards(losses: Float[Tensor, "*b t"], right: Bool[Tensor, "*b t"]) -> Float[Tensor, "*b t"]:
    """Return R_t, eq. (5), of losses and predictions after 1, 2, ... parts."""
    better = torch.ones_like(right)
    better[..., 1:] = losses[..., 1:] < losses[..., :-1]
    return (right & better).to(losses.dtype)


def policy_loss(
    log_probabilities: Float[Tensor, "b m t"],
    rewards: Float[Tensor, "b m t"],
    usual: Float[Tensor, " t"],
) -> Float[Tensor, ""]:
    """Return the last term of (6), the mean over images and samples."""
    return -((rewards - usual).detach() * log_probabilities).sum(dim=2).mean()


class FcanHead(nn.Module):
    """Features -> the logarithms of pi_t, eq. (1)."""

    def __init__(self, channels: int, hidden: int, parts: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, hidden * parts, 3, padding=1)
        self.score = nn.Conv2d(hidden * parts, parts, 3, padding=1, groups=parts)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t n"]:
        """Return log pi_t. No gradient goes to the features."""
        scores: Tensor = self.score(self.hidden(features.detach()).relu())
        return scores.flatten(2).log_softmax(dim=2)


class Fcan(Recognizer):
    """See the module."""

    method_name = "fcan"
    Config = FcanConfig
    config: FcanConfig
    recipes = MappingProxyType({"fcan": FINE_GRAINED["fcan"]})
    usual_reward: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: FcanConfig) -> None:
        super().__init__(backbone, num_classes, config)
        last = backbone.layout[-1]
        cells = math.ceil(backbone.input_spec.size / last.stride) ** 2
        if config.parts > cells:
            raise UsageError(
                f"setting parts={config.parts} of method 'fcan': the grid has only {cells} cells; expected "
                "at most one part for each; use a larger image or fewer parts"
            )
        if config.region_side > PAPER_SIZE:
            raise UsageError(
                f"setting region_side={config.region_side} of method 'fcan': expected at most {PAPER_SIZE} "
                "pixels, the side of the image"
            )
        self.image_classifier = nn.Linear(last.channels, num_classes)
        self.part_classifiers = nn.ModuleList(
            nn.Linear(last.channels, num_classes) for _ in range(config.parts)
        )
        self.head = FcanHead(last.channels, config.hidden, config.parts) if config.parts else None
        self.register_buffer("usual_reward", torch.zeros(config.parts))

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return this project's recipe."""
        return "fcan"

    def squares(self, features: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "n 4"]:
        """Return the square around each cell."""
        side = self.config.region_side * size / PAPER_SIZE
        return cell_boxes((features.shape[2], features.shape[3]), size, side, features.device)

    def score_places(
        self, features: Float[Tensor, "b c h w"], places: Int[Tensor, "b m t"], size: int
    ) -> Float[Tensor, "b m t1 y"]:
        """Return s_0, ..., s_T for each draw of places, eq. (3)."""
        image = self.image_classifier(features.mean(dim=(2, 3)))  # (B, Y)
        scores = [image[:, None].expand(-1, places.shape[1], -1)]
        if self.head is not None:
            grid = (features.shape[2], features.shape[3])
            weights = square_weights(self.squares(features, size), grid, size)  # (N, h w)
            flat = features.flatten(2).mT  # (B, h w, C)
            for t, classifier in enumerate(self.part_classifiers):
                pooled = weights[places[:, :, t]] @ flat  # (B, M, C)
                scores.append(classifier(pooled))
        return torch.stack(scores, dim=2)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the log-probabilities of image and parts, maps of the image classifier, and the squares."""
        size = images.shape[-1]
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        weight = self.image_classifier.weight
        with torch.autocast(images.device.type, enabled=False):
            exact = features.float()
            boxes = self.squares(exact, size)
            if self.head is None:
                places = torch.zeros(len(images), 1, 0, dtype=torch.long, device=images.device)
            else:
                log_maps = self.head(exact)
                places, padded = best_places(log_maps, boxes, self.config.nms)
            logits = prefix_predictions(self.score_places(exact, places, size))[:, 0, -1]

        def maps_of(class_ids: Tensor) -> Tensor:
            return class_activation_maps(features, weight, class_ids)

        if self.head is None:
            return ForwardPass(logits=logits, maps_of=maps_of, stages=stages, penultimate=features)
        maps = log_maps.exp().detach()
        scores = maps.gather(2, places.mT)[..., 0]  # (B, T)
        order = scores.argsort(dim=1, descending=True, stable=True)
        found = Proposals(
            boxes=boxes[places[:, 0].gather(1, order)],
            scores=scores.gather(1, order),
            padded=padded.gather(1, order),
        )
        return ForwardPass(
            logits=logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=features,
            propose=lambda: found,
            extra_maps={
                f"attention{t + 1}": one.unflatten(1, features.shape[2:])
                for t, one in enumerate(maps.unbind(dim=1))
            },
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropies of the predictions, and the policy's term, eq. (6)."""
        config, images, labels = self.config, batch.images, batch.labels
        features = self.backbone.run(images)
        with torch.autocast(images.device.type, enabled=False):
            features = features.float()
            if self.head is None:
                places = torch.zeros(len(images), 1, 0, dtype=torch.long, device=images.device)
            else:
                log_maps = self.head(features)  # (B, T, N)
                places = draw_places(log_maps, config.samples, batch.generator)  # (B, M, T)
            # Predictions of the image, and of the image with 1, 2, ... parts.
            predictions = prefix_predictions(self.score_places(features, places, images.shape[-1]))
            target = labels[:, None, None, None].expand(*predictions.shape[:3], 1)
            losses = -predictions.gather(3, target)[..., 0]  # (B, M, T + 1)
            terms = {"image": losses[..., 0].mean()}
            if self.head is None:
                return terms
            terms["parts"] = losses[..., 1:].mean()
            if config.reward == "none":
                return terms
            # The policy.
            log_probabilities = log_maps.gather(2, places.mT).mT  # (B, M, T)
            rewards = self.rewards(losses[..., 1:].detach(), predictions[..., 1:, :].detach(), labels)
            terms["policy"] = policy_loss(log_probabilities, rewards, self.usual_reward)
            if self.training:
                self.usual_reward.lerp_(rewards.mean(dim=(0, 1)), 1 - config.momentum)
        return terms

    def rewards(
        self,
        losses: Float[Tensor, "b m t"],
        predictions: Float[Tensor, "b m t y"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b m t"]:
        """Return R_t after 1, 2, ... parts, greedy or plain."""
        right = predictions.argmax(dim=3) == labels[:, None, None]
        if self.config.reward == "plain":
            return right[..., -1:].to(losses.dtype).expand_as(losses)
        return greedy_rewards(losses, right)
