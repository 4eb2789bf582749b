"""Properties of every metric, stated once: the table has one row per accumulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsolbench.exceptions import WsolbenchError
from wsolbench.maps import frame_boxes, to_frame
from wsolbench.metrics.accuracy import MeanPerClassAccuracy, TopKAccuracy
from wsolbench.metrics.errors import ErrorBreakdown, error_codes
from wsolbench.metrics.keypoints import KeypointDistance
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.metrics.peak_iou import MeanImageIoU, PeakIoU
from wsolbench.metrics.pxap import PxAP
from wsolbench.metrics.sweep import Sweep, sweep
from wsolbench.metrics.top_k_loc import TopKLoc
from wsolbench.protocol import EvalProtocol, tau_grid

WIDTH, HEIGHT, CLASSES = 14, 12, 6
IMAGES = EvalProtocol(name="small", frame="original", taus=tau_grid(0.05))
CLASS_MEAN = replace(IMAGES, name="small, class mean", averaging="class")
UNION = replace(EvalProtocol.preset("spa"), name="small, union")


@dataclass(frozen=True)
class Image:
    """All inputs that any metric uses."""

    raw: np.ndarray
    boxes: np.ndarray
    label: int
    ranking: np.ndarray
    key_points: np.ndarray
    proposals: np.ndarray
    padded: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for x0, y0, x1, y1 in self.boxes.astype(int):
            mask[y0:y1, x0:x1] = True
        return mask

    @property
    def ignore(self) -> np.ndarray:
        ignore = np.zeros((HEIGHT, WIDTH), dtype=bool)
        ignore[:3, :2] = True
        return ignore & ~self.mask


def make_image(seed: int, kind: str, n_boxes: int) -> Image:
    rng = np.random.default_rng(seed)
    # Whole numbers: min-max of a scaled map then divides the same two exact numbers, so scaling cannot change
    # a bit.
    raw = rng.integers(-20, 20, (HEIGHT, WIDTH)).astype(np.float32)
    if kind == "smooth":
        raw = np.rint(
            -np.hypot(
                np.arange(WIDTH) - rng.integers(WIDTH), (np.arange(HEIGHT) - rng.integers(HEIGHT))[:, None]
            )
        ).astype(np.float32)
    elif kind == "constant":
        raw[:] = raw[0, 0]
    corners = np.column_stack([rng.integers(0, WIDTH - 4, n_boxes), rng.integers(0, HEIGHT - 4, n_boxes)])
    ends = np.column_stack(
        [rng.integers(corners[:, 0] + 4, WIDTH + 1), rng.integers(corners[:, 1] + 4, HEIGHT + 1)]
    )
    points = np.column_stack([rng.uniform(0, WIDTH, 5), rng.uniform(0, HEIGHT, 5), rng.random(5) < 0.7])
    points[0, 2] = 1.0
    centres = rng.uniform(0, HEIGHT, (4, 2))
    return Image(
        raw=raw,
        boxes=np.hstack([corners, ends]).astype(np.float64),
        label=int(rng.integers(CLASSES)),
        ranking=rng.permutation(CLASSES),
        key_points=points,
        proposals=np.hstack([centres - 1.5, centres + 1.5]),
        padded=np.append(False, rng.random(3) < 0.2),
    )


images = st.builds(
    make_image,
    st.integers(0, 2**32),
    st.sampled_from(["noise", "smooth", "smooth", "constant"]),
    st.integers(1, 2),
)
one_object = st.builds(make_image, st.integers(0, 2**32), st.just("smooth"), st.just(1))


def perfect(image: Image) -> Image:
    """The map is the object, the best label is the true one, every proposal lies on a key point."""
    points = np.repeat(image.key_points[image.key_points[:, 2] > 0, :2], 4, axis=0)[:4]
    others = [label for label in range(CLASSES) if label != image.label]
    return replace(
        image,
        raw=image.mask.astype(np.float32) * 7,
        ranking=np.array([image.label, *others]),
        proposals=np.hstack([points - 1, points + 1]),
    )


def empty(image: Image) -> Image:
    """The map is empty, the true label comes last, and there is no proposal."""
    others = [label for label in range(CLASSES) if label != image.label]
    return replace(
        image,
        raw=np.zeros_like(image.raw),
        ranking=np.array([*others, image.label]),
        proposals=np.zeros((0, 4)),
        padded=np.zeros(0, bool),
    )


def without_object(image: Image) -> Image:
    return replace(image, boxes=np.zeros((0, 4)), key_points=image.key_points * [1, 1, 0])


def swept(image: Image, protocol: EvalProtocol) -> tuple[Sweep, np.ndarray]:
    truth = frame_boxes(image.boxes, (WIDTH, HEIGHT), protocol)
    return sweep(to_frame(image.raw, (WIDTH, HEIGHT), protocol), truth, protocol), truth


def seen_by_errors(image: Image, protocol: EvalProtocol) -> tuple[Any, ...]:
    found, truth = swept(image, protocol)
    return error_codes(found.single_boxes, truth, protocol), bool(image.ranking[0] == image.label)


def seen_by_masks(image: Image, protocol: EvalProtocol) -> tuple[Any, ...]:
    return to_frame(image.raw, (WIDTH, HEIGHT), protocol), image.mask, image.ignore


def seen_by_key_points(image: Image, _: EvalProtocol) -> tuple[Any, ...]:
    true_box = image.boxes[0] if len(image.boxes) else np.array([0.0, 0.0, 3.0, 4.0])
    return image.proposals, image.key_points, true_box, image.padded


def object_share(image: Image) -> float:
    return float(image.mask.sum() / (~image.ignore).sum())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One accumulator: how it is built and updated, its headline numbers, and their values in both extremes."""

    name: str
    make: Callable[[], Any]
    see: Callable[[Image], tuple[Any, ...]]
    headline: Callable[[Any], list[float]]
    no_object: str | None
    """Error message for an image without an object, or None for metrics that need labels only."""
    compute: Callable[[Any], Any] = lambda metric: metric.compute()
    best: float = 1.0
    worst: Callable[[Image], float] | None = lambda image: 0.0
    """Headline of an empty map (the last label, no proposal), or None if it is undefined."""
    uses_map: bool = True
    in_unit_interval: bool = True


