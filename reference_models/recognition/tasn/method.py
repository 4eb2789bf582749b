"""TASN: resample the image by attention, and learn from single details.

H. Zheng, J. Fu, Z.-J. Zha, J. Luo, "Looking for the devil in the details: Learning trilinear attention
sampling network for fine-grained image recognition", CVPR 2019. Released code: researchmm/tasn (MXNet; a
PyTorch half without distillation). The numbers of the equations are those of this file.

Idea. Each channel of a small attention network becomes an attention map, by mixing with channels that are
active at the same places. The image is resampled twice so that attended rows and columns get more pixels: by
the mean of all maps, which keeps the structure, and by one random map, which shows a detail. One network sees
both views. What it predicts for the detail teaches it what to predict for the structure. At test it sees the
structure alone.

    paper       name                        shape
    X           features                    (B, c, h, w)    of the attention network, `attention.py`
    M(X)        maps                        (B, c, h, w)    `trilinear`
    A, R        mean_map, pick_channel      (B, h, w)       `maps.py`: the mean over channels, one of them
    S           sample_view                 (B, 3, s, s)    `sampler.py`; s = 224
    z_s, z_d    master, part                (B, Y)          logits of the structure and the detail
    q           softmax(z / T)              (B, Y)

    (1)  M(X) = N2(N1(X) X^T) X
    (2)  I_s = S(I, A(M)), I_d = S(I, R(M))
    (3)  L_soft = - sum_y q_d(y) log q_s(y)
    (4)  L = CE(z_s) + CE(z_d) + lambda L_soft + CE(attention network)

No gradient goes through the maps, nor through the views: the attention network learns from its own
cross-entropy alone. The teacher q_d gets no gradient from (3). With T = 10 the gradient of L_soft is about
two orders of magnitude smaller than that of a cross-entropy
(docs/decisions/recognizers_that_look_for_parts.md).

Maps. `maps_of` are the class activation maps of the attention network, in the frame of the input. Extra maps:
`attention` is A; `master` is the class activation map of z_s for its prediction, moved back from the view to
the input. `propose` gives the squares around the four best peaks of A.

Rows and controls: `attention=features` (M = X, no mixing), `attention=uniform` (both views are the resized
image: the network and its losses without attention), `views=structure` (no detail and no distillation),
`distill_weight=0` (details without distillation), `view_scale=0.75` (larger views).

Structure and detail pass the network one after the other, each normalised by its own batch. The released code
passes them as one batch. Running statistics are shared by both, or with `norm_statistics=per_input` those of
the structure are its own (`layers/norm_statistics.py`). Only those are used at test.

Attention network. The released one is a ResNet-18 without two of its strides, fed at 224 pixels. Here it sees
the whole input, and its output has 16 pixels per cell, which gives the same 28x28 maps at 448. Next to
ResNet-50 it is `timm:resnet18`. Next to any other network it is a copy of that network, cut at 16 pixels per
cell. A copy starts from the same weights, and keeps the same stages frozen.

Departures from released code, which `variant=official` undoes
    A          The code squares A after resizing it to the image: `structure_power`.
    heads      The code distils between two classifiers, and reports a third one that both views share. Here
               one classifier does both, with twice the weight: `heads`.
    teacher    In the code L_soft has a gradient to the detail as well: `teacher_gradient`.
    sampler    Its limit of the magnification and its positions: `sampler.py`.
    equal maps Of maps with the same sum, A and R of the code use one: `distinct_maps`, `maps.py`.
Further departures
    scale      X is multiplied by 7 in N1: `scale`.
    T, lambda  10 and 2, as in the released code relative to the cross-entropy of the head that is distilled.
               The values of the paper are not verified.
    frame      On ResNet-50 (`tasn`), training crops keep the shape of the image, as released; validation and
               test squash it to a square, as for every method of this benchmark.
    attention  The released classifier of the attention network has batch norm and a ReLU, also with
               `variant=official` not here.
    recipe     No jitter of colours; Nesterov's momentum is 0 as in the code. Inputs are 448 of 448 pixels in
               place of 512 of 512, so views are half as large as the input.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone, load_backbone
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED, Recipe
from reference_models.core.weights import IMAGENET, NONE, load_strictly
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.norm_statistics import PartInputConfig, PartStatistics
from reference_models.layers.regions import PEAK_SIDE, peak_regions
from reference_models.layers.trunks import copy_trunk
from reference_models.recognition.tasn.attention import STRIDE, AttentionNet, trilinear
from reference_models.recognition.tasn.maps import distinct_maps, mean_map, pick_channel
from reference_models.recognition.tasn.sampler import (
    Axes,
    SamplerKind,
    make_densities,
    places_in_view,
    sample,
    sample_view,
)
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Positive, Range, Weight

PAPER = "tasn"

CHANNELS = 512
"""c of the paper."""
OWN_TRUNK = "timm:resnet18"
"""Attention network next to the network of the paper."""
PARTS = 4
"""Peaks of A that are proposed."""


@dataclass(frozen=True, kw_only=True)
class TasnConfig(PartInputConfig):
    """Settings of `tasn`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})
    later: ClassVar[frozenset[str]] = PartInputConfig.later | {"distinct_maps"}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": MappingProxyType({}),
            "official": MappingProxyType(
                {
                    "structure_power": 2,
                    "heads": "separate",
                    "teacher_gradient": True,
                    "sampler": "released",
                    "distinct_maps": True,
                    "distill_weight": 1.0,
                }
            ),
        }
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: as the released code (MXNet) computes views and losses."""
    attention_backbone: str = "default"
    """Attention network: `copy`, or the name of a backbone.

    `default`: `timm:resnet18` next to ResNet-50, as in the paper, else `copy`.
    """
    attention_channels: Channels = 0
    """c. 0: 512 (the paper), or the channels of the attention network's last stage if they are fewer."""
    attention: Literal["trilinear", "features", "uniform"] = "trilinear"
    """M: eq. (1), or X itself, or the same value everywhere, a control."""
    scale: Positive = 7.0
    """Factor of X in N1: released code."""
    view_scale: Annotated[float, Range(0.05, 1)] = 0.5
    """s relative to the side of the input: 224 of 448 pixels. Released code: 224, or 336, of 512."""
    max_zoom: Annotated[float, Range(1, 100)] = 4.0
    """Largest magnification relative to a plain resize: released code."""
    structure_power: Annotated[int, Range(1, 4)] = 1
    """Power of A in the sampler: 2 in the released code."""
    sampler: SamplerKind = "inverse"
    """`released`: limits and positions of the released code, see `sampler.py`."""
    distinct_maps: bool = False
    """Whether A and R use one map of those with the same sum: released code."""
    views: Literal["both", "structure"] = "both"
    """Views in training. `structure`: no detail, and so no distillation."""
    heads: Literal["shared", "separate"] = "shared"
    """Classifiers of the two views. `separate` is the released code: two to distil, a third to predict."""
    teacher_gradient: bool = False
    """Whether L_soft trains the detail, too: released code."""
    temperature: Positive = 10.0
    """T: released code."""
    distill_weight: Weight = 2.0
    """lambda: 1 in the released code, where the head that is distilled has a cross-entropy of weight 0.5."""
    attention_weight: Weight = 1.0
    """Weight of the attention network's cross-entropy: released code."""
    predict: Literal["master", "attention"] = "master"
    """Scores that are the logits: z_s, or those of the attention network."""


