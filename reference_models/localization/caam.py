"""Where-to-Look: make the maps of two complementary masked views agree.

S. Babar, S. Das, "Where to look?: Mining complementary image regions for weakly supervised object
localization", WACV 2021. There is no released code; equations have the paper's numbers.

Idea. The patches that Hide-and-Seek hides in one view of an image are shown in a second view. A shared
network sees both. Channel attention (CAAM) adds features of the other view to each view. Spatial
self-attention (SSAM) adds features of related positions in the same view. Each view has its classifier, and a
loss makes the two maps of the label similar, so that both cover the object.

    paper      name                                    shape
    X, X~      views                                   (2 B, 3, H, W) hidden by `layers/hide_patches.py`
    F_x        first, second: features of the views    (B, D, h, w)   N = h w
    Q_x        assist                                  (B, D, D)
    delta      channel.scale                           (2,)           from 0; one for each view
    M, L, P    query, key, value: 1x1 convolutions     D -> D/8, D/8, D channels
    K_x        where                                   (B, N, N)
    alpha      spatial.scale                           (2,)           from 0; one for each view
    F_x^t      bind(features)                          (B, D', h, w)  D' = min(D, 1024)
    H_x        logits                                  (B, C)         before softmax
    A_xc       class_activation_maps                   (B, K, h, w)

At test the whole image is shown once, without attention (delta = alpha = 0), to the first classifier.

Departures and open readings
    (1), (5)   The axis of the softmax is not printed. Rows are this project's choice, `q_axis=column` is the
               other one. By rows a channel of Y_x is the sum of all channels that attend to it: one of 1,280
               collected 98 to 282 others. By columns it is a mean, as in the channel attention that the paper
               adapts. The paper takes Q_x~ for the transpose of Q_x. The softmax of the transposed product is
               another matrix, by either axis. Default: (5) as printed, with one product for both;
               `q_tilde=transpose` as the text says.
    (7)        This axis is not printed either. Rows make R a weighted mean, as in the original attention.
    (9)        Kernel, width and initial weights are not given. The convolution starts with a gain of 1: its
               output has the mean square of F, although F^c + F^s is 2F at first. Algorithm 1 adds F^s_x to
               the second view, an apparent misprint. Without CAAM or SSAM (Table 5) only the remaining
               outputs are added.
    (10)       The sum is a mean, as the text around it says.
    (11)       Algorithm 1 has parameters for each classifier, the equations one W: `classifier`.
    (14)       A square of a vector. `fuse_reduction=mean` divides its sum by the 196 cells of the paper's
               grid, on any grid.
    test       Without attention F^c + F^s is 2F; `test_agg=double` keeps it, the scale that the convolution
               was trained on. Attention is off at test (`test_modules=false`). This accounts for most of the
               top-1 accuracy lost against CAM when fine-tuned.
    Patches    Sides are scaled by the size of the image over 224.
    Not given  Recipe (here SPA's), crop, where alpha starts (0, as in the original attention), ResNet's grid
               (14 x 14), Inception.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import RECIPES
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.hide_patches import Fill, check_patches, fill_hidden, hidden_pixels, scaled_sides
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Share, Weight

PAPER = "where-to-look"

QTilde = Literal["softmax_ET", "transpose"]
Reduction = Literal["mean", "sum"]
Axis = Literal["row", "column"]

PAPER_CELLS = 14 * 14
"""Cells of the paper's maps (VGG-16 at 224), for which its weight of the fusion loss is published."""


