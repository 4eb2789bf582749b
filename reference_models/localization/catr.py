"""CATR: class maps of patch tokens and attention, shaped by two losses.

Z. Chen, J. Ding, L. Cao, Y. Shen, S. Zhang, G. Jiang, R. Ji, "Category-aware allocation transformer for
weakly supervised object localization", ICCV 2023. Released code: zhiweichen0012/CATR (no licence).

Idea. In TS-CAM, attention covers objects and knows no class. Here a small network reads the attention of all
heads and has to classify the image, so that attention learns the class (category-aware stimulation). Two more
losses refine it (object constraint). The patches that are attended least should get nothing. A map that is
made of the attention of the first blocks should agree with that of all blocks.

    released code   name                           shape
    X               stages["patches"]              (B, D, h, w)        patch tokens after the final norm
    S_c, s_c        head                           (B, C, h, w), (B, C)
    A               heads                          (B, L, H, h, w)     class token to patches, of each head
    T_c, t_c        stimulation(A)                 (B, C, h, w), (B, C)
    F               mean_attention(A)              (B, h, w)
    P               constraint(A)                  (B, h, w)           in (0, 1)
    p_i             weighting                      (4,)                starts at 1

    (1)  S = conv3x3(X), s = mean over the patches of S, as TS-CAM;  L_1 = CE(s, y)
    (2)  T = conv1x1(up(A, down(A))), with all L H maps as channels; down is a max-pool of 2 and two 3x3
         convolutions, up doubles that, joins A, and has two 3x3 convolutions to C channels;
         t = mean over the patches of T;  L_2 = CE(t, y)
    (3)  F = mean over l, sum over heads, of A
    (4)  L_3 = sum over images and patches of F, where F is not above its value of rank int(q N), / N
    (5)  P = sigmoid(norm(conv3x3([f_l(A_l)]))), f_l a weighted sum over heads, with norm and leaky ReLU, for
         the first blocks l;  L_4 = mean over images and patches of (P - F)^2
    (6)  L = sum over i of L_i / (2 p_i^2) + log(1 + p_i^2)
    (7)  M_c = F (S_c + T_c)

All convolutions of (2) and (5) are without bias, and their norm is batch norm. Released values differ for CUB
and ILSVRC: q is 0.25 and 0.1, (5) reads 9 and 10 of 12 blocks, and down has 16 and 512 channels.

**This is a reading of the released code.** The text of the paper was not at hand, so the numbers of the
equations are those of this file.

Weights: `deit_small_patch16_224` (.fb_in1k) of timm, without its classifier.

Departures. (4) adds up the images of a GPU, 128 in the released runs, so its weight depends on how a batch is
spread. Here it is 128 times the mean over the images. In (5) the released code subtracts maps of unequal
shapes, (B, 1, h, w) and (B, h, w), so that each image meets all others of its batch; here it meets itself. On
ILSVRC (7) is halved, which changes nothing after min-max. A grid of an odd number of patches is enlarged to
its own size in (2). The released evaluation takes the map of the predicted class also for GT-known; here it
is that of the true class, as for every method (protocol fields decide this for Top-k Loc). The released code
draws other views: see `core/token_recipes.py`.
With another number of blocks, (5) reads the same share of them.

Not checked: any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.token_localizer import TokenLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import MANY_CLASSES
from reference_models.core.token_recipes import TOKEN_RECIPES
from reference_models.layers.heads import cross_entropy, pick_maps
from reference_models.layers.token_maps import TokenHead, read_heads
from wsolbench.ranges import Channels, Count, ShareBelow1

PAPER = "catr"

IMAGES_OF_A_GPU = 128
"""Images that the released code adds up in eq. (4)."""
SLOPE = 0.01
"""Slope of the leaky ReLUs for negative values: torch's default."""


@dataclass(frozen=True, kw_only=True)
class CatrConfig(MethodConfig):
    """Settings of `catr`. None stands for the released value for CUB, or for ILSVRC from 500 classes on."""

    low_share: ShareBelow1 | None = None
    """q of eq. (4). None: 0.25 (CUB) or 0.1 (ILSVRC)."""
    early_blocks: Count | None = None
    """Number of first blocks that eq. (5) reads. None: 9 (CUB) or 10 (ILSVRC) of 12, or that share."""
    width: Channels | None = None
    """Channels inside the network of eq. (2). None: 16 (CUB) or 512 (ILSVRC)."""


def released_settings(num_classes: int, blocks: int) -> dict[str, Any]:
    """Return the values of the released code for this number of classes, on a network of so many blocks."""
    many = num_classes >= MANY_CLASSES
    early = max(1, round(blocks * (10 if many else 9) / 12))
    return {"low_share": 0.1 if many else 0.25, "early_blocks": early, "width": 512 if many else 16}


def mean_attention(heads: Float[Tensor, "b l heads h w"]) -> Float[Tensor, "b h w"]:
    """Return F, the mean over blocks of the sum over heads, in float32, eq. (3)."""
    return heads.float().mean(dim=1).sum(dim=1)  # (3)


