"""PC1: the pattern of pixels that the class's channels share.

S. Yasuki, M. Taki, "CAM back again: Large kernel CNNs from a weakly supervised object localization
perspective", CVPR 2024. Released code: snskysk/CAM-Back-Again.

Idea. CAM adds the channels, so a few strong ones decide. Here every channel counts alike: each is weighed by
the class and min-max normalised over the pixels. The map is the pattern of pixels along which these images of
channels differ most, which is object against background.

    symbol    name            shape
    F         penultimate     (B, D, N)        input of the last linear layer; N = h w
    W_c       weights         (B, K, D)        weights of the class
    R         rows            (B, K, D, N)     one image of N pixels for each channel
    p         pattern         (B, K, N)

    (1)  R_d = min-max over the pixels of W_cd F_d
    (2)  p = first principal axis of the rows R_d, each an observation of N pixels: the mean row is
         subtracted, and p is the first right singular vector
    (3)  p / max p
    (4)  mean over the border of [p > mean p] above 1/2: p becomes 1 - p

The min-max of (1) removes the size of W_cd: the class is seen in the signs of its weights alone.
`weights=none` takes all of them as 1, for methods without classes (`frozen`).

The map is p times its singular value. It is 0 where p is arbitrary: where no two channels differ, or the two
largest singular values are equal.

Departures. (3) is left out and (4) turns p to -p, which is the same once the protocol has min-max normalised
the map. (4) compares the mean of the inner cells with that of the outermost ones (`polarity`), which gives
p and -p the same sign. The released rule counts two rows of cells on two sides and divides by the number of
cells of one row, so it can turn both p and -p around. Channels that are constant are 0, where the code
divides 0 by 0. The class is the one that the protocol asks for; the source takes the predicted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.correlation import apply_in_chunks, select_features
from reference_models.layers.principal import FLAT, Polarity, check_grid, orient, principal_pattern
from wsolbench.exceptions import UsageError
from wsolbench.methods import Localization

PAPER = "cam-back-again"


@dataclass(frozen=True, kw_only=True)
class Pc1Config(PostConfig):
    """Settings of `pc1`."""

    weights: Literal["class", "none"] = "class"
    """`class`: weights of the class in the last linear layer (paper). `none`: 1 for every channel."""
    polarity: Polarity = "border"
    """Rule for the sign. `border` stands for eq. (4); see the module."""


def rescale_channels(
    features: Float[Tensor, "b d n"], weights: Float[Tensor, "b k d"]
) -> Float[Tensor, "b k d n"]:
    """Return R, eq. (1). Constant channels, and those of weight 0, are 0."""
    low, high = features.amin(dim=2, keepdim=True), features.amax(dim=2, keepdim=True)
    flat = high - low <= FLAT * torch.maximum(high.abs(), low.abs())
    unit = (features - low) / (high - low).masked_fill(flat, 1.0)  # (B, D, N)
    signs = weights.sign().masked_fill(flat.mT, 0.0)[..., None]  # (B, K, D, 1)
    # min-max of w F is that of F for w > 0, and 1 minus it for w < 0.
    return signs.clamp(min=0) * unit[:, None] + (-signs).clamp(min=0) * (1 - unit[:, None])  # (1)


def pixel_axis(rows: Float[Tensor, "b k d n"]) -> Float[Tensor, "b k n"]:
    """Return p, eq. (2), times its singular value and with any sign."""
    centred = rows - rows.mean(dim=2, keepdim=True)
    return principal_pattern(centred, rows.square().sum(dim=(2, 3)))  # (2)


class Pc1(PostProcess):
    """See the module."""

    method_name = "pc1"
    Config = Pc1Config
    map_kind = "signed"
    config: Pc1Config

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the penultimate features.

        Raises `UsageError` for a method without a linear layer on them, unless `weights=none`, and for
        `polarity=border` on a grid without inner cells.
        """
        (features,) = select_features(result, ("penultimate",), who=self.method_name)
        count, channels, height, width = features.shape
        check_grid(height, width, self.config.polarity, who=self.method_name)
        if self.config.weights == "class":
            weights = self._class_weights(result, class_ids)
        else:
            weights = torch.ones_like(features[:, None, :, 0, 0])
        cells, smaller = height * width, min(channels, height * width)
        floats = weights.shape[1] * (3 * smaller**2 + 4 * cells * channels)

        def compute(some: Tensor, own_weights: Tensor) -> Tensor:
            rows = rescale_channels(some.double().flatten(2), own_weights.double())
            return pixel_axis(rows).reshape(len(some), -1, height, width)

        pattern = apply_in_chunks(compute, [features, weights], bytes_per_image=8 * floats)
        pattern = pattern.expand(count, class_ids.shape[1], height, width)
        coarse = result.score_maps(class_ids) if self.config.polarity == "cam" else None
        return orient(pattern, self.config.polarity, coarse).float()

    def _class_weights(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        weights_of = getattr(result, "weights_of", None)
        if weights_of is None:
            raise UsageError(
                "post-process 'pc1' needs the weights of a linear classifier on the last features, and this "
                "method gives none; use a method such as cam, or --post-set pc1.weights=none"
            )
        weights: Tensor = weights_of(class_ids)
        return weights.detach()
