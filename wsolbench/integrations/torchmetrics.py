"""The metrics as `torchmetrics.Metric`, for training loops that already use them (Lightning, several processes).

    localization = Localization("wsoleval")
    localization.update(maps, boxes, sizes, logits=logits, labels=labels)   # in every validation step
    localization.compute()["max_box_acc_v2"]                                # synchronised over all processes

States are whole counts that processes add up, so any sharding gives the same numbers to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import frame_boxes, frame_size, to_frame
from wsolbench.metrics.histograms import histograms
from wsolbench.metrics.masks import resize_mask
from wsolbench.metrics.max_box_acc import passes
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.metrics.pxap import average_precision, number_of_bins
from wsolbench.metrics.sweep import sweep
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

_ONE_BOX_DELTA = 0.5


class _OfProtocol(Metric):
    """A metric under a protocol, a preset's name or one of your own."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, protocol: EvalProtocol | str, **options: Any) -> None:
        super().__init__(**options)
        self.protocol = EvalProtocol.preset(protocol) if isinstance(protocol, str) else protocol
        if self.protocol.averaging == "class":
            raise UsageError(f"protocol {self.protocol.name!r} averages classes, which these counts cannot; use `wsolbench score` for it")
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.n: Tensor


class Localization(_OfProtocol):
    """GT-known, Top-k Loc, MaxBoxAcc and MaxBoxAccV2 at oracle thresholds, fractions in [0, 1].

    Args:
        protocol: see `wsolbench list protocols`; class-averaging ones raise `UsageError`.
        ks: of Top-k Loc, which is there when logits are given.
        options: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, protocol: EvalProtocol | str = "wsoleval", *, ks: Sequence[int] = (1, 5), **options: Any) -> None:
        super().__init__(protocol, **options)
        self.ks = tuple(ks)
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
        sizes: Sequence[tuple[int, int]] | Int[Tensor, "b 2"],
        *,
        logits: Float[Tensor, "b c"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Count a batch.

        Args:
            maps: raw maps of the true classes, any range.
            boxes: true boxes of each image, xyxy in pixels of the image.
            sizes: (width, height) of each image.
            logits, labels: for Top-k Loc; both or neither, at least max(ks) classes.

        Raises `DataError` for maps that are not finite and images without a box, `UsageError` for logits without labels.
        """
        if (logits is None) != (labels is None):
            raise UsageError("Top-k Loc needs logits and labels; give both, or neither")
        ranked = None if logits is None else logits.float().argsort(dim=1, descending=True, stable=True)[:, : max(self.ks)].cpu().numpy()
        truth = None if labels is None else labels.cpu().numpy()
        for place, (raw, own, size) in enumerate(zip(_arrays(maps), boxes, _sizes(sizes), strict=True)):
            framed = to_frame(raw, size, self.protocol, what=f"map {place}")
            swept = sweep(framed, frame_boxes(_array(own), size, self.protocol), self.protocol)
            hits = [passes(swept.best_iou, delta, self.protocol.iou_test) for delta in self.protocol.deltas]
            single = [passes(swept.single_iou, _ONE_BOX_DELTA, self.protocol.iou_test)]
            for k in self.ks:
                right = ranked is not None and truth is not None and truth[place] in ranked[place, :k]
                single.append(passes(swept.single_iou, _ONE_BOX_DELTA, self.protocol.topk_iou_test) & right)
            self.all_boxes += torch.from_numpy(np.stack(hits)).to(self.all_boxes)
            self.one_box += torch.from_numpy(np.stack(single)).to(self.one_box)
            self.n += 1
            self.n_classified += ranked is not None

    def compute(self) -> dict[str, Tensor]:
        """`gt_known`, `max_box_acc`, `max_box_acc_v2`, and `top1_loc`, ... where all images had logits. `DataError` without an image."""
        if not self.n:
            raise DataError("no image was counted; call update() first")
        count, taus = int(self.n), np.array(self.protocol.taus)
        one, every = (state.cpu().numpy() / count for state in (self.one_box, self.all_boxes))
        picked = ThresholdPolicy.oracle().pick(every, taus, shared=self.protocol.v2_tau == "shared")
        best = one.max(axis=1)
        found = {"gt_known": best[0], "max_box_acc": best[0], "max_box_acc_v2": every[np.arange(len(every)), picked].mean()}
        if self.n_classified == self.n:
            found |= {f"top{k}_loc": value for k, value in zip(self.ks, best[1:], strict=True)}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


class PixelLocalization(_OfProtocol):
    """PxAP, Peak-IoU (fractions in [0, 1]) and Peak-T (0 to 255) of pooled pixels. Arguments as for `Localization`."""

    def __init__(self, protocol: EvalProtocol | str = "wsoleval", **options: Any) -> None:
        super().__init__(protocol, **options)
        self.add_state("pixels", torch.zeros(2, number_of_bins(self.protocol), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("levels", torch.zeros(2, 256, dtype=torch.int64), dist_reduce_fx="sum")
        self.pixels: Tensor
        self.levels: Tensor

    def update(self, maps: Float[Tensor, "b h w"], masks: Sequence[Tensor], ignore: Sequence[Tensor] | None = None) -> None:
        """Count a batch: raw maps (B, h, w), and for each image its mask, and pixels to ignore, (H, W) bool at the image's size.

        Raises `UsageError` under a protocol that compares on a centre crop.
        """
        if self.protocol.frame == "center_crop":
            raise UsageError(f"protocol {self.protocol.name!r} compares on a centre crop; crop maps and masks and use frame='squash'")
        left_out = [None] * len(masks) if ignore is None else ignore
        for place, (raw, mask, other) in enumerate(zip(_arrays(maps), masks, left_out, strict=True)):
            size = (mask.shape[1], mask.shape[0])
            framed = to_frame(raw, size, self.protocol, what=f"map {place}")
            frame = frame_size(size, self.protocol)
            truth = resize_mask(_array(mask) > 0, frame)
            ignored = None if other is None else resize_mask(_array(other) > 0, frame) & ~truth
            pixels, levels = histograms(framed, truth, ignored, self.protocol)
            self.pixels += torch.from_numpy(pixels.astype(np.int64)).to(self.pixels)
            self.levels += torch.from_numpy(levels.astype(np.int64)).to(self.levels)
            self.n += 1

    def compute(self) -> dict[str, Tensor]:
        """`pxap`, `peak_iou`, `peak_t`. `DataError` where no pixel is object."""
        curve = pixel_iou(self.levels.cpu().numpy())
        found = {"pxap": average_precision(self.pixels.cpu().numpy()), "peak_iou": curve.max(), "peak_t": curve.argmax()}
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _arrays(maps: Tensor) -> np.ndarray:
    if maps.ndim != 3:
        raise DataError(f"maps have shape {tuple(maps.shape)}; expected (B, h, w), one map of the true class for each image")
    return _array(maps.float())


def _sizes(sizes: Sequence[tuple[int, int]] | Tensor) -> list[tuple[int, int]]:
    pairs = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(width), int(height)) for width, height in pairs]
