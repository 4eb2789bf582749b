"""SPG: train side branches on the confident pixels of deeper layers.

X. Zhang, Y. Wei, G. Kang, Y. Yang, T. Huang, "Self-produced guidance for weakly-supervised object
localization", ECCV 2018. Values and steps are those of the authors' code (xiaomengyc/SPG, Inception-V3) and
of clovaai/wsolevaluation.

Idea. Pixels where the map of a classifier is very high are object, those where it is very low background, and
the rest is unknown. The known pixels of one branch are labels for another one at a shallower layer. That
branch fills in the unknown pixels and guides the next.

    paper      name                                    shape
    A          head                                    class maps F_c, (B, C, h, w); its penultimate features
                                                       feed branch C
    B1, B2     side1, side2, then shared               object scores (B, 1, h_i, w_i) of a middle and a later
                                                       layer
    C          side_c                                  object scores (B, 1, h, w) of A's penultimate features
    up         upsample                                (B, H, W), bilinear to mask_size x mask_size, float32
    G          guidance                                (B, H, W)   1: object, 0: background, 255: unknown
    h_i, l_i   config.high, config.low                 (3,) each, in the order of the equations
    mm         min_max                                 min-max normalisation of each map
    s          sigmoid

    (1)  G(m; h, l) = 0 where m < l; else 1 where m > h; else 255
    (2)  BCE(x, G) = mean over the known pixels of the batch; 0 if there are none
    (3)  L = CE(A, y) + BCE(up(B2), G(mm(up(F_y)); h_1, l_1))
    (4)           + BCE(up(B1), G(s(up(B2)); h_2, l_2))
    (5)           + BCE(up(C), G((s(up(B1)) + s(up(B2))) / 2; h_3, l_3))
    (6)  M_c = F_c

In (1), h is lowered to 0.7 max(m) in an image that has fewer than 30 pixels above it. If that is below l, m <
l still gives 0.

No gradient passes through G. The branches B and C are not run at test.

Networks (`find_insertion_points`, `make_classifier`). Inception-V3 (both codes): B1 after Mixed_5d and its
pool, B2 after Mixed_6d; A is the head `conv` with dropout. VGG (wsolevaluation): B1 after pool 4, B2 after
conv5_3, A with 512 channels and no dropout. ResNet-50 (wsolevaluation): B1 after the first block of layer 3,
B2 after its last, both 1024 wide; A is a 1x1 convolution. Any other network (this project): B1 and B2 after
the last two stages, A as on Inception. Side branches are 512 wide unless stated otherwise.

The paper's text was not at hand; equations are numbered here. Both codes write background last, so it wins in
(1). The authors' script gives no decay points, so the learning rate of the recipe does not fall.

Departures from released code. VGG's pool 4 is 2x2 here and 3x3 in wsolevaluation. The authors train on 321
pixels of 356; here the input keeps its size. Their code drops features at test as well, by an oversight that
makes its maps random; here there is no dropout at test. By other oversights a lowered h stays for the images
after it in the batch (`fallback_scope=leak`), and no layer learns faster than the others (recipe
`spg_official`); `variant=official` has both. Upsampling does not align corners, as in wsolevaluation. The
authors' code leaves this to its version of PyTorch; those of its time, before 0.4, aligned them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import WSOLEVALUATION, Recipe
from reference_models.layers.heads import ConvHead, cross_entropy
from reference_models.layers.maps import min_max
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Share, ShareBelow1

PAPER = "spg"

UNKNOWN = 255.0
OFFICIAL_RECIPE = Recipe(
    source="xiaomengyc/SPG, ILSVRC script",
    epochs=5,
    batch_size=20,
    lr=1e-3,
    schedule="constant",
    resize=356 / 321,
    short_side=True,
    new_factor=1.0,
)


@dataclass(frozen=True, kw_only=True)
class SpgConfig(MethodConfig):
    """Settings of `spg`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": {},
            "official": {"fallback_scope": "leak", "recipe": "spg_official"},
            "clovaai": {"low": (0.01, 0.05, 0.1)},
        }
    )
    variant: Literal["default", "official", "clovaai"] = "default"
    """`default`: the authors' code without its oversights. `official`: with them.

    `clovaai`: wsolevaluation's thresholds.
    """
    high: tuple[Share, ...] = (0.7, 0.5, 0.7)
    """h of (3), (4), (5): authors' code and wsolevaluation."""
    low: tuple[Share, ...] = (0.05, 0.05, 0.1)
    """l of (3), (4), (5): authors' code; wsolevaluation has 0.01 first."""
    min_fg_px: int = 30
    """If fewer pixels of a mask are above h, h is lowered: both codes."""
    fallback: Share = 0.7
    """Fraction of the maximum to which h is lowered: both codes."""
    fallback_scope: Literal["per_image", "leak"] = "per_image"
    """Whether a lowered h holds for its image (wsolevaluation), or also for later ones in the batch.

    `leak` is the authors' code.
    """
    mask_size: int = 224
    """Side of the masks: 224 in both codes, for images of any size."""
    dropout: ShareBelow1 | None = None
    """Dropout before each convolution of A.

    None: 0.5, as in both codes on Inception, and 0 on VGG and ResNet (wsolevaluation).
    """


