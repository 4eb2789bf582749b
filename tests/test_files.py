from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsolbench.exceptions import UsageError
from wsolbench.files import check_writable, write_text


def test_a_file_that_can_be_written_is_allowed_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("old")
    check_writable(tmp_path / "there.txt")
    check_writable(tmp_path / "new" / "folder" / "file.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder", "a folder has that name"), ("file/inside.txt", "it is no folder"), ("x" * 300, "too long")],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        check_writable(tmp_path / name)
    with pytest.raises(UsageError):
        write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
    with pytest.raises(UsageError, match=f"{tmp_path} is in the way, it may not be written"):
        check_writable(tmp_path / "new" / "file.txt")
