"""The picture of self-correlations: which panels it has and what is written below them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsolbench.report.pictures import correlations
from wsolbench.report.pictures.correlations import PointMaps, correlation_sheet
from wsolbench.report.pictures.grid import Panel
from wsolbench.report.pictures.overlays import PREDICTED_COLOR
from wsolbench.types import Sample


def row(maps: np.ndarray, point: tuple[float, float] = (12.0, 8.0)) -> PointMaps:
    sample = Sample(id="birds/1.jpg", label=0, size=(96, 64), array=np.full((64, 96, 3), 120, dtype=np.uint8))
    return PointMaps(
        sample=sample,
        point=point,
        stage="last",
        orders=tuple(range(1, len(maps) + 1)),
        maps=maps.astype(np.float32),
    )


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What is put into the grid, instead of drawing it."""
    found: dict[str, list] = {}
    monkeypatch.setattr(
        correlations,
        "panel_grid",
        lambda rows, path, title, **more: found.update(rows=rows, names=more["column_names"]),
    )
    return found


def test_a_row_has_the_marked_image_and_a_map_for_each_order_with_its_range(shown: dict[str, list]) -> None:
    maps = np.zeros((2, 4, 6))
    maps[0, 1, 2], maps[1] = 0.25, 0.5
    maps[1, 3, 5] = 2
    correlation_sheet([row(maps)], Path("x.png"), "Title")
    assert shown["names"] == ["image", "order 1", "order 2"]
    image, first, second = shown["rows"][0]
    assert (image.name, image.caption) == ("birds/1.jpg", ("point 12, 8",))
    assert (first.caption, second.caption) == (("0 to 0.25",), ("0.5 to 2",))


def test_the_cross_is_where_the_point_is_in_the_image(shown: dict[str, list]) -> None:
    correlation_sheet([row(np.zeros((1, 4, 6)), point=(72.0, 16.0))], Path("x.png"), "Title")
    red = (shown["rows"][0][0].pixels == np.array(PREDICTED_COLOR)).all(axis=2)
    rows, columns = np.nonzero(red)
    np.testing.assert_allclose([columns.mean(), rows.mean()], [72 * 4, 16 * 4], atol=0.6)


def test_every_map_runs_from_the_first_to_the_last_colour(shown: dict[str, list]) -> None:
    maps = np.random.default_rng(0).random((2, 4, 6))
    correlation_sheet([row(np.stack([maps[0], 5 + 100 * maps[0]]))], Path("x.png"), "Title")
    _, first, second = shown["rows"][0]
    np.testing.assert_allclose(first.pixels.astype(int), second.pixels.astype(int), atol=1)
    brightness = first.pixels.astype(float).sum(axis=2)
    for cell, place in ((maps[0].argmax(), brightness.argmax()), (maps[0].argmin(), brightness.argmin())):
        y, x = divmod(int(place), 384)  # four times 96 x 64 pixels
        assert abs((y + 0.5) / 64 - 0.5 - cell // 6) <= 0.6
        assert abs((x + 0.5) / 64 - 0.5 - cell % 6) <= 0.6


def test_a_map_without_spread_is_drawn(shown: dict[str, list]) -> None:
    correlation_sheet([row(np.full((1, 4, 6), 0.3))], Path("x.png"), "Title")
    panel: Panel = shown["rows"][0][1]
    assert panel.caption == ("0.3 to 0.3",)
    assert np.ptp(panel.pixels) < 60
