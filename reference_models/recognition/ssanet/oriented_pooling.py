"""SSANET's oriented pooling (OP): patches pooled in four directions, and a classifier of the best one.

They are pooled along rows and columns, forwards and backwards.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, section 3.3; equations have the paper's numbers.

    paper           name                        shape
    X               features                    (R, C, H, H)        one part each
    x_ij            patches                     h x h cells, N x N of them; overlapping if needed
    p_i, q_j        maxima of the x_ij over j, over i: vectors of h h C, by row, column and channel
    Gamma           oriented_pooling            (R, 4, N h h C)     (9) rows, (10) columns, (11), (12) the
                                                                    same in reverse order
    y               OrientedHead                (R, C)              (13): max over the four of <w, Gamma>

The paper has h = 3 and N = 3 on 7x7 features, which implies a stride of 2. On other sizes h is the smallest
whose patches leave no gap, and N is at most H.

An open reading. The text says that the original and rotated feature maps are pooled along rows and columns.
(11) and (12) reverse the order of the vectors, and leave the cells inside a patch as they are. `equations` is
as printed; with patches of more than one cell its four vectors are not those of a rotated map. `rotated_maps`
pools the map and its three rotations along rows, and is invariant. For patches of one cell both are the same.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wsolbench.exceptions import UsageError

OpVariant = Literal["equations", "rotated_maps"]


def patch_layout(side: int, patches: int, patch: int = 0) -> tuple[int, int, int]:
    """Return number of patches along a side, their side and their stride, on a grid of `side` cells.

    Args:
        side: H.
        patches: N. Fewer if the grid is smaller.
        patch: h. 0: the smallest whose patches leave no gap.

    Raises `UsageError` if N patches of h cells cannot be spread evenly from border to border.
    """
    number = min(patches, side)
    if number == 1 and patch in {0, side}:
        return 1, side, 1
    for size in [patch] if patch else range(1, side):
        stride, rest = divmod(side - size, max(number - 1, 1))
        if number > 1 and rest == 0 and stride >= 1 and (patch or stride <= size):
            return number, size, stride
    raise UsageError(
        f"{number} patches of {patch} cells cannot be spread evenly over a grid of {side}: "
        f"expected a side h with {side} - h = {number - 1} times a stride, or 0 for one that fits"
    )


def _pool_rows(
    features: Float[Tensor, "r c H W"], patch: int, stride: int, axis: int
) -> Float[Tensor, "r n k"]:
    """Return p of every row of patches (`axis` 1), or q of every column (`axis` 0)."""
    cells = features.unfold(2, patch, stride).unfold(3, patch, stride)  # (R, C, N, N, h, h), a view
    return cells.amax(dim=2 + axis).permute(0, 2, 3, 4, 1).flatten(2)


def oriented_pooling(
    features: Float[Tensor, "r c H H"], patch: int, stride: int, variant: OpVariant = "equations"
) -> Float[Tensor, "r 4 l"]:
    """Return the pooled vectors Gamma_h, Gamma_v, Gamma_h', Gamma_v', eqs. (9)-(12).

    With `rotated_maps` they are Gamma_h of the map rotated by 0, 90, 180 and 270 degrees.
    """
    if variant == "rotated_maps":
        pooled = [_pool_rows(torch.rot90(features, turns, (2, 3)), patch, stride, 1) for turns in range(4)]
    else:
        forwards = [_pool_rows(features, patch, stride, axis) for axis in (1, 0)]
        pooled = [*forwards, *(vectors.flip(1) for vectors in forwards)]
    return torch.stack(pooled, dim=1).flatten(2)


class OrientedHead(nn.Module):
    """Classifier of the best orientation, eq. (13), with one weight for all of them, and no bias."""

    def __init__(
        self, channels: int, side: int, num_classes: int, *, patches: int, patch: int, variant: OpVariant
    ) -> None:
        super().__init__()
        number, self.patch, self.stride = patch_layout(side, patches, patch)
        self.variant: OpVariant = variant
        self.classifier = nn.Linear(number * self.patch**2 * channels, num_classes, bias=False)

    def forward(self, features: Float[Tensor, "r d H H"]) -> tuple[Float[Tensor, "r c"], Int[Tensor, "r c"]]:
        """Return y, float32, and the index of the best of the four orientations (the first of equals)."""
        scores = self.classifier(
            oriented_pooling(features, self.patch, self.stride, self.variant)
        ).float()  # (R, 4, C)
        best = scores.argmax(dim=1, keepdim=True)
        return scores.take_along_dim(best, dim=1)[:, 0], best[:, 0]
