"""Bring a score map into [0, 1], by the rule of the protocol."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wsolbench.protocol import EvalProtocol
from wsolbench.types import ScoreMap


def normalize(score_map: ScoreMap, protocol: EvalProtocol) -> Float[np.ndarray, "h w"]:
    """Map to [0, 1] by `protocol.normalize`, after `protocol.relu`; float64 maps in float64, others in float32, as they come.

    `minmax`: (x - min) / (max - min + eps). `max`: relu(x) / max. `pas`: relu(x) / percentile of it, cut at 1. `ivr`:
    relu(x - percentile of x) / max. All four as the IVR evaluation names them. A map without spread is all zeros.
    """
    values = np.asarray(score_map, dtype=np.float64 if score_map.dtype == np.float64 else np.float32)
    if protocol.relu:
        values = np.maximum(values, values.dtype.type(0))
    low = values.min()
    if values.max() == low:
        return np.zeros_like(values)
    kind = values.dtype.type
    if protocol.normalize == "minmax":
        values = values - low
    else:
        floor = np.percentile(values, protocol.percentile) if protocol.normalize == "ivr" else 0
        values = np.maximum(values - kind(floor), kind(0))
    top = kind(np.percentile(values, protocol.percentile)) if protocol.normalize == "pas" else values.max()
    if top <= 0:  # nothing positive (max, ivr), or more than the percentile's share of the pixels is at 0 (pas)
        return np.zeros_like(values) if protocol.normalize != "pas" else np.asarray(values > 0, dtype=kind)
    return np.asarray(np.clip(values / (top + kind(protocol.normalize_eps)), kind(0), kind(1)))
