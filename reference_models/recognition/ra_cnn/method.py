"""RA-CNN: crop a learnt square, enlarge it, and look again, twice.

J. Fu, H. Zheng, T. Mei, "Look closer to see better: recurrent attention convolutional neural network for
fine-grained image recognition", CVPR 2017. Weights, a test graph and the layer of the crop were released, the
training was not.

Idea. A small network reads from the features of a view where to look closer. That square is cut out and
enlarged, and a second network of the same kind classifies it; from that view comes a third one. The place
learns from a ranking: the closer view must be surer of the true class than the one before.

    paper       name                    shape
    X^(s)       view, in look           (B, 3, S_s, S_s)    sides 448, 224, 224
    W_c * X     looks[s].features       (B, C, h, w)        each scale has a network of its own
    Y^(s)       looks[s].logits         (B, Y)
    t           zooms[s].place          (B, 3)              centre and half side, in sides of the view
    M           box_mask                (B, n, n)           `attention_crop.py`; so (2) to (6), (8) to (10)
    p_t^(s)     softmax(Y^(s))[label]   (B,)

    (1)   Y = f(W_c * X), t = g(W_c * X); f is a linear layer on the mean, g has two layers and a sigmoid
    (2)   the square from t_x - t_l to t_x + t_l, and the same for y
    (3)   X_att = X o M
    (4)   M = [h(x - x_0) - h(x - x_1)] [h(y - y_0) - h(y - y_1)]
    (5)   h(z) = 1 / (1 + exp(-k z))
    (6)   the next view is the bilinear enlargement of the square
    (7)   L = sum_s CE(Y^(s)) + sum_s L_rank(p_t^(s), p_t^(s+1))
    (8)   L_rank = max(0, p_t^(s) - p_t^(s+1) + margin)
    (9)   the derivatives of M by t
    (10)  dL/dt = - mean over pixels of w (dM/dt - b), with b = (0, 0, b_l): not the chain rule, but a push
          towards pixels on which the finer view's class depends; b_l shrinks a square unless they lie at its
          edge

A run has four stages, each with its own schedule of the rate. Frozen networks are in evaluation mode.
    A   The network of scale 1 and its classifier: cross-entropy. Its weights start the other scales.
    B   g alone, on a weak label: a square of half the view around the strongest mean activation.
    C   By turns an epoch of all networks and classifiers, with the squares as they are, and one of g alone
        with (8).
    D   A linear layer on the features of all scales, each with the same length, and nothing else.
Images count once in a budget, whatever the stage computes on them: B, D and half of C do not train the
networks. Predictions before D are those of an untrained layer. A run of fewer epochs than stages trains
everything at once. Gradients are then those of the stages: (7)'s first sum has none for g, the second one
none for networks.

Maps. `maps_of` is the class activation map of scale 1, the extra maps are its mean activation (`response`)
and M on its grid (`mask`). `propose` gives the squares in pixels of the image. The second one lies in the
first, so their `union` is the first: a box of the object.

The unit of k. Per pixel, k = 10 leaves no usable gradient: 99.99 % of |dM/dt_x| lies within a pixel of the
edges, so k is per side of the view (`k_unit`). See docs/decisions/recognizers_that_look_for_parts.md.

Measured. On generated birds, the accuracy after 12 epochs is 64.2 (one seed). The baseline has 62.8 and 70.3
in two trainings with this seed, so nothing is decided. The controls have not been run.

Departures and open readings
    (1)        Classifiers of the paper's VGG-19 are replaced by one linear layer on the mean of the features.
               Rates of g are those of new layers.
    (6)        Squares are cropped exactly, at half pixels, from the view before and not from the image. M is
               used in the derivative alone, as in the released layer. `crop_grad` has exact derivatives.
    (8)        The margin is that of re-implementations. The coarser probability is a constant, so that each
               square learns from one term.
    (10)       The sign of the paper's table needs an offset that dM/dt_l exceeds at the edge alone. With
               k = 10 and b_l = k / 10, the released ratio, any weights that are equal enlarge the square.
               Here b_l is the mean of dM/dt_l over the pixels (`offset`). w is divided by its maximum.
    limits     A side is at least a third of the view's, and the square stays inside.
    stages     The paper alternates "until converging". Lengths and rates are ours.
    D          Lengths of the vectors are ours (`fusion_length`): unit vectors learn too slowly.
    variant    `official` has constants of the released layer. Its factor of the gradient and that of the
               features are left out, because the training that they belong to is not known. Its
               derivatives are at the pixels of the crop, in the layer at those of the square as it was uncut.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.staged_recognizer import StagedRecognizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.norm_statistics import PartStatistics
from reference_models.recognition.ra_cnn.attention_crop import (
    AttentionProposal,
    Zoom,
    box_mask,
    compose,
    push_of,
    rank_loss,
    weak_place,
    zoom_in,
)
from reference_models.recognition.ra_cnn.settings import RaCnnConfig

PAPER = "ra-cnn"

TINY = 1e-12
SCALE = 2.0**10
"""Factor of the ranking while it is derived by pixels, so that gradients in float16 do not become 0."""


@dataclass(frozen=True, eq=False)
class Look:
    """One scale of a forward pass: feature stages, the last of them, its mean, and Y."""

    stages: OrderedDict[str, Tensor]
    features: Tensor
    pooled: Tensor
    logits: Tensor


class RaCnn(StagedRecognizer):
    """See the module."""

    method_name = "ra-cnn"
    Config = RaCnnConfig
    config: RaCnnConfig
    recipes = MappingProxyType({"racnn": FINE_GRAINED["racnn"]})
    copies = ("finer",)

    def __init__(self, backbone: Backbone, num_classes: int, config: RaCnnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        last, size, finer = backbone.layout[-1], backbone.input_spec.size, config.scales - 1
        self.part_size = config.part_size or size // 2
        self.finer = nn.ModuleList(copy.deepcopy(backbone) for _ in range(0 if config.shared else finer))
        self.part_statistics = nn.ModuleList(
            PartStatistics(backbone, config.norm_statistics) for _ in range(finer)
        )
        self.classifiers = nn.ModuleList(_linear(last.channels, num_classes) for _ in range(config.scales))
        grids = [-(-side // last.stride) for side in (size, *[self.part_size] * (finer - 1))]
        sides = [
            config.apn_pool or (-(-grid // 2) if scale == 0 else grid) for scale, grid in enumerate(grids)
        ]
        self.proposals = nn.ModuleList(
            AttentionProposal(last.channels, side, config.apn_width) for side in sides
        )
        self.fusion_classifier = _linear(config.scales * last.channels, num_classes)
        self._set_learning(frozenset({"coarse"}))

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the recipe of this file."""
        return "racnn"

    # --- the stages of a run --------------------------------------------------------------------------------
    def terms_at(self, epoch: int, epochs: int) -> frozenset[str]:
        """Return the terms of the loss in an epoch."""
        place, still = self.place_in_run(epoch, epochs), self.config.crop_grad == "none"
        if place is None:
            return frozenset({"class", "place", "fusion"} | (set() if still else {"rank"}))
        if place.stage != 2:
            return frozenset({("coarse", "place", "", "fusion")[place.stage]})
        if still:
            return frozenset({"class"})
        if self.config.alternate == "joint":
            return frozenset({"class", "rank"})
        return frozenset({("class", "rank")[(epoch - place.start) % 2]})

    def _set_learning(self, terms: frozenset[str]) -> None:
        self.terms = terms
        finer, coarse = "class" in terms, bool(terms & {"coarse", "class"})
        self.set_learning(
            [
                (self.backbone, coarse),
                (self.classifiers[0], coarse),
                *((module, finer) for module in (*self.finer, *self.classifiers[1:])),
                (self.proposals, bool(terms & {"place", "rank"})),
                (self.fusion_classifier, "fusion" in terms),
            ]
        )

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what does not learn. Before stage B the finer scales become copies of the first one."""
        place = self.place_in_run(epoch, epochs)
        if place is not None and place.stage == 1 and epoch == place.start:
            for network in self.finer:
                network.load_state_dict(self.backbone.state_dict())
            for statistics in self.part_statistics:
                assert isinstance(statistics, PartStatistics)
                statistics.start_from(self.backbone)
            for classifier in self.classifiers[1:]:
                classifier.load_state_dict(self.classifiers[0].state_dict())
        self._set_learning(self.terms_at(epoch, epochs))

    # --- the views ------------------------------------------------------------------------------------------
    def network_stages(self, view: Float[Tensor, "b 3 S S"], scale: int) -> OrderedDict[str, Tensor]:
        """Return the feature stages of a view, by the network of its scale."""
        if scale == 0:
            return self.backbone.stages(view)
        statistics = self.part_statistics[scale - 1]
        assert isinstance(statistics, PartStatistics)
        network = self.finer[scale - 1] if self.finer else self.backbone
        assert isinstance(network, Backbone)
        with statistics.in_use(network):
            return network.stages(view)

    def look(
        self, images: Float[Tensor, "b 3 S S"], *, learns: bool = False
    ) -> tuple[list[Look], list[Zoom]]:
        """Return all scales, and the steps between them."""
        view = images
        looks: list[Look] = []
        zooms: list[Zoom] = []
        for scale, classifier in enumerate(self.classifiers):
            stages = self.network_stages(view, scale)
            features = next(reversed(stages.values()))
            pooled = features.mean(dim=(2, 3))
            looks.append(Look(stages, features, pooled, classifier(pooled)))
            if scale < len(self.proposals):
                raw = self.proposals[scale](features.detach())
                with torch.autocast(view.device.type, enabled=False):
                    zoom, view = zoom_in(view.detach(), raw, self.config, self.part_size, learns=learns)
                zooms.append(zoom)
        return looks, zooms

    def fuse(self, looks: list[Look]) -> Float[Tensor, "b y"]:
        """Return the logits of stage D."""
        vectors = [F.normalize(look.pooled.detach().float(), dim=1) for look in looks]
        logits: Tensor = self.fusion_classifier(self.config.fusion_length * torch.cat(vectors, dim=1))
        return logits

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return logits, class activation maps of scale 1, and the squares."""
        config, size = self.config, images.shape[-1]
        looks, zooms = self.look(images)
        features = looks[0].features
        probabilities = [look.logits.float().softmax(dim=1) for look in looks]
        if config.predict == "fusion":
            logits = self.fuse(looks)
        elif config.predict == "sum":
            logits = torch.stack(probabilities).mean(dim=0).clamp_min(TINY).log()
        else:
            logits = looks[int(config.predict[-1]) - 1].logits
        # The squares (B, scales - 1, 4) in the image, the surer one first.
        boxes = [zooms[0].box]
        for zoom in zooms[1:]:
            boxes.append(compose(boxes[-1], zoom.box))
        scores = torch.stack([each.amax(dim=1) for each in probabilities[1:]], dim=1)
        order = scores.argsort(dim=1, descending=True, stable=True)
        proposals = Proposals(
            boxes=(torch.stack(boxes, dim=1) * size).take_along_dim(order[:, :, None], dim=1),
            scores=scores.take_along_dim(order, dim=1),
        )
        # M at the centres of the cells.
        x, y = (
            ((torch.arange(count, device=images.device) + 0.5) / count).expand(len(images), -1)
            for count in (features.shape[3], features.shape[2])
        )
        return ForwardPass(
            logits=logits,
            maps_of=lambda class_ids: class_activation_maps(
                features, self.classifiers[0].get_parameter("weight"), class_ids
            ),
            stages=looks[0].stages,
            penultimate=features,
            propose=lambda: proposals,
            extra_maps={
                "response": features.float().mean(dim=1),
                "mask": box_mask(x, y, zooms[0].place, zooms[0].k),
            },
        )

    # --- losses ---------------------------------------------------------------------------------------------
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of the epoch; see the module."""
        images, labels, terms = batch.images, batch.labels, self.terms
        if terms == {"coarse"}:
            features = self.backbone.run(images)
            return {"class1": cross_entropy(self.classifiers[0](features.mean(dim=(2, 3))), labels)}
        looks, zooms = self.look(images, learns="rank" in terms)
        found: dict[str, Tensor] = {}
        if "rank" in terms:
            found |= self.rank_terms(looks, zooms, labels)
        for scale, look in enumerate(looks if "class" in terms else (), start=1):
            found[f"class{scale}"] = cross_entropy(look.logits, labels)  # (7)
        for scale, zoom in enumerate(zooms if "place" in terms else (), start=1):
            found[f"place{scale}"] = F.smooth_l1_loss(
                zoom.raw, weak_place(looks[scale - 1].features.detach())
            )
        if "fusion" in terms:
            found["fusion"] = cross_entropy(self.fuse(looks), labels)
        return found

    def rank_terms(
        self, looks: Sequence[Look], zooms: Sequence[Zoom], labels: Int[Tensor, " b"]
    ) -> dict[str, Tensor]:
        """Return the ranking losses, eq. (8), whose gradient by each place is that of `crop_grad`.

        They have no gradient by any other parameter.
        """
        config = self.config
        sure = [look.logits.float().softmax(dim=1).gather(1, labels[:, None])[:, 0] for look in looks]
        ranks = [rank_loss(coarse.detach(), fine, config.margin) for coarse, fine in itertools.pairwise(sure)]
        total = SCALE * torch.stack(ranks).sum()
        derived = torch.autograd.grad(total, [zoom.handle for zoom in zooms], retain_graph=True)
        found: dict[str, Tensor] = {}
        for scale, (zoom, rank, scaled) in enumerate(zip(zooms, ranks, derived, strict=True), start=1):
            gradient = scaled / SCALE
            if gradient.shape == zoom.place.shape:
                push = gradient
            else:  # batch norm in training gives also images with a loss of 0 a gradient
                push = push_of(zoom, gradient, config) * (rank > 0)[:, None]
            pushed = (zoom.place * push).sum(dim=1).mean()  # the value is replaced by that of the loss
            found[f"rank{scale}"] = rank.detach().mean() + pushed - pushed.detach()
        return found


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
