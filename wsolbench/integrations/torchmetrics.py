"""The metrics as `torchmetrics.Metric`, for training loops that use them (Lightning, several processes).

    localization = Localization("wsoleval")
    localization.update(maps, boxes, sizes, logits=logits, labels=labels)   # in every validation step
    localization.compute()["max_box_acc_v2"]                                # synchronised over all processes

States are integer counts that are summed over processes, so any sharding gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from wsolbench.checks import check_size
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import frame_boxes, frame_size, to_frame
from wsolbench.maps.masks import resize_mask
from wsolbench.metrics.histograms import histograms
from wsolbench.metrics.max_box_acc import passes
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.metrics.pxap import average_precision, number_of_bins
from wsolbench.metrics.sweep import sweep
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import DELTA, EvalProtocol
from wsolbench.ranges import is_number


class _ProtocolMetric(Metric):
    """Base of metrics under a protocol: the name of a preset, or an `EvalProtocol`."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, protocol: EvalProtocol | str, **options: Any) -> None:
        super().__init__(**options)
        self.protocol = EvalProtocol.preset(protocol) if isinstance(protocol, str) else protocol
        if not isinstance(self.protocol, EvalProtocol):
            raise UsageError(f"protocol {protocol!r}; expected the name of a preset or an EvalProtocol")
        if self.protocol.averaging == "class":
            raise UsageError(
                f"protocol {self.protocol.name!r} averages over classes; expected a protocol that averages "
                "over images. Use `wsolbench score` for it"
            )
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.n: Tensor


class Localization(_ProtocolMetric):
    """GT-known, Top-k Loc, MaxBoxAcc and MaxBoxAccV2 at oracle thresholds, fractions in [0, 1].

    Args:
        protocol: see `wsolbench list protocols`. Protocols that average over classes raise `UsageError`.
        ks: values of k for Top-k Loc, which is computed if logits are given.
        options: passed to `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(
        self, protocol: EvalProtocol | str = "wsoleval", *, ks: Sequence[int] = (1, 5), **options: Any
    ) -> None:
        super().__init__(protocol, **options)
        self.ks = tuple(ks)
        if not all(is_number(k, whole=True) and k >= 1 for k in self.ks) or len(set(self.ks)) < len(self.ks):
            raise UsageError(
                f"ks={ks!r}; expected different whole numbers of at least 1, for instance (1, 5)"
            )
        taus = len(self.protocol.taus)
        for name, rows in (("all_boxes", len(self.protocol.deltas)), ("one_box", 1 + len(self.ks))):
            self.add_state(name, torch.zeros(rows, taus, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_classified", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.n_classified: Tensor
        self.all_boxes: Tensor
        self.one_box: Tensor

    def update(
        self,
        maps: Float[Tensor, "b h w"],
        boxes: Sequence[Float[Tensor, "_ 4"]],
        sizes: Sequence[tuple[int, int]] | Sequence[Tensor] | Int[Tensor, "b 2"],
        *,
        logits: Float[Tensor, "b c"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            maps: raw maps of the true classes, any range.
            boxes: ground-truth boxes of each image, xyxy in pixels of the image. A tensor (B, 4) means one
                box per image.
            sizes: (width, height) of each image, as pairs or a tensor (B, 2). Also accepted are the widths
                and the heights, the two tensors (B,) that PyTorch's default collation makes of pairs.
            logits, labels: for Top-k Loc, both or neither, with at least max(ks) classes. Logits may be
                -inf, but not NaN.

        Raises `DataError` for values and shapes that cannot be counted, and `UsageError` for logits without
        labels. Then nothing of the batch is counted.
        """
        # Validate the whole batch before anything is counted.
        if (logits is None) != (labels is None):
            given = "logits" if labels is None else "labels"
            raise UsageError(f"Top-k Loc got {given} alone; expected logits and labels, or neither")
        arrays = _arrays(maps)
        own = [_boxes_of(each) for each in _per_image(boxes, len(arrays), "boxes")]
        pairs = _sizes(sizes, own)
        right = np.zeros((len(arrays), len(self.ks)), dtype=np.bool_)
        if logits is not None and labels is not None:
            right = _is_right(logits, labels, len(arrays), self.ks)
        # Count passing boxes per delta and threshold: (deltas, T) and (1 + ks, T).
        every, one = (
            np.zeros(self.all_boxes.shape, dtype=np.int64),
            np.zeros(self.one_box.shape, dtype=np.int64),
        )
        for place, (raw, truth, size) in enumerate(zip(arrays, own, pairs, strict=True)):
            framed = to_frame(raw, size, self.protocol, what=f"map {place}")
            swept = sweep(framed, frame_boxes(truth, size, self.protocol), self.protocol)
            every += np.stack(
                [passes(swept.best_iou, delta, self.protocol.iou_test) for delta in self.protocol.deltas]
            )
            one[0] += passes(swept.single_iou, DELTA, self.protocol.iou_test)
            one[1:] += passes(swept.single_iou, DELTA, self.protocol.topk_iou_test) & right[place][:, None]
        self.all_boxes += torch.from_numpy(every).to(self.all_boxes)
        self.one_box += torch.from_numpy(one).to(self.one_box)
        self.n += len(arrays)
        self.n_classified += 0 if logits is None else len(arrays)

    def compute(self) -> dict[str, Tensor]:
        """Return `gt_known`, `max_box_acc`, `max_box_acc_v2`, and with logits, `top1_loc` and so on.

        Top-k Loc needs logits for all images. Raises `DataError` if no image was counted.
        """
        if not self.n:
            raise DataError("no image was counted; call update() first")
        count, taus = int(self.n), np.array(self.protocol.taus)
        one, every = (state.cpu().numpy() / count for state in (self.one_box, self.all_boxes))
        picked = ThresholdPolicy.oracle().pick(every, taus, shared=self.protocol.v2_tau == "shared")
        best = one.max(axis=1)
        found = {
            "gt_known": best[0],
            "max_box_acc": best[0],
            "max_box_acc_v2": every[np.arange(len(every)), picked].mean(),
        }
        if self.n_classified == self.n:
            found |= {f"top{k}_loc": value for k, value in zip(self.ks, best[1:], strict=True)}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


