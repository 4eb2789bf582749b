from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsolbench.exceptions import UsageError
from wsolbench.system import files
from wsolbench.system.files import (
    atomic_path,
    check_writable,
    hold_lock,
    is_sealed,
    locked,
    remove_leftovers,
    write_sealed,
    write_text,
)


def test_a_file_that_can_be_written_is_allowed_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("old")
    check_writable(tmp_path / "there.txt")
    check_writable(tmp_path / "new" / "folder" / "file.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["there.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder", "a folder has that name"), ("file/inside.txt", "is not a folder"), ("x" * 300, "too long")],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message):
        check_writable(tmp_path / name)
    with pytest.raises(UsageError):
        write_text(tmp_path / name, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_is_no_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("pipe")
    for name, kind in (("pipe", "a named pipe"), ("socket", "a socket"), ("link", "a named pipe")):
        before = (tmp_path / name).lstat()
        with pytest.raises(UsageError, match=f"it is {kind}"):
            write_text(tmp_path / name, "text")
        assert (tmp_path / name).lstat().st_ino == before.st_ino
    with pytest.raises(UsageError, match="it is a device"):
        check_writable(Path(os.devnull))  # looks, and writes nothing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "socket"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_the_file_that_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target.txt"
    if there:
        target.write_text("old")
    (tmp_path / "link.txt").symlink_to("folder/target.txt")
    (tmp_path / "second.txt").symlink_to("link.txt")
    write_text(tmp_path / "second.txt", "new")
    assert target.read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "second.txt").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="symbolic links"):
        write_text(tmp_path / "loop", "text")


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or not mode & os.W_OK)
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path / "new" / "file.txt")


def test_a_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0o077, 0o600), (0o002, 0o664), (0o022, 0o644)):
        before = os.umask(umask)
        try:
            write_text(tmp_path / f"{umask}.txt", "text")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}.txt").stat().st_mode) == mode


WRITES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from wsolbench.system.files import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        subprocess.run(
            [sys.executable, "-c", WRITES_AND_IS_KILLED, str(tmp_path / name)],
            check=False,
            env={**os.environ, "PYTHONPATH": "."},
        )
    (tmp_path / ".a-settings.json").write_text("of the user: eight letters, as temporary names have")
    assert len(list(tmp_path.iterdir())) == 3
    write_text(tmp_path / "a.json", "whole")
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == [".a", ".b", "a.json"]
    assert (tmp_path / ".a-settings.json").exists()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(".b-*"))


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.json") as first:
        first.write_text("one")
        write_text(tmp_path / "a.json", "two")
        remove_leftovers(tmp_path)
        assert first.exists()
    assert (tmp_path / "a.json").read_text() == "one"


def full(stream_path: Path) -> None:
    with stream_path.open("wb") as stream:
        stream.write(b"0" * 10_000)


@pytest.mark.parametrize("write", [full, lambda path: np.save(path, np.zeros(5000))])
def test_a_full_disk_is_one_message_and_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    (tmp_path / "a.npy").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(UsageError, match=r"cannot write .*a\.npy: .*Free some space"),
            atomic_path(tmp_path / "a.npy") as temporary,
        ):
            write(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_text() == "old"


def test_names_as_long_as_file_systems_allow_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 250 + ".json"), "text")
    write_text(tmp_path / ("鳥" * 80 + ".json"), "text")


@given(content=st.binary(max_size=300), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_sealed_file_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed"
    write_sealed(path, content)
    assert is_sealed(path)
    stored = bytearray(path.read_bytes())
    assert bytes(stored).startswith(content)
    stored[place % len(stored)] ^= 1 << bit
    path.write_bytes(stored)
    with contextlib.suppress(ValueError):
        assert not is_sealed(path)  # a flip in the seal itself: there is none
    path.write_bytes(stored[:-1])
    with contextlib.suppress(ValueError):
        assert not is_sealed(path)


def test_a_lock_is_for_one_and_a_pipe_is_no_lock(tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".lock", "busy here"),
        pytest.raises(UsageError, match="busy here"),
        locked(tmp_path / ".lock", "busy here"),
    ):
        pass
    with locked(tmp_path / ".lock", "busy here"):
        pass
    os.mkfifo(tmp_path / ".pipe")
    with pytest.raises(UsageError, match="cannot write"), locked(tmp_path / ".pipe", "busy"):
        pass


HOLDS_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from wsolbench.system.files import locked

with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_another_process_is_refused_and_the_lock_of_a_killed_one_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_AND_IS_KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="busy here"), locked(path, "busy here"):
            pass
        other.stdin.write("\n")
        other.stdin.flush()
        other.wait()
    with locked(path, "busy here"):
        pass


def test_a_lock_outlives_a_forked_child(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "busy"):
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert hold_lock(tmp_path / ".lock") is None


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UsageError, match="has no locks"), locked(tmp_path / ".lock", "busy"):
        pass
    write_text(tmp_path / "a.json", "text")  # needs none


def test_a_system_that_cannot_rename_open_files_writes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_RENAMES_OPEN_FILES", False)
    write_text(tmp_path / "a.json", "text")
    assert (tmp_path / "a.json").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