@dataclass(frozen=True, kw_only=True)
class CaamConfig(MethodConfig):
    """Settings of `caam`. If no source is named, the paper does not give the value."""

    at_test: ClassVar[frozenset[str]] = frozenset({"test_modules", "test_agg", "test_branch"})

    patch: tuple[int, ...] = (16, 32, 44, 56)
    """Sides of a patch at an input of 224, one drawn for each image: the paper's `mixed`.

    Table 6 also has each of the four alone.
    """
    p: Share = 0.5
    """Probability that a patch is hidden in the first view: 0.5 in the paper."""
    fill: Fill = "mean"
    """Value of hidden pixels."""
    beta: Weight = 50.0
    """Weight of the fusion loss: 50 in all experiments of the paper. 0: no fusion loss (Table 5)."""
    caam: bool = True
    """False: no channel attention (Table 5)."""
    ssam: bool = True
    """False: no spatial attention (Table 5)."""
    q_tilde: QTilde = "softmax_ET"
    """Q of the second view: (5) as printed, or the transpose of Q_x as in the text."""
    q_axis: Axis = "row"
    """Axis of the softmax of (1) and (5): each row of Q sums to 1, or each column."""
    fuse_reduction: Reduction = "mean"
    """Reduction of (14).

    `sum` is up to 4, which the weight of 50 puts far above the cross-entropy; `mean` is the sum over 196.
    """
    fuse_detach: Literal["none", "x", "complement"] = "none"
    """View whose map is a target without gradient in (14)."""
    ssam_convs: Literal["shared", "separate"] = "shared"
    """Whether the views share M, L and P.

    Algorithm 1 writes one function for both; (7) and (8) have two alphas.
    """
    agg_conv: Literal["separate", "shared"] = "separate"
    """Whether each view has its own convolution (9), as in the paper."""
    agg_kernel: Literal[3, 1] = 3
    """Kernel size of the convolution (9)."""
    agg_relu: bool = True
    """Whether a ReLU follows (9)."""
    agg_width: Channels = 0
    """Channels after (9). 0: those before it, but at most 1024, or less if the backbone is small."""
    classifier: Literal["separate", "shared"] = "separate"
    """Whether each view has its own W: Algorithm 1 (separate) against (11)-(13) (shared)."""
    test_modules: bool = False
    """Whether attention is active at test, with the image as both views. The paper tests without it."""
    test_agg: Literal["double", "single"] = "double"
    """Input of (9) at test without attention: F + F, as with delta = alpha = 0, or F."""
    test_branch: Literal["x", "mean"] = "x"
    """Classifier at test: the first one, or the mean of both."""


# --- the equations, in float32 for any input: products of features exceed the range of float16 ------------


def channel_attention(
    first: Float[Tensor, "b d n"], second: Float[Tensor, "b d n"], q_tilde: QTilde, axis: Axis = "row"
) -> tuple[Float[Tensor, "b d n"], Float[Tensor, "b d n"]]:
    """Return Y of both views from one product E = F_x F_x~^T, eqs. (1), (2), (5), (6).

    The softmax makes each row, or column, sum to 1.
    """
    product, dim = first @ second.mT, 2 if axis == "row" else 1  # (B, D, D)
    assist = product.softmax(dim=dim)  # (1)
    assist_second = product.mT.softmax(dim=dim) if q_tilde == "softmax_ET" else assist.mT  # (5)
    return assist.mT @ second, assist_second.mT @ first  # (2), (6)


def spatial_attention(
    query: Float[Tensor, "b e n"], key: Float[Tensor, "b e n"], value: Float[Tensor, "b d n"]
) -> Float[Tensor, "b d n"]:
    """Return R = P K^T with K = softmax(M^T L), whose rows sum to 1, eq. (7)."""
    where = (query.mT @ key).softmax(dim=2)  # (B, N, N)
    return value @ where.mT


def fusion_loss(
    first: Float[Tensor, "b h w"], second: Float[Tensor, "b h w"], reduction: Reduction
) -> Float[Tensor, ""]:
    """Return the squared distance of the two unit-length maps of a class, averaged over the batch, eq. (14).

    A map of zeros keeps length 0.
    """
    one, two = (F.normalize(maps.float().flatten(1), dim=1, eps=1e-8) for maps in (first, second))
    distance = (one - two).square().sum(dim=1).mean()
    return distance / PAPER_CELLS if reduction == "mean" else distance