def find_insertion_points(backbone: Backbone) -> tuple[tuple[str, str], tuple[int, int]]:
    """Return the steps of the backbone that feed B1 and B2, and their channels."""
    one, two = backbone.role("guides", "method 'spg'")
    return (one.name, two.name), (one.channels, two.channels)


def make_classifier(backbone: Backbone, num_classes: int, dropout: float | None) -> ConvHead:
    """Build A, the classifier."""
    channels = backbone.channels[-1]
    if backbone.profile.kin == "resnet":
        return ConvHead(channels, num_classes, depth=0, dropout=dropout or 0.0)
    if backbone.profile.kin == "vgg":
        return ConvHead(channels, num_classes, width=channels, dropout=dropout or 0.0)
    return ConvHead(
        channels, num_classes, width=backbone.head_width, dropout=0.5 if dropout is None else dropout
    )


def convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """Build a `size` x `size` convolution that keeps the grid.

    Xavier-uniform weights and zero biases, as for the other new layers of both codes.
    """
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def upsample(scores: Float[Tensor, "b 1 h w"], size: int) -> Float[Tensor, "b {size} {size}"]:
    """Resize scores bilinearly to `size` x `size`, in float32."""
    return F.interpolate(scores.float(), size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def object_levels(m: Float[Tensor, "b H W"], high: float, config: SpgConfig) -> Float[Tensor, "b 1 1"]:
    """Return h of eq. (1) for each image."""
    lowered = config.fallback * m.amax(dim=(1, 2))
    level = torch.full_like(lowered[0], high)
    if config.fallback_scope == "per_image":
        few = (m > level).sum(dim=(1, 2)) < config.min_fg_px
        return torch.where(few, lowered, level)[:, None, None]
    levels = []
    for image, own in zip(m, lowered, strict=True):  # each depends on the one before it
        level = torch.where((image > level).sum() < config.min_fg_px, own, level)
        levels.append(level)
    return torch.stack(levels)[:, None, None]


def guidance(m: Float[Tensor, "b H W"], high: Float[Tensor, "b 1 1"], low: float) -> Float[Tensor, "b H W"]:
    """Return G, the labels of pixels, for the levels `high` of the images, eq. (1)."""
    foreground = torch.where(m > high, 1.0, UNKNOWN)
    return torch.where(m < low, 0.0, foreground).to(m.dtype)


def guided_loss(scores: Float[Tensor, "b H W"], target: Float[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy over known pixels, eq. (2), for scores before the sigmoid."""
    known = target != UNKNOWN
    each = F.binary_cross_entropy_with_logits(scores, target.where(known, 0.0), reduction="none")
    return each.where(known, 0.0).sum() / known.sum().clamp(min=1)


class Spg(Localizer):
    """See the module."""

    method_name = "spg"
    Config = SpgConfig
    config: SpgConfig
    recipes = MappingProxyType(
        {
            "spg_official": OFFICIAL_RECIPE,
            "spg_ilsvrc": replace(
                OFFICIAL_RECIPE, new_factor=10.0, source=f"{OFFICIAL_RECIPE.source}; new layers as meant"
            ),
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: SpgConfig) -> None:
        super().__init__(backbone, num_classes, config)
        _check(config)
        self.places, channels = find_insertion_points(backbone)
        narrow = backbone.head_width // 2  # 512 where the heads are 1024 wide
        width = backbone.head_width if backbone.profile.kin == "resnet" else narrow
        self.head = make_classifier(backbone, num_classes, config.dropout)
        self.side1 = nn.Sequential(convolution(channels[0], width, 3), nn.ReLU())
        self.side2 = nn.Sequential(convolution(channels[1], width, 3), nn.ReLU())
        self.shared = nn.Sequential(convolution(width, width, 3), nn.ReLU(), convolution(width, 1, 1))
        self.side_c = nn.Sequential(
            convolution(self.head.classifier.in_channels, narrow, 3), nn.ReLU(), convolution(narrow, 1, 1)
        )

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the authors' recipe in place of SPA's for ILSVRC. They give none for CUB."""
        name = super().recipe_name(backbone, num_classes)
        return "spg_ilsvrc" if name == "spa_ilsvrc" else name

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Follow wsolevaluation's names with its recipes.

        On ResNet-50 only the last stage learns faster, on VGG also blocks 4 and 5.
        """
        if recipe.last_stage_is_new and self.backbone.profile.kin == "resnet":
            return self.is_last_stage(name)
        deep = recipe.source == WSOLEVALUATION and self.backbone.profile.in_group(name, "deep")
        return deep or super().is_new(name, recipe)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits and maps of A, eq. (6)."""
        stages = self.backbone.stages(images)
        head = self.head(next(reversed(stages.values())))
        return ForwardPass(
            logits=head.logits,
            maps_of=head.maps_of,
            stages=stages,
            penultimate=head.penultimate,
            weights_of=head.weights_of,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of A and the guided loss of each branch, eqs. (3) to (5)."""
        config, size = self.config, self.config.mask_size
        # Map of the label and scores of the branches, each (B, H, W).
        features, one, two = self.features(batch.images)
        head = self.head(features)
        seen = min_max(upsample(head.maps_of(batch.labels[:, None]).detach(), size))
        b1 = upsample(self.shared(self.side1(one)), size)
        b2 = upsample(self.shared(self.side2(two)), size)
        c = upsample(self.side_c(head.penultimate), size)
        # Labels of each branch from a deeper one.
        with torch.no_grad():
            sure1, sure2 = b1.sigmoid(), b2.sigmoid()
            guides = [
                guidance(m, object_levels(m, high, config), low)
                for m, high, low in zip(
                    (seen, sure2, (sure1 + sure2) / 2), config.high, config.low, strict=True
                )
            ]
        return {
            "cross_entropy": cross_entropy(head.logits, batch.labels),
            "guided_b2": guided_loss(b2, guides[0]),  # (3)
            "guided_b1": guided_loss(b1, guides[1]),  # (4)
            "guided_c": guided_loss(c, guides[2]),  # (5)
        }

    def features(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs of A, B1 and B2."""
        found: dict[str, Tensor] = {}

        def note(step: str, features: Tensor) -> Tensor:
            if step in self.places:
                found[step] = features
            return features

        between = not {stage.name for stage in self.backbone.layout}.issuperset(self.places)
        stages = self.backbone.stages(images, edit=note if between else None)
        found.update(stages)
        return next(reversed(stages.values())), found[self.places[0]], found[self.places[1]]


def _check(config: SpgConfig) -> None:
    pairs = list(zip(config.high, config.low, strict=False))
    if not len(config.high) == len(config.low) == 3 or not all(0 <= low <= high <= 1 for high, low in pairs):
        raise UsageError(
            f"settings high={config.high} and low={config.low} of method 'spg': expected three numbers "
            "each, in [0, 1], low not above high"
        )
    if not 0 < config.fallback < 1:
        raise UsageError(
            f"setting fallback of method 'spg' is {config.fallback}; expected a number between 0 and 1"
        )
    if config.min_fg_px < 0 or config.mask_size < 1:
        raise UsageError(
            f"settings min_fg_px={config.min_fg_px} and mask_size={config.mask_size} of method 'spg': "
            "expected at least 0, and at least 1"
        )
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise UsageError(
            f"setting dropout of method 'spg' is {config.dropout}; expected a number from 0 to below 1"
        )
