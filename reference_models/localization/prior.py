"""Priors: one map for all images, a floor for every method.

J. Choe, S. J. Oh, S. Lee, S. Chun, Z. Akata, H. Shim, "Evaluating weakly supervised object localization
methods right", CVPR 2020, has the centred Gaussian. The other two kinds are this project's.

Idea. A map that ignores the image shows how much of a score photographers give away, since they put their
subject in the middle. The second and third kind also know one statistic of ground-truth boxes.

    G      gaussian(..)       (H, W)    kind=gaussian
    b*     best_box(..)       (4,)      kind=best-box, as shares of the sides
    M      mean_mask(..)      (h, w)    kind=mean-mask, h = w = `cells`

    (1)  G(x, y) = exp(-(u^2 + v^2) / (2 sigma^2)), u and v from the centre, in sides
    (2)  b* = argmax over boxes b on a grid of mean over images, and over `deltas`, of
         [the best IoU of b with a box of the image >= delta]
    (3)  M = mean over images of the mask, or of the filled boxes, averaged in cells

**Supervision: `best-box` and `mean-mask` read the boxes or masks of the split that they are fitted on.**
Records state it. No image is read.

The box has one operating point: its map is 1 inside and 0 outside, so the threshold has no effect. All
centred maps whose level sets fall from the middle, as the Gaussian and the pyramid of `center-box`, have the
same boxes up to one level of 8 bits.

Departures
    sigma      The source gives 1 without a unit. From a quarter of the side on it has no effect on boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from wsolbench.exceptions import DataError
from wsolbench.methods import Supervision
from wsolbench.ranges import Positive, PositiveShare, Range
from wsolbench.system.progress import track
from wsolbench.types import Dataset, Sample

PAPER = "wsolevaluation"
GROUP = "floor"

SIDE = 224
"""Side of the frame in which masks and boxes are filled, before they are averaged in cells."""
LEAST = 3
"""Smallest side of the best box, in cells."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig(MethodConfig):
    """Settings of `prior`."""

    kind: Literal["gaussian", "best-box", "mean-mask"] = "gaussian"
    """Which map. `gaussian` needs no data."""
    sigma: Positive = 0.25
    """Sigma of the Gaussian in sides of the image; ours, see the module."""
    cells: Annotated[int, Range(4, 112)] = 28
    """Cells of a side, of the mean mask and of the grid of the best box. 28: maps of CAM at 224 pixels."""
    deltas: tuple[PositiveShare, ...] = (0.5,)
    """IoU from which the best box counts. 0.3,0.5,0.7: as MaxBoxAccV2."""
    split: Literal["train", "val"] = "train"
    """Split whose boxes or masks are read. ILSVRC has them in `val` alone."""


def gaussian(height: int, width: int, sigma: float, device: torch.device) -> Float[Tensor, "H W"]:
    """Return G, eq. (1), at the centres of pixels."""
    # (i + 1/2) / S - 1/2 = (2i + 1 - S) / 2S: integers, hence exactly symmetric.
    rows, columns = (
        ((2 * torch.arange(side, device=device) + 1 - side) / (2 * side)) ** 2 for side in (height, width)
    )
    return torch.exp(-(rows[:, None] + columns) / (2 * sigma**2))


def best_box(
    boxes: Sequence[Float[np.ndarray, "_ 4"]], cells: int, deltas: Sequence[float]
) -> Float[np.ndarray, " 4"]:
    """Return b*, eq. (2), for the boxes of each image as shares of the sides. Of equal boxes the first wins.

    Candidates are all boxes on a grid of `cells` cells with sides of at least `LEAST`. The intersection with
    a candidate is the product of the overlaps of two intervals.
    """
    starts = np.cumsum([0, *map(len, boxes[:-1])])
    every = np.concatenate(boxes) * cells  # (N, 4), in cells
    areas = (every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1])
    low, high = np.array([(a, b) for a in range(cells) for b in range(a + LEAST, cells + 1)]).T  # (I,)
    across, down = (
        np.maximum(np.minimum(every[:, axis + 2, None], high) - np.maximum(every[:, axis, None], low), 0)
        for axis in (0, 1)
    )  # (N, I)
    best, found = -1.0, np.zeros(4)
    for number in track(range(len(low)), "searching the best box", unit="columns"):
        shared = across[:, number, None] * down  # (N, I)
        iou = shared / (areas[:, None] + (high[number] - low[number]) * (high - low) - shared)
        iou = np.maximum.reduceat(iou, starts, axis=0)  # (images, I): the best of an image's boxes
        rates = np.mean([(iou >= delta).mean(axis=0) for delta in deltas], axis=0)
        if rates.max() > best:
            best, row = float(rates.max()), int(rates.argmax())
            found = np.array([low[number], low[row], high[number], high[row]])
    return found / cells


