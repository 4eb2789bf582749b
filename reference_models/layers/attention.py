"""Attention as the mean over the channels: the region that ADL and EIL erase.

J. Choe, H. Shim, "Attention-based dropout layer for weakly supervised object localization", CVPR 2019; J.
Mai, M. Yang, W. Luo, "Erasing integrated learning: A simple yet effective approach for weakly supervised
object localization", CVPR 2020.

    F       features        (B, D, h, w)
    M       attention       (B, 1, h, w)
            is_kept         (B, 1, h, w)   False where M is near its maximum
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def attention(features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return M, the mean of F over the channels, in float32."""
    return features.float().mean(dim=1, keepdim=True)


def is_kept(attention: Float[Tensor, "b 1 h w"], tau: float) -> Bool[Tensor, "b 1 h w"]:
    """Return M < tau max(M), with the maximum over the pixels of an image.

    The comparison is strict. For tau <= 1 the maximum itself is not kept, and if it is 0, no pixel is. If it
    is negative (features without a ReLU) and tau < 1, all pixels are kept.
    """
    return attention < tau * attention.amax(dim=(2, 3), keepdim=True)