class ChannelAttention(nn.Module):
    """CAAM: features of both views -> F^c of both."""

    def __init__(self, q_tilde: QTilde, axis: Axis = "row") -> None:
        super().__init__()
        self.q_tilde: QTilde = q_tilde
        self.axis: Axis = axis
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(
        self, first: Float[Tensor, "b d h w"], second: Float[Tensor, "b d h w"]
    ) -> tuple[Tensor, Tensor]:
        """Add the scaled channel attention to the features of both views, eqs. (3), (4), (6)."""
        with torch.autocast(first.device.type, enabled=False):
            one, two = channel_attention(
                first.float().flatten(2), second.float().flatten(2), self.q_tilde, self.axis
            )
            return first + self.scale[0] * one.view_as(first), second + self.scale[1] * two.view_as(second)


class SpatialAttention(nn.Module):
    """SSAM: features of both views -> F^s of both."""

    def __init__(self, channels: int, *, shared: bool) -> None:
        super().__init__()
        sets, narrow = 1 if shared else 2, max(1, channels // 8)
        self.query = nn.ModuleList(nn.Conv2d(channels, narrow, 1) for _ in range(sets))
        # A bias would add a constant to each row of M^T L, which the softmax does not see.
        self.key = nn.ModuleList(nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(sets))
        self.value = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(sets))
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(
        self, first: Float[Tensor, "b d h w"], second: Float[Tensor, "b d h w"]
    ) -> tuple[Tensor, Tensor]:
        """Add the scaled spatial attention to the features of both views, eqs. (7), (8)."""
        with torch.autocast(first.device.type, enabled=False):
            return self._one(first.float(), 0), self._one(second.float(), 1)

    def _one(self, features: Float[Tensor, "b d h w"], view: int) -> Float[Tensor, "b d h w"]:
        query, key, value = (
            pick_view(layers, view)(features).flatten(2) for layers in (self.query, self.key, self.value)
        )
        return features + self.scale[view] * spatial_attention(query, key, value).view_as(features)


def pick_view(layers: nn.ModuleList, view: int) -> nn.Module:
    """Return the layer of a view, or the one that both views share."""
    return layers[view % len(layers)]


