"""Center box: always predict a box in the middle; a baseline.

Photographers put their subject in the middle, so a fixed centred box is often correct. J. Choe, S. J. Oh, S.
Lee, S. Chun, Z. Akata, H. Shim, "Evaluating weakly supervised object localization methods right", CVPR 2020,
use a centred Gaussian as this baseline.

Idea. The map is a pyramid: 1 in the middle, 0 at the border. Its level sets are centred boxes with the
image's aspect ratio. The threshold tau gives the box whose sides are 1 - tau of the image's. So a sweep over
thresholds is a sweep over all centred boxes, and the best threshold gives the best centred box.

    m(x, y) = 1 - max(|x - W/2| / (W/2), |y - H/2| / (H/2))        (x, y): centre of a pixel

Departure from the paper's Gaussian: its level sets are ellipses, whose bounding boxes are the same centred
boxes. Only masks are scored differently.

With `--set side=0.7` the map is 1 inside the centred box of that side and 0 outside, so the threshold has no
effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.untrained import Untrained
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import ForwardPass
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec
from wsolbench.ranges import PositiveShare

PAPER = "wsolevaluation"
GROUP = "floor"


@dataclass(frozen=True, kw_only=True)
class CenterBoxConfig(MethodConfig):
    """Settings of `center-box`."""

    side: PositiveShare | None = None
    """Side of a fixed box as a fraction of the image's, in (0, 1]. None: the pyramid."""


def pyramid(height: int, width: int, *, device: torch.device | None = None) -> Float[Tensor, "h w"]:
    """Return m(x, y): 1 in the middle, falling to 0 at the border."""
    # |x - W/2| / (W/2) at the centre i + 1/2 of a pixel is |2i + 1 - W| / W: integers, hence exactly
    # symmetric.
    x = (2 * torch.arange(width, device=device) + 1 - width).abs() / width
    y = (2 * torch.arange(height, device=device) + 1 - height).abs() / height
    return 1 - torch.maximum(y[:, None], x[None, :])


class CenterBox(Untrained):
    """See the module."""

    method_name = "center-box"
    Config = CenterBoxConfig
    config: CenterBoxConfig

    def __init__(self, num_classes: int, config: CenterBoxConfig, input_spec: InputSpec) -> None:
        if config.side is not None and not 0 < config.side <= 1:
            raise UsageError(
                f"setting side={config.side} of method 'center-box': expected a part of the image's side, "
                "greater than 0 and at most 1"
            )
        super().__init__(num_classes, config, input_spec)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the same map for every image and class, at the size of the input, and no logits."""
        height, width = images.shape[-2:]
        middle = pyramid(height, width, device=images.device)
        if self.config.side is not None:
            middle = (middle > 1 - self.config.side).float()

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k H W"]:
            return middle.expand(*class_ids.shape, height, width)

        return ForwardPass(logits=None, maps_of=maps_of)
