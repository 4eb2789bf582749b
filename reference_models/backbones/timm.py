"""Any timm network with feature stages, as `timm:<name>`.

Variants: `std14` asks timm for an output stride of 16, so that the last two stages share a grid (timm dilates
instead of striding). Networks that cannot do that keep their own grid, and so does `stock`. Weights
`imagenet` are timm's default weights of the network, downloaded from the Hugging Face hub. Size, mean and
deviation of the input are timm's.

`tokens` is only for vision transformers (ViT, DeiT, DINO, DINOv2): the network as steps that give tokens and
attention (`core/tokens.py`). The image size can be any multiple of the patch size.

Steps of the other variants cannot be edited: timm has no common notion of them.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import vision_transformer
from torch import Tensor, nn

from reference_models.core.backbone import TIMM_PREFIX, Backbone, Edit, pick_grid
from reference_models.core.profile import Profile, Role, Stage
from reference_models.core.tokens import TokenBackbone
from reference_models.core.weights import (
    IMAGENET,
    NONE,
    Weights,
    WeightsFile,
    drop_prefixes,
    first_line,
    load_strictly,
    sha256_of_tensors,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

TOKENS = "tokens"
TRANSFORMERS = {"vision_transformer", "deit"}
"""Modules of timm whose networks have the variant `tokens`."""
PROFILE = Profile(grids=("std14", "stock", TOKENS), grid_for={"fine-grained": "stock", "tokens": TOKENS})


class TimmBackbone(Backbone):
    """Timm's feature extractor behind the common interface. The whole network is one step."""

    channels_last: bool
    own_size: int
    """Image size that the network was built for. Some networks accept no other."""

    def roles_of_layout(self) -> dict[Role, tuple[Stage, ...]]:
        """Return only roles that are read at the ends of stages: steps cannot be edited."""
        read: tuple[Role, ...] = ("guides", "patches", "skips")
        return {role: steps for role, steps in super().roles_of_layout().items() if role in read}

    def stages(self, images: Float[Tensor, "b 3 H W"], edit: Edit | None = None) -> OrderedDict[str, Tensor]:
        """Return the stages as `Backbone.stages` does.

        Raises `UsageError` if `edit` is given, and for an image size that the network refuses.
        """
        if edit is not None:
            raise UsageError(
                f"a method that changes the inside of its backbone cannot use {self.name}; use one of "
                "`wsolbench list backbones`"
            )
        try:
            outputs = self.steps["net"](images)
        except AssertionError as error:
            if images.shape[-2:] == (self.own_size, self.own_size):
                raise
            raise UsageError(
                f"{self.name} takes only images of {self.own_size} pixels "
                f"({first_line(error).rstrip('.')}): leave out --image-size; "
                "methods that use crops need a network for any input size"
            ) from error
        if self.channels_last:
            outputs = [output.permute(0, 3, 1, 2) for output in outputs]
        return OrderedDict(zip((stage.name for stage in self.layout), outputs, strict=True))

    def run(
        self, x: Tensor, *, after: str | None = None, until: str | None = None, edit: Edit | None = None
    ) -> Tensor:
        """Return the last stage. Raises `UsageError` if only some steps are requested."""
        if after is not None or until is not None:
            raise UsageError(
                f"a method that runs a part of its backbone cannot use {self.name}; use one of `wsolbench "
                "list backbones`"
            )
        return next(reversed(self.stages(x, edit).values()))


