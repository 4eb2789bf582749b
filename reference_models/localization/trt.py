"""TRT: classify by the attended patches, weighted by a second attention.

H. Su, Y. Ye, Z. Chen, M. Song, L. Cheng, "Re-attention transformer for weakly supervised object
localization", BMVC 2022. Released code: su-hui-zz/ReAttentionTransformer (no licence).

Idea. The attention of the class token has noise on the background. So it only chooses patches here: the most
attended ones, up to a share of the attention. One more block looks at these alone and gives each a weight.
The classifier sees their weighted mean and no other patch, so the weights must fall on the object.

    paper      name                                    shape
    L          number of blocks
    a          attention                               (B, N)         of the class token to the patches, sum 1
    theta      theta                                   a number
    K          kept                                    (B, N)         whether a patch is kept
    c, x_i     class token and patches                 (B, 1, D), (B, N, D)   behind block L - 1
    w          weights                                 (B, N)         sum 1, and 0 outside K
    s_c        logits                                  (B, C)
    M          fuse_attention(..)                      (B, N)         sum 1
    S_c        branch maps                             (B, C, h, w)
    M_c        maps_of(class_ids)                      (B, K, h, w)

    First stage
    (1)  a = sum over the blocks 1 to L - 1 of the class token's row, mean over heads; then a <- a / sum of a
    (2)  K = the patches, by falling a, whose cumulative sum is below theta; at least the first one
    (3)  w = softmax over K of v . norm(block(x on K)), a block and a norm of its own, v a learned vector
    (4)  s = the linear classifier of norm(block L of (c, sum_i w_i x_i)), of its class token
    (5)  L = CE(s, y)
    (6)  M = w * (sum of a on K) on K, and a elsewhere

    Second stage, with everything else frozen
    (7)  S = conv3x3(norm(block(tokens behind block L - 2))), with bias; a block and a norm of its own
    (8)  L = CE(mean over patches of S, y)
    (9)  M_c = M * S_c

No gradient passes through (1) and (2). The label always comes from (4). `coupled=false` gives M, the map of
the first stage, for every class. M is also the extra map `reattention`, and a is `attention`. A run has two
stages of `stage_epochs`, each with its own schedule of the rate. A run of one epoch trains both at once; (8)
has no gradient outside its branch then, too.

Dropped patches are masked, so that shapes do not depend on the image. The kept ones do not see them: (3) is
that of the kept patches alone.

Both new blocks start as copies of block L, and their norms as copies of the last one. In (3) neither the
norm nor v has a bias, because the softmax removes it.

Weights that each published number needs, by their names in timm: `deit_base_patch16_224` (.fb_in1k), and for
the rows of 384 pixels `deit_base_patch16_384` (.fb_in1k) with `--image-size 384 --set recipe.resize=1.1667`
(448 / 384) and, in the first stage of the released run, `recipe.gamma=0.2`. Released thresholds of the boxes:
0.1 of the maximum on CUB, 0.12 on ILSVRC (protocol `tscam`), for all metrics but MaxBoxAccV2.

Departures. Where one patch has a share of theta or more, the code keeps none and all weights are 0; (2) keeps
one. Its masked softmax gives dropped patches a weight of about 1e-6 / N, here 0. On ILSVRC it keeps DeiT's
classifier for 1,000 classes, here the classifier is new; and it augments more (`core/token_recipes.py`). A
comment says that (7) reads block L - 1; as the code runs it is block L - 2. At 384 pixels the code copies
the block of (7) from the network for 224. Both stages keep their best epoch by Top-1 Loc of the test images;
here the last one counts. The keys of post-processes are those of block L with all patches, which training
never shows it.

Not checked: the text of the paper, and any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reference_models.base.token_localizer import TokenLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import MANY_CLASSES, Recipe
from reference_models.core.token_recipes import TOKEN_RECIPES
from reference_models.core.tokens import attend
from reference_models.layers.heads import HeadOutput, cross_entropy
from reference_models.layers.token_maps import TokenHead
from reference_models.training.stages import Place, stage_if_any, stage_lr_factor
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count, Positive, ShareBelow1

PAPER = "trt"

FIRST, SECOND = 0, 1
"""Numbers of the stages."""
LARGE_SIDE = 384
"""Smallest side of the input for which theta is that of the released configuration for 384 pixels."""


@dataclass(frozen=True, kw_only=True)
class TrtConfig(MethodConfig):
    """Settings of `trt`.

    None and an empty list stand for the released value for CUB, or for ILSVRC if there are 500 classes or
    more.
    """

    at_test: ClassVar[frozenset[str]] = frozenset({"coupled"})

    theta: Positive | None = None
    """Share of the attention that the kept patches stay below, (2). Above 1: all patches are kept.

    None: 0.6, or 0.65 for images of 384 pixels or more (CUB), or 0.95 (ILSVRC).
    """
    smoothing: ShareBelow1 | None = None
    """Label smoothing of (5): 0 (CUB) or 0.1 (ILSVRC). (8) has none."""
    stage_epochs: tuple[Count, ...] = ()
    """Epochs of the two stages: 30,20 (CUB) or 12,12 (ILSVRC). A run of another length scales them."""
    coupled: bool = True
    """Whether M is multiplied by S_c, (9). Without it the map of every class is M."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_epochs) not in {0, 2}:
            raise UsageError(
                f"setting stage_epochs={','.join(map(str, self.stage_epochs))} of method 'trt' has "
                f"{len(self.stage_epochs)} lengths; expected those of two stages: stage_epochs=30,20"
            )


