"""Write predicted boxes in COCO's results format, which pycocotools and viewers of detections read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsolbench.datasets.coco import xywh
from wsolbench.datasets.coco_export import category_of
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.exceptions import UsageError
from wsolbench.maps import image_boxes, to_frame
from wsolbench.metrics.sweep import single_box_per_tau
from wsolbench.records import RunRecord
from wsolbench.system.files import write_text
from wsolbench.types import Dataset, ScoreMap

_AT_A_TIME = 64


def write_coco_boxes(
    path: Path,
    record: RunRecord,
    scores: ScoreTable,
    dataset: Dataset,
    maps_of: Callable[[list[int]], Sequence[ScoreMap]],
    numbers: Mapping[str, int],
) -> int:
    """Write one box per image of `dataset` to `path`, a JSON list, and return the number of boxes.

    The box comes from the map of the true class, by the protocol's single-box rule, at the oracle threshold
    of GT-known. It is scaled to pixels of the image. If nothing is foreground, it is the protocol's empty
    box. Its category is the best predicted label, or the true class if no label is predicted. Its score is
    the largest value of the raw map, in the method's own unit.

    Args:
        path: output file.
        record: record of the run; gives protocol and threshold.
        scores: per-image scores, in the order of `dataset`.
        dataset: the images that were scored.
        maps_of: returns the raw maps of the images with these indices, in that order. It is called once per
            64 images.
        numbers: COCO's image number by id. Classes are numbered from 1.

    Raises `UsageError` for a run without GT-known, and if the file cannot be written or holds other boxes.
    """
    metric = record.metric("gt_known", "oracle")
    if metric is None or not metric.tau:
        raise UsageError(
            f"no image of {dataset.name}/{dataset.split} has a ground-truth box, so there is no oracle "
            "threshold to draw boxes at; use a split with boxes"
        )
    protocol = replace(record.map_protocol, taus=metric.tau)

    def results() -> Iterator[dict[str, Any]]:
        labels = [
            int(row[0])
            for part in scores
            for row in (part.ranked if part.ranked.shape[1] else part.labels[:, None])
        ]
        for start in range(0, len(dataset), _AT_A_TIME):
            indices = list(range(start, min(start + _AT_A_TIME, len(dataset))))
            for index, raw_map in zip(indices, maps_of(indices), strict=True):
                sample = dataset[index]
                unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
                (box,) = xywh(image_boxes(single_box_per_tau(unit_map, protocol), sample.size, protocol))
                yield {
                    "image_id": numbers[sample.id],
                    "category_id": category_of(labels[index]),
                    "bbox": box,
                    "score": float(raw_map.max()),
                }

    found = list(results())
    text = json.dumps(found, allow_nan=False) + "\n"
    if path.is_file() and path.read_bytes() != text.encode():  # the same run writes the same bytes
        raise UsageError(
            f"{path} holds other boxes, perhaps of another run. Remove it, or choose another file. The "
            "record has been written."
        )
    write_text(path, text)
    return len(found)
