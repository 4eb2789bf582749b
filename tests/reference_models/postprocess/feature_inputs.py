"""Forward passes for post-processes that read features alone."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from reference_models.core.outputs import ForwardPass, Tokens


def result(features: torch.Tensor, keys: torch.Tensor | None = None) -> ForwardPass:
    def tokens() -> Tokens:
        empty = torch.zeros(len(features), 1, 1, 1)
        return Tokens(
            patches=empty, prefix=empty[..., 0], queries=empty, keys=keys, values=empty, attention=None
        )

    return ForwardPass(
        logits=None,
        maps_of=lambda class_ids: pytest.fail("the method's own maps are not needed"),
        stages=OrderedDict(last=features),
        tokens=None if keys is None else tokens,
    )


def random_features(seed: int, count: int = 2, side: int = 5) -> torch.Tensor:
    return torch.randn(count, 6, side, side, generator=torch.Generator().manual_seed(seed))


def noisy_object(rows: slice, columns: slice, side: int = 8, noise: float = 0.3) -> torch.Tensor:
    """Features of a background, of an object, and of noise."""
    kinds = torch.zeros(2, side, side)
    kinds[0], kinds[:, rows, columns] = 1.0, torch.tensor([0.0, 1.0])[:, None, None]
    directions = torch.linalg.qr(torch.randn(16, 2)).Q
    return (torch.einsum("dk,khw->dhw", directions, kinds) + noise / 4 * torch.randn(16, side, side))[None]
