"""Error breakdown: six categories that explain why a top-1 box is wrong (SPA, CVPR 2021, Table 4).

The tests are applied to the one box of the top-1 class, in this order, with the thresholds of the protocol:

1. `cls`: the class is wrong.
2. `right`: IoU > `error_iou` with the best ground-truth box (highest IoU; the first of equal ones).
3. `m_ins`: more than one ground-truth box has IoG > `error_multi_iog`. Neither the class nor IoB is tested,
   so one box over two objects falls into this category.
4. `part`: IoB > `error_part_iob` with the best ground-truth box.
5. `more`: IoG >= `error_more_iog` with the best ground-truth box.
6. `other`.

IoG is the intersection as a share of the ground-truth box. IoB is its share of the predicted box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int64, Integer, Num, UInt8

from wsolbench.checks import check_boxes
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.boxes import unchecked_overlaps
from wsolbench.protocol import EvalProtocol

ErrorName = Literal["right", "cls", "m_ins", "part", "more", "other"]

ERROR_NAMES: tuple[ErrorName, ...] = get_args(ErrorName)
"""Category of each code: `error_codes` returns indices into this tuple."""

_RIGHT, _CLS, _M_INS, _PART, _MORE, _OTHER = range(len(ERROR_NAMES))


def localization_error(
    box: Num[np.ndarray, " 4"],
    true_boxes: Num[np.ndarray, "r 4"],
    *,
    class_correct: bool,
    protocol: EvalProtocol,
) -> ErrorName:
    """Return the category of one predicted box (4,) against the ground-truth boxes (R, 4).

    All boxes are in the protocol's convention. Raises `DataError` for invalid boxes and if there is no
    ground-truth box.

    >>> localization_error(
    ...     np.array([0, 0, 3, 3]),
    ...     np.array([[0, 0, 9, 9]]),
    ...     class_correct=True,
    ...     protocol=EvalProtocol.preset("spa"),
    ... )
    'part'
    """
    code = error_codes(np.asarray(box)[None], true_boxes, protocol)[0]
    return ERROR_NAMES[code] if class_correct else "cls"


def error_codes(
    boxes: Num[np.ndarray, "t 4"], true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol
) -> UInt8[np.ndarray, " t"]:
    """Return the error codes (T,) of boxes (T, 4) against the ground-truth boxes (R, 4) of one image.

    The class is taken as correct, so no code is `cls`. Raises `DataError` as `localization_error` does.
    """
    plus_one = protocol.iou_plus_one
    predicted = check_boxes(boxes, plus_one=plus_one, what="predicted boxes")
    truth = check_boxes(true_boxes, plus_one=plus_one, what="ground-truth boxes")
    if len(truth) == 0:
        raise DataError(
            "there is no ground-truth box, so the error category is undefined; expected at least one. Leave "
            "the image out of the error breakdown"
        )
    if protocol.gt_boxes == "first":
        truth = truth[:1]
    # The box often stays the same from one threshold to the next: compute overlaps of distinct boxes only.
    new = np.ones(len(predicted), dtype=np.bool_)
    new[1:] = (predicted[1:] != predicted[:-1]).any(axis=1)
    iou, iog, iob = unchecked_overlaps(predicted[new], truth, plus_one=plus_one)  # (u, r) each
    # The tests in the order of the module's header; the first that holds gives the code.
    rows, best = np.arange(len(iou)), iou.argmax(axis=1)
    checks = [
        iou[rows, best] > protocol.error_iou,
        (iog > protocol.error_multi_iog).sum(axis=1) > 1,
        iob[rows, best] > protocol.error_part_iob,
        iog[rows, best] >= protocol.error_more_iog,
    ]
    codes = np.select(checks, [_RIGHT, _M_INS, _PART, _MORE], _OTHER).astype(np.uint8)
    return np.asarray(codes[np.cumsum(new) - 1])


@dataclass(frozen=True, kw_only=True)
class ErrorBreakdownResult:
    """Share of each category among `n` images. The shares sum to 1."""

    fractions: dict[ErrorName, float]
    n: int


class ErrorBreakdown:
    """Accumulator of categories over images at every threshold. The state is integer counts (6, T)."""

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.n = 0
        self._counts: Int64[np.ndarray, "6 t"] = np.zeros(
            (len(ERROR_NAMES), len(protocol.taus)), dtype=np.int64
        )

    def update(self, codes: Integer[np.ndarray, " t"], class_correct: bool) -> None:
        """Count one image. `codes` (T,) are the `error_codes` of its boxes at every threshold.

        Raises `DataError` for another shape or an invalid code.
        """
        codes = np.asarray(codes)
        n_taus = self._counts.shape[1]
        if (
            codes.shape != (n_taus,)
            or not np.issubdtype(codes.dtype, np.integer)
            or not np.isin(codes, range(len(ERROR_NAMES))).all()
        ):
            raise DataError(
                f"error codes of shape {codes.shape} and dtype {codes.dtype}; expected ({n_taus},) "
                "integers from 0 to 5"
            )
        self._counts[codes if class_correct else _CLS, np.arange(n_taus)] += 1
        self.n += 1

    def merge(self, other: ErrorBreakdown) -> None:
        """Add the counts of `other`. Raises `UsageError` if its protocol differs."""
        if self.protocol != other.protocol:
            raise UsageError(
                f"cannot merge an error breakdown of protocol {other.protocol.name!r} into one of "
                f"{self.protocol.name!r}; expected equal protocols, but a field differs"
            )
        self._counts += other._counts
        self.n += other.n

    def compute(self, tau_index: int) -> ErrorBreakdownResult:
        """Return the shares at `protocol.taus[tau_index]`.

        Raises `UsageError` for an index outside the grid and if no image was counted.
        """
        if self.n == 0:
            raise UsageError("the error breakdown has counted no image; call update first")
        if not 0 <= tau_index < self._counts.shape[1]:
            raise UsageError(f"threshold index {tau_index}; expected 0 to {self._counts.shape[1] - 1}")
        shares = self._counts[:, tau_index] / self.n
        return ErrorBreakdownResult(
            fractions={name: float(share) for name, share in zip(ERROR_NAMES, shares, strict=True)}, n=self.n
        )
