"""Training in several processes: the gradient, the schedule and the log of one; equal weights in all; one
that writes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from reference_models.localization.cam import Cam
from reference_models.training.images import ImageReader
from reference_models.training.parallel import take_share
from reference_models.training.run_folder import BEST, LAST, LOG, STATE
from tests.processes import PATIENCE, ROOT, together
from tests.reference_models.conftest import squares
from tests.reference_models.training.test_loop import interrupt, request, same_weights
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.system.distributed import World

PLAIN = {
    "head": "conv",
    "width": "8",
    "recipe.optimizer": "sgd",
    "recipe.warmup": "0",
    "recipe.clip_norm": "1",
}
"""Nothing random in the network; the gradient itself is the step."""


def uneven(out: Path, **changes) -> TrainRequest:
    """23 images in batches of 7: the last batch has two, which cannot be shared."""
    values = {"train": squares(23), "batch_size": 7, "epochs": 3, "lr": 0.05, "settings": PLAIN}
    return request(out, **{**values, **changes})


class WithoutBatchNorm(Cam):
    """Each image is normalised on its own, so that an image's features do not depend on who shares its
    batch."""

    @classmethod
    def create(cls, **options) -> WithoutBatchNorm:
        model = super().create(**options)
        for parent in model.modules():
            for name, child in parent.named_children():
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(parent, name, torch.nn.GroupNorm(1, child.num_features))
        return model


# --- shares -------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 70), size=st.integers(1, 9), group=st.integers(2, 6))
def test_the_shares_of_a_batch_weigh_every_image_equally_and_are_large_enough_for_batch_norm(
    count, size, group
):
    batch = np.arange(100, 100 + count)
    weight_of = dict.fromkeys(batch.tolist(), 0.0)
    for rank in range(size):
        mine, weight = take_share(batch, World(rank, size, rank), group)
        assert len(mine) >= min(2, count) or count % group == 1
        assert (mine[0] - 100) % group == 0  # groups of neighbours stay together
        assert (mine[-1] - 100) % group == group - 1 or mine[-1] == batch[-1]
        assert np.array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))
        for image in mine.tolist():
            weight_of[image] += weight / len(mine)
    assert np.allclose(list(weight_of.values()), 1 / count, rtol=1e-12)


@given(count=st.integers(1, 70), size=st.integers(1, 9))
def test_no_process_has_more_than_a_pair_above_its_part_of_a_batch_that_is_large_enough(count, size):
    if count >= 2 * size:
        largest = max(len(take_share(np.arange(count), World(rank, size, rank))[0]) for rank in range(size))
        assert largest <= -(-count // size) + 1


def test_one_process_has_the_whole_batch():
    batch = np.arange(5)
    mine, weight = take_share(batch, World())
    assert np.array_equal(mine, batch)
    assert weight == 1.0


# --- one step -----------------------------------------------------------------------------------------------

ONE_STEP = """
import json, sys
import torch
from reference_models.training.parallel import broadcast_from_first, synchronised_step
from wsolbench.system.distributed import connected

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.second_only, self.unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("constant", torch.tensor([1 / 3, float("inf")]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

with connected() as here:
    model = Model()
    weight = (0.25, 0.75)[here.rank]
    with synchronised_step(model, weight, here):
        model.mean += 4.0 * (here.rank + 1)
        model.steps += here.rank + 5
        loss = (model.shared * (1.0 + here.rank)).sum()
        if here.rank == 1:
            loss = loss + model.second_only.sum()
        (loss * weight).backward()
    found = {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()}
    found |= {"mean": model.mean.tolist(), "constant": torch.equal(model.constant, Model().constant)}

    broadcast_from_first(model.buffers(), here)
    found["steps"] = int(model.steps)

    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.zero_grad()
    with synchronised_step(model, weight, here):
        scaler.scale((model.shared * (float("inf") if here.rank == 1 else 1.0)).sum() * weight).backward()
    scaler.step(optimizer)
    scaler.update()
    found |= {"skipped": bool((model.shared == 1).all()), "scale": scaler.get_scale()}
    open(f"{sys.argv[1]}/{here.rank}", "w").write(json.dumps(found))
"""


def test_a_step_sums_weighted_gradients_and_averages_what_buffers_have_become(tmp_path):
    assert [ended.code for ended in together(ONE_STEP, tmp_path)] == [0, 0]
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second
    assert first == {
        "shared": [1.75, 1.75],  # 1/4 * 1 + 3/4 * 2
        "second_only": [0.75, 0.75],  # had a part in one process, has a gradient in both
        "unused": None,
        "mean": [7.0, 7.0],  # 1/4 * 4 + 3/4 * 8
        "constant": True,  # to the bit
        "steps": 5,  # the first process's
        "skipped": True,  # mixed precision: one process overflows, both leave the step out
        "scale": 4.0,
    }


# --- a run --------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.reference_models.training.test_parallel import WithoutBatchNorm, uneven
from wsolbench.system.distributed import world

whole_loss = WithoutBatchNorm.loss

def loss(self, batch):
    if batch.step == 6 and world().rank == 1:  # the third of four batches of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_loss(self, batch)

WithoutBatchNorm.loss = loss
WithoutBatchNorm.fit(uneven(Path(sys.argv[1]) / "killed"))
"""

TRAINED = """
import json, sys
from pathlib import Path
import numpy as np
import torch
import reference_models.training.loop as train
from reference_models.training import run_folder
from reference_models.training.images import ImageReader
from reference_models.localization.cam import Cam
from tests.reference_models.conftest import squares
from tests.reference_models.training.test_parallel import WithoutBatchNorm, uneven
from wsolbench.system.distributed import connected

folder = Path(sys.argv[1])
with connected() as here:
    if not here.is_first:
        def refuse(*_):
            raise AssertionError("a second process writes")
        train._save = train.StateWriter.save = train.write_log = run_folder.locked_run = refuse

    steps = []
    class Noted(WithoutBatchNorm):
        def loss(self, batch):
            drawn = [float(torch.rand(())), float(torch.rand((), generator=batch.generator))]
            steps.append({"images": batch.indices.tolist(), "drawn": drawn})
            Noted.trained = self
            return super().loss(batch)

    Noted.fit(uneven(folder / "unbroken"))
    torch.save(Noted.trained.state_dict(), folder / f"weights{here.rank}.pt")
    (folder / f"steps{here.rank}.json").write_text(json.dumps(steps))
    WithoutBatchNorm.fit(uneven(folder / "killed"))
    Cam.fit(uneven(folder / "batch norm", lr=0.01))
    Cam.fit(uneven(folder / "still", lr=1e-9))
    reader = ImageReader(squares(5), 36, workers=1, here=here)
    assert len(reader._places) == 5
    (kept,) = reader.squares([np.arange(5)])
    torch.save(torch.from_numpy(kept), folder / f"images{here.rank}.pt")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Runs of two processes; one of them was killed in between, and went on."""
    folder = tmp_path_factory.mktemp("processes")
    first, second = together(KILLED, folder)
    assert second.code == -signal.SIGKILL, second.err
    assert first.code == 1
    assert "a process has died" in first.err
    assert (folder / "killed" / STATE).exists()
    assert [row["epoch"] for row in rows(folder / "killed")] == ["1"]
    for ended in together(TRAINED, folder):
        assert ended.code == 0, ended.err
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / LOG).open()))


