"""What disks, kills and other programs do to the files of a training: every change of a bit is noticed, or
changes nothing."""

from __future__ import annotations

import contextlib
import json
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reference_models.core.weights import load_strictly, read_weights
from reference_models.localization.cam import Cam
from reference_models.training import run_folder
from reference_models.training.checkpoint import HEADER, read_header
from reference_models.training.run_folder import BEST, LAST, LOG, STATE
from tests.reference_models.training.test_loop import interrupt, request, same_weights
from wsolbench.exceptions import DataError, UsageError
from wsolbench.records.program import program


@pytest.fixture
def finished(tmp_path):
    wanted = request(tmp_path / "run", epochs=2)
    Cam.fit(wanted)
    return wanted


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    wanted = request(tmp_path / "run", epochs=2)
    interrupt(monkeypatch, wanted, before=1)
    return wanted


def flipped(content: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def places(content: bytes, count: int, *, start: int = 0) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    return [(int(rng.integers(start, len(content))), int(rng.integers(8))) for _ in range(count)]


def test_any_flipped_bit_of_a_checkpoint_is_noticed_or_changes_nothing(finished):
    path = finished.out / LAST
    content, sound = path.read_bytes(), Cam.load(path, device="cpu")
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    noticed = 0
    for place, bit in [*places(content[:header_bytes], 40), *places(content, 20, start=header_bytes)]:
        path.write_bytes(flipped(content, place, bit))
        with contextlib.suppress(DataError, UsageError):
            noticed += 1
            model = Cam.load(path, device="cpu")
            noticed -= 1
            assert all(
                torch.equal(tensor, sound.state_dict()[name]) for name, tensor in model.state_dict().items()
            )
            assert {**model.describe()["training"], "checkpoint": 0} == {
                **sound.describe()["training"],
                "checkpoint": 0,
            }
            assert place < header_bytes
    assert noticed > 55


def test_any_flipped_bit_of_a_state_is_noticed(unfinished):
    path = unfinished.out / STATE
    content = path.read_bytes()
    for place, bit in places(content, 15):
        path.write_bytes(flipped(content, place, bit))
        with pytest.raises(DataError, match=r"state\.pt, is damaged .*; delete it to start again"):
            Cam.fit(unfinished)
    for size in (0, 100, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="is damaged"):
            Cam.fit(unfinished)


def test_a_state_of_another_program_is_refused_with_both_named(unfinished, monkeypatch):
    other = {**program(run_folder.LIBRARIES)["versions"], "torch": "9.9.9"}
    monkeypatch.setattr(run_folder, "program", lambda libraries: {**program(libraries), "versions": other})
    with pytest.raises(
        UsageError,
        match=rf"started differently: torch {torch.__version__.partition('+')[0]}\S* there and 9\.9\.9 here\..*delete state\.pt",
    ):
        Cam.fit(unfinished)
    torch.set_num_threads(2)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="started differently: threads 1 there and 2 here"):
        Cam.fit(unfinished)


def test_a_state_of_a_version_that_did_not_say_what_it_was_is_refused(unfinished):
    state = torch.load(unfinished.out / STATE, weights_only=True)
    del state["program"], state["machine"]
    torch.save(state, unfinished.out / STATE)
    with pytest.raises(UsageError, match="an earlier version there, which did not state its number"):
        Cam.fit(unfinished)


def test_a_damaged_checkpoint_of_a_finished_run_is_not_returned(finished):
    path = finished.out / LAST
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) - 5, 3))
    with pytest.raises(DataError, match=r"last\.safetensors is damaged.*delete it and train again"):
        Cam.fit(finished)
    path.unlink()
    assert Cam.fit(finished).read_bytes() == content


@pytest.mark.parametrize("damage", ["missing", "empty", "of another checkpoint"])
def test_the_description_beside_a_finished_checkpoint_is_written_again(finished, damage):
    beside = finished.out / "last.json"
    sound = json.loads(beside.read_text())
    if damage == "missing":
        beside.unlink()
    else:
        beside.write_text("" if damage == "empty" else json.dumps({**sound, "num_classes": 7}))
    Cam.fit(finished)
    again = json.loads(beside.read_text())
    assert {**again, "run": 0} == {**sound, "run": 0}


def test_a_log_that_is_not_the_runs_is_said(finished, capsys):
    Cam.fit(finished)
    assert capsys.readouterr().err == ""
    (finished.out / LOG).write_text("")
    Cam.fit(finished)
    assert f"note: {finished.out / LOG} is missing, or not the log" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_loads_and_is_said_to_be_unchecked(finished, capsys):
    path = finished.out / BEST
    sound = load_file(path)
    save_file(sound, path, metadata={HEADER: json.dumps(read_header(path))})
    loaded = Cam.load(path, device="cpu").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in sound.items())
    assert "has no digest, because an earlier version wrote it" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [20_000, 200_000])
def test_a_full_disk_stops_a_training_with_one_message_and_it_goes_on_later(tmp_path, limit):
    """At 20,000 bytes no checkpoint fits, at 200,000 no state with its moments."""
    wanted, unbroken = request(tmp_path / "run", epochs=2), request(tmp_path / "unbroken", epochs=2)
    Cam.fit(unbroken)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            UsageError,
            match=r"cannot write .*/(best\.safetensors|state\.pt): File too large\. Free some space",
        ):
            Cam.fit(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (wanted.out / LAST).exists()
    assert not list(wanted.out.glob(".*-*"))
    Cam.fit(wanted)
    assert same_weights(wanted.out / LAST, unbroken.out / LAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.long(), "torch.int64"),
        (lambda tensor: tensor.bool(), "torch.bool"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
        (lambda tensor: tensor.to_sparse(), "sparse"),
        (lambda tensor: tensor.to("meta"), "no values"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(change, message):
    module = torch.nn.Linear(3, 2)
    with pytest.raises(DataError, match=rf"a file: weight has .*{message}.*expected torch\.float32"):
        load_strictly(
            module, {**module.state_dict(), "weight": change(module.weight.detach())}, what="a file"
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_converted(dtype):
    module = torch.nn.Linear(3, 2)
    tensors = {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}
    load_strictly(module, tensors, what="a file")
    assert torch.equal(module.weight.detach(), tensors["weight"].float())


def test_a_flipped_bit_in_somebodys_file_of_weights_is_noticed(tmp_path):
    """torch reads such a file without a word."""
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 2, 6))
    assert torch.load(path, weights_only=True)["weight"].any()
    with pytest.raises(DataError, match=r"weights\.pt is truncated, .*checksum of .* differs"):
        read_weights(path)
    path.write_bytes(content)
    assert not read_weights(path).tensors["weight"].any()
