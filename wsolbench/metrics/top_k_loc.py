"""GT-known, Top-1 Loc and Top-5 Loc: one box per image, without and with a test of the predicted class.

GT-known: the box of the true class's map passes delta. Top-k Loc: in addition, the true class is among the
k best predicted classes. Under `class_map="predicted"`, the box is that of the predicted class's own map.
Both rules agree if a method's map depends only on the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.accuracy import Ranking
from wsolbench.metrics.hits import ORACLE, HitCounts
from wsolbench.metrics.max_box_acc import check_iou, passes
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import DELTA, EvalProtocol


@dataclass(frozen=True, kw_only=True)
class TopKLocResult:
    """Fractions in [0, 1] over `n` images.

    Attributes:
        gt_known: fraction for the map of the true class.
        top_k: fraction for each k, or empty if no labels were predicted.
        tau: threshold of each metric: `gt_known`, `top1_loc`, `top5_loc` (for ks 1 and 5).
        delta: IoU threshold.
        n: number of images.
    """

    gt_known: float
    top_k: dict[int, float]
    tau: dict[str, float]
    delta: float
    n: int


class TopKLoc:
    """Accumulator over images; `compute` picks the thresholds.

    The state is integer counts, so order and sharding cannot change a bit. Raises `UsageError` for a delta
    outside (0, 1] and for ks that are not increasing and positive.

    >>> metric = TopKLoc(EvalProtocol(taus=(0.1, 0.2)), ks=(1, 2))
    >>> metric.update(np.array([0.5, 0.4]), ranked_labels=np.array([7, 3]), label=3)
    >>> result = metric.compute()
    >>> result.gt_known, result.top_k, result.tau
    (1.0, {1: 0.0, 2: 1.0}, {'gt_known': 0.1, 'top1_loc': 0.1, 'top2_loc': 0.1})
    """

    def __init__(self, protocol: EvalProtocol, *, delta: float = DELTA, ks: Sequence[int] = (1, 5)) -> None:
        self.protocol, self.delta, self.ks = protocol, delta, tuple(ks)
        if not 0.0 < delta <= 1.0:
            raise UsageError(f"delta={delta}; expected an IoU threshold in (0, 1]")
        if not self.ks or self.ks[0] < 1 or list(self.ks) != sorted(set(self.ks)):
            raise UsageError(f"ks={self.ks}; expected increasing positive integers such as (1, 5)")
        self._counts = HitCounts(protocol, 1 + len(self.ks))  # rows: GT-known, then each k
        self._n_ranked = 0

    @property
    def n(self) -> int:
        """Number of images counted."""
        return self._counts.n

    @property
    def hits(self) -> Int64[np.ndarray, "m t"]:
        """Number of images that pass at threshold t, (m, t): row 0 is GT-known, then each k."""
        return self._counts.hits

    def update(
        self,
        single_iou: Float64[np.ndarray, " t"],
        ranked_labels: Ranking | None,
        label: int,
        *,
        ranked_iou: Float64[np.ndarray, "k t"] | None = None,
    ) -> None:
        """Count one image.

        Args:
            single_iou: IoU of the one box of the true class's map at every threshold (`Sweep.single_iou`).
            ranked_labels: predicted classes, best first, at least max(ks), or None without a classifier.
            label: true class.
            ranked_iou: IoU of the one box of each ranked class's map, (k, t). Used under
                `class_map="predicted"`. If None, the true class's map replaces the map of its rank.

        Raises `DataError` for shapes that do not match, repeated labels and IoU outside [0, 1].
        """
        # GT-known: the box of the true class's map.
        n_taus = len(self.protocol.taus)
        iou = check_iou(single_iou, (n_taus,))
        hits = np.zeros((1 + len(self.ks), n_taus), dtype=bool)
        hits[0] = passes(iou, self.delta, self.protocol.iou_test)
        # Top-k Loc: also the true class is among the k best; the box may be that of its own rank.
        if ranked_labels is not None:
            rank = self._rank_of(label, np.asarray(ranked_labels))
            if ranked_iou is not None:
                per_rank = check_iou(ranked_iou, (len(ranked_labels), n_taus))
                if rank is not None and self.protocol.class_map == "predicted":
                    iou = per_rank[rank]
            box_right = passes(iou, self.delta, self.protocol.topk_iou_test)
            for row, k in enumerate(self.ks, start=1):
                hits[row] = box_right & (rank is not None and rank < k)
        self._counts.add(hits, label)
        self._n_ranked += ranked_labels is not None

    def merge(self, other: TopKLoc) -> None:
        """Add the counts of `other`. Raises `UsageError` if its protocol, delta or ks differ."""
        if (self.delta, self.ks) != (other.delta, other.ks):
            raise UsageError(
                f"cannot merge results for delta {other.delta}, ks {other.ks}; expected delta {self.delta}, "
                f"ks {self.ks}"
            )
        self._counts.merge(other._counts)
        self._n_ranked += other._n_ranked

    def curve(self) -> Float64[np.ndarray, "m t"]:
        """Return the fractions at every threshold, (m, t): row 0 is GT-known, then each k.

        Without predicted labels, GT-known is the only row. Raises `UsageError` if no image was counted, or
        if only some images had predicted labels.
        """
        return self._counts.rates()[self._rows()]

    def compute(self, policy: ThresholdPolicy = ORACLE, *, shared_tau: bool = False) -> TopKLocResult:
        """Return the fractions at the thresholds that `policy` picks for each metric.

        With `shared_tau`, the threshold picked for GT-known is used for all. Of equally good thresholds, the
        oracle takes the smallest. Raises as `curve` does.
        """
        curve, taus = self.curve(), np.array(self.protocol.taus)
        scores = self._counts.threshold_scores()[self._rows()]
        picked = (
            policy.pick(scores[:1], taus).repeat(len(scores)) if shared_tau else policy.pick(scores, taus)
        )
        values = curve[np.arange(len(curve)), picked].tolist()
        ks = self.ks[: len(curve) - 1]
        return TopKLocResult(
            gt_known=values[0],
            top_k=dict(zip(ks, values[1:], strict=True)),
            tau=dict(zip(["gt_known", *(f"top{k}_loc" for k in ks)], taus[picked].tolist(), strict=True)),
            delta=self.delta,
            n=self.n,
        )

    def _rank_of(self, label: int, ranked_labels: Integer[np.ndarray, "..."]) -> int | None:
        if ranked_labels.ndim != 1 or len(ranked_labels) < self.ks[-1]:
            raise DataError(
                f"ranked labels have shape {ranked_labels.shape}; expected at least {self.ks[-1]} for "
                f"Top-{self.ks[-1]} Loc, best first. With fewer classes, use smaller ks"
            )
        if len(np.unique(ranked_labels)) != len(ranked_labels):
            raise DataError(f"ranked labels are {ranked_labels.tolist()}; expected every class at most once")
        found = np.flatnonzero(ranked_labels == label)
        return int(found[0]) if len(found) else None

    def _rows(self) -> slice:
        if 0 < self._n_ranked < self.n:
            raise UsageError(
                f"{self._n_ranked} of {self.n} images have predicted labels; expected them for all images or "
                "for none"
            )
        return slice(None) if self._n_ranked else slice(1)
