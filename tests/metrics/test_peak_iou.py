"""Peak-IoU and Peak-T pool pixels; the mean of per-image IoU does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.peak_iou import MeanImageIoU, PeakIoU, level_histogram, pixel_iou
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

PROTOCOL = EvalProtocol.preset("lid")
level_maps = arrays.arrays(np.uint8, (6, 7))
mask_maps = arrays.arrays(bool, (6, 7))


def iou_at(levels: np.ndarray, mask: np.ndarray, level: int) -> float:
    selected = levels >= level
    return float((selected & mask).sum() / (selected | mask).sum())


@given(level_maps, mask_maps)
def test_iou_at_each_level_is_intersection_over_union_of_the_pixels_that_reach_it(
    levels: np.ndarray, mask: np.ndarray
) -> None:
    mask[0, 0] = True
    assert pixel_iou(level_histogram(levels, mask)).tolist() == [
        iou_at(levels, mask, level) for level in range(256)
    ]


@given(st.lists(st.tuples(level_maps, mask_maps), min_size=1, max_size=4))
def test_peak_iou_is_the_best_iou_of_all_pixels_put_together(
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    images[0][1][0, 0] = True
    metric = PeakIoU(PROTOCOL)
    for levels, mask in images:
        metric.update(levels, mask)
    pooled = [
        iou_at(np.stack([im[0] for im in images]), np.stack([im[1] for im in images]), level)
        for level in range(256)
    ]
    result = metric.compute()
    assert result.peak_iou == max(pooled)
    assert result.peak_t == pooled.index(max(pooled))
    assert result.n == len(images)


@given(arrays.arrays(np.float64, (3, 4), elements=st.floats(0, 1)))
def test_a_score_reaches_level_t_when_255_times_it_does(scores: np.ndarray) -> None:
    counts = level_histogram(scores, np.ones((3, 4), bool))[0]
    assert [counts[level:].sum() for level in range(256)] == [
        (scores * 255.0 >= level).sum() for level in range(256)
    ]


def test_every_8_bit_level_over_255_comes_back_as_its_level() -> None:
    scores = (np.arange(256) / 255.0)[None]
    assert level_histogram(scores, np.ones((1, 256), bool))[0].tolist() == [1] * 256


def test_large_images_dominate_the_pooled_iou_and_not_the_mean_of_images() -> None:
    large, small = np.full((10, 10), 255, np.uint8), np.full((2, 2), 255, np.uint8)
    large_mask, small_mask = np.zeros((10, 10), bool), np.ones((2, 2), bool)
    large_mask[:5] = True  # IoU 0.5 at every level; of the small image 1
    pooled, mean = PeakIoU(PROTOCOL), MeanImageIoU(PROTOCOL)
    for metric in (pooled, mean):
        metric.update(large, large_mask)
        metric.update(small, small_mask)
    assert pooled.compute().peak_iou == 54 / 104
    assert mean.compute().value == 0.75


@given(st.lists(st.tuples(level_maps, mask_maps), min_size=1, max_size=4))
def test_mean_image_iou_is_the_best_mean_over_images_at_one_threshold(
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    metric = MeanImageIoU(PROTOCOL)
    for levels, mask in images:
        mask[2, 3] = True
        metric.update(levels, mask)
    means = [np.mean([iou_at(levels, mask, level) for levels, mask in images]) for level in range(256)]
    assert metric.compute().value == pytest.approx(max(means), abs=1e-11)
    assert means[round(metric.compute().tau * 255)] == pytest.approx(max(means), abs=1e-11)


def test_images_without_an_object_are_skipped_and_counted_in_the_mean_and_pooled_in_peak_iou() -> None:
    levels, mask = np.array([[255, 0]], np.uint8), np.array([[True, False]])
    mean, pooled = MeanImageIoU(PROTOCOL), PeakIoU(PROTOCOL)
    for metric in (mean, pooled):
        metric.update(levels, mask)
        metric.update(levels, ~np.ones((1, 2), bool))
    assert (mean.compute().value, mean.compute().n, mean.compute().n_skipped) == (1.0, 1, 1)
    assert (pooled.compute().peak_iou, pooled.compute().n) == (0.5, 2)


def test_peak_t_is_the_lowest_of_equally_good_thresholds() -> None:
    metric = PeakIoU(PROTOCOL)
    metric.update(np.array([[200, 100]], np.uint8), np.array([[True, False]]))
    assert metric.compute().peak_t == 101
    assert metric.compute().peak_iou == 1.0


@pytest.mark.parametrize("kind", [PeakIoU, MeanImageIoU])
def test_other_policies_read_the_same_curve_at_their_threshold(kind: type) -> None:
    metric = kind(PROTOCOL)
    metric.update(np.array([[200, 100, 50]], np.uint8), np.array([[True, False, False]]))
    fixed = metric.compute(ThresholdPolicy.fixed(0.2))  # level 51
    transferred = metric.compute(ThresholdPolicy.transfer([150 / 255]))
    values = [getattr(result, "peak_iou", None) or result.value for result in (fixed, transferred)]
    assert values == [0.5, 1.0]


def test_ignored_pixels_count_neither_way() -> None:
    levels, mask = np.array([[255, 255, 0]], np.uint8), np.array([[True, False, False]])
    metric = PeakIoU(PROTOCOL)
    metric.update(levels, mask, ignore=np.array([[False, True, False]]))
    assert metric.compute().peak_iou == 1.0


@pytest.mark.parametrize("kind", [PeakIoU, MeanImageIoU])
def test_shards_of_another_protocol_are_refused(kind: type) -> None:
    with pytest.raises(UsageError, match="a field differs"):
        kind(PROTOCOL).merge(kind(EvalProtocol()))


@pytest.mark.parametrize("kind", [PeakIoU, MeanImageIoU])
def test_without_any_object_pixel_the_metric_is_undefined(kind: type) -> None:
    metric = kind(PROTOCOL)
    metric.update(np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool))
    with pytest.raises(DataError, match="object pixel"):
        metric.compute()
