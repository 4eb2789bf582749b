"""Oracle: the ground truth itself as a map of few cells, a ceiling.

This project's own, for the protocol of J. Choe, S. J. Oh, S. Lee, S. Chun, Z. Akata, H. Shim, "Evaluating
weakly supervised object localization methods right", CVPR 2020. It separates "the grid is too coarse" from
"the method does not know": no map of the same cells can be expected to score much higher.

Idea. The ground-truth box or mask of the evaluated image is averaged in h x w cells and scored like any map.

    T      truth        (B, S, S)       box: the share of each pixel that it covers; mask: 0 or 1
    M      grid_map(..) (B, h, w)       h = w = `cells`

    (1)  how=area:   M = mean of T over each cell
         how=cells:  M = [mean of T over each cell >= 1/2]

**Supervision: boxes or masks of the evaluated images.** Records state it.

It is a construction and no proven bound: resized to the frame, another map of the same cells can be slightly
closer to T. `how=cells` loses objects that fill less than half of every cell: their map is 0.
Of several boxes of an image the first one is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.untrained import Untrained
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import ForwardPass
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Range

PAPER = "wsolevaluation"
GROUP = "ceiling"


@dataclass(frozen=True, kw_only=True)
class OracleConfig(MethodConfig):
    """Settings of `oracle`."""

    cells: Annotated[int, Range(1, 448)] = 28
    """Cells of a side. 28 and 14 are usual grids of CAM at 224 pixels, 7 is that of an unchanged ResNet."""
    of: Literal["box", "mask"] = "box"
    """Ground truth that is drawn."""
    how: Literal["area", "cells"] = "area"
    """Values of the cells: the covered share, or 0 and 1, eq. (1)."""


def drawn_boxes(boxes: Float[Tensor, "b 4"], side: int) -> Float[Tensor, "b S S"]:
    """Return T of boxes in pixels: the share of each pixel that its box covers, exactly."""
    first = torch.arange(side, device=boxes.device, dtype=boxes.dtype)
    covered = [
        (
            torch.minimum(boxes[:, axis + 2, None], first + 1) - torch.maximum(boxes[:, axis, None], first)
        ).clamp(min=0)
        for axis in (0, 1)
    ]  # (B, S) of x and of y
    return covered[1][:, :, None] * covered[0][:, None, :]


def grid_map(
    truth: Float[Tensor, "b S S"], cells: int, how: Literal["area", "cells"]
) -> Float[Tensor, "b h w"]:
    """Return M, eq. (1)."""
    shares = torch.nn.functional.adaptive_avg_pool2d(truth, cells)
    return shares if how == "area" else (shares >= 0.5).to(shares)


class Oracle(Untrained):
    """See the module."""

    method_name = "oracle"
    Config = OracleConfig
    config: OracleConfig

    @property
    def uses_true_boxes(self) -> bool:
        """Whether boxes are drawn."""
        return self.config.of == "box"

    @property
    def uses_true_masks(self) -> bool:
        """Whether masks are drawn."""
        return self.config.of == "mask"

    def localize(
        self,
        images: Float[Tensor, "b 3 H W"],
        *,
        gradients: bool = False,  # noqa: ARG002 - the signature of all methods
        true_boxes: Float[Tensor, "b 4"] | None = None,
        true_masks: Float[Tensor, "b H W"] | None = None,
    ) -> ForwardPass:
        """Return the map of each image's truth for every class, and no logits.

        Raises `UsageError` without the ground truth that the setting names.
        """
        side = images.shape[-1]
        if self.config.of == "box" and true_boxes is not None:
            truth = drawn_boxes(true_boxes, side)
        elif self.config.of == "mask" and true_masks is not None:
            truth = true_masks
        else:
            raise UsageError(
                f"method 'oracle' with of={self.config.of} needs the ground truth of each image; evaluate it "
                "by `wsolbench eval`"
            )
        made = grid_map(truth, min(self.config.cells, side), self.config.how)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            return made[:, None].expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(logits=None, maps_of=maps_of)