def check_name(name: str) -> None:
    """Raise `UsageError` with the nearest names unless `timm:<name>` is a network of timm."""
    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        near = difflib.get_close_matches(model.lower(), timm.list_models(), n=5, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise UsageError(f"unknown timm model {model!r}{hint} timm.list_models() names all")


def has_tokens(name: str) -> bool:
    """Return whether `timm:<name>` is a vision transformer, which has the variant `tokens`."""
    return bool(timm.models.is_model_in_modules(name.removeprefix(TIMM_PREFIX), TRANSFORMERS))


def build(*, name: str, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid(name, grid, PROFILE.grids)
    check_name(name)
    model = name.removeprefix(TIMM_PREFIX)
    facts: Any = timm.get_pretrained_cfg(model)
    source = Weights(NONE)
    if isinstance(weights, WeightsFile):
        # timm renames tensors and drops those that a feature extractor does not have, so the file is first
        # checked against the whole network.
        _check_fit(name, model, weights)
        net = _create(
            name, model, grid=grid, pretrained=True, pretrained_cfg_overlay={"state_dict": weights.tensors}
        )
    else:
        net = _create(name, model, grid=grid, pretrained=weights == IMAGENET)
        if weights == IMAGENET:
            source = Weights(f"timm {facts.tag or 'default'}", sha256_of_tensors(net.state_dict()))
    spec = _input_spec(facts)
    if grid == TOKENS:
        tokens = TokenBackbone(name, net, grid=grid, input_spec=spec, profile=PROFILE)
        tokens.weights = source
        return tokens
    channels, strides = net.feature_info.channels(), net.feature_info.reduction()
    layout = [
        Stage(f"stage{number}", stride, width)
        for number, (stride, width) in enumerate(zip(strides, channels, strict=True), start=1)
    ]
    backbone = TimmBackbone(name, {"net": net}, layout, grid=grid, input_spec=spec, profile=PROFILE)
    backbone.weights = source
    backbone.own_size = spec.size
    backbone.channels_last = _is_channels_last(net, spec.size, channels[-1])
    return backbone


def _check_fit(name: str, model: str, weights: WeightsFile) -> None:
    """Raise `DataError` unless the file has exactly the network's tensors, except its classifier."""
    whole = timm.create_model(model, pretrained=False, num_classes=0)
    classifiers: Any = timm.get_pretrained_cfg(model)
    prefixes = (
        [classifiers.classifier]
        if isinstance(classifiers.classifier, str)
        else list(classifiers.classifier or ())
    )
    tensors = (
        drop_prefixes(weights.tensors, *(f"{prefix}." for prefix in prefixes))
        if prefixes
        else weights.tensors
    )
    load_strictly(whole, tensors, what=f"the weights of {name}")


def _create(name: str, model: str, *, grid: str, **options: Any) -> Any:
    # Options to try in order, by variant.
    failure: Exception | None = None
    stages: dict[str, Any] = {"features_only": True}
    tries: tuple[dict[str, Any], ...] = {
        "std14": ({**stages, "output_stride": 16}, stages),
        "stock": (stages,),
        TOKENS: ({"num_classes": 0, "dynamic_img_size": True},),
    }[grid]
    # Build with the first options that the network supports.
    for extra in tries:
        try:
            net = timm.create_model(model, **options, **extra)
            return _prepare_transformer(name, net) if grid == TOKENS else net
        except UsageError:
            raise
        except (TypeError, NotImplementedError, AssertionError, AttributeError) as error:
            failure = error  # this network has no such option, or no stages at all
        except (
            Exception
        ) as error:  # the hub's client raises errors of its own, of requests and of the file system
            raise UsageError(
                f"cannot get the ImageNet weights of {name} ({type(error).__name__}: {first_line(error)}). "
                "Offline: fill the Hugging Face cache (HF_HOME) elsewhere, or use --weights PATH or "
                "--weights none"
            ) from error
    lacking = "tokens" if grid == TOKENS else "feature stages"
    raise UsageError(f"{name} offers no {lacking} ({failure}); choose another network") from failure


def _prepare_transformer(name: str, net: Any) -> Any:
    """Return the network without the layers that only its classifier uses.

    Raises `UsageError` unless its blocks are supported by `core/tokens.py`.
    """
    kinds: Any = vision_transformer
    known = isinstance(net, kinds.VisionTransformer) and all(
        type(block) is kinds.Block
        and type(block.attn) is kinds.Attention
        and getattr(block.attn, "gate", None) is None
        for block in net.blocks
    )
    if not known:
        raise UsageError(
            f"{name} has no plain attention blocks; expected a ViT, DeiT, DINO or DINOv2 of timm, or another "
            "variant than --set grid=tokens"
        )
    net.fc_norm, net.head_drop, net.head = nn.Identity(), nn.Identity(), nn.Identity()
    return net


def _input_spec(facts: Any) -> InputSpec:
    mean, std = (tuple(float(value) for value in values) for values in (facts.mean, facts.std))
    return InputSpec(
        size=int(facts.input_size[-1]), mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2])
    )


@torch.no_grad()
def _is_channels_last(net: Any, size: int, channels: int) -> bool:
    """Return whether the stages are (B, h, w, C), which only a forward pass shows."""
    net.eval()
    shape = net(torch.zeros(1, 3, size, size))[-1].shape
    net.train()
    return bool(shape[1] != channels and shape[3] == channels)
