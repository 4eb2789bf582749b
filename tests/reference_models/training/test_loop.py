"""Training: the same request gives the same weights, interrupted or not; what it writes; what it refuses."""

from __future__ import annotations

import csv
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_models.core.recipes import RECIPES, Recipe
from reference_models.localization.cam import Cam
from reference_models.training import images
from reference_models.training.checkpoint import earlier_runs, read_header, write_checkpoint
from reference_models.training.run_folder import BEST, LAST, LOG, STATE
from tests.processes import Program
from tests.reference_models.conftest import squares
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import TrainRequest
from wsolbench.system.files import sha256_of_file
from wsolbench.types import Dataset, Sample

CONV_WITH_DROPOUT = {"head": "conv", "width": "8", "dropout": "0.5"}
"""Dropout draws from torch's global generator: a run that is continued must draw what the unbroken one
draws."""


def request(out: Path, **changes) -> TrainRequest:
    values = {
        "train": squares(),
        "val": squares(9, seed=1, split="val"),
        "backbone": "tiny",
        "weights": "none",
        "epochs": 4,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
        "settings": CONV_WITH_DROPOUT,
    }
    return TrainRequest(out=out, **{**values, **changes})


def log_of(out: Path) -> list[dict[str, str]]:
    """The log without the columns that time the machine."""
    rows = list(csv.DictReader((out / LOG).open()))
    return [
        {key: value for key, value in row.items() if key not in {"seconds", "images_per_second"}}
        for row in rows
    ]


