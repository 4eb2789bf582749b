"""Parts of methods on vision transformers: a classifier of patch tokens, and the class token's attention.

W. Gao, F. Wan, X. Pan, Z. Peng, Q. Tian, Z. Han, B. Zhou, Q. Ye, "TS-CAM: token semantic coupled attention
map for weakly supervised object localization", ICCV 2021, has both. SCM and SAT take the classifier over.

    X       patches         (B, D, h, w)       patch tokens after the final norm
    S       maps            (B, C, h, w)
    s       logits          (B, C)
    a       attention       (B, L, h, w)       of the class token to the patches in each of L blocks
    F       summed          (B, 1, h, w)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.core.tokens import Attended, TokenBackbone
from reference_models.layers.heads import HeadOutput, pick_maps


class TokenHead(nn.Module):
    """3x3 convolution from patch tokens to the classes, with bias, then the mean over the patches.

    The convolution has torch's default initialisation.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, num_classes, 3, padding=1)

    def forward(self, patches: Float[Tensor, "b d h w"]) -> HeadOutput:
        """Return logits s = mean S, and the maps S of any class."""
        maps = self.classifier(patches)  # (B, C, h, w)
        return HeadOutput(maps.mean(dim=(2, 3)), patches, lambda class_ids: pick_maps(maps, class_ids))


def read_attention(
    backbone: TokenBackbone, images: Float[Tensor, "b 3 H W"]
) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b l h w"]]:
    """Return the stages as `Backbone.stages` does, and the attention a, from one pass."""
    stages, rows = _read_rows(backbone, images, lambda found: found.class_row)  # each (B, T)
    return stages, backbone.to_map(torch.stack(rows, dim=2))


def read_heads(
    backbone: TokenBackbone, images: Float[Tensor, "b 3 H W"]
) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b l heads h w"]]:
    """Return what `read_attention` does, with the attention of each head of a block."""
    stages, rows = _read_rows(backbone, images, lambda found: found.weights[:, :, 0])  # each (B, heads, T)
    every = torch.stack(rows, dim=1)  # (B, L, heads, T)
    maps = backbone.to_map(every.flatten(1, 2).mT)  # (B, L heads, h, w)
    return stages, maps.reshape(len(maps), *every.shape[1:3], *maps.shape[2:])


def _read_rows(
    backbone: TokenBackbone, images: Float[Tensor, "b 3 H W"], row_of: Callable[[Attended], Tensor]
) -> tuple[OrderedDict[str, Tensor], list[Tensor]]:
    """Return the stages, and what `row_of` gives for each block."""
    ends = {stage.name for stage in backbone.layout}
    stages: OrderedDict[str, Tensor] = OrderedDict()
    rows, x = [], images
    for name, found in backbone.trace(images):
        x = found.tokens
        rows.append(row_of(found))
        if name in ends:
            stages[name] = backbone.to_map(x)
    stages["patches"] = backbone.to_map(backbone.steps["norm"](x))
    return stages, rows


def sum_attention(attention: Float[Tensor, "b l h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return F, the sum of a over the blocks, in float32.

    It is at most L in total, because the class token and other prefix tokens attend to themselves, too.
    """
    return attention.float().sum(dim=1, keepdim=True)
