from __future__ import annotations

from pathlib import Path

import pytest

from wsolbench.system.listing import find_files, is_empty, is_junk, list_files, list_folders

LEFT_BY_TOOLS = [
    ".ipynb_checkpoints",
    ".DS_Store",
    "._a.JPEG",
    "._a.xml",
    ".AppleDouble",
    ".git",
    ".a.xml.swp",
    "@eaDir",
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "a.xml~",
    "#a.xml#",
    "n01440764.bak",
]


@pytest.mark.parametrize("name", [*LEFT_BY_TOOLS, "THUMBS.DB", "@EADIR"])
def test_what_tools_leave_in_folders_is_junk(name: str) -> None:
    assert is_junk(name)


@pytest.mark.parametrize(
    "name",
    [
        "n01440764",
        "n01440764_1.JPEG",
        "ILSVRC2012_val_00000001.xml",
        "001.Auk",
        "a b.png",
        "@a.png",
        "_a.png",
    ],
)
def test_names_of_data_are_no_junk(name: str) -> None:
    assert not is_junk(name)


def test_files_and_folders_are_listed_sorted_and_without_junk(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", "@eaDir"):
        (tmp_path / name).mkdir()
    for name in ("d.JPEG", "c.jpeg", "._c.jpeg", "c.jpeg~", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "loop.jpeg").symlink_to("loop.jpeg")
    assert list_folders(tmp_path) == ["a", "b"]
    assert list_files(tmp_path, (".jpeg",)) == ["c.jpeg", "d.JPEG", "loop.jpeg"]
    assert list_files(tmp_path / "nowhere") == list_folders(tmp_path / "nowhere") == []


def test_files_are_found_at_any_depth_except_in_folders_of_tools(tmp_path: Path) -> None:
    for name in (
        "x.json",
        "a/y.json",
        "a/.ipynb_checkpoints/y-checkpoint.json",
        "@eaDir/z.json",
        "a/._y.json",
        "a/y.json~",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a folder.json").mkdir()
    assert find_files(tmp_path, ".json") == [tmp_path / "a/y.json", tmp_path / "x.json"]


def test_a_folder_that_holds_only_junk_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    assert is_empty(tmp_path)
    (tmp_path / "a").touch()
    assert not is_empty(tmp_path)
