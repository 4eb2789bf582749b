"""Folders of maps, from wsolbench and from other programs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.maps import MapFolder
from wsolbench.maps.predictions import PREDICTIONS, read_predictions

ID = "001.Albatross/bird_1.jpg"


def place(folder: Path, name: str) -> Path:
    path = folder / "001.Albatross" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    score_map = rng.standard_normal((7, 5)).astype(np.float32)
    MapFolder(tmp_path).write(ID, score_map)
    np.testing.assert_array_equal(MapFolder(tmp_path).read(ID), score_map)


@pytest.mark.parametrize("name", ["bird_1.jpg.npy", "bird_1.npy"])
def test_the_image_suffix_may_be_left_out(tmp_path: Path, name: str) -> None:
    np.save(place(tmp_path, name), np.eye(3))
    assert MapFolder(tmp_path).missing([ID, "other.jpg"]) == ["other.jpg"]
    np.testing.assert_array_equal(MapFolder(tmp_path).read(ID), np.eye(3))


def test_two_maps_of_one_image_are_refused(tmp_path: Path) -> None:
    np.save(place(tmp_path, "bird_1.jpg.npy"), np.eye(3))
    np.save(place(tmp_path, "bird_1.npy"), np.eye(4))
    with pytest.raises(DataError, match="several maps"):
        MapFolder(tmp_path).read(ID)


def test_npz_with_one_array_or_one_called_map(tmp_path: Path) -> None:
    np.savez(place(tmp_path, "bird_1.npz"), map=np.eye(2), other=np.zeros(1))
    np.testing.assert_array_equal(MapFolder(tmp_path).read(ID), np.eye(2))


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_png_levels_are_fractions_of_full_scale(tmp_path: Path, dtype: type, top: int) -> None:
    Image.fromarray(np.array([[0, top], [top, 0]], dtype=dtype)).save(place(tmp_path, "bird_1.png"))
    np.testing.assert_array_equal(MapFolder(tmp_path).read(ID), [[0, 1], [1, 0]])


def write_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def write_truncated(path: Path) -> None:
    np.save(path, np.zeros((50, 50)))
    path.write_bytes(path.read_bytes()[:200])


def write_text(path: Path) -> None:
    path.write_text("no array")


def write_nan(path: Path) -> None:
    np.save(path, np.array([[np.nan, 1.0]]))


def write_three_dimensions(path: Path) -> None:
    np.save(path, np.zeros((3, 4, 4)))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_pickle, "pickle"),
        (write_truncated, "cannot be read"),
        (write_text, "cannot be read"),
        (write_nan, "NaN"),
        (write_three_dimensions, r"shape \(3, 4, 4\)"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, write, message: str) -> None:
    path = place(tmp_path, "bird_1.npy")
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        MapFolder(tmp_path).read(ID)
    assert str(path) in str(caught.value)


def test_a_colour_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(place(tmp_path, "bird_1.png"))
    with pytest.raises(DataError, match="3 channels"):
        MapFolder(tmp_path).read(ID)


def test_a_missing_map_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no map for image"):
        MapFolder(tmp_path).read(ID)
    with pytest.raises(DataError, match="no folder of maps"):
        MapFolder(tmp_path / "nowhere").missing([ID])


def test_predictions_round_trip(tmp_path: Path) -> None:
    MapFolder(tmp_path).write_predictions({ID: [3, 1, 0], "b,c.jpg": [0, 1, 2]})
    assert read_predictions(tmp_path / PREDICTIONS, 4) == {ID: [3, 1, 0], "b,c.jpg": [0, 1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,rank1\na,0\n", "columns"),
        ("image,rank1\na,0\na,1\n", ":3 repeats"),
        ("image,rank1\na,9\n", r"0\.\.3"),
        ("image,rank1\na,bird\n", ":2 has the labels"),
        ("image,rank1,rank2\na,1\n", ":2 has 2 fields"),
        ("image,rank1,rank2\na,1,1\n", "different classes"),
        ("", "columns"),
    ],
)
def test_broken_predictions_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_predictions(path, 4)


@pytest.mark.parametrize(
    ("ids", "files", "message"),
    [
        (
            ["0.jpg", "0.png"],
            ["0.npy"],
            r"0\.npy would be the map of two images, '0\.jpg' and '0\.png'.*0\.jpg\.npy and 0\.png\.npy",
        ),
        (["a/0.jpg", "a/0.jpeg"], ["a/0.npz"], "two images, 'a/0.jpg' and 'a/0.jpeg'"),
        (["0", "0.jpg"], ["0.npy"], "two images, '0' and '0.jpg'"),
        (["0.jpg"], ["0.npy", "0.jpg.npy"], "'0.jpg' has several maps"),
        (["0.jpg"], ["0.npy", "0.npz"], "'0.jpg' has several maps"),
        (["x.png"], ["x.npy", "x.png"], "'x.png' has several maps"),
        (["x.jpg"], ["x.jpg.npy", "x.png"], "'x.jpg' has several maps"),
    ],
)
def test_one_map_of_two_images_and_two_maps_of_one_are_refused(
    tmp_path: Path, ids: list[str], files: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / "stored.npy", np.eye(2))
        (tmp_path / "stored.npy").rename(tmp_path / name)
    with pytest.raises(DataError, match=message):
        MapFolder(tmp_path).missing(ids)


def test_names_that_differ_in_case_alone_may_not_share_a_file(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path)
    for image_id in ("a.jpg", "A.jpg", "Ä.jpg"):
        folder.write(image_id, np.eye(2))
    assert folder.missing(["a.jpg", "A.jpg", "Ä.jpg"]) == []
    (tmp_path / "A.jpg.npy").unlink()
    (tmp_path / "A.jpg.npy").hardlink_to(
        tmp_path / "a.jpg.npy"
    )  # one file under both names, as where case does not count
    with pytest.raises(DataError, match=r"two images, 'a\.jpg' and 'A\.jpg'.*case"):
        folder.missing(["a.jpg", "A.jpg", "Ä.jpg"])


def test_what_has_the_name_of_a_map_and_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    (tmp_path / "dead.npy").symlink_to("nowhere.npy")
    for name, message in (
        ("folder", "is a folder"),
        ("pipe", "is a named pipe"),
        ("loop", "levels of symb"),
        ("dead", "nowhere"),
    ):
        for ask in (folder.read, folder.find, lambda image_id: folder.missing([image_id])):
            with pytest.raises(DataError, match=message) as caught:
                ask(f"{name}.jpg")
            assert f"{name}.npy" in str(caught.value)


def test_ids_that_no_file_can_be_named_by_have_no_map(tmp_path: Path) -> None:
    for image_id in ("a" * 300 + ".jpg", "b/" * 3000 + "x.jpg", "zero\0.jpg"):
        assert MapFolder(tmp_path).missing([image_id]) == [image_id]
        with pytest.raises(DataError, match="no map for image"):
            MapFolder(tmp_path).read(image_id)


def test_a_link_to_a_map_elsewhere_is_followed(tmp_path: Path) -> None:
    np.save(tmp_path / "elsewhere.npy", np.eye(2))
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/x.npy").symlink_to(tmp_path / "elsewhere.npy")
    np.testing.assert_array_equal(MapFolder(tmp_path / "maps").read("x.jpg"), np.eye(2))