def same_weights(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the same request, the same weights ---------------------------------------------------------------------


def test_a_seed_fixes_the_weights_to_the_bit_and_another_seed_gives_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Cam.fit(request(tmp_path / name, seed=seed, epochs=2))
    assert same_weights(tmp_path / "a" / LAST, tmp_path / "b" / LAST)
    assert not same_weights(tmp_path / "a" / LAST, tmp_path / "c" / LAST)


@pytest.mark.parametrize("worth", [0.0, math.inf], ids=["processes", "threads"])
def test_number_and_kind_of_workers_and_the_memory_do_not_matter(tmp_path, monkeypatch, worth):
    rotated = {**CONV_WITH_DROPOUT, "recipe.rotation": "10"}
    Cam.fit(request(tmp_path / "alone", workers=0, epochs=2, settings=rotated))
    monkeypatch.setattr(images, "WORTH_SECONDS", worth)
    for workers, cache in ((1, 0.0), (2, 0.0), (3, None)):
        out = tmp_path / str(workers)
        Cam.fit(request(out, workers=workers, cache=cache, epochs=2, settings=rotated))
        assert same_weights(tmp_path / "alone" / LAST, out / LAST)


def test_training_leaves_the_callers_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    Cam.fit(request(tmp_path, epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_after_each_epoch_a_method_may_change_what_is_validated_and_saved(tmp_path, monkeypatch):
    """The hook runs after the last step, without gradients, and before validation and the state."""
    called = []

    def after(self, epoch, epochs):
        assert not torch.is_grad_enabled()
        called.append((epoch, epochs))
        for parameter in self.head.parameters():
            parameter.zero_()

    monkeypatch.setattr(Cam, "after_epoch", after)
    wanted = request(tmp_path, epochs=2)
    Cam.fit(wanted)
    assert called == [(0, 2), (1, 2)]
    saved = Cam.load(wanted.out / LAST, device="cpu")
    assert not any(parameter.any() for parameter in saved.head.parameters())
    first = sum(sample.label == 0 for sample in wanted.val.samples) / len(wanted.val)
    assert [float(row["val_accuracy"]) for row in log_of(wanted.out)] == pytest.approx(
        [first, first], abs=1e-6
    )


class InterruptError(Exception):
    """Stands for whatever stops a run."""


def interrupt(monkeypatch, wanted: TrainRequest, *, before: int) -> None:
    """Run until an epoch would begin."""

    def stop(self, epoch, epochs):
        if epoch == before:
            raise InterruptError

    with monkeypatch.context() as patch:
        patch.setattr(Cam, "on_epoch", stop)
        with pytest.raises(InterruptError):
            Cam.fit(wanted)


@pytest.mark.parametrize("stop_before", [1, 3])
def test_a_run_that_goes_on_ends_where_an_unbroken_run_ends(tmp_path, monkeypatch, stop_before):
    unbroken, broken = request(tmp_path / "unbroken"), request(tmp_path / "broken")
    Cam.fit(unbroken)

    interrupt(monkeypatch, broken, before=stop_before)
    assert (broken.out / STATE).exists()
    assert not (broken.out / LAST).exists()
    Cam.fit(broken)
    assert same_weights(unbroken.out / LAST, broken.out / LAST)
    assert same_weights(unbroken.out / BEST, broken.out / BEST)
    assert log_of(unbroken.out) == log_of(broken.out)
    assert not (broken.out / STATE).exists()


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
import torch
from reference_models.localization.cam import Cam
from tests.reference_models.training.test_loop import request

torch.set_num_threads(1)
whole_loss = Cam.loss

def loss(self, batch):
    if batch.step == 7:  # the second of three batches of the third epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_loss(self, batch)

Cam.loss = loss
Cam.fit(request(Path(sys.argv[1])))
"""


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_goes_on(tmp_path):
    unbroken, killed = request(tmp_path / "unbroken"), request(tmp_path / "killed")
    done = Program(KILLED_IN_THE_MIDDLE, killed.out).end()
    assert done.code == -signal.SIGKILL, done.err
    # The second state was being written. The first was written before that began.
    assert [row["epoch"] for row in log_of(killed.out)] in (["1"], ["1", "2"])
    (killed.out / ".state-leftover.pt").write_bytes(b"half a file, as a kill can leave it")
    Cam.fit(killed)
    Cam.fit(unbroken)
    assert same_weights(unbroken.out / LAST, killed.out / LAST)
    assert log_of(unbroken.out) == log_of(killed.out)
    assert not list(killed.out.glob(".state-*"))


def test_a_finished_run_is_returned_without_training(tmp_path, monkeypatch):
    path = Cam.fit(request(tmp_path))
    before = path.read_bytes()

    def refuse(self, batch):
        raise AssertionError("trained again")

    monkeypatch.setattr(Cam, "loss", refuse)
    assert Cam.fit(request(tmp_path)) == path
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"epochs": 9}, {"lr": 0.5}, {"settings": {**CONV_WITH_DROPOUT, "dropout": "0.1"}}]
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_run_is_refused_by_what_differs(tmp_path, monkeypatch, change, finished):
    if finished:
        Cam.fit(request(tmp_path, epochs=1))
    else:
        interrupt(monkeypatch, request(tmp_path, epochs=2), before=1)
    name = "dropout" if "settings" in change else next(iter(change))
    with pytest.raises(UsageError, match=rf"another run.*{name}.*--out of `wsolbench train`"):
        Cam.fit(request(tmp_path, **{"epochs": 1 if finished else 2, **change}))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is training"):
            Cam.fit(request(tmp_path))


# --- what it learns and writes ------------------------------------------------------------------------------


def test_eight_images_are_learnt_by_heart(tmp_path):
    settings = {
        "head": "conv",
        "width": "16",
        "recipe.flip": "0",
        "recipe.resize": "1",
        "recipe.schedule": "constant",
        "recipe.weight_decay": "0",
    }
    Cam.fit(request(tmp_path, train=squares(8), val=None, epochs=50, lr=5e-3, settings=settings))
    assert float(log_of(tmp_path)[-1]["train_loss"]) < 0.05


def test_the_log_has_a_row_for_each_epoch_with_terms_rate_and_accuracy(tmp_path):
    Cam.fit(
        request(
            tmp_path,
            settings={
                **CONV_WITH_DROPOUT,
                "recipe.schedule": "step",
                "recipe.milestones": "0.5",
                "recipe.warmup": "0",
            },
            lr=0.01,
        )
    )
    rows = list(csv.DictReader((tmp_path / LOG).open()))
    assert list(rows[0]) == [
        "epoch",
        "train_loss",
        "cross_entropy",
        "lr",
        "val_accuracy",
        "images_per_second",
        "seconds",
    ]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert all(row["train_loss"] == row["cross_entropy"] for row in rows)


def test_the_best_checkpoint_is_the_first_with_the_highest_accuracy_on_the_validation_split(tmp_path):
    Cam.fit(request(tmp_path, epochs=5))
    accuracies = [float(row["val_accuracy"]) for row in log_of(tmp_path)]
    best = Cam.load(tmp_path / BEST, device="cpu")
    assert best.facts["epoch"] == 1 + int(np.argmax(accuracies))
    assert best.facts["val_accuracy"] == pytest.approx(max(accuracies), abs=1e-6)
    right = 0
    for sample in squares(9, seed=1, split="val").samples:
        from wsolbench.methods.inputs import to_input

        images = torch.from_numpy(to_input(sample.image(), best.input_spec))[None]
        right += int(best.localize(images).logits.argmax() == sample.label)
    assert right / 9 == pytest.approx(max(accuracies), abs=1e-6)


def test_without_a_validation_split_there_is_no_best_checkpoint(tmp_path):
    Cam.fit(request(tmp_path, val=None, epochs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "last.json",
        "last.safetensors",
        "log.csv",
    ]
    assert log_of(tmp_path)[0]["val_accuracy"] == ""


def test_a_checkpoint_of_another_run_can_be_the_start(tmp_path):
    first = Cam.fit(request(tmp_path / "first", epochs=1))
    model = Cam.create(backbone="tiny", num_classes=7, weights=str(first), settings={})
    trained = load_file(first)
    assert torch.equal(
        model.backbone.state_dict()["steps.stem.0.weight"], trained["backbone.steps.stem.0.weight"]
    )
    second = Cam.load(Cam.fit(request(tmp_path / "second", epochs=1, weights=str(first))), device="cpu")
    assert second.describe()["weights"]["name"] == "last.safetensors"
    # Images of the earlier run count, and do not change what identifies the run.
    images = len(squares())
    assert read_header(first)["training"]["images_seen"] == images
    training = second.describe()["training"]
    assert training["images_seen"] == 2 * images
    assert training["earlier_runs"] == {sha256_of_file(first): images}
    assert Cam.fit(request(tmp_path / "second", epochs=1, weights=str(first))).exists()


def test_a_checkpoint_of_an_older_version_counts_with_the_images_that_follow_from_its_metadata(tmp_path):
    path = Cam.fit(request(tmp_path, epochs=1))
    facts = read_header(path)
    del facts["training"]["images_seen"]
    older = tmp_path / "older.safetensors"
    write_checkpoint(older, Cam.load(path, device="cpu"), facts, {})
    assert earlier_runs(str(older), Cam.Config()) == {sha256_of_file(older): len(squares())}
    facts["training"]["weights"] = f"last.safetensors {'0' * 64}"  # of an unknown run
    write_checkpoint(older, Cam.load(path, device="cpu"), facts, {})
    assert earlier_runs(str(older), Cam.Config()) is None
    assert earlier_runs("none", Cam.Config()) == {}


# --- groups of parameters -----------------------------------------------------------------------------------


def test_new_layers_and_biases_learn_faster_by_the_factors_of_the_recipe(tmp_path):
    first = Cam.fit(request(tmp_path, epochs=1))
    model = Cam.create(backbone="tiny", num_classes=3, weights=str(first), settings={})
    groups = {group["name"]: group["factor"] for group in model.parameter_groups(RECIPES["spa_cub"])}
    assert groups == {"backbone weights": 1, "backbone biases": 2, "new weights": 10, "new biases": 20}
    flat = replace(RECIPES["spa_cub"], new_factor=1.0, bias_factor=1.0)
    assert {group["factor"] for group in model.parameter_groups(flat)} == {1}


def test_a_step_moves_each_group_by_its_own_rate(tmp_path):
    """Plain SGD without momentum and decay: the change of a parameter is its rate times its gradient."""
    from reference_models.training.loop import build_optimizer

    first = Cam.fit(request(tmp_path, epochs=1))
    recipe = Recipe(source="test", epochs=1, batch_size=1, lr=0.001, momentum=0.0, weight_decay=0.0)
    model = Cam.create(backbone="tiny", num_classes=3, weights=str(first), settings={})
    (objective,) = model.objectives(recipe)
    optimizer = build_optimizer(objective)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    expected = {
        "head.classifier.weight": 0.01,
        "head.classifier.bias": 0.02,
        "backbone.steps.stem.0.weight": 0.001,
        "backbone.steps.stem.1.bias": 0.002,
    }
    moved = dict(model.named_parameters())
    for name, rate in expected.items():
        torch.testing.assert_close(
            before[name] - moved[name], torch.full_like(before[name], rate), atol=1e-6, rtol=0
        )


# --- what it refuses ----------------------------------------------------------------------------------------


def changed(dataset: Dataset, **fields) -> Dataset:
    return replace(dataset, samples=[*dataset.samples[:-1], replace(dataset.samples[-1], **fields)])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(tmp_path, label):
    with pytest.raises(DataError, match=rf"'train/23.png'.* label {label}, expected 0 to 2"):
        Cam.fit(request(tmp_path, train=changed(squares(), label=label)))
    assert not list(tmp_path.iterdir())


def test_an_empty_split_and_other_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="no images"):
        Cam.fit(request(tmp_path, train=replace(squares(), samples=[])))
    with pytest.raises(DataError, match=r"other classes \(2\) than the training split \(3\)"):
        Cam.fit(request(tmp_path, val=squares(9, classes=2, split="val")))


@pytest.mark.parametrize(("workers", "worth"), [(0, 0.0), (2, math.inf), (2, 0.0)])
def test_an_image_that_cannot_be_read_is_named(tmp_path, monkeypatch, workers, worth):
    monkeypatch.setattr(images, "WORTH_SECONDS", worth)
    missing = Sample(id="gone.png", label=0, size=(32, 32), path=tmp_path / "gone.png")
    for cache in (0.0, 1.0):
        with pytest.raises(DataError, match=r"^image 'gone\.png': no file [^\n]*gone\.png$"):
            Cam.fit(
                request(
                    tmp_path / "run",
                    train=replace(squares(), samples=[*squares().samples, missing]),
                    workers=workers,
                    cache=cache,
                )
            )


def test_a_loss_that_is_no_longer_finite_stops_the_run_with_advice(tmp_path):
    with pytest.raises(
        UsageError, match=r"'cam' is no longer finite: epoch \d+.*smaller --lr \(it is 1000\)"
    ):
        Cam.fit(request(tmp_path, lr=1000.0))
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"epochs": 0}, "epochs=0"), ({"lr": -1.0}, "lr=-1"), ({"workers": -1}, "workers=-1")],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        Cam.fit(request(tmp_path, **change))


def test_unknown_settings_recipes_and_devices_come_with_the_nearest_name(tmp_path):
    for settings, message in (
        ({"dropuot": "1"}, "unknown setting 'dropuot' of method 'cam'; did you mean 'dropout'"),
        ({"recipe": "spa_cup"}, "unknown recipe 'spa_cup'; did you mean 'spa_cub'"),
        ({"recipe.gama": "1"}, "unknown setting 'gama' of recipe 'tiny'; did you mean 'gamma'"),
    ):
        with pytest.raises(UsageError, match=message):
            Cam.fit(request(tmp_path, settings=settings))
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        Cam.fit(request(tmp_path, device="gpu"))
