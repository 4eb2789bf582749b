"""SCG and small inputs of it, for its tests."""

from __future__ import annotations

from collections import OrderedDict

import torch
from hypothesis import strategies as st

from reference_models.core.outputs import ForwardPass
from reference_models.postprocess.scg.method import (
    Scg,
    ScgConfig,
)

VARIANTS = ["official", "paper"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SEEDS = st.integers(0, 2**31)


def scg(variant: str = "official", **settings: str) -> Scg:
    return Scg.create({"variant": variant, **settings})


def settings_of(variant: str = "official", **settings: str) -> ScgConfig:
    return scg(variant, **settings).config.published(None)


def forward_pass(stages: list[torch.Tensor], coarse: torch.Tensor, classes: int = 200) -> ForwardPass:
    """What a localizer would give whose maps are `coarse` (B, C, h, w)."""
    return ForwardPass(
        logits=torch.zeros(len(coarse), classes),
        maps_of=lambda class_ids: coarse.take_along_dim(class_ids[:, :, None, None], dim=1),
        stages=OrderedDict((f"stage{number}", stage) for number, stage in enumerate(stages)),
        penultimate=stages[-1],
    )


def every_map(post: Scg, stages: list[torch.Tensor], coarse: torch.Tensor) -> torch.Tensor:
    return post.maps(forward_pass(stages, coarse), torch.arange(coarse.shape[1]).expand(len(coarse), -1))


def random_inputs(
    seed: int, *, signed: bool = False, side: int = 5
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two stages of two images, and maps of three classes."""
    source = torch.Generator().manual_seed(seed)
    stages = [torch.randn(2, channels, side, side, generator=source) for channels in (6, 9)]
    return [stage if signed else stage.relu() for stage in stages], torch.randn(
        2, 3, side, side, generator=source
    )


def clusters(seed: int, first: int, second: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (1, 4, N, 1) of two kinds of pixels in random order, at right angles to each other; which are
    of the first kind."""
    source = torch.Generator().manual_seed(seed)
    kinds = torch.cat([torch.ones(first), torch.zeros(second)])[
        torch.randperm(first + second, generator=source)
    ]
    directions = torch.tensor([[0.0, 3, 0, 4], [5, 0, 0, 0]])
    lengths = 0.1 + torch.rand(first + second, generator=source)
    return (directions[kinds.long()] * lengths[:, None]).T[None, :, :, None], kinds.bool()
