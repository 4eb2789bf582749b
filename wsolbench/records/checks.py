"""Validity of every field of a record, except the protocol, which checks itself.

Each check raises `ValueError` that names the field, what was found and what is expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsolbench.methods.supervision import Supervision
from wsolbench.metrics.catalog import metric_info

if TYPE_CHECKING:
    from wsolbench.records.record import MetricValue, RunRecord

_SLACK = 1e-9
"""Tolerance: rounding can put a mean of numbers in [0, 1] this far outside."""

_NUMBERS = ("value", "low", "high", "corrected_low", "corrected_high")

_PARTS = {
    "max_box_acc_v2": r"@(0?\.\d+|1|\d(\.\d+)?e-\d+)",
    "keypoint_distance": r"@[1-9]\d?",
    "keypoint_distance_px": r"@[1-9]\d?",
}
"""Metrics with one row per part, and the pattern of the part after their name."""


def is_number(value: object) -> bool:
    """Whether a value is a finite number. A Boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, lowest: int) -> bool:
    """Whether a value is a whole number, at least `lowest`. A Boolean is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def check_metric(metric: MetricValue) -> None:
    """Raise `ValueError` for a metric that is unknown, outside its range or inconsistent with itself."""
    # The name, and the kinds of all fields.
    info = metric_info(metric.name)
    part = metric.name.removeprefix(info.name)
    if part and not re.fullmatch(_PARTS.get(info.name, "(?!)"), part):
        raise ValueError(f"metric {metric.name!r}: there is no such part of {info.name}")
    _check_kinds(metric)
    # Value and interval are in the metric's range and consistent.
    top = math.inf if info.top is None else info.top
    expected = f"expected 0 {'or more' if info.top is None else f'to {info.top:g}'}"
    for field in _NUMBERS:
        number = getattr(metric, field)
        if number is not None and not -_SLACK <= number <= top + _SLACK:
            raise ValueError(f"metric {metric.name} has {field} {number}; {expected}")
    if metric.value is None and not metric.reason:
        raise ValueError(f"metric {metric.name} has neither a value nor a reason")
    if metric.value is not None and metric.n < 1:
        raise ValueError(f"metric {metric.name} has a value, but n is {metric.n} images; expected 1 or more")
    for ends in (("low", "high"), ("corrected_low", "corrected_high")):
        low, high = (getattr(metric, field) for field in ends)
        if (low is None) != (high is None):
            raise ValueError(
                f"metric {metric.name} has one end of an interval; expected both {ends[0]} and {ends[1]}, "
                "or neither"
            )
        if low is not None and (metric.value is None or low > high):
            raise ValueError(
                f"metric {metric.name} has {ends[0]} {low} and {ends[1]} {high}; expected a value, and "
                f"{ends[0]} not above {ends[1]}"
            )
    if metric.low is not None and metric.policy != "oracle" and not _is_inside(metric):
        raise ValueError(
            f"metric {metric.name} has value {metric.value}; expected one in its interval, {metric.low} to "
            f"{metric.high}"
        )
    # Policy and version.
    if info.needs.startswith("boxes") and metric.value is not None and metric.policy is None:
        raise ValueError(
            f"metric {metric.name} has policy None; expected oracle, transfer, or fixed:T, as for every "
            "metric of boxes"
        )
    if not 1 <= metric.version <= info.version:
        raise ValueError(
            f"metric {metric.name} has version {metric.version}; expected 1 to {info.version}. Update "
            "wsolbench to read it"
        )


def _is_inside(metric: MetricValue) -> bool:
    """Whether the value lies in its interval. A value at the best threshold may lie outside."""
    assert metric.value is not None
    assert metric.low is not None
    assert metric.high is not None
    slack = _SLACK * max(1.0, metric.value)
    return metric.low - slack <= metric.value <= metric.high + slack


def _check_kinds(metric: MetricValue) -> None:
    for field in _NUMBERS:
        number = getattr(metric, field)
        if number is not None and not is_number(number):
            raise ValueError(f"metric {metric.name} has {field} {number!r}; expected a number")
    for field in ("n", "version"):
        if not is_whole(number := getattr(metric, field), 0):
            raise ValueError(
                f"metric {metric.name} has {field} {number!r}; expected a whole number that is not negative"
            )
    taus = metric.tau
    if taus is not None and not (
        isinstance(taus, tuple) and taus and all(is_number(tau) and 0 <= tau <= 1 for tau in taus)
    ):
        raise ValueError(f"metric {metric.name} has tau {taus!r}; expected a list of thresholds in [0, 1]")
    for field in ("policy", "reason"):
        if not isinstance(text := getattr(metric, field), str | None):
            raise ValueError(f"metric {metric.name} has {field} {text!r}; expected a text")
    if metric.policy not in (None, "oracle", "transfer") and not _is_fixed(str(metric.policy)):
        raise ValueError(
            f"metric {metric.name} has policy {metric.policy!r}; expected oracle, transfer, or fixed:T "
            "with T in [0, 1]"
        )


def _is_fixed(policy: str) -> bool:
    kind, _, tau = policy.partition(":")
    return kind == "fixed" and re.fullmatch(r"(0|1|0?\.\d+|1\.0+|\d(\.\d+)?e-\d+)", tau) is not None


def check_parts(values: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a part of a stored record that is of the wrong kind of JSON."""
    for field, kind, name in (
        ("method", dict, "an object"),
        ("dataset", dict, "an object"),
        ("metrics", list, "a list"),
        ("provenance", dict, "an object"),
    ):
        if not isinstance(values[field], kind):
            raise ValueError(f"{field} is {str(values[field])[:60]!r}; expected {name}")


