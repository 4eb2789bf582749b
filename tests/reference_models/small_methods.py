"""One small method for each thing that a method file can ask of the base classes."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.base.localizer import Localizer
from reference_models.base.post import PostProcess
from reference_models.core.objectives import Objective
from reference_models.core.outputs import ForwardPass
from reference_models.layers.heads import cross_entropy


class AttentionMaps(Localizer):
    """Classifies patch tokens; the map of a class is weighted by what the class tokens attend to."""

    method_name = "attention-maps"
    needs_tokens = True

    def __init__(self, backbone, num_classes, config):
        super().__init__(backbone, num_classes, config)
        self.head = nn.Conv2d(backbone.channels[-1], num_classes, 3, padding=1)

    def forward(self, images):
        found = self.backbone.tokens(images)
        scores, seen = self.head(found.patches), found.attention.sum(dim=1, keepdim=True)  # (B, 1, h, w)
        return ForwardPass(
            logits=scores.mean(dim=(2, 3)),
            maps_of=lambda ids: (seen * scores).take_along_dim(ids[:, :, None, None], dim=1),
            stages=self.backbone.stages(images),
        )

    def loss(self, batch):
        return {"cross_entropy": cross_entropy(self(batch.images).logits, batch.labels)}


class GradCam(PostProcess):
    """Features of the last stage, weighted by the mean gradient of the class's score."""

    method_name = "grad-cam"
    needs_gradients = True

    def maps(self, result, class_ids):
        (features,) = list(result.stages.values())[-1:]
        maps = []
        for column in class_ids.unbind(dim=1):
            score = result.logits.gather(1, column[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            maps.append((weights * features).sum(dim=1).relu().detach())
        return torch.stack(maps, dim=1)


class KeySimilarity(PostProcess):
    """Similarity of every patch's key to that of the first patch."""

    method_name = "key-similarity"

    def maps(self, result, class_ids):
        keys = F.normalize(result.tokens().keys, dim=1)
        return torch.einsum("bdhw,bd->bhw", keys, keys[:, :, 0, 0])[:, None].expand(
            -1, class_ids.shape[1], -1, -1
        )


class MeanBox(Localizer):
    """The mean of the filled true boxes, the same map for every image and class."""

    method_name = "mean-box"
    needs_backbone = False
    learns_from = "statistics"
    map_kind = "unit"

    def __init__(self, backbone, num_classes, config):
        super().__init__(backbone, num_classes, config)
        self.register_buffer("mean", torch.zeros(28, 28))

    @classmethod
    def train_split(cls, settings):
        return "val"

    def measure(self, train, passes):
        del passes  # the images do not matter
        cell = (torch.arange(28, dtype=torch.float64) + 0.5) / 28
        for sample in train.samples:
            (width, height), filled = sample.size, torch.zeros(28, 28, dtype=torch.bool)
            for x0, y0, x1, y1 in sample.boxes:
                across = (cell >= x0 / width) & (cell < x1 / width)
                filled |= ((cell >= y0 / height) & (cell < y1 / height))[:, None] & across
            self.mean += filled / len(train)

    def forward(self, images):
        return ForwardPass(
            logits=None,
            maps_of=lambda ids: self.mean.expand(len(images), ids.shape[1], -1, -1),
        )


class ClassMeans(Localizer):
    """Cosine of each pixel's features with the mean features of the class: one pass over the images."""

    method_name = "class-means"
    learns_from = "statistics"

    def __init__(self, backbone, num_classes, config):
        super().__init__(backbone, num_classes, config)
        self.register_buffer("means", torch.zeros(num_classes, backbone.channels[-1]))

    def measure(self, train, passes):
        counts = torch.zeros(self.num_classes)
        for batch in passes():
            pooled = self.backbone.run(batch.images).mean(dim=(2, 3))
            self.means.index_add_(0, batch.labels, pooled)
            counts += torch.bincount(batch.labels, minlength=self.num_classes)
        self.means /= counts[:, None]

    def forward(self, images):
        stages = self.backbone.stages(images)
        features = F.normalize(next(reversed(stages.values())), dim=1)
        maps = torch.einsum("bdhw,cd->bchw", features, F.normalize(self.means, dim=1))
        return ForwardPass(
            logits=maps.mean(dim=(2, 3)),
            maps_of=lambda ids: maps.take_along_dim(ids[:, :, None, None], dim=1),
            stages=stages,
        )


class Adversary(HeadLocalizer):
    """A second classifier learns every second step from the first one's features, which learn to mislead it."""

    method_name = "adversary"
    Config = HeadConfig

    def __init__(self, backbone, num_classes, config):
        super().__init__(backbone, num_classes, config)
        self.second = nn.Linear(backbone.channels[-1], num_classes)

    def second_loss(self, batch):
        with torch.no_grad():
            pooled = self.backbone.run(batch.images).mean(dim=(2, 3))
        return {"cross_entropy": cross_entropy(self.second(pooled), batch.labels)}

    def loss(self, batch):
        result = self(batch.images)
        pooled = next(reversed(result.stages.values())).mean(dim=(2, 3))
        return {
            "cross_entropy": cross_entropy(result.logits, batch.labels),
            "mislead": -0.01 * cross_entropy(self.second(pooled), batch.labels),
        }

    def objectives(self, recipe):
        groups = self.parameter_groups(recipe)
        second = {id(parameter) for parameter in self.second.parameters()}

        def part(*, own):
            return [
                {**group, "params": [one for one in group["params"] if (id(one) in second) is own]}
                for group in groups
            ]

        return [
            Objective(loss=self.loss, groups=part(own=False), recipe=recipe),
            Objective(
                name="second",
                loss=self.second_loss,
                groups=part(own=True),
                recipe=replace(recipe, optimizer="sgd", lr=0.05, clip_norm=1.0),
                is_due=lambda batch: batch.step % 2 == 0,
            ),
        ]
