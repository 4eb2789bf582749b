"""Small made-up data: images with one bright rectangle, maps that show it well or badly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsolbench.evaluation.request import EvalRequest
from wsolbench.maps.sources import MapSource, SourceOutput
from wsolbench.protocol import EvalProtocol
from wsolbench.records.published import COLUMNS, PublishedNumber
from wsolbench.types import Dataset, Sample

SIDE = 64
CLASSES = ("crow", "finch", "gull")


def samples(count: int, seed: int = 0) -> tuple[Sample, ...]:
    """Images of one bright rectangle, which is the true box; every third class in turn."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        x0, y0 = rng.integers(2, 24, size=2)
        width, height = rng.integers(12, 36, size=2)
        box = np.array([x0, y0, x0 + width, y0 + height], dtype=np.float64)
        pixels = rng.integers(0, 60, size=(SIDE, SIDE, 3), dtype=np.uint8)
        pixels[y0 : y0 + height, x0 : x0 + width] += np.uint8(150)
        made.append(
            Sample(
                id=f"s{seed}/{index:03d}.png",
                label=index % 3,
                size=(SIDE, SIDE),
                boxes=box[None],
                array=pixels,
            )
        )
    return tuple(made)


def dataset(count: int = 12, split: str = "test", seed: int = 0) -> Dataset:
    return Dataset(
        name="made-up",
        split=split,
        samples=samples(count, seed),
        class_names=CLASSES,
        fingerprint=f"made-up-{split}-{seed}-{count}",
    )


def eval_request(data: Dataset, source: MapSource, protocol: EvalProtocol, **options: Any) -> EvalRequest:
    """The request that `evaluate` makes from these arguments."""
    return EvalRequest(dataset=data, source=source, protocol=protocol, **options)


def box_map(sample: Sample) -> np.ndarray:
    """A map that is 1 inside the true box and falls off outside."""
    x0, y0, x1, y1 = sample.boxes[0] if len(sample.boxes) else (0, 0, 1, 1)
    x, y = np.arange(SIDE) + 0.5, np.arange(SIDE)[:, None] + 0.5
    outside = np.maximum(np.maximum(x0 - x, x - x1), np.maximum(y0 - y, y - y1))
    return np.exp(-np.maximum(outside, 0) / 8).astype(np.float32)


@dataclass
class MadeUpSource:
    """Maps of the bright rectangle. `fail_after` batches it stops, as a killed process does; `loads` says
    what it was asked for."""

    fail_after: int | None = None
    loads: list[str] = field(default_factory=list)
    batches: int = 0

    def load(self, sample: Sample) -> np.ndarray:
        self.loads.append(sample.id)
        return box_map(sample)

    def collate(self, loaded: Sequence[Any]) -> Sequence[Any]:
        return loaded

    def maps(self, samples: Sequence[Sample], batch: Sequence[Any]) -> SourceOutput:
        if self.fail_after is not None and self.batches >= self.fail_after:
            raise RuntimeError("killed")
        self.batches += 1
        # every fourth image is taken for its neighbour class
        ranked = [
            [(s.label + shift + (int(s.id[-7:-4]) % 4 == 0)) % 3 for shift in range(3)] for s in samples
        ]
        return SourceOutput(maps=list(batch), ranked=np.array(ranked, dtype=np.int64))

    def describe(self) -> dict[str, Any]:
        return {"name": "made-up", "backbone": None}

    def identity(self, ids: Sequence[str]) -> None:
        return None

    def provenance(self) -> dict[str, Any]:
        return {"device": "cpu"}


def published_number(**changes: object) -> PublishedNumber:
    """A valid number with some fields changed."""
    values = dict.fromkeys(COLUMNS, "") | {
        "paper": "spa",
        "row": None,
        "table": "Table 2",
        "dataset": "cub",
        "split": "test",
        "method": "CAM",
        "backbone": "vgg16",
        "metric": "top1_loc",
        "value": "44.15",
        "unit": "percent",
        "evidence": "requoted",
    }
    return PublishedNumber(**{**values, **changes})  # type: ignore[arg-type]
