from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsolbench.exceptions import DataError
from wsolbench.maps import MapFolder
from wsolbench.maps.store import MANIFEST
from wsolbench.report.page.gallery import galleries
from wsolbench.system.files import write_json


def write_maps(folder: Path, run: Any, maps: Sequence[np.ndarray]) -> Path:
    for sample, raw in zip(run.dataset.samples, maps, strict=True):
        MapFolder(folder).write(sample.id, raw)
    return folder


def test_the_best_and_the_worst_of_each_folder_are_shown(run: Any, tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "good", run, run.maps)
    every, _ = galleries([folder], run.dataset, run.record.protocol, count=len(run.dataset))
    ious = sorted(pictures[0].iou for _, _, pictures in every.items)
    assert len(ious) == len(run.dataset)
    hits = sum(iou >= 0.5 for iou in ious) / len(ious)
    assert hits == pytest.approx(run.record.metric("gt_known", "oracle").value)
    best, worst = (
        [pictures[0].iou for _, _, pictures in g.items]
        for g in galleries([folder], run.dataset, run.record.protocol, count=3)
    )
    assert best == ious[::-1][:3]
    assert worst == ious[:3]
    names = {sample.id: run.dataset.class_names[sample.label] for sample in run.dataset.samples}
    assert {image_id: name for image_id, name, _ in every.items} == names


def test_what_folders_disagree_on_is_shown_the_widest_span_first(run: Any, tmp_path: Path) -> None:
    folders = [write_maps(tmp_path / "a", run, run.maps), write_maps(tmp_path / "b", run, run.maps[::-1])]
    *single, every = galleries(folders, run.dataset, run.record.protocol, count=len(run.dataset))
    of = [{image_id: pictures[0].iou for image_id, _, pictures in single[place].items} for place in (0, 2)]
    assert every.title == "Largest differences in IoU"
    for image_id, _, pictures in every.items:
        assert [picture.iou for picture in pictures] == [found[image_id] for found in of]
        assert [picture.name for picture in pictures] == ["a", "b"]
    spans = [abs(pictures[0].iou - pictures[1].iou) for _, _, pictures in every.items]
    assert spans == sorted(spans, reverse=True)
    assert spans[0] > spans[-1]
    few = galleries(folders, run.dataset, run.record.protocol, count=3)[-1]
    assert [item[0] for item in few.items] == [item[0] for item in every.items][:3]


def test_folders_of_one_name_are_told_apart(run: Any, tmp_path: Path) -> None:
    folders = [write_maps(tmp_path / place / "maps", run, run.maps) for place in "ab"]
    other = write_maps(tmp_path / "other", run, run.maps)
    write_json(other / MANIFEST, {**MapFolder(other).manifest(), "method": {"name": "spa"}})
    shown = galleries([*folders, other], run.dataset, run.record.protocol, count=1)
    assert [gallery.title for gallery in shown[::2]] == [
        f"maps · {folders[0]}: highest IoU",
        f"maps · {folders[1]}: highest IoU",
        "spa: highest IoU",
        "Largest differences in IoU",
    ]


def test_folders_without_a_map_of_any_image_are_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a map in"):
        galleries([tmp_path], run.dataset, run.record.protocol, count=3)
