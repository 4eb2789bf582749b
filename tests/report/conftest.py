"""A made-up but valid run: a small data set of painted squares, maps that find part of them, its scores and
its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores, score_image
from wsolbench.evaluation.summary import summarize
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue, RunRecord
from wsolbench.types import Dataset, Sample, no_boxes

SIZE = (96, 64)  # width, height
PROTOCOL = EvalProtocol(taus=tau_grid(0.05), frame_size=64, resize_size=80)


@dataclass(frozen=True)
class Run:
    """Everything that a report may ask for."""

    dataset: Dataset
    maps: list[np.ndarray]
    scores: ImageScores
    record: RunRecord

    @property
    def table(self) -> ScoreTable:
        return ScoreTable((self.scores,))

    def maps_of(self, indices: list[int]) -> list[np.ndarray]:
        return [self.maps[index] for index in indices]


def make_dataset(n: int, *, boxes: bool = True, masks: Path | None = None, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    width, height = SIZE
    samples = []
    for index in range(n):
        x, y = int(rng.integers(4, 40)), int(rng.integers(4, 24))
        box = np.array([[x, y, x + rng.integers(16, 48), y + rng.integers(16, 32)]], dtype=np.float64)
        pixels = np.full((height, width, 3), 90, dtype=np.uint8) + rng.integers(
            0, 40, (height, width, 3), dtype=np.uint8
        )
        left, top, right, bottom = box[0].astype(int)
        pixels[top:bottom, left:right] = rng.integers(120, 250, 3)
        mask_paths: tuple[Path, ...] = ()
        if masks is not None:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[top:bottom, left:right] = 255
            Image.fromarray(mask).save(masks / f"{index}.png")
            mask_paths = (masks / f"{index}.png",)
        samples.append(
            Sample(
                id=f"birds/{index:03d}.jpg",
                label=index % 6,
                size=SIZE,
                boxes=box if boxes else no_boxes(),
                array=pixels,
                mask_paths=mask_paths,
            )
        )
    names = tuple(f"class_{number}" for number in range(6))
    return Dataset(name="squares", split="test", samples=samples, class_names=names, fingerprint="ab" * 32)


def make_map(sample: Sample, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bump somewhere near the box, at a quarter of the resolution, in no particular range."""
    width, height = sample.size
    center = (box[:2] + box[2:]) / 2 + rng.normal(0, 6, 2)
    spread = np.maximum(box[2:] - box[:2], 4) * rng.uniform(0.2, 0.6)
    rows, columns = np.mgrid[0:height:4, 0:width:4]
    bump = np.exp(-(((columns - center[0]) / spread[0]) ** 2 + ((rows - center[1]) / spread[1]) ** 2))
    return (3 * bump - 1 + rng.normal(0, 0.03, bump.shape)).astype(np.float32)


def build_run(
    n: int = 24,
    *,
    protocol: EvalProtocol = PROTOCOL,
    method: dict[str, Any] | None = None,
    boxes: bool = True,
    masks: Path | None = None,
    ranks: int = 5,
    seed: int = 0,
    dataset: Dataset | None = None,
    **summary: Any,
) -> Run:
    rng = np.random.default_rng(seed)
    truth = make_dataset(n)
    dataset = dataset or make_dataset(n, boxes=boxes, masks=masks)
    maps = [
        make_map(sample, true.boxes[0], rng)
        for sample, true in zip(dataset.samples, truth.samples, strict=True)
    ]
    ranked = [
        np.roll(np.arange(6), -sample.label + int(rng.integers(0, 3) > 1))[:ranks]
        for sample in dataset.samples
    ]
    scores = ImageScores.concatenate(
        [
            score_image(sample, raw, row.tolist(), protocol)
            for sample, raw, row in zip(dataset.samples, maps, ranked, strict=True)
        ]
    )
    metrics = summarize(ScoreTable((scores,)), protocol, resamples=50, **summary)
    return Run(dataset, maps, scores, make_record(dataset, protocol, metrics, method=method))


def make_record(
    dataset: Dataset,
    protocol: EvalProtocol,
    metrics: tuple[MetricValue, ...],
    *,
    method: dict[str, Any] | None = None,
) -> RunRecord:
    return RunRecord(
        method={"name": "cam", "backbone": "tiny", "training": {"seed": 0}} | (method or {}),
        dataset={
            "name": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
            "images": len(dataset),
            "limit": None,
            "transfer_from": None,
        },
        protocol=protocol,
        metrics=metrics,
        provenance={"command": "wsolbench eval", "date": "2025-01-01T00:00:00+00:00"},
    )


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """`make_run(n, boxes=, masks=, ranks=, ...)`: see `build_run`."""
    return build_run


@pytest.fixture(scope="session")
def run() -> Run:
    """A run with boxes and labels, three threshold policies and no masks."""
    return build_run(fixed_tau=0.2, transfer_from=build_run(12, seed=5).table)


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    """Write a record with chosen parts below `tmp_path/measured`; gives its path."""

    def write(*, dataset: dict[str, Any] | None = None, **changes: Any) -> Path:
        data = {"images": 10, **(dataset or {})}
        standard = MetricValue(
            name="gt_known", value=0.5, low=0.4, high=0.6, n=data["images"], policy="oracle", tau=(0.2,)
        )
        metrics = changes.pop("metrics", (standard,))
        base = make_record(
            make_dataset(2), changes.pop("protocol", PROTOCOL), metrics, method=changes.pop("method", None)
        )
        return replace(base, dataset={**base.dataset, **data}, **changes).write(tmp_path / "measured")

    return write
