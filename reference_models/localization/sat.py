"""SAT: a learned token marks the foreground and masks the attention.

P. Wu, W. Zhai, Y. Cao, J. Luo, Z.-J. Zha, "Spatial-aware token for weakly supervised object localization",
ICCV 2023. Released code: wpy1999/SAT (no licence, "for research purpose only").

Idea. Maps made of classification features show what classification needs: parts. A second learned token asks
each token instead whether it belongs to the object. Its answer multiplies the attention of the last three
blocks, so the classifier pays for whatever the mask hides. Two terms give the mask an area and make it crisp.

    paper      name                                    shape
    t          location                                (1, D)         learned token + its own position
    q, k       queries, keys of a block                (B, H, T, D/H) T = P + N + 1: prefix, patches, t
    m_l        foreground(z)                           (B, T)         mask of block l
    m          mask                                    (B, h, w)
    G          kernel                                  (3, 3)
    r          area                                    a number
    s_c        logits                                  (B, C)

    (1)  z = q k^T / sqrt(D / H)
    (2)  m_l = sigmoid(mean over heads of the row of t in z)
    (3)  attention = softmax(z) * m_l over the keys, not normalised again; in the last three blocks
    (4)  m = mean of m_l over these blocks, for the patches
    (5)  s = mean over patches of conv3x3(patch tokens after the norm)
    (6)  u = G * m, with zeros around m
    (7)  L = CE(s, y) + |mean over batch and patches of m - r| + mean of u (1 - u)

The map is m, the same for every class. (3) multiplies each row by the same m_l, also those of the class token
and of t. The second term of (7) looks at the whole batch: single objects may be larger or smaller than r.

G is called Gaussian, but is nearly the identity: 0.805 in the middle, 0.046 at the sides, 0.003 in the
corners. It is the outer product of a row with itself, whose entries are roots of the mass of a normal
distribution in three equal intervals from -49/6 to 49/6.

Weights that each published number needs, by their names in timm: `deit_small_patch16_224` (.fb_in1k) for both
data sets, the classifier for 1,000 classes dropped. Published numbers are of a centre crop of 224 of 256
pixels, as `--protocol bas` has it. Labels come from ten crops on CUB, as there, and from the same crop on
ILSVRC. The box threshold was chosen on the test images: 0.4 on CUB, of 0.3, 0.35, 0.4 and 0.45, and 0.3 on
ILSVRC. All metrics share it, MaxBoxAccV2, too.

Departures. The code keeps the best of the epochs from 26 on by the test images; here the last one counts.
Under several processes the second term of (7) is the mean over the processes of each one's own deviation,
while the code for one machine averages areas first. Other remarks on the recipes: `core/token_recipes.py`.

Not checked: the text of the paper, and any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

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
from reference_models.core.tokens import Weighting, softmax
from reference_models.layers.heads import cross_entropy
from reference_models.layers.token_maps import TokenHead
from wsolbench.ranges import PositiveShare, Weight

PAPER = "sat"

MASKED = 3
"""Number of last blocks whose attention is masked, eq. (3)."""
AREAS: Mapping[str, float] = MappingProxyType({"cub": 0.25, "ilsvrc": 0.35})
"""r of the released scripts."""


@dataclass(frozen=True, kw_only=True)
class SatConfig(MethodConfig):
    """Settings of `sat`."""

    area: PositiveShare | None = None
    """Mean share of the image that the masks of a batch should cover, r.

    None: 0.25 as the released script for CUB, or 0.35 as that for ILSVRC if there are 500 classes or more.
    """
    area_weight: Weight = 1.0
    """Weight of the second term of (7); the released code has no weight."""
    crisp_weight: Weight = 1.0
    """Weight of the third term of (7); the released code has no weight."""


def smoothing_kernel() -> Float[Tensor, "3 3"]:
    """Return G, whose entries add up to 1, eq. (6)."""
    outer = math.sqrt(math.erfc(49 / 18 / math.sqrt(2)) / 2)  # root of the mass beyond 49/18
    row = torch.tensor([outer, math.sqrt(1 - 2 * outer**2), outer], dtype=torch.float64)
    row /= row.sum()
    return torch.outer(row, row).float()


def foreground(logits: Float[Tensor, "b heads t t"]) -> Float[Tensor, "b t"]:
    """Return m_l in [0, 1], float32: what the last token asks of each token, eq. (2)."""
    return logits[:, :, -1].float().mean(dim=1).sigmoid()  # (2)


def mask_attention(
    logits: Float[Tensor, "b heads t t"], mask: Float[Tensor, "b t"]
) -> Float[Tensor, "b heads t t"]:
    """Return the attention times the mask of its keys, eq. (3)."""
    return softmax(logits) * mask[:, None, None]  # (3)


def area_loss(mask: Float[Tensor, "b h w"], area: float) -> Float[Tensor, ""]:
    """Return how far the mean area of a batch is from `area`, the second term of eq. (7)."""
    return (mask.mean() - area).abs()


def crisp_loss(mask: Float[Tensor, "b h w"], kernel: Float[Tensor, "3 3"]) -> Float[Tensor, ""]:
    """Return the mean of u (1 - u) in [0, 0.25], the third term of eq. (7). It is 0 for masks of 0 and 1."""
    with torch.autocast(mask.device.type, enabled=False):
        u = F.conv2d(mask.float()[:, None], kernel[None, None], padding=1)  # (6)
    return (u * (1 - u)).mean()


class Sat(TokenLocalizer):
    """See the module."""

    method_name = "sat"
    Config = SatConfig
    config: SatConfig
    map_kind = "unit"
    recipes = MappingProxyType({name: TOKEN_RECIPES[name] for name in ("sat_cub", "sat_ilsvrc")})
    kernel: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: SatConfig) -> None:
        published = AREAS["cub" if num_classes < MANY_CLASSES else "ilsvrc"]
        area = published if config.area is None else config.area
        super().__init__(backbone, num_classes, replace(config, area=area))
        self.area = area
        width = backbone.channels[-1]
        self.head = TokenHead(width, num_classes)
        self.location_token, self.location_position = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width), std=0.02)) for _ in range(2)
        )
        self.register_buffer("kernel", smoothing_kernel(), persistent=False)

    @property
    def location(self) -> Float[Tensor, "1 d"]:
        """Return t with its position."""
        return self.location_token + self.location_position

    @property
    def masked_blocks(self) -> list[str]:
        """Return the names of the blocks with eq. (3)."""
        return self.backbone.blocks[-MASKED:]

    def read(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b h w"]]:
        """Return the stages, without t, and the mask m, from one pass."""
        backbone, masks = self.backbone, list[Tensor]()
        stages: OrderedDict[str, Tensor] = OrderedDict()

        def weighting(logits: Tensor) -> Tensor:
            masks.append(foreground(logits))
            return mask_attention(logits, masks[-1])

        x = backbone.embed(images, self.location)  # (B, P + N + 1, D)
        for name in backbone.blocks:
            if name in self.masked_blocks:
                x = backbone.attend(name, x, weighting).tokens
                stages[name] = backbone.to_map(x, appended=1)
            else:
                x = backbone.steps[name](x)
        stages["patches"] = backbone.to_map(backbone.steps["norm"](x), appended=1)
        mask = torch.stack(masks).mean(dim=0)[..., None]  # (B, T, 1)
        return stages, backbone.to_map(mask, appended=1)[:, 0]  # (4)

    def weightings(self) -> dict[str, Weighting]:
        """Return the masked attention of each block with eq. (3), by name."""
        return dict.fromkeys(self.masked_blocks, lambda logits: mask_attention(logits, foreground(logits)))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, and m as the map of every class."""
        stages, mask = self.read(images)
        head = self.head(stages["patches"])  # (5)
        tokens = torch.no_grad()(self.backbone.tokens)
        return ForwardPass(
            logits=head.logits,
            maps_of=lambda class_ids: mask[:, None].expand(-1, class_ids.shape[1], -1, -1),
            stages=stages,
            penultimate=head.penultimate,
            tokens=partial(tokens, images, self.location, self.weightings()),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (7)."""
        stages, mask = self.read(batch.images)
        return {
            "cross_entropy": cross_entropy(self.head(stages["patches"]).logits, batch.labels),
            "area": self.config.area_weight * area_loss(mask, self.area),
            "crisp": self.config.crisp_weight * crisp_loss(mask, self.kernel),
        }  # (7)
