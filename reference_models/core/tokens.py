"""The backbone adapter of vision transformers: tokens as feature maps, and the attention of any block.

A token backbone is a sequence of steps like any other: `embed`, `block0` to the last block, `norm`,
`patches`. Tokens (B, P + N, D) flow between `embed` and `norm`: P prefix tokens (class and registers), then N
= h w patches. The stages, and the output of `patches`, are feature maps (B, D, h, w) without prefix tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
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

    @property
    def class_row(self) -> Float[Tensor, "b t"]:
        """Return the attention of the class token to all tokens, averaged over heads."""
        return self.weights[:, :, 0].mean(dim=1)


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

    def forward(self, tokens: Float[Tensor, "b t d"], appended: int = 0) -> Float[Tensor, "b d h w"]:
        """Convert (B, P + N + E, D) to (B, D, h, w), without the P prefix and the E appended tokens."""
        patches = tokens[:, self.prefix : tokens.shape[1] - appended].mT  # (B, D, N)
        side = math.isqrt(patches.shape[2])
        return patches.reshape(*patches.shape[:2], side, side)


class TokenBackbone(Backbone):
    """A vision transformer as steps.

    Attributes:
        prefix: number of prefix tokens, the class token first.
        blocks: names of the blocks, in order.
        has_class_token: whether there is a class token.
    """

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
        self.has_class_token = getattr(net, "cls_token", None) is not None

    def roles_of_layout(self) -> dict[Role, tuple[Stage, ...]]:
        """Return only roles that are read at the ends of stages: tokens, not maps, flow between steps."""
        read: tuple[Role, ...] = ("guides", "skips")
        return {role: steps for role, steps in super().roles_of_layout().items() if role in read}

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

    def to_map(self, tokens: Float[Tensor, "b t d"], appended: int = 0) -> Float[Tensor, "b d h w"]:
        """Return the patches of `tokens` as a map. The last `appended` tokens are no patches."""
        patches: Tensor = self.steps["patches"](tokens, appended)
        return patches

    def embed(
        self, images: Float[Tensor, "b 3 H W"], appended: Float[Tensor, "e d"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Return the input tokens of the first block, followed by `appended` tokens in each image."""
        x = self.run(images, until="embed")
        return x if appended is None else torch.cat([x, appended.to(x.dtype).expand(len(x), -1, -1)], dim=1)

    def trace(
        self,
        images: Float[Tensor, "b 3 H W"],
        appended: Float[Tensor, "e d"] | None = None,
        weightings: Mapping[str, Weighting] = MappingProxyType({}),
    ) -> Iterator[tuple[str, Attended]]:
        """Yield the name and the result of each block, from one pass.

        Args:
            images: normalised.
            appended: learned tokens behind the patches, their positions included. None: no such tokens.
            weightings: by name of the block, the weighting in place of the softmax.
        """
        x = self.embed(images, appended)
        for step in self.blocks:
            found = self.attend(step, x, weightings.get(step, softmax))
            x = found.tokens
            yield step, found

    def tokens(
        self,
        images: Float[Tensor, "b 3 H W"],
        appended: Float[Tensor, "e d"] | None = None,
        weightings: Mapping[str, Weighting] = MappingProxyType({}),
    ) -> Tokens:
        """Return all token outputs from one pass; see `trace` for the arguments.

        Patches, prefix tokens, queries, keys and values of the last block, and the attention of the class
        token.
        """
        rows, last, extra = [], None, 0 if appended is None else len(appended)
        for _, last in self.trace(images, appended, weightings):
            rows.append(last.class_row)
        assert last is not None
        queries, keys, values = (
            self.to_map(heads.transpose(1, 2).flatten(2), extra)
            for heads in (last.queries, last.keys, last.values)
        )
        normed = self.steps["norm"](last.tokens)
        return Tokens(
            patches=self.to_map(normed, extra),
            prefix=normed[:, : self.prefix],
            queries=queries,
            keys=keys,
            values=values,
            attention=self.to_map(torch.stack(rows, dim=2), extra) if self.has_class_token else None,
        )

    def set_drop_path(self, rate: float) -> None:
        """Set the probability of skipping the last block in training; see `Recipe.drop_path`."""
        from timm.layers.drop import DropPath  # here: commands that train nothing import this file, too

        for number, step in enumerate(self.blocks):
            block: Any = self.steps[step]
            share = rate * number / max(1, len(self.blocks) - 1)
            block.drop_path1, block.drop_path2 = (
                (DropPath(share) if share else nn.Identity()).train(block.training) for _ in range(2)
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
