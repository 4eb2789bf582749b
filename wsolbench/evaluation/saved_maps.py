"""Saved maps of a run: describes a run for `wsolbench.maps.writer`, from the run's plan."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsolbench.evaluation.runs import RunPlan
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.maps import MapFolder, view
from wsolbench.maps.writer import MapRun, MapWriter, finish_maps, open_writer
from wsolbench.system.files import canonical_json
from wsolbench.types import Dataset

_OF_SPLITS = ("split", "fingerprint", "images", "limit", "transfer_from")
"""Fields of a plan's `dataset` that may differ between runs whose maps share a folder."""
_WHOLE = ("method", "batch_size", "source", "program", "machine")
"""Fields of a plan that maps and predicted labels depend on as a whole. A plan may lack some."""


@contextlib.contextmanager
def saving_maps(
    folder: MapFolder | None, plan: RunPlan, splits: Sequence[Dataset]
) -> Iterator[MapWriter | None]:
    """Open a folder for the maps of a run. None stays None. Raises as `wsolbench.maps.writer.open_writer`."""
    if folder is None:
        yield None
        return
    with open_writer(
        folder, _map_run(plan), [image_id for split in splits for image_id in split.ids]
    ) as writer:
        yield writer


def finish_saved_maps(plan: RunPlan, tables: Mapping[str, ScoreTable]) -> None:
    """Mark the folder of maps of a run as complete. Does nothing if no maps are saved.

    The folder gets the predicted labels if every image has some.
    """
    if plan.maps is None or not Path(plan.maps).is_dir():
        return
    ranked = {
        str(image_id): labels.tolist()
        for table in tables.values()
        for part in table
        for image_id, labels in zip(part.ids, part.ranked, strict=True)
    }
    finish_maps(
        MapFolder(Path(plan.maps)), _map_run(plan), ranked, ranked if all(map(len, ranked.values())) else None
    )


def _map_run(plan: RunPlan) -> MapRun:
    """Describe the run of a folder of maps: what must be equal, and what the folder states."""
    protocol, data = plan.protocol, plan.dataset
    crop = (
        {"frame_size": protocol.frame_size, "resize_size": protocol.resize_size}
        if view(protocol) == "center_crop"
        else None
    )
    # The identity must be equal for maps that share a folder.
    identity: dict[str, Any] = {
        **{name: value for name, value in plan.to_json().items() if name in _WHOLE},
        "dataset": {name: value for name, value in data.items() if name not in _OF_SPLITS},
        "view": {"covers": view(protocol), "crop": crop, "classifier": protocol.classifier},
    }
    # The metadata is what the folder's maps.json states.
    facts: dict[str, Any] = {
        "method": plan.method,
        "dataset": data["name"],
        "view": view(protocol),
        "values": "raw, float32",
    }
    if crop is not None:
        facts["crop"] = crop
    if "transform" in data:
        facts["transform"] = data["transform"]
    splits = [data, *([data["transfer_from"]] if data["transfer_from"] else [])]
    return MapRun(
        identity=json.loads(canonical_json(identity)),
        facts=facts,
        fingerprints={split["split"]: split["fingerprint"] for split in splits},
    )