def low_attention(attention: Float[Tensor, "b h w"], share: float) -> Float[Tensor, " b"]:
    """Return the mean over all patches of F where it is low, and of 0 elsewhere, for each image, eq. (4).

    The threshold is the value of rank int(share N), counted from 0. It counts as low itself.
    """
    flat = attention.flatten(1)  # (B, N)
    threshold = flat.sort(dim=1).values[:, int(share * flat.shape[1])][:, None]
    return torch.where(flat > threshold, 0.0, flat).mean(dim=1)  # (4)


def weigh_losses(losses: Float[Tensor, " n"], weighting: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the weighted losses without the price of the weights, eq. (6)."""
    return losses / (2 * weighting.square())


def price_of_weights(weighting: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the sum of log(1 + p^2), eq. (6)."""
    return weighting.square().log1p().sum()


def two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions without bias, each with batch norm and leaky ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs, momentum=0.01),  # released code
            nn.LeakyReLU(SLOPE, inplace=True),
        ]
    return nn.Sequential(*layers)


class Stimulation(nn.Module):
    """Class maps T of the attention of all heads, eq. (2)."""

    def __init__(self, maps: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), two_convolutions(maps, width))
        self.up = two_convolutions(maps + width, num_classes)
        self.classifier = nn.Conv2d(num_classes, num_classes, 1, bias=False)

    def forward(self, heads: Float[Tensor, "b l heads h w"]) -> Float[Tensor, "b c h w"]:
        """Return T."""
        maps = heads.flatten(1, 2)  # (B, L H, h, w)
        inner = F.interpolate(self.down(maps), size=maps.shape[2:], mode="bilinear", align_corners=False)
        scores: Tensor = self.classifier(self.up(torch.cat([maps, inner], dim=1)))  # (2)
        return scores


class Constraint(nn.Module):
    """The map P of the attention of the first blocks, eq. (5)."""

    def __init__(self, blocks: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(heads, 1, 1, bias=False), nn.BatchNorm2d(1), nn.LeakyReLU(SLOPE))
            for _ in range(blocks)
        )
        self.join = nn.Sequential(nn.Conv2d(blocks, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1))

    def forward(self, heads: Float[Tensor, "b l heads h w"]) -> Float[Tensor, "b h w"]:
        """Return P."""
        own = [block(heads[:, number]) for number, block in enumerate(self.blocks)]
        joined: Tensor = self.join(torch.cat(own, dim=1))[:, 0]
        return joined.float().sigmoid()  # (5)


class Catr(TokenLocalizer):
    """See the module."""

    method_name = "catr"
    Config = CatrConfig
    config: CatrConfig
    recipes = MappingProxyType({name: TOKEN_RECIPES[name] for name in ("catr_cub", "catr_ilsvrc")})

    def __init__(self, backbone: Backbone, num_classes: int, config: CatrConfig) -> None:
        super().__init__(backbone, num_classes, config)
        names = self.backbone.blocks
        released = released_settings(num_classes, len(names))
        self.config = replace(
            config, **{name: value for name, value in released.items() if getattr(config, name) is None}
        )
        settings, first = self.config, self.backbone.steps[names[0]]
        assert settings.low_share is not None
        assert settings.early_blocks is not None
        assert settings.width is not None
        heads = int(first.attn.num_heads)  # type: ignore[union-attr, arg-type]
        self.low_share = settings.low_share
        self.head = TokenHead(backbone.channels[-1], num_classes)
        self.stimulation = Stimulation(len(names) * heads, num_classes, settings.width)
        self.constraint = Constraint(min(settings.early_blocks, len(names)), heads)
        self.weighting = nn.Parameter(torch.ones(4))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits of the patch tokens, and the maps M."""
        stages, heads = read_heads(self.backbone, images)
        head, attention, maps = self.head(stages["patches"]), mean_attention(heads), self.stimulation(heads)

        def maps_of(class_ids: Tensor) -> Tensor:
            both: Tensor = head.maps_of(class_ids) + pick_maps(maps, class_ids)
            return attention[:, None] * both  # (7)

        return ForwardPass(
            logits=head.logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=head.penultimate,
            extra_maps={"attention": attention},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the four weighted losses and the price of their weights, eq. (6)."""
        stages, heads = read_heads(self.backbone, batch.images)
        attention = mean_attention(heads)
        scores = self.stimulation(heads).mean(dim=(2, 3))
        losses = torch.stack(
            [
                cross_entropy(self.head(stages["patches"]).logits, batch.labels),  # (1)
                cross_entropy(scores, batch.labels),  # (2)
                IMAGES_OF_A_GPU * low_attention(attention, self.low_share).mean(),  # (4)
                (self.constraint(heads) - attention).square().mean(),  # (5)
            ]
        )
        names = ("cross_entropy", "stimulation", "low_attention", "agreement")
        weighted = weigh_losses(losses, self.weighting)
        return {
            **dict(zip(names, weighted.unbind(), strict=True)),
            "weights": price_of_weights(self.weighting),
        }  # (6)
