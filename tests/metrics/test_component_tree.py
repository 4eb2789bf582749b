"""The one-pass sweep equals OpenCV, threshold by threshold, on maps that are hard for it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.contours import KINDS, PROTOCOLS, boxes, differences, drawn, hard_map, true_boxes
from wsolbench.metrics.sweep import single_box_per_tau, sweep
from wsolbench.protocol import EvalProtocol

LARGEST_CONTOUR = EvalProtocol(taus=(0.5,), threshold_basis="unit", components="largest", box_end="inclusive")


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_equals_what_opencv_gives_at_that_threshold_under_every_protocol(kind: str) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for protocol in PROTOCOLS:
        height, width = (int(side) for side in rng.integers(1, 32, 2))
        assert (
            differences(
                hard_map(kind, height, width, rng), true_boxes(height, width, rng), drawn(protocol, 16, rng)
            )
            == []
        )


@pytest.mark.parametrize("side", range(1, 6))
def test_tiny_maps(side: int) -> None:
    rng = np.random.default_rng(side)
    for protocol in PROTOCOLS:
        for height, width in ((side, int(rng.integers(1, 6))), (int(rng.integers(1, 6)), side)):
            score_map = rng.integers(0, 4, (height, width)) / 3
            assert differences(score_map, true_boxes(height, width, rng), drawn(protocol, 6, rng)) == []


def test_every_picture_of_three_by_four_pixels() -> None:
    protocols = [
        LARGEST_CONTOUR,
        *(
            replace(LARGEST_CONTOUR, connectivity=c, largest_by=by)
            for c in "48"
            for by in ("pixel_count", "box_area")
        ),
    ]
    for number in range(2**12):
        score_map = np.array([number >> bit & 1 for bit in range(12)], dtype=np.uint8).reshape(
            3, 4
        ) * np.uint8(255)
        protocol = protocols[number % 5]
        for protocol in (LARGEST_CONTOUR, protocols[number % 5]):
            np.testing.assert_array_equal(
                single_box_per_tau(score_map, protocol), boxes(score_map > 127, "largest", protocol)
            )


@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_a_map_of_a_million_pixels(kind: str) -> None:
    rng = np.random.default_rng(5)
    score_map, truth = hard_map(kind, 1000, 1000, rng), true_boxes(1000, 1000, rng)
    assert differences(score_map, truth, replace(EvalProtocol(), taus=(0.2, 0.5, 0.8))) == []


def test_more_than_256_levels() -> None:
    rng = np.random.default_rng(6)
    protocol = EvalProtocol(
        quantize="none", threshold_basis="unit", taus=tuple((np.arange(600) / 600).tolist())
    )
    for kind in ("smooth", "noise"):
        assert differences(hard_map(kind, 40, 50, rng), true_boxes(40, 50, rng), protocol) == []


# --- among equally large contours ---------------------------------------------------------------------------


def largest(rows: list[str]) -> list[float]:
    """Return the box of the largest contour of a picture in which # is foreground.

    The sweep and OpenCV must agree on it.
    """
    picture = np.array([[character == "#" for character in row] for row in rows])
    swept = single_box_per_tau(picture.astype(np.float64), LARGEST_CONTOUR)
    np.testing.assert_array_equal(swept, boxes(picture, "largest", LARGEST_CONTOUR))
    return [int(number) for number in swept[0]]


def test_the_one_whose_first_pixel_comes_last_counts() -> None:
    assert largest(["##..##", "##..##", "......", ".##...", ".##..."]) == [1, 3, 2, 4]
    assert largest(["##..##", "##..##"]) == [4, 0, 5, 1]
    assert largest(["..#", "#..", ".#."]) != [0, 0, 0, 0]


def test_an_outline_counts_before_the_hole_in_it() -> None:
    # The outline has a tail, which adds no area: both polygons cover 2 pixels, and only their boxes differ.
    assert largest([".#...", "#.###", ".#..."]) == [0, 0, 4, 2]


def test_an_outline_covers_its_holes_and_what_is_in_them() -> None:
    ring = ["#######...", "#.....#.##", "#.###.#.##", "#.###.#.##", "#.###.#.##", "#.....#.##", "#######.##"]
    assert largest(ring) == [0, 0, 6, 6]
    broken = [
        row[:3] + "." + row[4:] if y == 0 else row for y, row in enumerate(ring)
    ]  # open: the wall's own area is nothing
    assert largest(broken) == [8, 1, 9, 6]


# --- --------------------------------------------------------------------------------------------------------


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(7)
    maps = [hard_map("noise", 60, 60, rng) for _ in range(40)]
    truth = np.array([[10.0, 10.0, 40.0, 30.0]])
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda score_map: sweep(score_map, truth, EvalProtocol()), maps))
    for score_map, got in zip(maps, threaded, strict=True):
        expected = sweep(score_map, truth, EvalProtocol())
        np.testing.assert_array_equal(got.best_iou, expected.best_iou)
        np.testing.assert_array_equal(got.single_boxes, expected.single_boxes)


COMPILED = """
import numpy as np
from wsolbench.metrics import component_tree, largest_component
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol

sweep(np.eye(9), np.array([[1.0, 1.0, 5.0, 5.0]]), EvalProtocol())
for module in (component_tree, largest_component):
    for name, kernel in vars(module).items():
        if hasattr(kernel, "nopython_signatures"):
            print(name, len(kernel.nopython_signatures))
"""


def test_the_first_map_compiles_every_kernel_once(tmp_path: Path) -> None:
    # Types of arguments that differ between two calls would compile the kernel, and all that it calls, again.
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=True
    )
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert counts["add_pixels"] == "1"
    assert set(counts.values()) <= {"0", "1"}, counts
