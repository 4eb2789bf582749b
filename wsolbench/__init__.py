"""A benchmark for weakly supervised object localization (WSOL) and fine-grained recognition.

The flow, from left to right. Each step imports only from steps to its left:

    datasets -> methods -> maps -> metrics -> records -> report

A data set gives samples: image, label, ground-truth boxes, masks and key points. A method turns images into
raw score maps and logits. `maps` brings a raw map into the evaluation frame of an `EvalProtocol`. `metrics`
compares maps with the ground truth. A record stores the numbers of one run and everything they depend on.
The report draws tables and figures from records. `evaluation` joins these steps.

    >>> import numpy as np
    >>> from wsolbench import EvalProtocol, best_iou_per_tau
    >>> best_iou_per_tau(np.eye(8), np.array([[0, 0, 7, 7]]), EvalProtocol.preset("wsoleval")).max()
    np.float64(1.0)

Importing this package loads neither torch nor matplotlib nor OpenCV. Names are imported when they are first
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsolbench.system.lazy import lazy_names

if TYPE_CHECKING:
    from wsolbench.datasets import list_datasets as list_datasets
    from wsolbench.datasets import load_dataset as load_dataset
    from wsolbench.evaluation.evaluate import evaluate as evaluate
    from wsolbench.evaluation.predict import Prediction as Prediction
    from wsolbench.evaluation.predict import predict as predict
    from wsolbench.exceptions import DataError as DataError
    from wsolbench.exceptions import UsageError as UsageError
    from wsolbench.exceptions import WsolbenchError as WsolbenchError
    from wsolbench.maps import frame_boxes as frame_boxes
    from wsolbench.maps import to_frame as to_frame
    from wsolbench.maps.folder_source import FolderSource as FolderSource
    from wsolbench.maps.sources import ModelSource as ModelSource
    from wsolbench.methods import list_methods as list_methods
    from wsolbench.methods import load_method as load_method
    from wsolbench.metrics.sweep import best_iou_per_tau as best_iou_per_tau
    from wsolbench.protocol import EvalProtocol as EvalProtocol
    from wsolbench.records import RunRecord as RunRecord
    from wsolbench.records import read_record as read_record
    from wsolbench.types import Dataset as Dataset
    from wsolbench.types import Sample as Sample

_HOME = {
    "DataError": "exceptions",
    "Dataset": "types",
    "EvalProtocol": "protocol",
    "FolderSource": "maps.folder_source",
    "ModelSource": "maps.sources",
    "Prediction": "evaluation.predict",
    "RunRecord": "records",
    "Sample": "types",
    "UsageError": "exceptions",
    "WsolbenchError": "exceptions",
    "best_iou_per_tau": "metrics.sweep",
    "evaluate": "evaluation.evaluate",
    "frame_boxes": "maps",
    "list_datasets": "datasets",
    "list_methods": "methods",
    "load_dataset": "datasets",
    "load_method": "methods",
    "predict": "evaluation.predict",
    "read_record": "records",
    "to_frame": "maps",
}

__all__ = list(_HOME)
__version__ = "0.1.0"


__getattr__, __dir__ = lazy_names(__name__, _HOME)
