"""PxAP equals the official evaluator, and its definition computed pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.pxap import PxAP, average_precision, pixel_histogram
from wsolbench.protocol import EvalProtocol, tau_grid

GRIDS = {"t1000": EvalProtocol(), "t100": EvalProtocol(taus=tau_grid(0.01))}


def golden_case(golden: np.lib.npyio.NpzFile, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mask = golden[f"mask_{index:02d}"]
    return golden[f"map_{index:02d}"], mask == 1, mask == 255


@pytest.mark.parametrize("grid", GRIDS)
def test_pooled_histograms_and_ap_equal_the_official_evaluator(golden_folder: Path, grid: str) -> None:
    with np.load(golden_folder / "pxap.npz") as golden:
        metric = PxAP(GRIDS[grid])
        thirds = [PxAP(GRIDS[grid]) for _ in range(3)]
        for index in range(30):
            for target in (metric, thirds[index % 3]):
                target.update(*golden_case(golden, index))
        assert np.array_equal(metric.histogram, [golden[f"hist_true_{grid}"], golden[f"hist_false_{grid}"]])
        assert metric.compute().value == pytest.approx(float(golden[f"ap_all_{grid}"]) / 100, abs=1e-14)
        assert [third.compute().value * 100 for third in thirds] == pytest.approx(
            golden[f"ap_thirds_{grid}"].tolist(), abs=1e-12
        )
        assert metric.compute().n == 30


@pytest.mark.parametrize("grid", GRIDS)
def test_single_maps_equal_the_official_evaluator_which_fails_where_we_raise(
    golden_folder: Path, grid: str
) -> None:
    with np.load(golden_folder / "pxap.npz") as golden:
        undefined = 0
        for index, expected in enumerate(golden[f"ap_single_{grid}"]):
            metric = PxAP(GRIDS[grid])
            metric.update(*golden_case(golden, index))
            if np.isnan(expected):
                undefined += 1
                with pytest.raises(DataError, match="no object pixel"):
                    metric.compute()
            else:
                assert metric.compute().value * 100 == pytest.approx(float(expected), abs=1e-12)
        assert undefined > 0


unit_scores = st.one_of(
    st.floats(0, 1), st.sampled_from(tau_grid(0.01)), st.sampled_from([level / 255 for level in range(256)])
)


@given(
    arrays.arrays(np.float64, (4, 5), elements=unit_scores),
    arrays.arrays(bool, (4, 5)),
    st.sampled_from([0.5, 0.05, 0.01, 0.00011]),
)
def test_bins_are_half_open_intervals_of_the_thresholds(
    scores: np.ndarray, mask: np.ndarray, step: float
) -> None:
    protocol = EvalProtocol(taus=tau_grid(step))
    edges = [*protocol.taus, 1.0, 2.0, 3.0]
    expected = np.zeros((2, len(edges) - 1), dtype=int)
    for score, is_object in zip(scores.ravel(), mask.ravel(), strict=True):
        (bin_,) = [i for i in range(len(edges) - 1) if edges[i] <= score < edges[i + 1]]
        expected[0 if is_object else 1, bin_] += 1
    assert np.array_equal(pixel_histogram(scores, mask, None, protocol), expected)


@given(arrays.arrays(np.uint8, (4, 5)), arrays.arrays(bool, (4, 5)), arrays.arrays(bool, (4, 5)))
def test_an_8_bit_map_stands_for_its_level_over_255(
    levels: np.ndarray, mask: np.ndarray, ignore: np.ndarray
) -> None:
    protocol = GRIDS["t1000"]
    assert np.array_equal(
        pixel_histogram(levels, mask, ignore, protocol),
        pixel_histogram(levels / 255.0, mask, ignore, protocol),
    )


@given(arrays.arrays(np.float64, (3, 6), elements=unit_scores), arrays.arrays(bool, (3, 6)))
def test_ap_is_the_sum_over_thresholds_of_precision_times_gain_in_recall(
    scores: np.ndarray, mask: np.ndarray
) -> None:
    mask[0, 0] = True
    protocol = GRIDS["t100"]
    expected, recall_before = 0.0, 0.0
    for tau in sorted([*protocol.taus, 1.0], reverse=True):
        selected = scores >= tau
        recall = (selected & mask).sum() / mask.sum()
        if selected.any():
            expected += (selected & mask).sum() / selected.sum() * (recall - recall_before)
        recall_before = recall
    histogram = pixel_histogram(scores, mask, None, protocol)
    assert float(average_precision(histogram)) == pytest.approx(expected, abs=1e-12)


def test_histograms_in_a_batch_are_independent_of_each_other() -> None:
    histograms = np.random.default_rng(0).integers(0, 9, (4, 3, 2, 12)) + 1
    batch = average_precision(histograms)
    assert batch.shape == (4, 3)
    assert [
        [float(average_precision(histogram)) for histogram in row] for row in histograms
    ] == batch.tolist()


def test_scores_below_the_lowest_threshold_still_count() -> None:
    protocol = EvalProtocol(taus=tau_grid(0.05, 0.95, 0.05))
    histogram = pixel_histogram(np.array([[0.01, 0.9]]), np.array([[True, False]]), None, protocol)
    assert histogram.sum() == 2
    assert float(average_precision(histogram)) == 0.5


def test_a_constant_map_has_the_share_of_object_pixels() -> None:
    metric = PxAP(EvalProtocol())
    metric.update(np.full((4, 4), 0.3), np.arange(16).reshape(4, 4) < 4)
    assert metric.compute().value == 0.25


def test_ignored_pixels_change_nothing_but_the_pixel_count() -> None:
    rng = np.random.default_rng(0)
    scores, mask = rng.random((8, 8)), rng.random((8, 8)) < 0.5
    ignore = np.zeros((8, 8), bool)
    ignore[:, 4:] = True
    mask &= ~ignore
    whole, half = PxAP(EvalProtocol()), PxAP(EvalProtocol())
    whole.update(scores, mask, ignore)
    half.update(scores[:, :4], mask[:, :4])
    assert whole.compute() == half.compute()
    assert whole.compute().n_pixels == 32


def test_stored_histograms_give_the_same_result_as_maps() -> None:
    rng = np.random.default_rng(0)
    from_maps, from_histograms = PxAP(EvalProtocol()), PxAP(EvalProtocol())
    for _ in range(3):
        scores, mask = rng.random((8, 8)), rng.random((8, 8)) < 0.5
        from_maps.update(scores, mask)
        from_histograms.update_histogram(pixel_histogram(scores, mask, None, EvalProtocol()))
    assert from_maps.compute() == from_histograms.compute()


def test_histograms_and_shards_of_another_protocol_are_refused(unchecked_shapes: None) -> None:
    metric = PxAP(GRIDS["t1000"])
    with pytest.raises(UsageError, match="for the thresholds of this protocol"):
        metric.update_histogram(np.zeros((2, 102), dtype=np.int64))
    with pytest.raises(UsageError, match="cannot merge"):
        metric.merge(PxAP(GRIDS["t100"]))
