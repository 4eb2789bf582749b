"""Grids of pictures: shapes, outlines, text, colour bar and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsolbench.exceptions import DataError, UsageError
from wsolbench.report.pictures.figure_files import read_formats
from wsolbench.report.pictures.grid import (
    MapScale,
    Outlines,
    OverlayItem,
    Panel,
    overlay_sheet,
    panel_grid,
)
from wsolbench.report.pictures.grid_parts import shorten
from wsolbench.report.pictures.overlays import PREDICTED_COLOR, TRUE_COLOR

SHAPES = [(60, 90), (90, 60), (64, 64), (4, 400), (300, 3)]
"""Heights and widths: landscape, portrait, square, very wide and very high."""


def extent(pixels: np.ndarray, color: tuple[int, int, int], tolerance: int = 30) -> np.ndarray:
    """First and last place of a colour, as xyxy with exclusive ends."""
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - np.array(color)).max(axis=-1) <= tolerance)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def drawn(path: Path, panel: Panel, **more: Any) -> np.ndarray:
    """A grid of one panel, without its foot."""
    panel_grid([[panel]], path, "", **{"side": 4.0, "scale": None, "boxes": False, **more})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_keeps_its_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    blue = np.broadcast_to(np.array([0, 0, 255], dtype=np.uint8), (*shape, 3))
    left, top, right, bottom = extent(drawn(tmp_path / "a.png", Panel(pixels=blue)), (0, 0, 255), 200)
    scale = 400 / max(shape)
    np.testing.assert_allclose([bottom - top, right - left], np.array(shape) * scale, atol=2)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("kind", ["true_boxes", "predicted_boxes", "true_mask", "predicted_mask"])
def test_outlines_lie_around_the_object_that_they_are_of(
    tmp_path: Path, shape: tuple[int, int], kind: str
) -> None:
    box = np.array([[12.0, 21.0, 45.0, 51.0]])
    mask = np.zeros(shape, dtype=bool)
    mask[21:51, 12:45] = True
    pixels = np.full((*shape, 3), 120, dtype=np.uint8)
    pixels[mask] = (0, 0, 255)
    outlines = Outlines(**{kind: box if kind.endswith("boxes") else mask})
    picture = drawn(tmp_path / "a.png", Panel(pixels=pixels, outlines=outlines))
    plain = drawn(tmp_path / "b.png", Panel(pixels=pixels))
    color = TRUE_COLOR if kind.startswith("true") else PREDICTED_COLOR
    # The line is centred on the edge, and dashes can end before a corner.
    np.testing.assert_allclose(extent(picture, color, 60), extent(plain, (0, 0, 255), 100), atol=4)


def test_a_box_on_the_edge_of_the_picture_is_fully_visible(tmp_path: Path) -> None:
    pixels = np.full((40, 60, 3), 120, dtype=np.uint8)
    outside = Outlines(true_boxes=np.array([[-20.0, -5.0, 200.0, 90.0]]))
    picture = drawn(tmp_path / "a.png", Panel(pixels=pixels, outlines=outside))
    plain = drawn(tmp_path / "b.png", Panel(pixels=pixels))
    np.testing.assert_allclose(extent(picture, TRUE_COLOR, 60), extent(plain, (120, 120, 120), 2), atol=3)


def test_a_mark_on_the_colour_bar_is_at_its_value(tmp_path: Path) -> None:
    white = Panel(pixels=np.full((60, 60, 3), 255, dtype=np.uint8))
    places = []
    for value in (0.0, 0.25, 1.0):
        scale = MapScale(marks=((value, ""),))
        picture = drawn(tmp_path / "a.png", white, scale=scale)
        plain = drawn(tmp_path / "b.png", white, scale=MapScale())
        changed = np.nonzero((picture != plain).any(axis=(0, 2)))[0]
        places.append(changed.mean())
    assert places[2] - places[0] == pytest.approx(190, abs=3)  # 1.9 inches
    assert (places[1] - places[0]) / (places[2] - places[0]) == pytest.approx(0.25, abs=0.02)


def test_formats_are_a_list_without_repetitions() -> None:
    assert read_formats("pdf, PNG,pdf") == ("pdf", "png")
    for text in ("", "gif", "png,svg"):
        with pytest.raises(UsageError, match="expected png or pdf"):
            read_formats(text)


def items(n: int, shape: tuple[int, int] = (64, 96)) -> list[OverlayItem]:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for _ in range(n)]
    return [
        OverlayItem(
            image=Panel(pixels=image),
            overlay=Panel(pixels=255 - image),
            caption=(f"$id_{number}$ " + "W" * 90, "IoU 0.50"),
        )
        for number, image in enumerate(pixels)
    ]


@pytest.mark.parametrize("n", [1, 4])
def test_a_sheet_has_true_colours_and_grows_with_its_rows(tmp_path: Path, n: int) -> None:
    path = tmp_path / "sheet.png"
    overlay_sheet(items(n, (224, 224)), [path], "Title\nsubtitle")
    with Image.open(path) as picture:
        width, height = picture.size
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10_000
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert (abs(width - {1: 914, 4: 1968}[n]) <= 2, height // 375) == (True, {1: 1, 4: 2}[n])


def test_the_same_sheet_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        overlay_sheet(items(2), [tmp_path / name], "Title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_caption_does_not_run_into_the_next_pair(tmp_path: Path) -> None:
    white = Panel(pixels=np.full((64, 96, 3), 255, dtype=np.uint8))
    blank = [replace(item, image=white, overlay=white) for item in items(2)]
    overlay_sheet(blank, [tmp_path / "sheet.png"], "")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    middle = pixels.shape[1] // 2
    captions = pixels[: pixels.shape[0] - 105]
    assert (captions < 128).any()
    assert (captions[:, middle - 3 : middle + 3] > 200).all()


def test_a_sheet_without_images_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        overlay_sheet([], [tmp_path / "sheet.png"], "Title")
    assert not list(tmp_path.iterdir())


@given(st.text("ab/_. ", max_size=60), st.integers(1, 40))
def test_a_shortened_text_keeps_its_limit_and_both_ends(text: str, length: int) -> None:
    short, clean = shorten(text, length), " ".join(text.split())
    assert len(short) == min(length, len(clean))
    start, cut, end = short.partition("…")
    assert clean.startswith(start)
    assert clean.endswith(end)
    assert bool(cut) == (len(clean) > length)


def panels(shape: tuple[int, int] = (64, 64), **more: Any) -> Panel:
    return Panel(pixels=np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8), **more)


def test_a_jpeg_has_true_colours_and_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    rows = [[panels((112, 112))] * 6] * 3
    for name, limit in (("free.jpg", None), ("small.jpg", 90_000), ("tiny.jpeg", 10)):
        panel_grid(rows, tmp_path / name, "Title", side=1.12, max_bytes=limit)
    sizes = [(tmp_path / name).stat().st_size for name in ("free.jpg", "small.jpg", "tiny.jpeg")]
    assert sizes[0] > 90_000 >= sizes[1] > 60_000
    assert sizes[2] < sizes[1]  # nothing is small enough: the lowest quality
    with Image.open(tmp_path / "free.jpg") as picture:
        assert picture.format == "JPEG"
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10_000
        assert not picture.getexif()


def test_panels_of_a_grid_lie_on_the_blocks_of_a_jpeg(tmp_path: Path) -> None:
    dark = Panel(pixels=np.full((64, 64, 3), 90, dtype=np.uint8), caption=("a line",))
    names = {"row_names": ["one\ntwo", "three"], "column_names": ["a", "b", "c", "d", "e", "f"]}
    panel_grid([[dark] * 6] * 2, tmp_path / "grid.png", "Title\nsubtitle", side=1.12, **names)
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    inside = np.abs(pixels.astype(int) - 90) <= 1
    columns, rows = np.flatnonzero(inside.sum(axis=0) > 200), np.flatnonzero(inside.sum(axis=1) > 600)
    for found, count in ((columns, 6), (rows, 2)):
        starts = found[np.diff(found, prepend=-2) > 1]
        assert len(starts) == count
        assert len(found) == count * 112
        assert not (starts % 16).any()


def test_names_of_rows_and_columns_stay_beside_their_panels(tmp_path: Path) -> None:
    white = Panel(pixels=np.full((64, 64, 3), 255, dtype=np.uint8))
    panel_grid(
        [[white] * 4] * 2,
        tmp_path / "grid.png",
        "",
        side=2.0,
        row_names=["W" * 60] * 2,
        column_names=["W" * 60] * 4,
    )
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))[:-70]
    text = pixels < 200
    assert text[:, :32].any()
    gaps = [column for column in range(48, text.shape[1] - 16) if (column - 32) % 216 >= 204]
    assert not text[:, gaps].any()
    assert not text[60:, 40:].any()


def test_a_picture_of_another_kind_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sheet.gif has another suffix; expected .png, .jpg, .jpeg or .pdf"):
        panel_grid([[panels()]], tmp_path / "sheet.gif", "Title")
    assert not list(tmp_path.iterdir())
