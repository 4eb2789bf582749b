"""Pixel IoU of thresholded maps: Peak-IoU and Peak-T over pooled pixels, and the mean of per-image IoU.

Peak-IoU pools the pixels of the data set, so large images and large objects weigh more. `MeanImageIoU` weighs
every image alike. The two are different numbers with different names. Source of Peak-IoU and Peak-T: Zhang et
al., "Rethinking Localization Map: Towards Accurate Object Perception with Self-Enhancement Maps", 2020,
counted as in the LID challenge: 256 levels, foreground where level >= t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.histograms import LEVELS, histograms
from wsolbench.metrics.hits import ORACLE
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol
from wsolbench.types import UnitMap

_TAUS = np.arange(LEVELS) / 255.0
# The levels are the same under every protocol.
_ANY_PROTOCOL = EvalProtocol()
# Per-image IoUs are summed in this fixed point, because integers add up to the same bits in any order.
_FIXED_POINT = 2**40


@dataclass(frozen=True, kw_only=True)
class PeakIoUResult:
    """Result of `PeakIoU.compute`."""

    peak_iou: float
    """Pooled pixel IoU in [0, 1] at `peak_t`."""
    peak_t: int
    """Threshold on the 0-255 scale. Of equally good ones, the lowest."""
    n: int
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class MeanImageIoUResult:
    """Result of `MeanImageIoU.compute`."""

    value: float
    """Mean over images of the IoU at `tau`, in [0, 1]."""
    tau: float
    """Threshold, the same for all images: level / 255."""
    n: int
    """Number of images that counted."""
    n_skipped: int
    """Number of images without an object pixel. Their IoU is undefined."""


class PeakIoU:
    """Best pooled pixel IoU over 256 thresholds (Peak-IoU) and its threshold (Peak-T).

    Works with any protocol. Pixels are counted as in `level_histogram`.
    """

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.histogram: Int64[np.ndarray, "2 256"] = np.zeros((2, LEVELS), dtype=np.int64)
        self.n = 0

    def update(
        self, score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None = None
    ) -> None:
        """Count one image; see `level_histogram` for shapes and errors."""
        self.update_histogram(level_histogram(score_map, mask, ignore))

    def update_histogram(self, histogram: Int64[np.ndarray, "2 256"]) -> None:
        """Count one image by its histogram, for instance a stored one."""
        self.histogram += histogram
        self.n += 1

    def merge(self, other: PeakIoU) -> None:
        """Add the images of another shard. Raises `UsageError` if its protocol differs."""
        _check_protocols(self.protocol, other.protocol)
        self.histogram += other.histogram
        self.n += other.n

    def compute(self, policy: ThresholdPolicy = ORACLE) -> PeakIoUResult:
        """Return the IoU at the best threshold, or at that of another policy (grid: level / 255).

        Raises `DataError` if no pixel so far is an object pixel.
        """
        curve = pixel_iou(self.histogram)
        level = int(policy.pick(curve[None], _TAUS)[0])
        return PeakIoUResult(peak_iou=float(curve[level]), peak_t=level, n=self.n)


class MeanImageIoU:
    """Mean over images of the pixel IoU at one threshold, by default the one that is best for this mean."""

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.n = 0
        self.n_skipped = 0
        self._total: Int64[np.ndarray, " 256"] = np.zeros(LEVELS, dtype=np.int64)

    def update(
        self, score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None = None
    ) -> None:
        """Count one image (see `level_histogram`). An image without an object pixel counts as skipped."""
        self.update_histogram(level_histogram(score_map, mask, ignore))

    def update_histogram(self, histogram: Int64[np.ndarray, "2 256"]) -> None:
        """Count one image by its histogram, for instance a stored one."""
        if not histogram[0].any():
            self.n_skipped += 1
            return
        self._total += np.rint(pixel_iou(histogram) * _FIXED_POINT).astype(np.int64)
        self.n += 1

    def merge(self, other: MeanImageIoU) -> None:
        """Add the images of another shard. Raises `UsageError` if its protocol differs."""
        _check_protocols(self.protocol, other.protocol)
        self._total += other._total
        self.n += other.n
        self.n_skipped += other.n_skipped

    def compute(self, policy: ThresholdPolicy = ORACLE) -> MeanImageIoUResult:
        """Return the mean IoU, exact to 1e-12. Raises `DataError` if no image so far has an object pixel."""
        if self.n == 0:
            raise DataError(
                f"mean image IoU is undefined: none of {self.n_skipped} images has an object pixel; expected "
                "at least one. Check the masks"
            )
        level = int(policy.pick(self._total[None], _TAUS)[0])
        value = float(self._total[level] / (_FIXED_POINT * self.n))
        return MeanImageIoUResult(value=value, tau=float(_TAUS[level]), n=self.n, n_skipped=self.n_skipped)


def level_histogram(
    score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None = None
) -> Int64[np.ndarray, "2 256"]:
    """Count the pixels of one image by 8-bit level, (2, 256): object, background.

    It is the second result of `histograms`, which documents the levels and the errors.
    """
    return histograms(score_map, mask, ignore, _ANY_PROTOCOL)[1]


def pixels_above(
    histogram: Num[np.ndarray, "*r 2 256"],
) -> tuple[Num[np.ndarray, "*r 256"], Num[np.ndarray, "*r 256"]]:
    """Return the object pixels and the background pixels in {level >= t}, for each level t."""
    selected = np.cumsum(histogram[..., ::-1], axis=-1)[..., ::-1]
    return selected[..., 0, :], selected[..., 1, :]


def pixel_iou(histogram: Num[np.ndarray, "*r 2 256"]) -> Float64[np.ndarray, "*r 256"]:
    """IoU of {level >= t} with the object for each level t: TP / (TP + FP + FN), in [0, 1].

    Leading axes are independent. Raises `DataError` if a histogram has no object pixel.
    """
    true_positives, false_positives = pixels_above(histogram)
    positives = true_positives[..., :1]
    if not np.all(positives > 0):
        raise DataError(
            "pixel IoU is undefined: no object pixel in any mask. Check the masks and their threshold."
        )
    return np.asarray(true_positives / (positives + false_positives))


def _check_protocols(mine: EvalProtocol, other: EvalProtocol) -> None:
    if mine != other:
        raise UsageError(
            f"cannot merge results of protocol {other.name!r} into those of {mine.name!r}; expected equal "
            "protocols, but a field differs"
        )