def released_settings(num_classes: int, side: int) -> Mapping[str, Any]:
    """Return theta, the smoothing and the lengths of the stages of the released configurations."""
    if num_classes >= MANY_CLASSES:
        return {"theta": 0.95, "smoothing": 0.1, "stage_epochs": (12, 12)}
    return {"theta": 0.65 if side >= LARGE_SIDE else 0.6, "smoothing": 0.0, "stage_epochs": (30, 20)}


def keep_attended(attention: Float[Tensor, "b n"], theta: float) -> Bool[Tensor, "b n"]:
    """Return K, the most attended patches with less than `theta` together, eq. (2).

    Of equally attended patches, the first ones are kept.
    """
    ranked, order = attention.sort(dim=1, descending=True, stable=True)
    kept = ranked.cumsum(dim=1) < theta
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter(1, order, kept)  # (2)


def softmax_over(logits: Float[Tensor, "*b n"], kept: Bool[Tensor, "*#b n"]) -> Float[Tensor, "*b n"]:
    """Return the softmax of the logits of K over the last axis, and 0 elsewhere."""
    return logits.masked_fill(~kept, float("-inf")).softmax(dim=-1)


def fuse_attention(
    weights: Float[Tensor, "b n"], attention: Float[Tensor, "b n"], kept: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """Return M: on K the weights, with the sum of the attention there, and the attention elsewhere, eq. (6).

    Its sum is 1.
    """
    mass = (attention * kept).sum(dim=1, keepdim=True)
    return torch.where(kept, weights * mass, attention)  # (6)


class NormedBlock(nn.Module):
    """Copies of a block of the transformer and of its last norm."""

    def __init__(self, block: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.block, self.norm = copy.deepcopy(block), copy.deepcopy(norm)

    def copy_drop_path(self, block: Any) -> None:
        """Skip the block with the probability of another one."""
        own: Any = self.block
        for name in ("drop_path1", "drop_path2"):
            setattr(own, name, copy.deepcopy(getattr(block, name)).train(self.training))


class Scorer(NormedBlock):
    """The second attention: weights of the kept patches, eq. (3)."""

    def __init__(self, block: nn.Module, norm: nn.Module, width: int) -> None:
        super().__init__(block, norm)
        self.norm.register_parameter("bias", None)
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, patches: Float[Tensor, "b n d"], kept: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return w, in float32."""
        found = attend(self.block, patches, lambda logits: softmax_over(logits, kept[:, None, None]))
        scores = self.head(self.norm(found.tokens))[..., 0].float()
        return softmax_over(scores, kept)  # (3)


class Branch(NormedBlock):
    """The layers of the second stage, eq. (7)."""

    def __init__(self, block: nn.Module, norm: nn.Module, width: int, num_classes: int) -> None:
        super().__init__(block, norm)
        self.head = TokenHead(width, num_classes)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    """Result of the first stage on a batch.

    Attributes:
        logits: (B, C) s.
        attention, weights: (B, N) a and w.
        kept: (B, N) K.
        stages: maps of the last blocks before block L. The scores depend on the last one.
        before: (B, P + N, D) tokens behind block L - 2.
    """

    logits: Tensor
    attention: Tensor
    weights: Tensor
    kept: Tensor
    stages: OrderedDict[str, Tensor]
    before: Tensor


class Trt(TokenLocalizer):
    """See the module."""

    method_name = "trt"
    Config = TrtConfig
    config: TrtConfig
    recipes = MappingProxyType({name: TOKEN_RECIPES[name] for name in ("trt_cub", "trt_ilsvrc")})

    def __init__(self, backbone: Backbone, num_classes: int, config: TrtConfig) -> None:
        unset = {
            name: value
            for name, value in released_settings(num_classes, backbone.input_spec.size).items()
            if getattr(config, name) in (None, ())
        }
        super().__init__(backbone, num_classes, replace(config, **unset))
        width, last, norm = backbone.channels[-1], self.last_block, backbone.steps["norm"]
        self.scorer = Scorer(last, norm, width)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.branch = Branch(last, norm, width, num_classes)
        self.set_learning(frozenset({FIRST}))

    @property
    def last_block(self) -> nn.Module:
        """Return block L."""
        return self.backbone.steps[self.backbone.blocks[-1]]

    # --- the stages of a run --------------------------------------------------------------------------------
    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:
        """Give the method's own recipes the length of the stages that the settings name."""
        assert isinstance(config, TrtConfig)
        own = name in cls.recipes and config.stage_epochs
        return replace(recipe, epochs=sum(config.stage_epochs)) if own else recipe

    def place_in_run(self, epoch: int | float, epochs: int) -> Place | None:
        """Return the stage of a time, or None in a run of one epoch."""
        return stage_if_any(epoch, epochs, self.config.stage_epochs)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze the modules of the other stage. The new blocks are skipped as often as block L."""
        place = self.place_in_run(epoch, epochs)
        self.set_learning(frozenset({FIRST, SECOND} if place is None else {place.stage}))
        for module in (self.scorer, self.branch):
            module.copy_drop_path(self.last_block)

    def set_learning(self, stages: frozenset[int]) -> None:
        """Train the modules of these stages. The others are frozen, in evaluation mode."""
        self.learning = stages
        for module in (self.backbone, self.scorer, self.classifier, self.branch):
            on = (SECOND if module is self.branch else FIRST) in stages
            module.requires_grad_(on).train(on and self.training)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each stage."""
        return stage_lr_factor(recipe, progress, self.place_in_run(progress * recipe.epochs, recipe.epochs))

    # --- the method -----------------------------------------------------------------------------------------
    def read(self, images: Float[Tensor, "b 3 H W"]) -> Reading:
        """Run the first stage, eqs. (1) to (4)."""
        backbone, ends = self.backbone, {stage.name for stage in self.backbone.layout}
        stages: OrderedDict[str, Tensor] = OrderedDict()
        rows = list[Tensor]()
        before = x = backbone.embed(images)  # (B, P + N, D)
        for name in backbone.blocks[:-1]:
            found = backbone.attend(name, x)
            before, x = x, found.tokens
            rows.append(found.class_row.detach().float())
            if name in ends:
                stages[name] = backbone.to_map(x)
        # Choose patches.
        attention = torch.stack(rows).sum(dim=0)[:, backbone.prefix :]
        attention = attention / attention.sum(dim=1, keepdim=True)  # (1)
        assert self.config.theta is not None
        kept = keep_attended(attention, self.config.theta)
        # Weigh them. They are made of the stage, so that the scores can be differentiated by it.
        patches = stages[backbone.blocks[-2]].flatten(2).mT  # (B, N, D)
        weights = self.scorer(patches, kept)
        pooled = (weights[..., None] * patches).sum(dim=1, keepdim=True)
        pair = self.last_block(torch.cat([x[:, :1], pooled.to(x.dtype)], dim=1))  # (B, 2, D)
        return Reading(
            logits=self.classifier(backbone.steps["norm"](pair)[:, 0]),  # (4)
            attention=attention,
            weights=weights,
            kept=kept,
            stages=stages,
            before=before,
        )

    def classify_patches(self, before: Float[Tensor, "b t d"]) -> HeadOutput:
        """Return the scores and maps of the branch for the tokens behind block L - 2, eq. (7)."""
        branch = self.branch
        found: HeadOutput = branch.head(self.backbone.to_map(branch.norm(branch.block(before.detach()))))
        return found

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits of the first stage, and its map times the class maps of the branch."""
        reading = self.read(images)
        grid = next(reversed(reading.stages.values())).shape[2:]
        flat = fuse_attention(reading.weights, reading.attention, reading.kept)
        fused, attention = (each.reshape(-1, *grid) for each in (flat, reading.attention))
        head = self.classify_patches(reading.before) if self.config.coupled else None

        def maps_of(class_ids: Tensor) -> Tensor:
            if head is None:
                return fused[:, None].expand(-1, class_ids.shape[1], -1, -1)
            return fused[:, None] * head.maps_of(class_ids)  # (9)

        return ForwardPass(
            logits=reading.logits,
            maps_of=maps_of,
            stages=reading.stages,
            extra_maps={"reattention": fused, "attention": attention},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each stage that learns, eqs. (5) and (8)."""
        terms: dict[str, Tensor] = {}
        if FIRST in self.learning:
            reading, smoothing = self.read(batch.images), self.config.smoothing
            assert smoothing is not None
            before, logits = reading.before, reading.logits.float()
            terms["cross_entropy"] = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)  # (5)
        else:
            before = self.backbone.run(batch.images, until=self.backbone.blocks[-3])
        if SECOND in self.learning:
            terms["branch"] = cross_entropy(self.classify_patches(before).logits, batch.labels)  # (8)
        return terms
