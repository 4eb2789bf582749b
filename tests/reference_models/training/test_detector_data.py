"""Images and objects for the training of detectors: which objects have a mask to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference_models.training.detector_data import TargetReader
from tests.datasets.coco_layout import edited, write_coco
from wsolbench.datasets.coco import load_instances
from wsolbench.exceptions import UsageError


@pytest.mark.parametrize(
    "nothing", [{}, {"segmentation": None}, {"segmentation": []}], ids=["missing", "null", "empty"]
)
def test_an_object_without_polygons_has_no_mask_to_learn(tmp_path: Path, nothing: dict[str, object]) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    objects = json.loads(path.read_text())["annotations"]
    bare = {key: value for key, value in objects[0].items() if key != "segmentation"} | nothing
    edited(path, annotations=[bare, *objects[1:]])
    dataset = load_instances(tmp_path, "train")
    with pytest.raises(UsageError, match=r"1 objects of coco train have no mask.*--set masks=false"):
        TargetReader(dataset, masks=True)
    assert len(TargetReader(dataset, masks=False)) == 3