class PixelLocalization(_ProtocolMetric):
    """PxAP, Peak-IoU (fractions in [0, 1]) and Peak-T (0 to 255) of pooled pixels.

    Arguments are those of `Localization`, without `ks`.
    """

    def __init__(self, protocol: EvalProtocol | str = "wsoleval", **options: Any) -> None:
        super().__init__(protocol, **options)
        self.add_state(
            "pixels", torch.zeros(2, number_of_bins(self.protocol), dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state("levels", torch.zeros(2, 256, dtype=torch.int64), dist_reduce_fx="sum")
        self.pixels: Tensor
        self.levels: Tensor

    def update(
        self, maps: Float[Tensor, "b h w"], masks: Sequence[Tensor], ignore: Sequence[Tensor] | None = None
    ) -> None:
        """Count a batch: raw maps (B, h, w), and per image its mask and the pixels to ignore, (H, W).

        Masks have the size of the image. Values above 0 are object. Raises `UsageError` if the protocol
        compares on a centre crop, and `DataError` for values and shapes that cannot be counted. Then
        nothing of the batch is counted.
        """
        if self.protocol.frame == "center_crop":
            raise UsageError(
                f"protocol {self.protocol.name!r} compares on a centre crop; crop maps and masks and use "
                "frame='squash'"
            )
        # Validate maps and masks.
        arrays = _arrays(maps)
        objects = [
            _mask_of(mask, f"mask {place}")
            for place, mask in enumerate(_per_image(masks, len(arrays), "masks"))
        ]
        left_out: list[np.ndarray | None] = [None] * len(arrays)
        if ignore is not None:
            left_out = [
                _mask_of(mask, f"ignore mask {place}")
                for place, mask in enumerate(_per_image(ignore, len(arrays), "ignore"))
            ]
        # Count the pixels of each image in the frame: (2, bins) by score, (2, 256) by level.
        pixels, levels = (
            np.zeros(self.pixels.shape, dtype=np.int64),
            np.zeros(self.levels.shape, dtype=np.int64),
        )
        for place, (raw, mask, other) in enumerate(zip(arrays, objects, left_out, strict=True)):
            if other is not None and other.shape != mask.shape:
                raise DataError(
                    f"ignore mask {place} has shape {other.shape}; expected {mask.shape}, that of its mask"
                )
            size = (mask.shape[1], mask.shape[0])
            framed = to_frame(raw, size, self.protocol, what=f"map {place}")
            frame = frame_size(size, self.protocol)
            truth = resize_mask(mask, frame)
            found = histograms(
                framed, truth, None if other is None else resize_mask(other, frame) & ~truth, self.protocol
            )
            pixels += found[0].astype(np.int64)
            levels += found[1].astype(np.int64)
        self.pixels += torch.from_numpy(pixels).to(self.pixels)
        self.levels += torch.from_numpy(levels).to(self.levels)
        self.n += len(arrays)

    def compute(self) -> dict[str, Tensor]:
        """Return `pxap`, `peak_iou`, `peak_t`. Raises `DataError` without an image or an object pixel."""
        if not self.n:
            raise DataError("no image was counted; call update() first")
        curve = pixel_iou(self.levels.cpu().numpy())
        found = {
            "pxap": average_precision(self.pixels.cpu().numpy()),
            "peak_iou": curve.max(),
            "peak_t": curve.argmax(),
        }
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


def _array(values: Any, what: str) -> np.ndarray:
    """Return a tensor, or anything NumPy accepts, as an array of real numbers, or raise `DataError`."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "iufb":
        raise DataError(f"{what} have dtype {array.dtype}; expected real numbers")
    return array


def _arrays(maps: Any) -> np.ndarray:
    array = _array(maps, "maps")
    if array.ndim != 3:
        raise DataError(
            f"maps have shape {array.shape}; expected (B, h, w), one map of the true class for each image"
        )
    return array if array.dtype == np.float64 and not isinstance(maps, Tensor) else array.astype(np.float32)


def _per_image(values: Any, count: int, what: str) -> list[Any]:
    try:
        each = list(values)
    except TypeError as error:  # not a sequence, or a tensor without axes
        raise DataError(
            f"{what} are {type(values).__name__}; expected one for each of {count} images"
        ) from error
    if len(each) != count:
        raise DataError(f"{what} are given for {len(each)} images; expected {count}, as many as maps")
    return each


def _boxes_of(boxes: Any) -> np.ndarray:
    array = _array(boxes, "boxes")
    return array[None] if array.shape == (4,) else array


def _mask_of(mask: Any, what: str) -> np.ndarray:
    array = _array(mask, what)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{what} has shape {array.shape}; expected (H, W) of the image")
    if not np.isfinite(array).all():
        raise DataError(
            f"{what} holds NaN or Inf; expected 0 or false for the background, above 0 or true for the object"
        )
    return np.asarray(array > 0)


def _is_right(logits: Any, labels: Any, count: int, ks: Sequence[int]) -> np.ndarray:
    """Return whether the label is among the best k classes, (B, len(ks)).

    Among equal logits, the lower class comes first.
    """
    # Validate the shapes and values.
    scores, truth = _array(logits, "logits"), _array(labels, "labels")
    most = max(ks, default=1)
    if scores.ndim != 2 or len(scores) != count or scores.shape[1] < most:
        raise DataError(
            f"logits have shape {scores.shape}; expected ({count}, C) with at least {most} classes for "
            f"ks={tuple(ks)}"
        )
    if truth.shape != (count,) or truth.dtype.kind not in "iu":
        raise DataError(
            f"labels have shape {truth.shape} and dtype {truth.dtype}; expected ({count},) whole numbers"
        )
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).any(axis=1).sum())} of {count} images have NaN among their logits; "
            "expected numbers"
        )
    if count and not (truth.min() >= 0 and truth.max() < scores.shape[1]):
        raise DataError(
            f"labels go from {truth.min()} to {truth.max()}; expected 0 to {scores.shape[1] - 1}, one of "
            "the classes of the logits"
        )
    # Rank the classes, (B, C), and compare the best k with the label.
    ranked = torch.from_numpy(scores.astype(np.float32)).argsort(dim=1, descending=True, stable=True).numpy()
    return (
        np.stack([(ranked[:, :k] == truth[:, None]).any(axis=1) for k in ks], axis=1)
        if ks
        else np.zeros((count, 0), dtype=np.bool_)
    )


def _sizes(sizes: Any, boxes: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Return (width, height) of each image, from pairs, or from the widths and heights of a collated batch.

    Two tensors of two values can be read in both ways. Then the boxes decide, because they must lie in their
    images. Raises `DataError` if both readings fit.
    """
    count = len(boxes)
    if isinstance(sizes, Tensor | np.ndarray):
        if sizes.ndim != 2 or tuple(sizes.shape) != (count, 2):
            raise DataError(
                f"sizes have shape {tuple(sizes.shape)}; expected ({count}, 2), (width, height) of each image"
            )
        return [check_size(pair) for pair in sizes.tolist()]
    if not _is_collated(sizes, count):
        given: list[Any] = [
            size.tolist() if isinstance(size, Tensor | np.ndarray) else size
            for size in _per_image(sizes, count, "sizes")
        ]
        return [check_size(size) for size in given]
    # Collated: for two images, check which reading contains the boxes.
    each = [size.tolist() for size in sizes]
    collated = [check_size(pair) for pair in zip(*each, strict=True)]
    if count != 2:
        return collated
    pairs = [check_size(size) for size in each]
    possible = [reading for reading in (collated, pairs) if _contains_boxes(reading, boxes)] or [collated]
    if len(possible) == 2 and collated != pairs:
        raise DataError(
            f"sizes {each} may be two pairs (width, height), or two widths and two heights; expected a "
            "tensor (B, 2). torch.stack(sizes, dim=1) makes it from collated sizes"
        )
    return possible[0]


def _is_collated(sizes: Any, count: int) -> bool:
    """Whether sizes are two arrays (B,): all widths, then all heights."""
    return (
        isinstance(sizes, Sequence)
        and len(sizes) == 2
        and all(isinstance(size, Tensor | np.ndarray) and tuple(size.shape) == (count,) for size in sizes)
    )


def _contains_boxes(sizes: Sequence[tuple[int, int]], boxes: Sequence[np.ndarray]) -> bool:
    return all(
        not own.size or (own.reshape(-1, 4)[:, 2:] <= size).all()
        for size, own in zip(sizes, boxes, strict=True)
        if own.size % 4 == 0
    )
