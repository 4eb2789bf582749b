"""Choice of the percentile of a normalisation rule on the split `val`, together with the thresholds.

J. Kim, J. Choe, S. Yun, N. Kwak, "Normalization matters in weakly supervised object localization", ICCV 2021:
the percentile of IVR is a parameter of the evaluation, so it must not be chosen on the evaluated split.

Every image of `val` is scored once for each candidate. The candidate with the best MaxBoxAccV2 at its own
best thresholds is applied to the evaluated split, as the transferred thresholds are. The metric averages over
IoU thresholds, so one percentile serves all metrics of a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from wsolbench.evaluation.evaluate import conclude, score_together
from wsolbench.evaluation.request import EvalRequest
from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol

METRIC: Literal["max_box_acc_v2"] = "max_box_acc_v2"
"""The metric that percentile and thresholds are chosen by."""

RULES = ("pas", "ivr", "pas-relu", "ivr-interpolated")
"""Rules of `normalize` that have a percentile."""

_RESAMPLES = 100
"""Resamples for intervals on `val`, which nobody reads."""


@dataclass(frozen=True, kw_only=True)
class PercentileChoice:
    """What was found on `val`.

    Attributes:
        split: name of the split.
        fingerprint: fingerprint of its images and annotations.
        images: number of images that were scored.
        percentiles: the candidates, ascending.
        values: MaxBoxAccV2 of each candidate at its best thresholds, a fraction.
        taus: these thresholds, one per IoU threshold (or equal ones, if the protocol shares one).
    """

    split: str
    fingerprint: str
    images: int
    percentiles: tuple[float, ...]
    values: tuple[float, ...]
    taus: tuple[tuple[float, ...], ...]

    @property
    def best(self) -> float:
        """The candidate with the highest value, the lowest of equal ones."""
        return self.percentiles[max(range(len(self.values)), key=self.values.__getitem__)]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a record's provenance."""
        candidates = zip(self.percentiles, self.values, self.taus, strict=True)
        return {
            "chosen": self.best,
            "chosen_on": self.split,
            "fingerprint": self.fingerprint,
            "images": self.images,
            "metric": METRIC,
            "candidates": [
                {"percentile": percentile, "value": value, "tau": list(taus)}
                for percentile, value, taus in candidates
            ],
        }


def read_percentiles(text: str) -> tuple[float, ...]:
    """Parse candidates, "0,5,10". Raises `UsageError` unless they are ascending numbers in [0, 100]."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= each <= 100 for each in found) or sorted(set(found)) != list(found):
        raise UsageError(
            f"candidates for the percentile are {text!r}; expected ascending numbers from 0 to 100, such as "
            "0,10,20,30,40,50"
        )
    return found


def has_percentile(protocol: EvalProtocol) -> bool:
    """Return whether the normalisation of a protocol has a percentile, which nothing else of it uses."""
    return protocol.normalize in RULES and protocol.threshold_basis != "percentile"


def with_percentile(protocol: EvalProtocol, percentile: float, *, chosen_on: str | None) -> EvalProtocol:
    """Return the protocol with another percentile.

    If it was chosen on a split, the name says so, because a fixed percentile of the same value is another
    protocol: `wsoleval+normalize=ivr,percentile=30@val`.
    """
    if chosen_on is None:
        return replace(protocol, percentile=percentile)
    changes = [
        part for part in protocol.name.partition("+")[2].split(",") if part and "percentile" not in part
    ]
    base = protocol.name.partition("+")[0]
    name = f"{base}+{','.join(sorted([*changes, f'percentile={percentile:g}@{chosen_on}']))}"
    return replace(protocol, name=name, percentile=percentile)


def choose_percentiles(
    requests: Sequence[EvalRequest], percentiles: Sequence[float]
) -> list[tuple[EvalRequest, PercentileChoice | None]]:
    """Choose the percentile of each request's protocol on its split for transferred thresholds.

    `requests` share their images, as for `score_together`: the maps of `val` are computed once for all of
    them, and their scores stay in memory. Returns each request with its new
    protocol and the choice, or unchanged with None if its protocol has no percentile.

    Raises `UsageError` without such a split, if no protocol has a percentile, and as `score_together`.
    """
    first, chosen = requests[0], [request for request in requests if has_percentile(request.protocol)]
    if not chosen:
        raise UsageError(
            f"protocol {first.protocol.name!r} has normalize={first.protocol.normalize!r}, which has no "
            "percentile to choose; expected a rule with one. Add --protocol-set normalize=ivr"
        )
    val = first.transfer_from
    if val is None or not val.has_boxes:
        raise UsageError(
            f"the percentile is chosen on another split than {first.dataset.split!r}, and there is none with "
            "boxes; expected a split val. Add --carve-val if the data set has none, or set "
            "--protocol-set percentile=..."
        )
    for request in chosen:
        request.plan()  # refuses images that the method was trained on
    # Score val under every candidate of every protocol, from the same maps.
    trials = [
        replace(
            request,
            dataset=val,
            protocol=with_percentile(request.protocol, percentile, chosen_on=None),
            transfer_from=None,
            fixed_tau=None,
            extra_metrics=(),
            metadata={},
            options=replace(request.options, work=None, save_maps=None, resamples=_RESAMPLES),
        )
        for request in chosen
        for percentile in percentiles
    ]
    found = (conclude(run).record for run in score_together(trials))
    # Read the best candidate of each request.
    result: list[tuple[EvalRequest, PercentileChoice | None]] = []
    for request in requests:
        if not has_percentile(request.protocol):
            result.append((request, None))
            continue
        records = list(islice(found, len(percentiles)))
        metrics = [record.metric(METRIC, "oracle") for record in records]
        choice = PercentileChoice(
            split=val.split,
            fingerprint=val.fingerprint,
            images=records[0].dataset["images"],
            percentiles=tuple(percentiles),
            values=tuple(metric.value or 0.0 for metric in metrics if metric is not None),
            taus=tuple(metric.tau or () for metric in metrics if metric is not None),
        )
        protocol = with_percentile(request.protocol, choice.best, chosen_on=choice.split)
        result.append((replace(request, protocol=protocol), choice))
    return result
