"""My method: CAM trained with a penalty on the area of the map of the true class.

A. Author, B. Author, "Title of the paper", VENUE YEAR.

Idea. Two to four sentences: what goes wrong without the method, what the method changes, why that helps.

    paper      name                                    shape
    S_c        logits                                  (B, C)
    M_c        maps_of(class_ids)                      (B, K, h, w)
    lambda     config.area_weight

    L_area = mean over x, y of sigmoid(M_y(x, y))                                                 (1)
    L = CE(S, y) + lambda L_area                                                                  (2)

Departures from the paper. Each difference, and its reason; or "None."
Departures from released code. Each difference, with the file and the commit; or "No code is released."
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.outputs import Batch
from reference_models.layers.heads import cross_entropy
from wsolbench.ranges import Share


def area_loss(maps: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean area of the maps, from 0 to 1; eq. (1)."""
    return torch.sigmoid(maps).mean()


@dataclass(frozen=True, kw_only=True)
class MyMethodConfig(HeadConfig):
    """Settings of `my-method`."""

    area_weight: Share = 0.1
    """Weight of the area: where the paper says so (section, table or released file)."""


class MyMethod(HeadLocalizer):
    """See the module."""

    method_name = "my-method"
    Config = MyMethodConfig
    config: MyMethodConfig

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the two terms of eq. (2)."""
        result = self(batch.images)
        maps = result.maps_of(batch.labels[:, None])  # (B, 1, h, w)
        return {
            "cross_entropy": cross_entropy(result.logits, batch.labels),
            "area": self.config.area_weight * area_loss(maps),  # (1)
        }
