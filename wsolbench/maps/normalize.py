"""Normalisation of a score map to [0, 1], by the rule of the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from wsolbench.protocol import EvalProtocol
from wsolbench.types import ScoreMap


def normalize(score_map: ScoreMap, protocol: EvalProtocol) -> Float[np.ndarray, "h w"]:
    """Normalise a map to [0, 1] by `protocol.normalize`, after `protocol.relu`.

    float64 maps are computed in float64, others in float32. A constant map becomes all zeros.

    `minmax`: (x - min) / (max - min + eps).
    `max`: relu(x) / max.
    `pas`: (x - min) / v, cut at 1. v is the value of x - min of rank int(n percentile / 100) among the n
    sorted values, counted from 0.
    `ivr`: relu(x - v) / max, where v is the value of x of that rank.
    `pas-relu`: relu(x) / its percentile, cut at 1.
    `ivr-interpolated`: relu(x - percentile) / max, with an interpolated percentile.

    The first four are the rules of the IVR evaluation (Kim et al., ICCV 2021).
    """
    values = np.asarray(score_map, dtype=np.float64 if score_map.dtype == np.float64 else np.float32)
    kind, rule = values.dtype.type, protocol.normalize
    if protocol.relu:
        values = np.maximum(values, kind(0))
    low = values.min()
    if values.max() == low:
        return np.zeros_like(values)
    # Subtract the value that becomes 0, and cut negative values.
    if rule in ("minmax", "pas"):
        values = values - low
    elif rule == "ivr":
        values = np.maximum(values - _value_at_rank(values, protocol.percentile), kind(0))
    elif rule == "ivr-interpolated":
        values = np.maximum(values - kind(np.percentile(values, protocol.percentile)), kind(0))
    else:  # max, pas-relu
        values = np.maximum(values, kind(0))
    # Divide by the value that becomes 1.
    if rule == "pas":
        top = _value_at_rank(values, protocol.percentile)
    elif rule == "pas-relu":
        top = kind(np.percentile(values, protocol.percentile))
    else:
        top = values.max()
    if top <= 0:  # no value is positive (max, ivr), or more pixels than the percentile's share are 0 (pas)
        return np.asarray(values > 0, dtype=kind) if rule in ("pas", "pas-relu") else np.zeros_like(values)
    return np.asarray(np.clip(values / (top + kind(protocol.normalize_eps)), kind(0), kind(1)))


def _value_at_rank(values: Float[np.ndarray, "h w"], percentile: float) -> np.floating[Any]:
    """Return the value of rank int(n percentile / 100) of the n values in ascending order, counted from 0.

    For percentile 100 it is the last value.
    """
    rank = min(int(values.size * (percentile / 100)), values.size - 1)
    ranked: np.floating[Any] = np.partition(values.ravel(), rank)[rank]
    return ranked
