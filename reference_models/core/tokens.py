"""The backbone adapter of vision transformers: tokens as feature maps, and the attention of any block.

A token backbone is a sequence of steps like any other: `embed`, `block0` to the last block, `norm`,
`patches`. Tokens (B, P + N, D) flow between `embed` and `norm`: P prefix tokens (class and registers), then N
= h w patches. The stages, and the output of `patches`, are feature maps (B, D, h, w) without prefix tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.core.backbone import Backbone, Edit
from reference_models.core.outputs import Tokens
from reference_models.core.profile import Profile, Role, Stage
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

Weighting = Callable[[Tensor], Tensor]
"""Maps attention logits (B, H, T, T) to weights of the values, for instance by softmax over the last axis."""

STAGES = 3
"""Number of last blocks whose outputs are stages. The normalised patches are one more stage."""


def softmax(logits: Float[Tensor, "b h q k"]) -> Float[Tensor, "b h q k"]:
    """Return the usual weights of attention."""
    return logits.softmax(dim=-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Attended:
    """Results of a block.

    Attributes:
        tokens: (B, T, D) its output.
        weights: (B, H, T, T) attention of each head. Row t is the attention of token t.
        queries, keys, values: (B, H, T, D / H).
    """

    tokens: Tensor
    weights: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


def attend(block: Any, x: Float[Tensor, "b t d"], weighting: Weighting = softmax) -> Attended:
    """Run a timm block on tokens `x`, layer by layer, with `weighting` in place of the softmax."""
    attention = block.attn
    normed = block.norm1(x)
    split = attention.qkv(normed).reshape(*x.shape[:2], 3, attention.num_heads, -1)
    queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D / H)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    weights = weighting(queries * attention.scale @ keys.mT)
    mixed = (attention.attn_drop(weights) @ values).transpose(1, 2).flatten(2)  # (B, T, D)
    if hasattr(attention, "norm"):  # not in the first versions of timm that this project supports
        mixed = attention.norm(mixed)
    x = x + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(mixed))))
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return Attended(tokens=x, weights=weights, queries=queries, keys=keys, values=values)


class Embed(nn.Module):
    """Convert images to tokens: patches, prefix tokens and positions of a timm vision transformer."""

    def __init__(self, net: Any, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b t d"]:
        """Embed the images. Raises `UsageError` if they cannot be cut into whole patches."""
        side, patch = images.shape[-1], self.net.patch_embed.patch_size[0]
        if side % patch:
            raise UsageError(
                f"{self.name} cannot cut images of {side} pixels into patches of {patch}; expected a "
                f"multiple, for instance --image-size {side // patch * patch or patch}"
            )
        tokens = self.net.patch_drop(self.net._pos_embed(self.net.patch_embed(images)))
        embedded: Tensor = self.net.norm_pre(tokens)
        return embedded


class Patches(nn.Module):
    """Convert tokens to the feature map of the patches, which form a square."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b d h w"]:
        """Convert (B, P + N, D) to (B, D, h, w), without prefix tokens."""
        side = math.isqrt(tokens.shape[1] - self.prefix)
        patches = tokens[:, self.prefix :].mT  # (B, D, N)
        return patches.reshape(*patches.shape[:2], side, side)


class TokenBackbone(Backbone):
    """A vision transformer as steps. `prefix` is the number of prefix tokens, the class token first."""

    def __init__(self, name: str, net: Any, *, grid: str, input_spec: InputSpec, profile: Profile) -> None:
        blocks, norm, width = list(net.blocks), net.norm, int(net.embed_dim)
        patch, prefix = int(net.patch_embed.patch_size[0]), int(net.num_prefix_tokens)
        net.blocks, net.norm = nn.Sequential(), nn.Identity()  # they are steps of their own
        steps: OrderedDict[str, nn.Module] = OrderedDict(embed=Embed(net, name))
        steps.update({f"block{number}": block for number, block in enumerate(blocks)})
        steps.update(norm=norm, patches=Patches(prefix))
        ends = [f"block{number}" for number in range(len(blocks))][-STAGES:]
        layout = [Stage(end, patch, width) for end in [*ends, "patches"]]
        super().__init__(name, steps, layout, grid=grid, input_spec=input_spec, profile=profile)
        self.prefix, self.blocks = prefix, [step for step in steps if step.startswith("block")]

    def roles_of_layout(self) -> dict[Role, tuple[Stage, ...]]:
        """Return only roles that are read at the ends of stages: tokens, not maps, flow between steps."""
        return {role: steps for role, steps in super().roles_of_layout().items() if role == "guides"}

    def stages(self, images: Float[Tensor, "b 3 H W"], edit: Edit | None = None) -> OrderedDict[str, Tensor]:
        """Return the stages as `Backbone.stages` does. Between `embed` and `norm`, `edit` gets tokens.

        With gradients in evaluation mode, the tokens of the next block are made of the stage's map. So scores
        can be differentiated by every stage.
        """
        to_map: Any = self.steps["patches"]
        ends, joins = {stage.name for stage in self.layout}, torch.is_grad_enabled() and not self.training
        found: OrderedDict[str, Tensor] = OrderedDict()

        def keep(name: str, x: Tensor) -> Tensor:
            x = x if edit is None else edit(name, x)
            if name not in ends:
                return x
            found[name] = x if name == "patches" else to_map(x)
            if name == "patches" or not joins:
                return x
            return torch.cat([x[:, : self.prefix], found[name].flatten(2).mT], dim=1)

        super().stages(images, keep)
        return found

    def attend(self, step: str, x: Float[Tensor, "b t d"], weighting: Weighting = softmax) -> Attended:
        """Run a block, by name, on its input tokens; see `attend`."""
        return attend(self.steps[step], x, weighting)

    def attention(self, images: Float[Tensor, "b 3 H W"], step: str) -> Float[Tensor, "b heads t t"]:
        """Return the attention of each head of a block between all tokens, including prefix tokens."""
        before = list(self.steps)[list(self.steps).index(step) - 1]
        return self.attend(step, self.run(images, until=before)).weights

    def tokens(self, images: Float[Tensor, "b 3 H W"]) -> Tokens:
        """Return all token outputs from one pass.

        Patches, prefix tokens, queries, keys and values of the last block, and the attention of the class
        token.
        """
        x, rows, last = self.run(images, until="embed"), [], None
        for step in self.blocks:
            last = self.attend(step, x)
            x = last.tokens
            rows.append(last.weights[:, :, 0].mean(dim=1))  # (B, T): what the first token attends to
        assert last is not None
        to_map: Any = self.steps["patches"]
        queries, keys, values = (
            to_map(heads.transpose(1, 2).flatten(2)) for heads in (last.queries, last.keys, last.values)
        )
        normed = self.steps["norm"](x)
        return Tokens(
            patches=to_map(normed),
            prefix=normed[:, : self.prefix],
            queries=queries,
            keys=keys,
            values=values,
            attention=to_map(torch.stack(rows, dim=2)) if self.prefix else None,
        )


def require_tokens(backbone: Backbone, who: str) -> TokenBackbone:
    """Return the backbone as a `TokenBackbone`. `who` is the method that needs it (`method 'ts-cam'`).

    Raises `UsageError` if the backbone is not a vision transformer in its variant `tokens`.
    """
    if not isinstance(backbone, TokenBackbone):
        raise UsageError(
            f"{who} needs the tokens of a vision transformer, and {backbone.name} ({backbone.grid}) gives "
            "none; expected a ViT, DeiT or DINO of timm in its variant 'tokens', for instance --backbone "
            "timm:deit_small_patch16_224"
        )
    return backbone
