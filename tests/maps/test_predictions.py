"""Files of predicted labels, as programs and spreadsheets write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsolbench.exceptions import DataError
from wsolbench.maps.predictions import read_predictions

GOOD = "image,rank1,rank2\ntest/0.jpg,0,1\ntest/ä.jpg,2,0\n"
LABELS = {"test/0.jpg": [0, 1], "test/ä.jpg": [2, 0]}


@pytest.mark.parametrize(
    "content",
    [
        GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode("utf-16"),
        GOOD.encode("utf-16-le"),
        GOOD.encode("utf-16-be"),
        b"\xfe\xff" + GOOD.encode("utf-16-be"),
        GOOD.encode("utf-32"),
        GOOD.encode("latin-1"),
        GOOD.encode("cp1252"),
        (GOOD + "\n").encode(),
        (GOOD + "\n\n,,\n").encode(),
        GOOD.rstrip("\n").encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.replace(",", ";").encode(),
        GOOD.replace(",", "\t").encode(),
        GOOD.replace(",", ";").encode("utf-16"),
        '"image","rank1","rank2"\n"test/0.jpg","0","1"\n"test/ä.jpg","2","0"\n'.encode(),
        '"image";"rank1";"rank2"\n"test/0.jpg";"0";"1"\n"test/ä.jpg";"2";"0"\n'.encode(),
        GOOD.replace("image,rank1,rank2", "Image,Rank1,RANK2").encode(),
        ("sep=;\n" + GOOD.replace(",", ";")).encode(),
        ("sep=,\r\n" + GOOD.replace("\n", "\r\n")).encode(),
        ("sep=;\r\n" + GOOD.replace(",", ";")).encode("utf-16-le"),
        GOOD.replace("\n", ",\n").encode(),
        GOOD.replace(",", ";").replace("\n", ";;\n").replace("image", "IMAGE").encode(),
        GOOD.replace(".jpg", "").encode(),
        GOOD.replace("test/", "./test/").encode(),
        GOOD.replace("test/", "./test/").replace(".jpg", "").encode("cp1252"),
        b"image, rank1, rank2\ntest/0.jpg, 0, 1\n" + "test/ä.jpg, 2, 0\n".encode(),
    ],
)
def test_what_can_be_read_in_one_way_only_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    assert read_predictions(path, 3, LABELS) == LABELS


def test_a_separator_within_a_name_needs_quotes(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('image;rank1\n"a;b,c.jpg";1\n')
    assert read_predictions(path, 2) == {"a;b,c.jpg": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD.encode("latin-1"),
            r":3 names the image 'test/ä.jpg' if read as Windows-1252.*not UTF-8 \(line 3.*Save the file "
            r"as UTF-8",
        ),
        (b"image,rank1\n\x81.jpg,0\n", ":2 names the image"),
        (GOOD.encode("utf-16")[:-1], "not utf-16"),
        (b"\xff\xfe\x00\xd8", "not utf-16"),
        (
            b'image,rank1\na.jpg,0\n"b.jpg,1\n' + b"c.jpg,1\n" * 20_000,
            "field larger than field limit.*quotation mark",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"<!doctype html>", "a web page"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"image,rank1,confidence\na.jpg,0,1\n", "columns image,rank1,confidence"),
        (b"image,rank1,rank3\na.jpg,0,1\n", "columns image,rank1,rank3"),
        (b"image,rank1\na.jpg,1_0\n", ":2 has the labels .*; expected whole numbers"),
        ("image,rank1\na.jpg,１\n".encode(), ":2 has the labels .*; expected whole numbers"),
        (b"image,rank1\na.jpg,1.0\n", ":2 has the labels .*; expected whole numbers"),
        (b"image,rank1\na.jpg,\n", ":2 has the labels .*; expected whole numbers"),
        (b"image,rank1\na.jpg,-1\n", r":2 has labels \[-1\]"),
        (b"image,rank1\na.jpg," + b"9" * 5000 + b"\n", ":2 has the labels"),
        (b"image,rank1\n\na.jpg,0\na.jpg,0\n", ":4 repeats"),
        (b"image,rank1\ntest/0.jpg,0\ntest/0,0\n", ":3 repeats the image 'test/0.jpg'"),
        (b"image,rank1,\na.jpg,0,\nb.jpg,0,1\n", ":3 has '1' in a column without a name"),
        (b"image,rank1,\na.jpg,0\n", ":2 has 2 fields; expected 3"),
        (b"sep=;\nimage;label\n", ":2 has the columns image,label"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path, 100, ["test/0.jpg"])
    assert str(path) in str(caught.value)


def test_a_name_without_suffix_that_two_images_could_have_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("image,rank1\na,1\n")
    assert read_predictions(path, 2, ["a.jpg", "a.png"]) == {"a": [1]}
    path.write_text("image,rank1\na,1\na.jpg,0\n")
    assert read_predictions(path, 2, ["a", "a.jpg"]) == {"a": [1], "a.jpg": [0]}


def test_a_folder_a_pipe_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("pipe", "a named pipe"),
        ("folder", "a folder"),
        ("none", "no file of predictions"),
        ("loop", "loop"),
    ):
        with pytest.raises(DataError, match=message):
            read_predictions(tmp_path / name, 3)