def column(out: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(out)]


def facts(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())["training"]


def test_two_processes_train_what_one_process_trains(trained, tmp_path):
    WithoutBatchNorm.fit(uneven(tmp_path))
    for name in ("train_loss", "lr", "val_accuracy"):
        assert column(trained / "unbroken", name) == pytest.approx(column(tmp_path, name), rel=1e-5)
    one, two = load_file(tmp_path / LAST), load_file(trained / "unbroken" / LAST)
    start = WithoutBatchNorm.create(
        backbone="tiny", num_classes=3, weights="none", settings=PLAIN
    ).state_dict()
    assert one.keys() == two.keys() == start.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert max(float((tensor - start[name]).abs().max()) for name, tensor in one.items()) > 0.05
    alone, shared = facts(tmp_path / LAST), facts(trained / "unbroken" / LAST)
    assert "processes" not in alone
    assert shared.pop("processes") == 2
    assert {**shared, "train_loss": 0} == {**alone, "train_loss": 0}


def test_with_batch_norm_on_the_cpu_the_log_is_roughly_that_of_one_process(trained, tmp_path):
    Cam.fit(uneven(tmp_path, lr=0.01))
    found, expected = (column(folder, "train_loss") for folder in (trained / "batch norm", tmp_path))
    assert found == pytest.approx(expected, rel=0.1)
    assert found != pytest.approx(expected, rel=1e-4)


def test_the_running_means_of_batch_norm_are_those_of_whole_batches(trained, tmp_path):
    """At a rate of almost 0 the first layer's statistics depend on the images alone; later layers see other
    normalised inputs."""
    Cam.fit(uneven(tmp_path, lr=1e-9))
    one, two = load_file(tmp_path / LAST), load_file(trained / "still" / LAST)
    torch.testing.assert_close(
        two["backbone.steps.stem.1.running_mean"],
        one["backbone.steps.stem.1.running_mean"],
        rtol=1e-5,
        atol=1e-6,
    )
    assert int(two["backbone.steps.stem.1.num_batches_tracked"]) == 12


