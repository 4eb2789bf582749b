"""Training budgets of records: what they state, what follows from older ones, and what sets groups apart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.conftest import make_dataset, make_record
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.records.budget import Budgets


def run(name: str = "cam", *, digest: str = "a", image_size: int = 128, **changes: Any) -> RunRecord:
    training = {
        "method": name,
        "weights": "imagenet",
        "seed": 0,
        "epoch": 3,
        "recipe": {"epochs": 3, "batch_size": 32},
        "dataset": {"images": 1500, "split": "train", "fingerprint": "f"},
        "checkpoint": {"sha256": digest * 64},
    }
    config = changes.pop("config", {})
    method = {"name": name, "config": config, "image_size": image_size, "training": {**training, **changes}}
    return make_record(make_dataset(3), EvalProtocol(), (), method=method)


def seen(record: RunRecord, *others: RunRecord) -> int | None:
    return Budgets([record, *others]).images_seen(record)


def test_an_older_record_has_seen_its_epochs_and_groups() -> None:
    assert seen(run()) == 4500
    assert seen(run(epoch=2)) == 3000  # the best checkpoint
    assert seen(run("lio", config={"num_positives": 3})) == 4 * 4500
    assert seen(run(dataset={"images": 1506})) == 4518
    assert (
        seen(run(dataset={"images": 1505}, recipe={"batch_size": 8})) == 3 * 1504
    )  # a batch of one is dropped
    assert seen(run("i2c")) is None  # pairs, whose number depends on the classes
    assert seen(run(recipe=None, epoch=None)) is None


def test_what_a_record_states_comes_first() -> None:
    assert seen(run("i2c", images_seen=4600)) == 4600
    assert seen(run(images_seen=9000, earlier_runs={"b" * 64: 4500})) == 9000


def test_earlier_checkpoints_count_once() -> None:
    first = run("baseline", digest="b")
    parts = run("ssanet", digest="c", weights=f"last.safetensors {'b' * 64}")
    assert seen(parts, first) == 9000
    assert seen(parts) is None  # nothing says what b has seen
    config = {"part_net": "parts.safetensors", "part_net_sha256": "c" * 64}
    full = run("ssanet", digest="d", weights=f"last.safetensors {'b' * 64}", config=config)
    assert seen(full, parts, first) == 13500  # b is named twice
    stated = run("ssanet", digest="c", images_seen=9000, earlier_runs={"b" * 64: 4500})
    assert seen(full, stated, first) == 13500
    itself = run(weights=f"last.safetensors {'a' * 64}")
    assert seen(itself) is None
    circle = run(digest="b", weights=f"last.safetensors {'a' * 64}")
    assert seen(run(weights=f"last.safetensors {'b' * 64}"), circle) is None


def test_a_run_without_training_has_seen_nothing_and_maps_of_others_say_nothing() -> None:
    fixed, others = run(), run()
    for record in (fixed, others):
        del record.method["training"]
    del others.method["config"]
    assert (seen(fixed), seen(others)) == (0, None)


def remark(a: RunRecord, b: RunRecord) -> str:
    return str(Budgets([a, b]).gap([a], [b]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"images_seen": 4540}, ""),  # 1 percent, for batches that do not divide
        ({"images_seen": 4560}, "unequal budget: 4,500 / 4,560 images"),
        ({"images_seen": 18000}, "unequal budget: 4,500 / 18,000 images"),
        ({"image_size": 224}, "unequal budget: image size 128 / 224"),
        ({"weights": "none"}, "unequal budget: init imagenet / none"),
        ({"epoch": None, "recipe": {}}, "budget not known: 4,500 / unknown images"),
        (
            {"dataset": {"images": 1350, "split": "train", "fingerprint": "g"}},
            "unequal budget: 4,500 / 4,050 images, training images 1500 of train (f) / 1350 of train (g)",
        ),
    ],
)
def test_a_gap_names_both_numbers(changes: dict[str, Any], expected: str) -> None:
    a, b = run(), run("spa", digest="b", **changes)
    assert remark(a, b) == expected
    assert Budgets([a, b]).gap([a], [b]).is_unequal == expected.startswith("unequal")


def test_every_run_of_both_groups_counts() -> None:
    runs = [run(digest=name) for name in "abc"]
    long = run(digest="d", epoch=30)
    budgets = Budgets([*runs, long])
    assert not budgets.gap(runs[:2], runs[2:]).is_unequal
    assert budgets.gap(runs[:2], [runs[2], long]).images == (4500, 45000)
    assert budgets.gap([runs[0], long], runs[2:]).is_unequal


def test_runs_share_weights_if_they_have_a_checkpoint_in_common() -> None:
    starts = [run(digest=digest) for digest in "ab"]
    tuned = [
        run("spa", digest=digest, weights=f"last.safetensors {start * 64}")
        for digest, start in zip("cd", "ab", strict=True)
    ]
    others = [run("has", digest=digest, weights=f"last.safetensors {digest * 64}") for digest in "ef"]
    budgets = Budgets([*starts, *tuned])  # without the records of others
    assert budgets.share_weights(starts, starts)
    assert budgets.share_weights(starts, tuned)
    assert budgets.share_weights(tuned, tuned[::1])
    assert not budgets.share_weights(starts, tuned[::-1])  # of other seeds
    assert not budgets.share_weights(starts, others)
    assert not budgets.share_weights(starts, tuned[:1])
    assert not budgets.share_weights([run(digest="a")], [run(digest="b")])  # ImageNet is no seed


def test_the_same_weights_have_the_same_budget_whatever_they_state() -> None:
    a, b = run("i2c"), run("i2c+scg")
    assert remark(a, b) == "budget not known"
    assert not Budgets([a, b]).gap([a], [b]).is_unequal


def start(digest: str, name: str = "baseline", **changes: Any) -> RunRecord:
    return run(name, digest=digest, weights="none", **changes)


def from_checkpoint(name: str, digest: str, weights: str, **changes: Any) -> RunRecord:
    return run(name, digest=digest, weights=f"last.safetensors {weights * 64}", **changes)


@pytest.mark.parametrize(
    ("other_start", "known", "is_apart"),
    [
        (start("c"), True, True),  # the same run on another machine
        (start("c"), False, True),  # a checkpoint that nobody describes
        (start("c", "nts-net"), True, False),  # another method: what is compared
        (start("c", config={"width": 2}), True, False),  # other settings
        (start("c", seed=1), True, False),
    ],
)
def test_two_trainings_of_the_same_first_checkpoint_are_two_starts(
    other_start: RunRecord, known: bool, is_apart: bool
) -> None:
    a, b = from_checkpoint("baseline", "d", "b"), from_checkpoint("tasn", "e", "c")
    b.method["training"] |= {"images_seen": 9000, "earlier_runs": {"c" * 64: 4500}}
    records = [a, b, start("b"), *([other_start] if known else [])]
    expected = "unequal budget: init bbbbbbbb / cccccccc" if is_apart else ""
    assert str(Budgets(records).gap([a], [b])) == expected


def test_starts_are_compared_seed_by_seed() -> None:
    starts = [start("b", seed=0), start("c", seed=1)]
    a = [from_checkpoint("baseline", "d", "b", seed=0), from_checkpoint("baseline", "e", "c", seed=1)]
    b = [from_checkpoint("tasn", "1", "c", seed=1), from_checkpoint("tasn", "2", "b", seed=0)]
    assert not Budgets([*starts, *a, *b]).gap(a, b).is_unequal
    again = from_checkpoint("tasn", "2", "3", seed=0)
    gap = Budgets([*starts, *a, *b, again, start("3", seed=0)]).gap(a, [b[0], again])
    assert gap.others == ("init bbbbbbbb / 33333333",)
