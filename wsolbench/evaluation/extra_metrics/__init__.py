"""Metrics that are computed on request (`--extra-metrics`), one file each.

They reach `wsolbench.metrics.catalog` through the entry point `wsolbench.metrics`, as those of any other
package do.
"""

from __future__ import annotations

from wsolbench.evaluation.extra_metrics.base import ExtraMetric
from wsolbench.evaluation.extra_metrics.insertion_deletion import InsertionDeletion
from wsolbench.evaluation.extra_metrics.mask_overlap import MaskOverlap
from wsolbench.evaluation.extra_metrics.pointing_game import PointingGame
from wsolbench.evaluation.extra_metrics.size_strata import SizeStrata


def extra_metrics() -> list[ExtraMetric]:
    """Return the extra metrics of this package."""
    return [SizeStrata(), PointingGame(), MaskOverlap(), InsertionDeletion()]
