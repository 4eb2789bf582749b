"""Metrics: NumPy arrays in, numbers out, without torch.

Maps are in the evaluation frame, in [0, 1]; `wsolbench.maps.to_frame` brings raw maps there. Ground-truth
boxes are in the protocol's convention; `wsolbench.maps.frame_boxes` converts them. Accumulators have
`update`, `merge` and `compute`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsolbench.protocol import EvalProtocol
from wsolbench.system.lazy import lazy_names

if TYPE_CHECKING:
    from wsolbench.metrics.accuracy import MeanPerClassAccuracy as MeanPerClassAccuracy
    from wsolbench.metrics.accuracy import MeanPerClassAccuracyResult as MeanPerClassAccuracyResult
    from wsolbench.metrics.accuracy import TopKAccuracy as TopKAccuracy
    from wsolbench.metrics.accuracy import TopKAccuracyResult as TopKAccuracyResult
    from wsolbench.metrics.best_threshold import best_threshold_interval as best_threshold_interval
    from wsolbench.metrics.boxes import iob_matrix as iob_matrix
    from wsolbench.metrics.boxes import iog_matrix as iog_matrix
    from wsolbench.metrics.boxes import iou_matrix as iou_matrix
    from wsolbench.metrics.confidence import Interval as Interval
    from wsolbench.metrics.confidence import PairedDifference as PairedDifference
    from wsolbench.metrics.confidence import bootstrap_interval as bootstrap_interval
    from wsolbench.metrics.confidence import paired_difference as paired_difference
    from wsolbench.metrics.errors import ERROR_NAMES as ERROR_NAMES
    from wsolbench.metrics.errors import ErrorBreakdown as ErrorBreakdown
    from wsolbench.metrics.errors import ErrorBreakdownResult as ErrorBreakdownResult
    from wsolbench.metrics.errors import error_codes as error_codes
    from wsolbench.metrics.errors import localization_error as localization_error
    from wsolbench.metrics.keypoints import KeypointDistance as KeypointDistance
    from wsolbench.metrics.keypoints import KeypointDistanceResult as KeypointDistanceResult
    from wsolbench.metrics.keypoints import keypoint_distance as keypoint_distance
    from wsolbench.metrics.max_box_acc import MaxBoxAcc as MaxBoxAcc
    from wsolbench.metrics.max_box_acc import MaxBoxAccResult as MaxBoxAccResult
    from wsolbench.metrics.peak_iou import MeanImageIoU as MeanImageIoU
    from wsolbench.metrics.peak_iou import MeanImageIoUResult as MeanImageIoUResult
    from wsolbench.metrics.peak_iou import PeakIoU as PeakIoU
    from wsolbench.metrics.peak_iou import PeakIoUResult as PeakIoUResult
    from wsolbench.metrics.pxap import PxAP as PxAP
    from wsolbench.metrics.pxap import PxAPResult as PxAPResult
    from wsolbench.metrics.pxap import average_precision as average_precision
    from wsolbench.metrics.pxap import pixel_histogram as pixel_histogram
    from wsolbench.metrics.sweep import Sweep as Sweep
    from wsolbench.metrics.sweep import best_iou_per_tau as best_iou_per_tau
    from wsolbench.metrics.sweep import boxes_at as boxes_at
    from wsolbench.metrics.sweep import quantize as quantize
    from wsolbench.metrics.sweep import single_box_per_tau as single_box_per_tau
    from wsolbench.metrics.thresholds import ThresholdPolicy as ThresholdPolicy
    from wsolbench.metrics.top_k_loc import TopKLoc as TopKLoc
    from wsolbench.metrics.top_k_loc import TopKLocResult as TopKLocResult

_HOME = {
    "ERROR_NAMES": "errors",
    "ErrorBreakdown": "errors",
    "ErrorBreakdownResult": "errors",
    "Interval": "confidence",
    "KeypointDistance": "keypoints",
    "KeypointDistanceResult": "keypoints",
    "MaxBoxAcc": "max_box_acc",
    "MaxBoxAccResult": "max_box_acc",
    "MeanImageIoU": "peak_iou",
    "MeanImageIoUResult": "peak_iou",
    "MeanPerClassAccuracy": "accuracy",
    "MeanPerClassAccuracyResult": "accuracy",
    "PairedDifference": "confidence",
    "PeakIoU": "peak_iou",
    "PeakIoUResult": "peak_iou",
    "PxAP": "pxap",
    "PxAPResult": "pxap",
    "Sweep": "sweep",
    "ThresholdPolicy": "thresholds",
    "TopKAccuracy": "accuracy",
    "TopKAccuracyResult": "accuracy",
    "TopKLoc": "top_k_loc",
    "TopKLocResult": "top_k_loc",
    "average_precision": "pxap",
    "best_iou_per_tau": "sweep",
    "best_threshold_interval": "best_threshold",
    "bootstrap_interval": "confidence",
    "boxes_at": "sweep",
    "error_codes": "errors",
    "iob_matrix": "boxes",
    "iog_matrix": "boxes",
    "iou_matrix": "boxes",
    "keypoint_distance": "keypoints",
    "localization_error": "errors",
    "paired_difference": "confidence",
    "pixel_histogram": "pxap",
    "quantize": "sweep",
    "single_box_per_tau": "sweep",
}

__all__ = ["EvalProtocol", *_HOME]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
