"""Both histograms of a map count the pixels of their definitions, for every dtype of the map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsolbench.exceptions import DataError
from wsolbench.metrics.histograms import histograms
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOLS = [
    EvalProtocol(),
    *(EvalProtocol(taus=taus) for taus in (tau_grid(0.00011), tau_grid(0.05, 0.95, 0.05), (0.0,))),
    EvalProtocol(taus=(0.5, 1.0), foreground=">="),
]
SHAPE = (5, 6)
unit_scores = st.one_of(
    st.floats(0, 1), st.sampled_from(tau_grid(0.001)), st.sampled_from([level / 255 for level in range(256)])
)
score_maps = st.one_of(
    arrays.arrays(np.float64, SHAPE, elements=unit_scores),
    arrays.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)),
    st.lists(unit_scores, min_size=30, max_size=30).map(lambda scores: np.float32(scores).reshape(SHAPE)),
    arrays.arrays(np.float16, SHAPE, elements=st.floats(0, 1, width=16)),
    arrays.arrays(np.uint8, SHAPE),
    arrays.arrays(np.int64, SHAPE, elements=st.integers(0, 1)),
)
masks = arrays.arrays(bool, SHAPE)


def by_definition(
    scores: np.ndarray, pixels: np.ndarray, protocol: EvalProtocol
) -> tuple[list[int], list[int]]:
    """Count the chosen pixels by `numpy.histogram`, and by how many reach each level."""
    chosen = scores[pixels]
    unit = chosen / 255.0 if scores.dtype == np.uint8 else chosen.astype(np.float64)
    levels = chosen if scores.dtype == np.uint8 else unit * 255.0
    edges = [*([0.0] if protocol.taus[0] > 0 else []), *protocol.taus, 1.0, 2.0, 3.0]
    reached = [int((levels >= level).sum()) for level in range(257)]
    # numpy.histogram treats a repeated edge (taus that end at 1) as an empty bin, as the definition does.
    return np.histogram(unit, bins=edges)[0].tolist(), [
        reached[level] - reached[level + 1] for level in range(256)
    ]


@given(score_maps, masks, st.none() | masks, st.sampled_from(PROTOCOLS))
@example(
    np.float32([[0.1, 0.7, 0.001 * 7]]), np.ones((1, 3), bool), None, PROTOCOLS[0]
)  # no float32 is a threshold of float64
@example(np.array([[-0.0, 1.0, np.nextafter(1.0, 0.0)]]), np.ones((1, 3), bool), None, PROTOCOLS[0])
def test_counts_are_those_of_the_definitions_for_every_type(
    scores: np.ndarray, mask: np.ndarray, ignore, protocol: EvalProtocol
) -> None:
    pixel, level = histograms(scores, mask, ignore, protocol)
    background = ~mask if ignore is None else ~mask & ~ignore
    expected = [by_definition(scores, pixels, protocol) for pixels in (mask, background)]
    assert (pixel.tolist(), level.tolist()) == (
        [each[0] for each in expected],
        [each[1] for each in expected],
    )
    assert pixel.dtype == level.dtype == np.int64


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint8])
def test_views_of_larger_arrays_count_like_their_copies(kind: type) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((20, 30)) * (255 if kind is np.uint8 else 1)).astype(kind)
    mask, ignore = rng.random((2, 20, 30)) < 0.4
    views = [each[3:17:2, ::-3].T for each in (scores, mask, ignore)]
    assert not any(view.flags.c_contiguous for view in views)
    copies = [np.ascontiguousarray(view) for view in views]
    for got, expected in zip(
        histograms(*views, PROTOCOLS[0]), histograms(*copies, PROTOCOLS[0]), strict=True
    ):
        assert np.array_equal(got, expected)


def test_ignored_pixels_do_not_count_unless_they_belong_to_the_object() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    mask = np.array([[True, True, False, False]])
    ignore = np.array([[True, False, True, False]])
    pixel, level = histograms(scores, mask, ignore, PROTOCOLS[0])
    assert [np.flatnonzero(row).tolist() for row in pixel] == [[100, 200], [400]]
    assert [np.flatnonzero(row).tolist() for row in level] == [[25, 51], [102]]


def test_a_map_without_a_pixel_has_empty_histograms() -> None:
    pixel, level = histograms(np.zeros((0, 4)), np.zeros((0, 4), bool), None, PROTOCOLS[0])
    assert (pixel.sum(), level.sum()) == (0, 0)


@pytest.mark.parametrize(
    ("scores", "mask", "ignore", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), bool), None, r"\(2, 3\) and mask \(3, 2\) differ"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), np.zeros((2, 2), bool), "differ"),
        (np.zeros((1, 2, 3)), np.zeros((2, 3), bool), None, "differ"),
        (np.zeros((2, 3)), np.full((2, 3), 255, np.uint8), None, "dtype uint8"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), np.zeros((2, 3)), "ignore mask has dtype float64"),
        (np.full((2, 3), 1.5), np.zeros((2, 3), bool), None, r"\[0, 1\], got 1.5 to 1.5"),
        (np.full((2, 3), -0.1), np.zeros((2, 3), bool), None, r"\[0, 1\]"),
        (np.full((2, 3), 1.0000001, np.float32), np.zeros((2, 3), bool), None, r"\[0, 1\]"),
        (np.full((2, 3), 2), np.zeros((2, 3), bool), None, r"\[0, 1\], got 2 to 2"),
        (np.array([[0.0, np.nan, 1.0]]), np.zeros((1, 3), bool), None, r"\[0, 1\], got nan"),
        (np.array([[0.0, 1.5]]), np.zeros((1, 2), bool), np.ones((1, 2), bool), r"\[0, 1\], got 0 to 1.5"),
    ],
)
def test_maps_and_masks_that_do_not_fit_are_refused(
    unchecked_shapes: None, scores, mask, ignore, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        histograms(scores, mask, ignore, PROTOCOLS[0])
