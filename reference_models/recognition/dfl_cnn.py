"""DFL-CNN: patch filters of each class, classified by their peaks.

Y. Wang, V. Morariu, L. Davis, "Learning a discriminative filter bank within a CNN for fine-grained
recognition", CVPR 2018. There is no released code; the numbers of the equations are those of this file.

Idea. 1x1 filters on an inner layer are detectors of patches: k of them for each class. The strongest response
of each filter is the input of a classifier, next to the usual one on the last layer. Nothing ties a filter to
its class so far. A side branch without weights does: its score of a class is the mean response of the class's
k filters. The filters start as centres of clusters of strong patches of their class.

    paper       name                            shape
    conv4       inner                           (B, D, h, w)    VGG-16 relu4_3 (stride 8), ResNet-50 layer 3
    conv6       bank                            (k Y, D)        Y classes, k = 10; row c k + j is w_cj
    gamma       gamma                           ()              a constant
    pool6       peaks, cells                    (B, k Y)        the strongest response, and where it is
    G           global_classifier               (Y, C), (Y,)    on the mean of the last layer
    P           patch_classifier                (Y, k Y), (Y,)
    side        side_scores                     (B, Y)

    (1)  r_cj(l) = gamma <w_cj, F(l)>
    (2)  m_cj = max over cells l of r_cj(l)
    (3)  y_P = W m + b
    (4)  y_S,c = mean over j of m_cj                    cross-channel pooling
    (5)  y_G = V mean(conv5) + a
    (6)  L = CE(y_G) + CE(y_P) + lambda CE(y_S)
    (7)  logits = y_G + y_P + lambda y_S

Initial filters. Before the first epoch, in evaluation mode: the energy of a cell is the length of F there. Of
each training image up to 10 cells are taken, the highest energies that are maxima of their 3x3 neighbourhood
and above the image's mean. Their vectors, with unit length, are clustered by k-means with k centres for each
class. The centres, with unit length, are the filters. A class with fewer vectors than filters repeats them
with a little noise. They are written into the weights that are trained; a buffer states that it was done, so
a resumed run keeps what it has learnt. gamma = 1 / mean |m|, measured on up to 256 training images, because
(4) has no weight that could tame responses in the hundreds. It is a factor of its own: in the weights it
would make them so small that a step of SGD, which grows with the features, exceeds them.

Maps. M_c(l) = mean over j of r_cj(l), whose maximum is at most y_S,c. It is not what the other two streams
see. The extra map `cam_g` is the class activation map of G for the predicted class. Proposed regions are
squares of 92 of 448 pixels at the peaks of the predicted class's k filters, by their responses; of two that
overlap by more than 0.25 the better one is proposed.

Backbones. F is the step of the role `patches`: on VGG-16 relu4_3, on EfficientNet-Lite0 the stage of stride
16, else the end of the stage before the last.
92 pixels are the receptive field of relu4_3. That of ResNet-50's layer 3 is 267, so its squares show where a
filter responds, not all that it sees.

Rows to compare: `bank_init=random` (directions drawn at random, with a gamma of their own); `side_weight=0`
(no side branch); both: two plain streams, the control. `predict=g` and `predict=p` choose one stream at test.

None of the four public re-implementations that were read has such initial filters. Three compute no clusters,
and one writes its values where the network does not read them.

Open readings
    (6), (7)   lambda = 0.1 and k = 10 as in re-implementations; the paper's values are not verified.
    filters    Energy as the length of F, suppression, numbers and gamma are choices of this project.
    random     Rows of unit length, so that the control differs in directions and in the gamma for them.
    recipe     `dfl` is a choice. Images are resized to squares. There is one scale.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import is_published
from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.k_means import k_means
from reference_models.layers.regions import cell_boxes, select
from reference_models.training.passes import Passes
from wsolbench.ranges import Positive, Range, Weight
from wsolbench.types import Dataset

PAPER = "dfl-cnn"

PAPER_SIZE = 448
"""Side of the paper's input, to which `patch_side` refers."""
PATCHES = 10
"""Most cells of a training image that are clustered."""
MEASURED = 256
"""Most training images on which gamma is measured."""
PROPOSED, OVERLAP = 4, 0.25
"""Number of proposed regions, and the IoU above which the worse of two is not proposed."""
NOISE, TINY = 1e-3, 1e-6