def shares_of(sample: Sample) -> Float[np.ndarray, "r 4"]:
    """Return the boxes of an image as shares of its sides."""
    width, height = sample.size
    return np.asarray(sample.boxes, dtype=np.float64) / (width, height, width, height)


def filled(sample: Sample) -> Bool[np.ndarray, "S S"]:
    """Return the object of an image in a frame of `SIDE` pixels: its mask, or its filled boxes."""
    mask = sample.mask()
    centres = (np.arange(SIDE) + 0.5) / SIDE
    if mask is not None:
        rows, columns = ((centres * size).astype(int) for size in mask.shape)
        return np.asarray(mask[rows[:, None], columns])
    area = np.zeros((SIDE, SIDE), dtype=np.bool_)
    for x0, y0, x1, y1 in shares_of(sample):
        area |= ((centres >= y0) & (centres < y1))[:, None] & ((centres >= x0) & (centres < x1))
    return area


def mean_mask(samples: Sequence[Sample], cells: int) -> Float[np.ndarray, "h w"]:
    """Return M, eq. (3)."""
    total = np.zeros((SIDE, SIDE))
    for sample in track(samples, "averaging masks", unit="images"):
        total += filled(sample)
    mean = torch.from_numpy(total / len(samples))[None]
    return np.asarray(torch.nn.functional.adaptive_avg_pool2d(mean, cells)[0])


class Prior(Localizer):
    """See the module."""

    method_name = "prior"
    Config = PriorConfig
    config: PriorConfig
    needs_backbone = False
    learns_from = "statistics"
    map_kind = "unit"

    def __init__(self, backbone: Backbone, num_classes: int, config: PriorConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.register_buffer("best_box", torch.tensor([0.0, 0.0, 1.0, 1.0]))
        self.register_buffer("mean_mask", torch.zeros(config.cells, config.cells))
        self.ready = config.kind == "gaussian"

    @classmethod
    def train_split(cls, settings: Mapping[str, str]) -> str:
        """Return the split whose boxes or masks are read."""
        return settings.get("split", PriorConfig.split)

    def measure(self, train: Dataset, passes: Callable[[], Iterator[Batch]]) -> None:
        """Measure b* or M. Raises `DataError` if the split has no boxes, and for M no masks either."""
        del passes  # images do not matter
        kind = self.config.kind
        known = [
            sample
            for sample in train.samples
            if len(sample.boxes) or (kind == "mean-mask" and sample.has_mask)
        ]
        if kind == "gaussian":
            return
        if not known:
            raise DataError(
                f"method 'prior' with kind={kind} needs ground-truth "
                f"{'boxes' if kind == 'best-box' else 'boxes or masks'}; found none in "
                f"{train.name} {train.split}. Use --set split=val, or --set kind=gaussian"
            )
        if kind == "best-box":
            found = best_box([shares_of(sample) for sample in known], self.config.cells, self.config.deltas)
            self.get_buffer("best_box").copy_(torch.from_numpy(found))
        else:
            self.get_buffer("mean_mask").copy_(torch.from_numpy(mean_mask(known, self.config.cells)))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the same map for every image and class, and no logits."""
        made = self.map_at(images.shape[2], images.shape[3], images.device)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            return made.expand(*class_ids.shape, *made.shape)

        return ForwardPass(logits=None, maps_of=maps_of)

    def map_at(self, height: int, width: int, device: torch.device) -> Float[Tensor, "h w"]:
        """Return the map: at the size of the input, or the mean mask in its cells."""
        if self.config.kind == "gaussian":
            return gaussian(height, width, self.config.sigma, device)
        if self.config.kind == "mean-mask":
            made: Tensor = self.get_buffer("mean_mask")
            return made
        left, top, right, bottom = self.get_buffer("best_box")
        rows, columns = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
        inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        box: Tensor = inside.float()
        return box

    @property
    def supervision(self) -> Supervision | None:
        """Boxes or masks of the split that it is fitted on. None for the Gaussian."""
        masks = self.config.kind == "mean-mask"
        return (
            None
            if self.config.kind == "gaussian"
            else Supervision(boxes=True, masks=masks, used_for="training")
        )