def check_record(record: RunRecord) -> None:
    """Raise `ValueError` for a part of a record that tables cannot read or that contradicts other parts."""
    check_identity(record.method, record.dataset)
    seen = set()
    images = record.dataset.get("images")
    for metric in record.metrics:
        if images is not None and metric.n > images:
            raise ValueError(
                f"metric {metric.name} has n {metric.n} images; expected at most {images}, as "
                "dataset.images says"
            )
        if (metric.name, metric.policy) in seen:
            raise ValueError(
                f"metric {metric.name} occurs twice under policy {metric.policy}; expected it once"
            )
        seen.add((metric.name, metric.policy))


def check_identity(method: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a description of a method or a data set that tables cannot read."""
    # Parts that are objects, and the seed.
    for field in ("config", "post", "training", "numerics"):
        if not isinstance(method.get(field), dict | None):
            raise ValueError(f"method has {field} {method[field]!r}; expected names and values")
    Supervision.parse(method.get("supervision"))
    training = method.get("training") or {}
    for where, parts, field in (
        ("training", training, "recipe"),
        ("training", training, "numerics"),
        ("post", method.get("post") or {}, "config"),
    ):
        if not isinstance(parts.get(field), dict | None):
            raise ValueError(f"method.{where} has {field} {parts[field]!r}; expected names and values")
    seed = training.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise ValueError(f"method.training has seed {seed!r}; expected a whole number")
    # Images seen in training, by this run and by earlier ones.
    earlier, seen = training.get("earlier_runs", {}), training.get("images_seen", 0)
    if not isinstance(earlier, dict) or not all(is_whole(count, 0) for count in (seen, *earlier.values())):
        raise ValueError(
            f"method.training has images_seen {seen!r} and earlier_runs {earlier!r}; expected whole "
            "numbers, 0 or more"
        )
    if sum(earlier.values()) > seen:
        raise ValueError(
            f"method.training has images_seen {seen}; expected at least those of earlier_runs, "
            f"{sum(earlier.values())}"
        )
    # Texts.
    for where, parts, required, optional in (
        ("method", method, ("name",), ("backbone", "variant")),
        ("dataset", dataset, ("name", "split", "fingerprint"), ("transform",)),
    ):
        for field in (*required, *optional):
            if not isinstance(parts.get(field), str if field in required else str | None):
                raise ValueError(f"{where}.{field} is {parts.get(field)!r}; expected a text")
            if field in required and not parts[field].strip():
                raise ValueError(f"{where}.{field} is {parts[field]!r}; expected a text that is not empty")
    # Numbers, and the split for transferred thresholds.
    for field in ("images", "limit"):
        if dataset.get(field) is not None and not is_whole(dataset[field], 1):
            raise ValueError(f"dataset.{field} is {dataset[field]!r}; expected a whole number, 1 or more")
    source = dataset.get("transfer_from")
    if source is not None and not (
        isinstance(source, dict) and all(isinstance(text, str) for text in source.values())
    ):
        raise ValueError(f"dataset.transfer_from is {source!r}; expected texts: a split and its fingerprint")
