"""Proposed parts against key points, from the forward pass to the record: the same numbers as the metric by
itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up import MadeUpSource, dataset

from wsolbench.evaluation.evaluate import evaluate
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.sources import ProposedParts, SourceOutput
from wsolbench.metrics.keypoints import KeypointDistance
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue
from wsolbench.types import Dataset, Sample

SIDE = 128
SQUASH = EvalProtocol(taus=tau_grid(0.1))
CROP = replace(SQUASH, frame="center_crop")


def annotated(count: int = 90) -> Dataset:
    """Images of 64 x 64 with five key points, some of them not visible, some images without any; every
    seventh without boxes."""
    data = dataset(count)
    rng = np.random.default_rng(1)
    samples = []
    for number, sample in enumerate(data.samples):
        points = np.concatenate([rng.uniform(0, 64, (5, 2)), rng.integers(0, 2, (5, 1))], axis=1)
        points[:, 2] *= number % 5 > 0
        samples.append(replace(sample, key_points=points, boxes=sample.boxes[: int(number % 7 > 0)]))
    return replace(data, samples=tuple(samples))


def proposals(sample: Sample) -> ProposedParts:
    """Five boxes, the last ones padded in some images."""
    rng = np.random.default_rng(int(sample.id[-7:-4]))
    corner = rng.uniform(-10, SIDE, (5, 2))
    return ProposedParts(
        boxes=np.hstack([corner, corner + rng.uniform(4, 40, (5, 2))]),
        padded=np.arange(5) >= rng.integers(1, 6),
        side=SIDE,
    )


class Proposing(MadeUpSource):
    def maps(self, samples: Sequence[Sample], batch: Sequence[Any]) -> SourceOutput:
        return replace(super().maps(samples, batch), proposed=[proposals(sample) for sample in samples])


def found(metrics: Sequence[MetricValue], name: str) -> MetricValue:
    return next(metric for metric in metrics if metric.name == name)


@pytest.mark.parametrize("protocol", [SQUASH, CROP], ids=["squash", "crop"])
def test_an_evaluation_gives_what_the_metric_gives(protocol: EvalProtocol) -> None:
    data = annotated()
    metrics = evaluate(data, Proposing(), protocol).record.metrics
    expected = KeypointDistance(side=SIDE)
    for sample in data.samples:
        if len(sample.boxes):
            assert sample.key_points is not None
            points = np.hstack(
                [map_to_view(sample.key_points[:, :2], sample.size, SIDE, protocol), sample.key_points[:, 2:]]
            )
            box = map_to_view(sample.boxes.reshape(2, 2), sample.size, SIDE, protocol).ravel()
            parts = proposals(sample)
            expected.update(parts.boxes, points, box, parts.padded)
    result = expected.compute()
    assert result.n_skipped > 5
    assert found(metrics, "keypoint_distance").n == result.n
    assert found(metrics, "keypoint_distance").value == pytest.approx(result.norm, abs=1e-9)
    assert found(metrics, "keypoint_distance_px").value == pytest.approx(result.px, abs=1e-9)
    assert found(metrics, "keypoint_hit").value == pytest.approx(result.hit, abs=1e-9)
    assert found(metrics, "keypoint_distinct").value == pytest.approx(result.distinct, abs=1e-9)
    covered = found(metrics, "keypoint_covered")
    assert covered.value == pytest.approx(result.covered, abs=1e-9)
    assert 0 < covered.low < covered.value < covered.high < result.distinct
    for slot in range(4):
        assert found(metrics, f"keypoint_distance@{slot + 1}").value == pytest.approx(
            result.slot_norm[slot], abs=1e-9
        )
        assert found(metrics, f"keypoint_distance_px@{slot + 1}").value == pytest.approx(
            result.slot_px[slot], abs=1e-9
        )
    low, value, high = (
        getattr(found(metrics, "keypoint_distance"), name) for name in ("low", "value", "high")
    )
    assert low < value < high


def test_points_are_where_the_network_sees_them() -> None:
    corner = np.array([[0.0, 0.0], [100.0, 50.0]])
    assert np.array_equal(map_to_view(corner, (100, 50), 448, SQUASH), [[0, 0], [448, 448]])
    assert np.array_equal(map_to_view(corner, (100, 50), 448, CROP), [[-32, -32], [480, 480]])


def test_without_proposals_or_key_points_there_is_no_such_metric() -> None:
    for data, source in ((annotated(), MadeUpSource()), (dataset(), Proposing())):
        assert not [m for m in evaluate(data, source, SQUASH).record.metrics if m.name.startswith("keypoint")]
