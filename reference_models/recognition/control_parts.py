"""Control parts: random or central points without training; a baseline.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, compares the distance of proposed parts to the key points (Figure 4). There are no
controls in the paper; these are this project's.

Idea. Parts that know nothing of the image, or only where the object is, have some distance to its key points,
too. A method that proposes parts should be nearer. `points` selects the four parts of each image:

    image_random    points drawn evenly from the image
    image_center    the centre of the image, four times
    box_random      points drawn evenly from the ground-truth box
    box_center      the centre of the ground-truth box, four times
    anchors         NTS-Net's selection (`layers/navigator.py`) of anchors with random scores

Points have a square of 160 / 448 of the image around them, as the peaks of class maps have
(`layers/regions.py`). Anchors are those of an input of 448 pixels, scaled with the image.

`box_random` and `box_center` read the ground-truth box of the image that they are evaluated on. They are no
predictions, and their records say so (`supervision`).

Draws depend on the pixels of the image alone, so an evaluation repeats to the bit. The class maps are 0
everywhere, because the control is of proposals and not of maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.untrained import Untrained
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import ForwardPass, Proposals
from reference_models.layers.navigator import Scored, nominate, nts_anchors
from reference_models.layers.regions import PEAK_SIDE
from wsolbench.exceptions import UsageError

PAPER = "ssanet"

PARTS = 4
"""Number of parts: SSANET and NTS-Net."""
OVERLAP = 0.25
"""Largest IoU of two anchors: NTS-Net."""


@dataclass(frozen=True, kw_only=True)
class ControlPartsConfig(MethodConfig):
    """Settings of `control-parts`."""

    points: Literal["image_random", "image_center", "box_random", "box_center", "anchors"] = "image_random"
    """Where the parts are; see the top of this page."""


def draw_uniform(images: Float[Tensor, "b c h w"], count: int) -> Float[Tensor, "b {count}"]:
    """Draw numbers in [0, 1) for each image, in float64. They depend on its pixels alone, on every device."""
    # Integer arithmetic modulo 2^64, whose sums do not depend on their order.
    levels = (images.double() * 64).round().long().flatten(1)
    places = torch.arange(levels.shape[1], device=images.device)
    seeds = (levels * (2 * _scramble(places) + 1)).sum(dim=1, keepdim=True)
    numbers = _scramble(seeds + torch.arange(1, count + 1, device=images.device) * -7046029254386353131)
    return ((numbers >> 11) & (2**53 - 1)).double() / 2**53


def _scramble(z: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Return the output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ ((z >> shift) & (2 ** (64 - shift) - 1))) * factor
    return z ^ ((z >> 31) & (2**33 - 1))


class ControlParts(Untrained):
    """See the module."""

    method_name = "control-parts"
    Config = ControlPartsConfig
    config: ControlPartsConfig

    @property
    def uses_true_boxes(self) -> bool:
        """Whether the parts are placed in the ground-truth box."""
        return self.config.points.startswith("box_")

    def localize(
        self,
        images: Float[Tensor, "b 3 H W"],
        *,
        gradients: bool = False,  # noqa: ARG002 - the signature of all methods
        true_boxes: Float[Tensor, "b 4"] | None = None,
    ) -> ForwardPass:
        """Return the parts, and class maps of 0. There are no logits.

        `true_boxes` are the ground-truth boxes in pixels of the input. Raises `UsageError` if the setting
        needs them and they are None.
        """
        if self.uses_true_boxes and true_boxes is None:
            raise UsageError(
                f"setting points={self.config.points} of method 'control-parts' needs the ground-truth box "
                "of each image; evaluate it by `wsolbench eval`, or use points=image_random"
            )
        found = self.place(images, true_boxes)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k H W"]:
            return images.new_zeros(()).expand(*class_ids.shape, *images.shape[2:])

        result = ForwardPass(logits=None, maps_of=maps_of, propose=lambda: found)
        return self._with_proposals(result, images.shape[-1])

    def place(
        self, images: Float[Tensor, "b 3 S S"], true_boxes: Float[Tensor, "b 4"] | None = None
    ) -> Proposals:
        """Return the parts of each image."""
        size = images.shape[-1]
        if self.config.points == "anchors":
            anchors = nts_anchors(size, images.device)
            scores = draw_uniform(images, len(anchors))
            return nominate(Scored(scores.float(), anchors), size, PARTS, OVERLAP)
        # Points (B, K, 2) in an area (B, 1, 4).
        if self.uses_true_boxes and true_boxes is not None:
            area = true_boxes[:, None]
        else:
            area = images.new_zeros(len(images), 1, 4)
            area[..., 2:] = size
        share: Tensor | float = 0.5
        if self.config.points.endswith("_random"):
            share = draw_uniform(images, PARTS * 2).view(-1, PARTS, 2).to(area.dtype)
        centres = (area[..., :2] + share * (area[..., 2:] - area[..., :2])).expand(-1, PARTS, 2)
        half = PEAK_SIDE * size / 2
        return Proposals(
            boxes=torch.cat([centres - half, centres + half], dim=-1),
            scores=images.new_zeros(len(images), PARTS),
        )