@dataclass(frozen=True, kw_only=True)
class DflCnnConfig(MethodConfig):
    """Settings of `dfl-cnn`. If no source is named, the paper's value is not verified."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})

    filters: Annotated[int, Range(1, 64)] = 10
    """k, filters of a class: re-implementations."""
    side_weight: Weight = 0.1
    """lambda of (6) and (7): re-implementations. 0: no side branch."""
    bank_init: Literal["clusters", "random"] = "clusters"
    """Initial filters: centres of clusters (the paper), or random directions. Both have unit length."""
    patch_side: Positive = 92.0
    """Side of a proposed region at an input of 448: the receptive field of relu4_3 of VGG-16."""
    predict: Literal["all", "g", "p"] = "all"
    """Logits: all streams as in (7), or that of G or P alone."""


# --- the equations ------------------------------------------------------------------------------------------


def strongest(responses: Float[Tensor, "b f h w"]) -> tuple[Float[Tensor, "b f"], Int[Tensor, "b f"]]:
    """Return the strongest response of each filter and its cell, eq. (2). The gradient reaches that cell."""
    found = responses.flatten(2).max(dim=2)
    return found.values, found.indices


def side_scores(peaks: Float[Tensor, "b f"], classes: int) -> Float[Tensor, "b y"]:
    """Return y_S, the mean response of each class's filters, eq. (4)."""
    return peaks.view(len(peaks), classes, -1).mean(dim=2)


# --- initial filters ----------------------------------------------------------------------------------------


def strong_cells(
    features: Float[Tensor, "b d h w"], most: int = PATCHES
) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    """Return the unit vectors of the cells with the highest energies, and which of them count.

    A cell counts if its energy is the highest of its 3x3 neighbourhood and above the mean of the image.
    """
    energy = features.norm(dim=1)  # (B, h, w)
    highest = F.max_pool2d(energy[:, None], 3, stride=1, padding=1)[:, 0]
    counts = (energy == highest) & (energy > (1 + TINY) * energy.mean(dim=(1, 2), keepdim=True))
    ranked = energy.masked_fill(~counts, -1).flatten(1)
    best = ranked.topk(min(most, ranked.shape[1]), dim=1)
    vectors = features.flatten(2).mT.take_along_dim(best.indices[..., None], dim=1)
    return F.normalize(vectors, dim=2), best.values >= 0