def rows_of(protocol: EvalProtocol) -> list[Row]:
    """Return the box metrics for each of three protocols."""
    suffix = "" if protocol is IMAGES else f" ({protocol.name})"
    no_box = "no ground-truth box"
    return [
        Row(
            name="MaxBoxAcc" + suffix,
            make=lambda: MaxBoxAcc(protocol, deltas=(0.5,)),
            see=lambda image: (swept(image, protocol)[0].single_iou, image.label),
            headline=lambda result: [result.value],
            no_object=no_box,
        ),
        Row(
            name="MaxBoxAccV2" + suffix,
            make=lambda: MaxBoxAcc(protocol),
            see=lambda image: (swept(image, protocol)[0].best_iou, image.label),
            headline=lambda result: [result.value, *result.value_per_delta],
            no_object=no_box,
        ),
        Row(
            name="TopKLoc" + suffix,
            make=lambda: TopKLoc(protocol),
            see=lambda image: (swept(image, protocol)[0].single_iou, image.ranking, image.label),
            headline=lambda result: [result.gt_known, *result.top_k.values()],
            no_object=no_box,
        ),
    ]


TABLE = [
    *rows_of(IMAGES),
    *rows_of(CLASS_MEAN),
    *rows_of(UNION),
    Row(
        name="ErrorBreakdown",
        make=lambda: ErrorBreakdown(IMAGES),
        see=lambda image: seen_by_errors(image, IMAGES),
        compute=lambda metric: metric.compute(4),
        headline=lambda result: [result.fractions["right"]],
        no_object="no ground-truth box",
    ),
    Row(
        name="PxAP",
        make=lambda: PxAP(IMAGES),
        see=lambda image: seen_by_masks(image, IMAGES),
        headline=lambda result: [result.value],
        no_object="no object pixel",
        worst=object_share,
    ),
    Row(
        name="PeakIoU",
        make=lambda: PeakIoU(IMAGES),
        see=lambda image: seen_by_masks(image, IMAGES),
        headline=lambda result: [result.peak_iou],
        no_object="no object pixel",
        worst=object_share,
    ),
    Row(
        name="MeanImageIoU",
        make=lambda: MeanImageIoU(IMAGES),
        see=lambda image: seen_by_masks(image, IMAGES),
        headline=lambda result: [result.value],
        no_object="has an object pixel",
        worst=object_share,
    ),
    Row(
        name="KeypointDistance",
        make=lambda: KeypointDistance(side=WIDTH),
        see=lambda image: seen_by_key_points(image, IMAGES),
        headline=lambda result: [result.px, result.norm],
        no_object="have none",
        best=0.0,
        worst=None,
        uses_map=False,
        in_unit_interval=False,
    ),
    Row(
        name="TopKAccuracy",
        make=TopKAccuracy,
        see=lambda image: (image.ranking, image.label),
        headline=lambda result: list(result.top_k.values()),
        no_object=None,
        uses_map=False,
    ),
    Row(
        name="MeanPerClassAccuracy",
        make=MeanPerClassAccuracy,
        see=lambda image: (image.ranking, image.label),
        headline=lambda result: [result.value, *result.per_class.values()],
        no_object=None,
        uses_map=False,
    ),
]