class Caam(Localizer):
    """See the module. `forward` is the test: one view, the whole image."""

    method_name = "caam"
    Config = CaamConfig
    config: CaamConfig
    recipes = MappingProxyType(
        {
            "caam_cub_resnet50": replace(
                RECIPES["spa_cub"], source="this project: SPA's for CUB, 16 images seen twice", batch_size=16
            )
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: CaamConfig) -> None:
        super().__init__(backbone, num_classes, config)
        check_patches(self.method_name, config.patch, config.p, smallest=1)
        if not config.beta >= 0:
            raise UsageError(
                f"setting beta of method 'caam' is {config.beta}; expected a number that is not negative"
            )
        if config.agg_width < 0:
            raise UsageError(
                f"setting agg_width of method 'caam' is {config.agg_width}; expected a number of channels, "
                "or 0"
            )
        channels = backbone.channels[-1]
        width = config.agg_width or min(channels, backbone.head_width)
        self.channel = ChannelAttention(config.q_tilde, config.q_axis) if config.caam else None
        self.spatial = (
            SpatialAttention(channels, shared=config.ssam_convs == "shared") if config.ssam else None
        )
        self.binds = nn.ModuleList(
            _binding(channels, width, config) for _ in range(2 if config.agg_conv == "separate" else 1)
        )
        self.classifiers = nn.ModuleList(
            _classifier(width, num_classes) for _ in range(2 if config.classifier == "separate" else 1)
        )

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return a 14 x 14 grid at 224, as on VGG: attention compares all channels and all positions."""
        return read_profile(backbone).grid(config.grid, "small")

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return SPA's recipes, on ResNet-50 with a smaller batch.

        Its channel attention is 2048 x 2048.
        """
        name = super().recipe_name(backbone, num_classes)
        resnet = read_profile(backbone).kin == "resnet"
        return "caam_cub_resnet50" if resnet and name == "spa_cub" else name

    def add_attention(
        self, first: Float[Tensor, "b d h w"], second: Float[Tensor, "b d h w"]
    ) -> tuple[Tensor, Tensor]:
        """Return F^c + F^s of both views, the input of (9)."""
        parts = [module(first, second) for module in (self.channel, self.spatial) if module is not None]
        if len(parts) == 2:
            return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
        return parts[0] if parts else (first, second)

    def skip_attention(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Return the input of (9) with delta = alpha = 0, or the features alone (`test_agg`)."""
        both = self.channel is not None and self.spatial is not None
        return 2 * features if both and self.config.test_agg == "double" else features

    def bind(self, features: Float[Tensor, "b d h w"], view: int) -> Float[Tensor, "b e h w"]:
        """Return F^t, the convolved features of a view, eq. (9)."""
        bound: Tensor = pick_view(self.binds, view)(features)
        return bound

    def classify(self, bound: Float[Tensor, "b e h w"], view: int) -> Float[Tensor, "b c"]:
        """Return the logits of a view by a mean and a linear layer with bias, eqs. (10), (11)."""
        logits: Tensor = pick_view(self.classifiers, view)(bound.mean(dim=(2, 3)))
        return logits

    def weight(self, view: int) -> Float[Tensor, "c e"]:
        """Return W, the classifier's weight of a view."""
        weight: Tensor = pick_view(self.classifiers, view).weight  # type: ignore[assignment]
        return weight

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits and maps of whole images."""
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        # Input of (9), with or without attention, for one view or both.
        inputs = (
            self.add_attention(features, features)
            if self.config.test_modules
            else (self.skip_attention(features),) * 2
        )
        views = (0,) if self.config.test_branch == "x" else (0, 1)
        bound = [self.bind(inputs[view], view) for view in views]
        logits = torch.stack([self.classify(f, view) for f, view in zip(bound, views, strict=True)]).mean(
            dim=0
        )
        # The mean of two linear layers is one linear layer on the channels of both.
        penultimate, weight = (
            torch.cat(bound, dim=1),
            torch.cat([self.weight(view) for view in views], dim=1) / len(views),
        )
        return ForwardPass(
            logits=logits,
            maps_of=lambda class_ids: class_activation_maps(penultimate, weight, class_ids),  # (13)
            stages=stages,
            penultimate=penultimate,
            weights_of=lambda class_ids: weight[class_ids],
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of both classifiers, and the weighted fusion loss, eq. (15)."""
        config, images = self.config, batch.images
        hidden = hidden_pixels(
            images, scaled_sides(config.patch, images.shape[-1]), config.p, batch.generator
        )
        # Both views through the network: (2 B, 3, H, W), then (B, D, h, w) each.
        views = torch.cat(
            [fill_hidden(images, mask, config.fill, self.input_spec) for mask in (hidden, ~hidden)]
        )
        first, second = self.backbone.run(views).chunk(2)
        bound = [self.bind(features, view) for view, features in enumerate(self.add_attention(first, second))]
        terms = {
            name: cross_entropy(self.classify(f, view), batch.labels)
            for view, (name, f) in enumerate(
                zip(("cross_entropy", "cross_entropy_complement"), bound, strict=True)
            )
        }
        # Fusion loss of the label's maps, (13), (14).
        if config.beta > 0:
            with torch.autocast(images.device.type, enabled=False):
                maps = [
                    class_activation_maps(f.float(), self.weight(view), batch.labels[:, None])[:, 0]
                    for view, f in enumerate(bound)
                ]
            if config.fuse_detach != "none":
                target = 0 if config.fuse_detach == "x" else 1
                maps[target] = maps[target].detach()
            terms["fusion"] = config.beta * fusion_loss(maps[0], maps[1], config.fuse_reduction)
        return terms


def _binding(channels: int, width: int, config: CaamConfig) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, config.agg_kernel, padding=config.agg_kernel // 2)
    gain = nn.init.calculate_gain("relu" if config.agg_relu else "linear") / max(
        1, config.caam + config.ssam
    )  # F^c + F^s = 2F
    nn.init.normal_(convolution.weight, std=gain / math.sqrt(channels * config.agg_kernel**2))
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.ReLU() if config.agg_relu else nn.Identity())


def _classifier(width: int, num_classes: int) -> nn.Linear:
    classifier = nn.Linear(width, num_classes)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier
