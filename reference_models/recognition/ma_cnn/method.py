"""MA-CNN: group channels into parts, then look at each part again.

H. Zheng, J. Fu, T. Mei, J. Luo, "Learning multi-attention convolutional neural network for fine-grained image
recognition", ICCV 2017. A test program and graphs were released, and a note on how to train.

Idea. Channels whose peaks move together over the training images describe one part. k-means finds N groups of
such channels, and small layers learn to give the groups from the image. Each group has an attention map. The
maps learn to be compact and to differ, and a classifier sees the image through each of them. At last parts
are cut out at the peaks of the maps, and classified together with the image.

    paper       name                shape
    F           features            (B, C, h, w)    the last stage
    Omega                                           training images
    d_i(X)      shares              (B, N, C)       `channel_groups.py`, with (1) to (4), (7) and (8)
    M_i         maps                (B, N, h, w)
    P_i         part_features       (B, N, C)
    Y_i         map_classifiers     (B, Y)

    (1)   channel c is the vector of its peaks in all training images; k-means gives D_i in {0, 1}^C
    (2)   d_i = sigmoid(V_i tanh(U_i mean(F)))
    (3)   M_i = sigmoid(sum_c d_ic F_c), divided by its sum
    (3')  M_i = softplus(tanh(0.1 mean_c d_ic F_c))^4, divided by its sum, in the released graph
    (4)   P_i = sum_xy M_i F
    (5)   L = sum_i CE(Y_i) + sum_i L_cng(M_i), with Y_i a linear layer on P_i
    (6)   L_cng = Dis + lambda Div
    (7)   Dis = sum_xy M_i |(x, y) - t_i|^2, with t_i the peak of M_i, a constant
    (8)   Div = sum_xy M_i (max over k != i of M_k - mrg)

A run has four stages, each with its own schedule of the rate. Frozen networks are in evaluation mode.
    A   Network and classifier: cross-entropy.
    B   Before its first epoch (1) gives D. The layers of (2) learn it: binary cross-entropy.
    C   By turns an epoch of (6) for the layers of (2), and one of the cross-entropies for everything else.
    D   Squares at the peaks are cut out and enlarged. Each part has a copy of the network and a classifier.
        A linear layer behind dropout sees the features of the image and of all parts.
Images count once in a budget, whatever the stage computes on them: B and half of C do not train the network.
Predictions before D are those of an untrained layer. A run of fewer epochs than stages trains everything at
once.

Maps. `maps_of` is the class activation map of stage A's classifier. Extra maps: `part1` to `part4`, M_i, and
`object`, the sum of the channels. `propose` gives the squares, by the value of M_i at its peak.

The printed maps cannot become compact: features are not negative, so any two cells of (3) differ by a factor
of 2 at most, and sums of hundreds of channels saturate the sigmoid. `map_form=official` has (3'). See
docs/decisions/recognizers_that_look_for_parts.md.

Departures and open readings
    (1)        A channel that is 0 in all cells of an image has no peak there. Distances of channels are over
               the images in which they have one.
    (2)        No gradient goes from (5)'s cross-entropies through d into the features.
    (3)        Peaks are those of the sum in the sigmoid, which has them where the sigmoid is 1 in float32.
    (5)        The classifier of stage A keeps learning in C, for its maps.
    (7)        Distances are in sides of the map (`dis_unit`).
    (8)        Each map has the sum 1, so mrg is a constant without a gradient. lambda and mrg are those of
               re-implementations.
    B          Loss and length are ours; the paper says that d is fitted to D.
    D          Parts are trained at the same time as the last layer, whose gradient stops at the features. In
               the released program they are trained one after the other, each view has a weight that was set
               by hand, and CUB has one more view, the object's box. Here all weights are 1, without the box;
               with `shared`, one network gets the mean of the parts' losses.
    rates      The recipe is `macnn`, with lengths of ours. New layers have 10 times the rate of the network,
               and biases twice that of weights, as in the released graph. There the first grouping layer has
               100 times the rate of the network.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MappingProxyType

import numpy as np
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
from reference_models.layers.regions import cell_boxes, crop_resize
from reference_models.recognition.ma_cnn.channel_groups import (
    ChannelGroups,
    attention_maps,
    cauchy_loss,
    cluster_channels,
    distance_loss,
    diversity_loss,
    evidence,
    part_features,
    peak_vectors,
    peaks,
    random_partition,
)
from reference_models.recognition.ma_cnn.settings import PAPER_SIZE, MaCnnConfig
from reference_models.training.passes import Passes
from wsolbench.types import Dataset

PAPER = "ma-cnn"


class MaCnn(StagedRecognizer):
    """See the module."""

    method_name = "ma-cnn"
    Config = MaCnnConfig
    config: MaCnnConfig
    recipes = MappingProxyType({"macnn": FINE_GRAINED["macnn"]})
    copies = ("part_networks",)
    indicators: Tensor
    """D (N, C), 0 before stage B."""
    initialised: Tensor
    """Whether `indicators` were computed, ()."""

    def __init__(self, backbone: Backbone, num_classes: int, config: MaCnnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        width, parts = backbone.channels[-1], config.parts
        self.part_size = config.part_size or backbone.input_spec.size // 2
        self.groups = ChannelGroups(width, parts, config.group_width or width)
        self.whole_classifier = _linear(width, num_classes)
        self.map_classifiers = nn.ModuleList(_linear(width, num_classes) for _ in range(parts))
        self.part_networks = nn.ModuleList(
            copy.deepcopy(backbone) for _ in range(0 if config.shared else parts)
        )
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.view_classifiers = nn.ModuleList(_linear(width, num_classes) for _ in range(parts))
        self.concat_classifier = _linear((parts + 1) * width, num_classes)
        self.register_buffer("indicators", torch.zeros(parts, width))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.training_images: Dataset | None = None
        self.has_groups = False
        self._set_learning(frozenset({"whole"}))

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the recipe of this method."""
        return "macnn"

    # --- the stages of a run --------------------------------------------------------------------------------
    def before_training(self, train: Dataset) -> None:
        """Keep the training images, whose peaks are clustered before stage B, if they were not yet."""
        self.training_images, self.has_groups = train, bool(self.initialised)

    def terms_at(self, epoch: int, epochs: int) -> frozenset[str]:
        """Return the terms of the loss in an epoch."""
        place = self.place_in_run(epoch, epochs)
        if place is None:
            return frozenset({"whole", "fit", "group", "map", "view"})
        if place.stage == 2:
            return (frozenset({"group"}), frozenset({"whole", "map"}))[(epoch - place.start) % 2]
        if place.stage == 3:
            return frozenset({"whole", "view"} if self.config.shared else {"view"})
        return frozenset({("whole", "fit")[place.stage]})

    def _set_learning(self, terms: frozenset[str]) -> None:
        self.terms = terms
        self.set_learning(
            [
                (self.backbone, "whole" in terms),
                (self.whole_classifier, "whole" in terms),
                (self.groups, bool(terms & {"fit", "group"})),
                (self.map_classifiers, "map" in terms),
                (self.view_classifiers, "view" in terms),
                (self.concat_classifier, "view" in terms),
                *((network, "view" in terms) for network in self.part_networks),
            ]
        )

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what does not learn, cluster before stage B, and copy the network before stage D."""
        place = self.place_in_run(epoch, epochs)
        if not self.has_groups and (place is None or place.stage > 0):
            self.find_groups()
        if place is not None and place.stage == 3 and epoch == place.start:
            for network in self.part_networks:
                network.load_state_dict(self.backbone.state_dict())
            self.part_statistics.start_from(self.backbone)
            for classifier in self.view_classifiers:
                classifier.load_state_dict(self.whole_classifier.state_dict())
        self._set_learning(self.terms_at(epoch, epochs))

    @torch.no_grad()
    def find_groups(self) -> None:
        """Fill the indicators: clusters of peaks in the training images, eq. (1), or a random partition."""
        config, channels = self.config, self.indicators.shape[1]
        if config.group_start == "random":
            found = random_partition(channels, config.parts)
        else:
            assert self.training_images is not None, "before_training gives the images of stage B"
            samples, was_training = self.training_images.samples, self.training
            spread = np.linspace(0, len(samples) - 1, min(len(samples), config.cluster_images)).round()
            chosen = replace(self.training_images, samples=[samples[int(number)] for number in spread])
            self.eval()
            passes = Passes(train=chosen, model=self, device=self.indicators.device)
            vectors = [peak_vectors(self.backbone.run(batch.images).float()).cpu() for batch in passes()]
            self.train(was_training)
            found = cluster_channels(torch.cat(vectors, dim=1).numpy(), config.parts)
        self.indicators.copy_(torch.from_numpy(found))
        self.initialised.fill_(True)
        self.has_groups = True

    # --- parts ----------------------------------------------------------------------------------------------
    def attend(
        self, features: Float[Tensor, "b c h w"], *, learns_groups: bool
    ) -> tuple[Float[Tensor, "b n h w"], Int[Tensor, "b n"]]:
        """Return M and its peaks. The gradient goes into the grouping layers, or into the features."""
        with torch.autocast(features.device.type, enabled=False):
            f = features.float()
            shares = self.groups(f.detach()).sigmoid()  # (2)
            summed = evidence(shares, f.detach()) if learns_groups else evidence(shares.detach(), f)
            return attention_maps(summed, f.shape[1], self.config.map_form), peaks(summed.detach())

    def part_boxes(self, top: Int[Tensor, "b n"], grid: tuple[int, int], size: int) -> Float[Tensor, "b n 4"]:
        """Return squares around the peaks, moved into the image."""
        side = self.config.part_side * size / PAPER_SIZE
        return cell_boxes(grid, size, side, top.device)[top]

    def view_features(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b n 4"]
    ) -> list[Float[Tensor, "b c"]]:
        """Return the mean features of each part's crop."""
        crops, count = crop_resize(images, boxes, self.part_size), boxes.shape[1]
        if self.part_networks:
            networks = [network for network in self.part_networks if isinstance(network, Backbone)]
            return [network.run(crops[i::count]).mean(dim=(2, 3)) for i, network in enumerate(networks)]
        with self.part_statistics.in_use(self.backbone):
            features = self.backbone.run(crops).mean(dim=(2, 3))
        return [features[i::count] for i in range(count)]

    def map_logits(
        self, maps: Float[Tensor, "b n h w"], features: Float[Tensor, "b c h w"]
    ) -> list[Float[Tensor, "b y"]]:
        """Return Y_i, the logits of each map's features."""
        parts = part_features(maps, features.float()).unbind(1)
        return [layer(part) for layer, part in zip(self.map_classifiers, parts, strict=True)]

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return logits of image and parts, maps of stage A's classifier, and the parts."""
        stages, size = self.backbone.stages(images), images.shape[-1]
        features = next(reversed(stages.values()))
        maps, top = self.attend(features, learns_groups=False)
        boxes = self.part_boxes(top, (features.shape[2], features.shape[3]), size)
        if self.config.predict == "maps":
            logits = torch.stack(self.map_logits(maps, features)).sum(dim=0)
        else:
            views = [features.mean(dim=(2, 3)), *self.view_features(images, boxes)]
            logits = self.concat_classifier(torch.cat(views, dim=1))
        scores, order = maps.amax(dim=(2, 3)).sort(dim=1, descending=True, stable=True)
        proposals = Proposals(boxes=boxes.take_along_dim(order[:, :, None], dim=1), scores=scores)
        return ForwardPass(
            logits=logits,
            maps_of=lambda class_ids: class_activation_maps(
                features, self.whole_classifier.weight, class_ids
            ),
            stages=stages,
            penultimate=features,
            propose=lambda: proposals,
            extra_maps={
                **{f"part{i + 1}": each for i, each in enumerate(maps.unbind(1))},
                "object": features.float().sum(dim=1),
            },
        )

    # --- losses ---------------------------------------------------------------------------------------------
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of the epoch; see the module."""
        images, labels, terms = batch.images, batch.labels, self.terms
        features = self.backbone.run(images)
        found: dict[str, Tensor] = {}
        if "whole" in terms:
            found["whole"] = cross_entropy(self.whole_classifier(features.mean(dim=(2, 3))), labels)
        if "fit" in terms:
            found["fit"] = self.fit_term(features)
        if "group" in terms:
            found |= self.group_terms(features)
        if "map" in terms:
            maps, _ = self.attend(features, learns_groups=False)
            logits = self.map_logits(maps, features)
            found["map"] = torch.stack([cross_entropy(each, labels) for each in logits]).sum()  # (5)
        if "view" in terms:
            found |= self.view_terms(batch, features)
        return found

    def fit_term(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """Return the binary cross-entropy of d and D, summed over groups and channels."""
        with torch.autocast(features.device.type, enabled=False):
            logits = self.groups(features.detach().float())
            target = self.indicators.expand_as(logits)
            return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)

    def group_terms(self, features: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Return Dis and Div, summed over the groups, eq. (6)."""
        config = self.config
        maps, top = self.attend(features, learns_groups=True)
        compact = (
            cauchy_loss(maps, top) if config.dis == "cauchy" else distance_loss(maps, top, config.dis_unit)
        )
        diverse = config.div_weight * diversity_loss(maps, config.margin)
        return {"dis": compact.sum(dim=1).mean(), "div": diverse.sum(dim=1).mean()}

    def view_terms(self, batch: Batch, features: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Return the cross-entropies of the parts, and of image and parts together."""
        images, labels = batch.images, batch.labels
        with torch.no_grad():
            _, top = self.attend(features, learns_groups=False)
        boxes = self.part_boxes(top, (features.shape[2], features.shape[3]), images.shape[-1])
        views = self.view_features(images, boxes)
        parts = [
            cross_entropy(layer(view), labels)
            for layer, view in zip(self.view_classifiers, views, strict=True)
        ]
        joined = torch.cat([features.mean(dim=(2, 3)), *views], dim=1).detach()
        dropped = drop_values(joined, self.config.dropout, batch.generator)
        terms = torch.stack(parts)
        return {
            "view": terms.mean() if self.config.shared else terms.sum(),
            "concat": cross_entropy(self.concat_classifier(dropped), labels),
        }


def drop_values(
    values: Float[Tensor, "b d"], share: float, generator: torch.Generator
) -> Float[Tensor, "b d"]:
    """Return dropout that draws from a given generator."""
    drawn = torch.rand(values.shape, generator=generator, device=generator.device).to(values.device)
    return values * (drawn >= share) / (1 - share)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