def test_all_processes_have_the_weights_that_the_first_one_writes(trained):
    first, second = (torch.load(trained / f"weights{rank}.pt", weights_only=True) for rank in range(2))
    written = load_file(trained / "unbroken" / LAST)
    assert first.keys() == second.keys() == written.keys()
    assert all(
        torch.equal(first[name], second[name]) and torch.equal(first[name], written[name]) for name in written
    )


def test_a_run_of_two_processes_that_was_killed_ends_where_an_unbroken_one_ends(trained):
    assert same_weights(trained / "unbroken" / LAST, trained / "killed" / LAST)
    assert same_weights(trained / "unbroken" / BEST, trained / "killed" / BEST)
    assert column(trained / "unbroken", "train_loss") == column(trained / "killed", "train_loss")
    assert sorted(path.name for path in (trained / "killed").iterdir()) == sorted(
        [".lock", "best.json", "best.safetensors", "last.json", "last.safetensors", "log.csv"]
    )


def test_the_processes_share_the_images_of_each_step_and_draw_apart(trained):
    first, second = (json.loads((trained / f"steps{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 12
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        if number % 4 == 3:
            assert one["images"] == two["images"]  # the last batch has two images: both processes compute it
            assert len(one["images"]) == 2
        else:
            assert (len(one["images"]), len(two["images"])) == (4, 3)
            assert not set(one["images"]) & set(two["images"])
    for epoch in range(3):
        shown = [
            image
            for step in range(4 * epoch, 4 * epoch + 4)
            for image in {*first[step]["images"], *second[step]["images"]}
        ]
        assert sorted(shown) == list(range(23))
    drawn = [value for step in (*first, *second) for value in step["drawn"]]
    assert len(set(drawn)) == len(drawn)


def test_each_process_reads_a_part_of_the_images_and_has_all(trained):
    (squared,) = ImageReader(squares(5), 36, workers=0).squares([np.arange(5)])
    alone = torch.from_numpy(squared)
    for rank in range(2):
        assert torch.equal(torch.load(trained / f"images{rank}.pt", weights_only=True), alone)


def test_a_finished_run_of_two_processes_is_taken_by_one_and_an_unfinished_one_is_refused(
    trained, tmp_path, monkeypatch
):
    assert WithoutBatchNorm.fit(uneven(trained / "unbroken")) == trained / "unbroken" / LAST

    wanted = uneven(tmp_path)
    interrupt(monkeypatch, wanted, before=1)
    state = torch.load(tmp_path / STATE, weights_only=True)
    torch.save(
        {**state, "facts": json.dumps({**json.loads(state["facts"]), "processes": 2})}, tmp_path / STATE
    )
    with pytest.raises(UsageError, match=r"another run: processes is 2 there and 1 here\."):
        Cam.fit(wanted)


REFUSED = """
import sys
from dataclasses import replace
from pathlib import Path
from reference_models.training import loop
from tests.reference_models.conftest import squares
from tests.reference_models.training.test_parallel import WithoutBatchNorm, uneven
from wsolbench.system.distributed import world
from wsolbench.exceptions import WsolbenchError
from wsolbench.types import Sample

change, folder, rank = sys.argv[1], Path(sys.argv[2]), world().rank
wanted = uneven(folder)
if change == "an image that only the second process reads":
    gone = Sample(id="gone.png", label=0, size=(32, 32), path=folder / "gone.png")
    wanted = replace(wanted, train=replace(squares(24), samples=[*squares(23).samples, gone]))
else:  # each has a folder of its own, with another state
    (folder / str(rank)).mkdir()
    (folder / str(rank) / loop.STATE).touch()
    wanted = replace(wanted, out=folder / str(rank))
    loop.load_state = lambda run, path: {"epoch": rank + 1, "history": []}
try:
    WithoutBatchNorm.fit(wanted)
except WsolbenchError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("an image that only the second process reads", "gone.png"),
        ("folders that are not shared", "different devices or epochs: cpu after 1, cpu after 2"),
    ],
)
def test_what_one_process_cannot_do_ends_both_with_one_message(tmp_path, change, message):
    first, second = together(REFUSED, change, tmp_path)
    assert (first.code, second.code) == (2, 2), second.err
    assert message in first.err
    assert second.err.strip() == ""
    assert not list(tmp_path.rglob(LAST))


def test_torchrun_starts_the_command_and_an_error_of_all_is_printed_once(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "wsolbench",
        "train",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--method", "cam", "--dataset", "nowhere", "--device", "cpu"]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1  # torchrun's own, whatever its processes return
    assert done.stderr.count("Error: unknown dataset 'nowhere'") == 1
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.iterdir())