def cluster_filters(
    vectors: Float[np.ndarray, "n d"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "k d"]:
    """Return `count` unit vectors: centres of clusters. Fewer vectors are repeated with noise."""
    labels = k_means(vectors, count, rng)
    centres = np.stack([vectors[labels == cluster].mean(axis=0) for cluster in range(labels.max() + 1)])
    if (lacking := count - len(centres)) > 0:
        again = centres[rng.integers(len(centres), size=lacking)]
        centres = np.concatenate([centres, again + NOISE * rng.standard_normal(again.shape)])
    return np.asarray(centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(TINY))


class DflCnn(Recognizer):
    """See the module."""

    method_name = "dfl-cnn"
    Config = DflCnnConfig
    config: DflCnnConfig
    recipes = MappingProxyType({"dfl": FINE_GRAINED["dfl"]})
    initialised: Tensor
    """Whether initial filters and gamma have been computed from training images, ()."""
    gamma: Tensor
    """Factor of all responses, ()."""

    def __init__(self, backbone: Backbone, num_classes: int, config: DflCnnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        (self.step,) = backbone.role("patches", f"method {self.method_name!r}")
        filters = config.filters * num_classes
        self.bank = nn.Parameter(F.normalize(torch.randn(filters, self.step.channels), dim=1))
        self.patch_classifier = _linear(filters, num_classes)
        self.global_classifier = _linear(backbone.channels[-1], num_classes)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.register_buffer("gamma", torch.ones(()))

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """Return 448 on the networks of the paper, except for ImageNet."""
        return PAPER_SIZE if is_published(read_profile(backbone), num_classes) else None

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return `dfl` on the networks of the paper, else the backbone's."""
        if is_published(read_profile(backbone), num_classes):
            return "dfl"
        return super().recipe_name(backbone, num_classes)

    # --- forward pass and loss ------------------------------------------------------------------------------
    def read(self, images: Float[Tensor, "b 3 H W"]) -> tuple[OrderedDict[str, Tensor], Tensor]:
        """Return the stages, and F."""
        if self.step in self.backbone.layout:
            stages = self.backbone.stages(images)
            return stages, stages[self.step.name]
        inner: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> Tensor:
            if name == self.step.name:
                inner[name] = output
            return output

        stages = self.backbone.stages(images, keep)
        return stages, inner[self.step.name]

    def respond(self, inner: Float[Tensor, "b d h w"]) -> Float[Tensor, "b f h w"]:
        """Return r, eq. (1), in float32 also under autocast: half precision makes ties."""
        with torch.autocast(inner.device.type, enabled=False):
            return F.conv2d(self.gamma * inner.float(), self.bank[:, :, None, None])

    def streams(
        self, last: Float[Tensor, "b c h w"], peaks: Float[Tensor, "b f"]
    ) -> tuple[Float[Tensor, "b y"], Float[Tensor, "b y"], Float[Tensor, "b y"]]:
        """Return y_G, y_P and y_S."""
        with torch.autocast(last.device.type, enabled=False):
            whole = self.global_classifier(last.float().mean(dim=(2, 3)))
            return whole, self.patch_classifier(peaks), side_scores(peaks, self.num_classes)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the logits (7), maps of the filters, and regions at the peaks of the predicted class."""
        stages, inner = self.read(images)
        last = next(reversed(stages.values()))
        peaks, cells = strongest(self.respond(inner))
        y_g, y_p, y_s = self.streams(last, peaks)
        both = y_g + y_p + self.config.side_weight * y_s
        logits = {"all": both, "g": y_g, "p": y_p}[self.config.predict]
        predicted = logits.argmax(dim=1, keepdim=True)

        def maps_of(class_ids: Tensor) -> Tensor:
            with torch.autocast(inner.device.type, enabled=False):
                mean = self.bank.view(self.num_classes, -1, self.bank.shape[1]).mean(dim=1)
                return class_activation_maps(self.gamma * inner.float(), mean, class_ids)

        def propose() -> Proposals:
            own = predicted[:, :, None]  # (B, 1, 1)
            scores, at = (
                each.view(len(each), self.num_classes, -1).take_along_dim(own, dim=1)[:, 0]
                for each in (peaks, cells)
            )
            return self.regions(scores, at, inner, images.shape[-1])

        with torch.autocast(last.device.type, enabled=False):
            cam = class_activation_maps(last.float(), self.global_classifier.weight, predicted)[:, 0]
        return ForwardPass(
            logits=logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=last,
            propose=propose,
            extra_maps={"cam_g": cam},
        )

    def regions(
        self, scores: Float[Tensor, "b k"], cells: Int[Tensor, "b k"], inner: Tensor, size: int
    ) -> Proposals:
        """Return the best squares around cells that do not overlap."""
        side = min(self.config.patch_side * size / PAPER_SIZE, float(size))
        grid = (inner.shape[2], inner.shape[3])
        boxes = cell_boxes(grid, size, side, inner.device)[cells]  # (B, k, 4)
        chosen = select(boxes, scores, min(PROPOSED, self.config.filters), OVERLAP)
        return Proposals(
            boxes=boxes.take_along_dim(chosen.index[..., None], dim=1),
            scores=scores.take_along_dim(chosen.index, dim=1),
            padded=chosen.padded,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the three cross-entropies of (6)."""
        stages, inner = self.read(batch.images)
        peaks, _ = strongest(self.respond(inner))
        y_g, y_p, y_s = self.streams(next(reversed(stages.values())), peaks)
        terms = {"global": cross_entropy(y_g, batch.labels), "patches": cross_entropy(y_p, batch.labels)}
        if self.config.side_weight > 0:
            terms["side"] = self.config.side_weight * cross_entropy(y_s, batch.labels)
        return terms

    # --- initial filters ------------------------------------------------------------------------------------
    @torch.no_grad()
    def before_training(self, train: Dataset) -> None:
        """Write the initial filters into the bank, unless a resumed run has them."""
        if self.initialised:
            return
        self.eval()
        if self.config.bank_init == "clusters":
            self._cluster(train)
        # gamma: the mean strongest response becomes 1.
        some = train.samples[:: max(1, len(train) // MEASURED)][:MEASURED]
        means = [
            strongest(self.respond(self.read(batch.images)[1]))[0].abs().mean(dim=1)
            for batch in self._passes(replace(train, samples=some))()
        ]
        self.gamma.copy_(1 / torch.cat(means).mean().clamp_min(TINY))
        self.initialised.fill_(True)

    def _passes(self, train: Dataset) -> Passes:
        return Passes(train=train, model=self, device=self.bank.device)

    def _cluster(self, train: Dataset) -> None:
        """Replace the filters of each class that has strong cells by the centres of their clusters."""
        found: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for batch in self._passes(train)():
            vectors, counts = strong_cells(self.read(batch.images)[1].float())
            found.append(vectors[counts].cpu().numpy())
            labels.append(batch.labels[:, None].expand_as(counts)[counts].cpu().numpy())
        vectors_of, label_of = np.concatenate(found).astype(np.float64), np.concatenate(labels)
        rows = self.bank.view(self.num_classes, -1, self.bank.shape[1])  # a view: writing changes the bank
        for label in np.unique(label_of).tolist():
            rng = np.random.default_rng((0, label))
            centres = cluster_filters(vectors_of[label_of == label], self.config.filters, rng)
            rows[label] = torch.from_numpy(centres).to(rows)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