def soft_cross_entropy(
    student: Float[Tensor, "b y"], teacher: Float[Tensor, "b y"], temperature: float
) -> Float[Tensor, ""]:
    """Return L_soft, eq. (3), the mean over the batch, in float32."""
    targets = (teacher.float() / temperature).softmax(dim=1)
    return -(targets * (student.float() / temperature).log_softmax(dim=1)).sum(dim=1).mean()


class Tasn(Recognizer):
    """See the module."""

    method_name = "tasn"
    Config = TasnConfig
    config: TasnConfig
    recipes = MappingProxyType({"tasn": FINE_GRAINED["tasn"]})

    def __init__(self, backbone: Backbone, num_classes: int, config: TasnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.view_size = round(config.view_scale * backbone.input_spec.size)
        stride = backbone.layout[-1].stride
        if self.view_size < stride:
            raise UsageError(
                f"setting view_scale={config.view_scale} of method 'tasn' gives views of {self.view_size} "
                f"pixels; expected at least {stride}, one cell of {backbone.name}; use a larger image or "
                "a larger scale"
            )
        name = config.attention_backbone
        if name == "default":
            name = OWN_TRUNK if backbone.profile.fine_grained_recipes else "copy"
        self.trunk_name = name
        trunk = copy_trunk(backbone, STRIDE) if name == "copy" else load_backbone(name, weights=NONE)
        _check_colours(backbone, trunk)
        channels = config.attention_channels or min(CHANNELS, trunk.channels[-1])
        self.attention = AttentionNet(trunk, channels, num_classes)
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.classifier = nn.Linear(backbone.channels[-1], num_classes)
        self.distilled = nn.ModuleDict()
        if config.heads == "separate" and config.views == "both":
            for view in ("master", "part"):
                self.distilled[view] = nn.Linear(backbone.channels[-1], num_classes)

    def load_referenced_weights(self) -> None:
        """Load ImageNet weights of the attention network if the backbone is pretrained. A copy has them."""
        if self.trunk_name != "copy" and self.backbone.weights.sha256 is not None:
            source = load_backbone(self.trunk_name, weights=IMAGENET)
            load_strictly(self.attention.trunk, source.state_dict(), what=f"weights of {self.trunk_name}")

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the released recipe."""
        return "tasn"

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return as `Model.is_new`, but False for the trunk of the attention network."""
        return super().is_new(name, recipe) and not name.startswith("attention.trunk.")

    def on_epoch(self, epoch: int, epochs: int) -> None:  # noqa: ARG002 - the same in all epochs
        """Freeze in a copied trunk what is frozen in the backbone."""
        trunk = self.attention.trunk
        if self.trunk_name == "copy":
            trunk.frozen = tuple(name for name in self.backbone.frozen if name in trunk.steps)
            trunk.requires_grad_(True).train(trunk.training)

    # --- attention and views --------------------------------------------------------------------------------
    @torch.no_grad()
    def attend(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the maps M, eq. (1) or a control."""
        if self.config.attention == "trilinear":
            return trilinear(features, self.config.scale)
        return features.float() if self.config.attention == "features" else torch.ones_like(features.float())

    def used_maps(self, maps: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b c"] | None:
        """Return which maps A and R use, or None for all of them."""
        return distinct_maps(maps) if self.config.distinct_maps else None

    def structure_densities(self, structure_map: Float[Tensor, "b h w"], size: int) -> Axes:
        """Return the densities of I_s."""
        config = self.config
        return make_densities(
            structure_map, size, max_zoom=config.max_zoom, power=config.structure_power, kind=config.sampler
        )

    def look(self, view: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d h w"]:
        """Return the last stage of the network for a view of the structure."""
        return self.backbone.run(view)

    def look_at_detail(self, view: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Return the pooled features of a view of details."""
        with self.part_statistics.in_use(self.backbone):
            return self.backbone.run(view).mean(dim=(2, 3))

    # --- the method -----------------------------------------------------------------------------------------
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return z_s, class maps of the attention network, and squares around the peaks of A."""
        size, kind = images.shape[-1], self.config.sampler
        stages, features = self.attention(images)
        maps = self.attend(features)
        structure_map = mean_map(maps, self.used_maps(maps))  # A
        # The view of the structure, and its logits.
        densities = self.structure_densities(structure_map, size)
        seen = self.look(sample_view(images, densities, self.view_size, kind))
        master = self.classifier(seen.mean(dim=(2, 3)))
        # The master's map, moved back to the input.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            predicted = master.argmax(dim=1, keepdim=True)
            in_view = class_activation_maps(seen.float(), self.classifier.weight.float(), predicted)
            cells = structure_map.shape[-1]
            x, y = (places_in_view(density, cells) for density in densities)
            moved_back = sample(in_view, x, y)[:, 0]
        if self.config.predict == "attention":
            logits = self.attention.classifier(features.mean(dim=(2, 3)))
        else:
            logits = master
        weight = self.attention.classifier.weight
        return ForwardPass(
            logits=logits,
            maps_of=lambda class_ids: class_activation_maps(features, weight, class_ids),
            stages=OrderedDict(stages),
            penultimate=features,
            propose=lambda: peak_regions(structure_map, size, side=PEAK_SIDE * size, k=PARTS),
            extra_maps={"attention": structure_map, "master": moved_back},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropies of both views and of the attention network, and L_soft, eq. (4)."""
        config, images, labels = self.config, batch.images, batch.labels
        size = images.shape[-1]
        # Attention network: logits, and maps without a gradient.
        _, features = self.attention(images)
        own = cross_entropy(self.attention.classifier(features.mean(dim=(2, 3))), labels)
        maps = self.attend(features)
        used = self.used_maps(maps)
        # The structure.
        view = sample_view(
            images, self.structure_densities(mean_map(maps, used), size), self.view_size, config.sampler
        )
        whole = self.look(view).mean(dim=(2, 3))  # (B, D)
        if config.views == "structure":
            return {
                "master": cross_entropy(self.classifier(whole), labels),
                "attention": config.attention_weight * own,
            }
        # A detail.
        densities = make_densities(
            pick_channel(maps, batch.generator, used), size, max_zoom=config.max_zoom, kind=config.sampler
        )
        detail = self.look_at_detail(sample_view(images, densities, self.view_size, config.sampler))
        # Losses.
        factor = 0.5 if config.heads == "separate" else 1.0
        master, part = self.classifier(whole), self.classifier(detail)
        terms = {
            "master": factor * cross_entropy(master, labels),
            "part": factor * cross_entropy(part, labels),
            "attention": config.attention_weight * own,
        }
        if config.heads == "separate":
            master, part = self.distilled["master"](whole), self.distilled["part"](detail)
            terms["master_distilled"] = factor * cross_entropy(master, labels)
            terms["part_distilled"] = factor * cross_entropy(part, labels)
        teacher = part if config.teacher_gradient else part.detach()
        terms["distill"] = config.distill_weight * soft_cross_entropy(master, teacher, config.temperature)
        return terms


def _check_colours(backbone: Backbone, trunk: Backbone) -> None:
    """Raise `UsageError` unless both networks see an image with the same mean and deviation."""
    ours, theirs = backbone.input_spec, trunk.input_spec
    if (ours.mean, ours.std) != (theirs.mean, theirs.std):
        raise UsageError(
            f"setting attention_backbone of method 'tasn' is {trunk.name}, whose colours are normalised by "
            f"mean {theirs.mean} and deviation {theirs.std}; expected those of {backbone.name}, {ours.mean} "
            f"and {ours.std}; use another network, or --set attention_backbone=copy"
        )
