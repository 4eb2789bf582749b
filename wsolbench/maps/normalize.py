"""Bring a score map into [0, 1], by the rule of the protocol."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from wsolbench.protocol import EvalProtocol
from wsolbench.types import ScoreMap


def normalize(score_map: ScoreMap, protocol: EvalProtocol) -> Float32[np.ndarray, "h w"]:
    """Map to [0, 1] by `protocol.normalize`, after `protocol.relu`; float32, as published evaluators compute it.

    `minmax`: (x - min) / (max - min + eps). `max`: relu(x) / max. `pas`: (x - min) / (percentile of x - min), cut at 1
    (RethinkingCAM). `ivr`: relu(x - percentile of x) / max (IVR). A map without spread is all zeros under every rule.
    """
    values = np.asarray(score_map, dtype=np.float32)
    if protocol.relu:
        values = np.maximum(values, np.float32(0))
    low = values.min()
    if values.max() == low:
        return np.zeros_like(values)
    if protocol.normalize in {"minmax", "pas"}:
        values = values - low
    elif protocol.normalize == "max":
        values = np.maximum(values, np.float32(0))
    else:
        values = np.maximum(values - np.float32(np.percentile(values, protocol.percentile)), np.float32(0))
    top = np.float32(np.percentile(values, protocol.percentile)) if protocol.normalize == "pas" else values.max()
    if top <= 0:  # nothing positive (max, ivr), or more than the percentile's share of the pixels is at the minimum (pas)
        return np.zeros_like(values) if protocol.normalize != "pas" else np.asarray(values > 0, dtype=np.float32)
    return np.asarray(np.clip(values / np.float32(top + np.float32(protocol.normalize_eps)), 0, 1))