every_metric = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
few = settings(max_examples=20, deadline=None)


def run(row: Row, observations: list[tuple[Any, ...]]) -> Any:
    metric = row.make()
    for observation in observations:
        metric.update(*observation)
    return metric


@every_metric
@few
@given(st.lists(images, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_images_changes_no_bit(row: Row, drawn: list[Image], random) -> None:
    observations = [row.see(image) for image in drawn]
    shuffled = random.sample(observations, len(observations))
    assert row.compute(run(row, observations)) == row.compute(run(row, shuffled))


@every_metric
@few
@given(st.lists(images, min_size=1, max_size=6), st.data())
def test_merged_shards_equal_one_run_to_the_last_bit(row: Row, drawn: list[Image], data) -> None:
    observations = [row.see(image) for image in drawn]
    shard_of = [data.draw(st.integers(0, 2)) for _ in observations]
    shards = [
        run(row, [seen for seen, at in zip(observations, shard_of, strict=True) if at == shard])
        for shard in range(3)
    ]
    merged = row.make()
    for shard in data.draw(st.permutations(shards)):
        merged.merge(shard)
    assert row.compute(merged) == row.compute(run(row, observations))


@every_metric
@few
@given(st.lists(images, min_size=2, max_size=4))
def test_merging_leaves_the_merged_shard_as_it_was(row: Row, drawn: list[Image]) -> None:
    observations = [row.see(image) for image in drawn]
    shard, merged = run(row, observations[:1]), row.make()
    merged.merge(shard)
    for observation in observations[1:]:
        merged.update(*observation)
    assert row.compute(shard) == row.compute(run(row, observations[:1]))
    assert row.compute(merged) == row.compute(run(row, observations))


@pytest.mark.parametrize("row", [row for row in TABLE if row.uses_map], ids=lambda row: row.name)
@few
@given(
    st.lists(images, min_size=1, max_size=3),
    st.one_of(st.integers(1, 1000), st.sampled_from([2.0**-9, 0.5, 2.0**20])),
)
def test_a_positive_factor_on_the_raw_map_changes_nothing(
    row: Row, drawn: list[Image], factor: float
) -> None:
    scaled = [replace(image, raw=image.raw * np.float32(factor)) for image in drawn]
    plain_result, scaled_result = (
        row.compute(run(row, [row.see(image) for image in each])) for each in (drawn, scaled)
    )
    assert plain_result == scaled_result


@every_metric
@few
@given(st.lists(one_object, min_size=1, max_size=4))
def test_perfect_predictions_have_the_best_value(row: Row, drawn: list[Image]) -> None:
    assume(
        not any(image.mask.all() for image in drawn)
    )  # a map of an object that fills the image is constant and has no information
    result = row.compute(run(row, [row.see(perfect(image)) for image in drawn]))
    assert row.headline(result) == pytest.approx([row.best] * len(row.headline(result)), abs=1e-12)


@every_metric
@few
@given(one_object)
def test_empty_predictions_have_the_worst_value_or_none(row: Row, image: Image) -> None:
    metric = run(row, [row.see(empty(image))])
    if row.worst is None:
        with pytest.raises(WsolbenchError, match="none of them has a box"):
            row.compute(metric)
        return
    headline = row.headline(row.compute(metric))
    assert headline == pytest.approx([row.worst(image)] * len(headline), abs=1e-11)


@pytest.mark.parametrize("row", [row for row in TABLE if row.no_object], ids=lambda row: row.name)
def test_an_image_without_object_is_an_error_that_says_so(row: Row) -> None:
    with pytest.raises(WsolbenchError, match=row.no_object):
        row.compute(run(row, [row.see(without_object(make_image(0, "smooth", 1)))]))


@every_metric
def test_without_an_image_the_metric_is_undefined(row: Row) -> None:
    with pytest.raises(WsolbenchError, match=r"undefined|no image"):
        row.compute(row.make())


@pytest.mark.parametrize("row", [row for row in TABLE if row.in_unit_interval], ids=lambda row: row.name)
@few
@given(st.lists(images, min_size=1, max_size=6))
def test_values_are_fractions(row: Row, drawn: list[Image]) -> None:
    headline = row.headline(row.compute(run(row, [row.see(image) for image in drawn])))
    assert headline
    assert all(0.0 <= value <= 1.0 for value in headline)
