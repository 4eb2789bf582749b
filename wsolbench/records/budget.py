"""Training budgets: how many images a run has seen, and whether two groups of runs had equal means.

A checkpoint states the images that its weights have seen (`training.images_seen`): epochs times the images of
an epoch as trained, plus what earlier checkpoints have seen that it starts from. `training.earlier_runs` has
the images of each earlier run by the digest of its checkpoint, so that none counts twice. Older records do
not state it. It is then derived where that is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsolbench.records.checks import is_whole
from wsolbench.records.record import RunRecord

TOLERANCE = 0.01
"""Largest relative difference of equal budgets. Batches do not divide every number of images."""

_OWN_BATCHES = frozenset({"i2c"})
"""Methods whose number of images per epoch depends on the classes. Older records do not state it."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class BudgetGap:
    """What sets two groups of runs apart besides their method.

    Attributes:
        images: images seen in training by a run of A and by a run of B. None if it is not known.
        others: other differences, each as `name a / b`: image size, backbone, init, training images. What a
            record does not state is no difference. `init` names two checkpoints if they are two trainings
            of the same run.
    """

    images: tuple[int | None, int | None]
    others: tuple[str, ...] = ()

    @property
    def is_unequal(self) -> bool:
        """Whether the groups are known to differ."""
        return bool(self.others) or not is_equal_budget(*self.images)

    def __str__(self) -> str:
        """Return the remark of tables, or an empty text if all is equal."""
        if self.images == (None, None) and not self.others:
            return "budget not known"
        seen = " / ".join("unknown" if count is None else f"{count:,}" for count in self.images)
        images = [] if is_equal_budget(*self.images) and None not in self.images else [f"{seen} images"]
        if not self.is_unequal:
            return f"budget not known: {images[0]}" if images else ""
        return f"unequal budget: {', '.join([*images, *self.others])}"


def is_equal_budget(a: int | None, b: int | None) -> bool:
    """Whether two numbers of images agree up to `TOLERANCE`. An unknown number is not a difference.

    >>> is_equal_budget(16_200, 16_150), is_equal_budget(16_200, 64_800), is_equal_budget(None, 5)
    (True, False, True)
    """
    return a is None or b is None or abs(a - b) <= TOLERANCE * max(a, b)


def own_images(training: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """Return the images that a run itself has trained on, or None if its metadata do not say.

    `training` and `config` are the entries of a record's method or of a checkpoint's header.
    """
    if (seen := _whole(training.get("images_seen"))) is not None:
        earlier: Mapping[str, int] = training.get("earlier_runs", {})
        return seen - sum(earlier.values())
    recipe, data = training.get("recipe") or {}, training.get("dataset") or {}
    epochs, images = _whole(training.get("epoch", recipe.get("epochs"))), _whole(data.get("images"))
    method = str(training.get("method", "")).partition("+")[0].partition(":")[0]
    if epochs is None or images is None or method in _OWN_BATCHES:
        return None
    # A batch of LIO consists of groups. In other methods a last batch of one image is dropped.
    if positives := _whole(config.get("num_positives")):
        return epochs * images * (1 + positives)
    batch = _whole(recipe.get("batch_size"))
    dropped = batch is not None and images > batch > 0 and images % batch == 1
    return epochs * (images - dropped)


def images_per_step(training: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """Return the images of a training step, or None if the metadata do not say.

    `batch_size` counts groups if batches consist of groups of images, as in LIO.

    >>> images_per_step({"recipe": {"batch_size": 8}}, {"num_positives": 3})
    32
    """
    batch = _whole((training.get("recipe") or {}).get("batch_size"))
    return None if batch is None else batch * (1 + (_whole(config.get("num_positives")) or 0))


def _whole(value: Any) -> int | None:
    """Return a whole number that is not negative, or None."""
    return int(value) if is_whole(value, 0) else None


def earlier_checkpoints(training: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the digests of the checkpoints that a run starts from: its weights, and in its settings."""
    named = [str(training.get("weights", "")).rpartition(" ")[2]]
    named += [str(value) for name, value in config.items() if name.endswith("_sha256")]
    return list(dict.fromkeys(text for text in named if _DIGEST.fullmatch(text)))


class Budgets:
    """Images seen by runs. `records` are searched for the checkpoints that older runs start from."""

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self._by_checkpoint: dict[str, RunRecord] = {}
        for record in records:
            digest = _digest_of(record)
            if digest is not None:
                self._by_checkpoint.setdefault(digest, record)

    def images_seen(self, record: RunRecord) -> int | None:
        """Return the images that a run has seen, 0 if it was not trained, or None if it is not known."""
        if not record.training:
            return 0 if "config" in record.method else None
        runs = self._runs(record)
        return None if None in runs.values() else sum(filter(None, runs.values()))

    def _runs(self, record: RunRecord, later: frozenset[str] = frozenset()) -> dict[str, int | None]:
        """Return the images of the run itself and of each earlier run, by the digest of the checkpoint.

        `later` has the checkpoints that start from this one. A damaged record could start from them.
        """
        training, config = record.training, record.method.get("config") or {}
        own = _digest_of(record) or ""
        found: dict[str, int | None] = {own: own_images(training, config)}
        if "images_seen" in training:
            return {**found, **training.get("earlier_runs", {})}
        for digest in earlier_checkpoints(training, config):
            earlier = self._by_checkpoint.get(digest)
            if earlier is None or digest in {own, *later}:
                found[digest] = None
            else:
                found |= self._runs(earlier, later | {own})
        return found

    def share_weights(self, a: Sequence[RunRecord], b: Sequence[RunRecord]) -> bool:
        """Whether runs at the same position have a checkpoint in common, their own or an earlier one.

        Their metrics then move together from seed to seed. ImageNet weights are the same for all seeds.
        """
        if len(a) != len(b):
            return False
        names = [[self._runs(record).keys() - {""} for record in group] for group in (a, b)]
        return any(one & other for one, other in zip(*names, strict=True))

    def gap(self, a: Sequence[RunRecord], b: Sequence[RunRecord]) -> BudgetGap:
        """Return what sets two groups apart. Each run is compared with the first one of A."""
        first = a[0]
        seen = self.images_seen(first)
        images: tuple[int | None, int | None] = seen, self.images_seen(b[0])
        others: dict[str, None] = {}
        for record in (*b, *a[1:]):
            if _digest_of(record) is not None and _digest_of(record) == _digest_of(first):
                continue  # the same weights, for instance with a post-process
            count = self.images_seen(record)
            if is_equal_budget(*images) and not is_equal_budget(seen, count):
                images = seen, count
            for name, read in _MEANS.items():
                one, other = read(first), read(record)
                if one is not None and other is not None and one != other:
                    others[f"{name} {_text(one)} / {_text(other)}"] = None
        by_seed = {record.training.get("seed"): record for record in reversed(a) if record.training}
        for record in b:
            same_seed = by_seed.get(record.training.get("seed"))
            if same_seed is not None and (apart := self._starts_apart(same_seed, record)):
                others[apart] = None
        return BudgetGap(images=images, others=tuple(others))

    def _starts_apart(self, one: RunRecord, other: RunRecord) -> str | None:
        """Return the two checkpoints that runs start from, if these are two trainings of the same run.

        A plan that is carried out on two machines trains its first checkpoint twice, and the two can differ.
        Checkpoints of different runs are part of what is compared. Checkpoints without a record count as
        trainings of the same run.
        """
        digests = [_start_of(one), _start_of(other)]
        if None in digests or digests[0] == digests[1]:
            return None
        starts = [_run_of(self._by_checkpoint.get(digest or "")) for digest in digests]
        if None not in starts and starts[0] != starts[1]:
            return None
        return f"init {str(digests[0])[:8]} / {str(digests[1])[:8]}"


def _digest_of(record: RunRecord) -> str | None:
    """Return the digest of the checkpoint of a run, or None."""
    checkpoint = record.training.get("checkpoint")
    digest = checkpoint.get("sha256") if isinstance(checkpoint, dict) else None
    return digest if isinstance(digest, str) else None


def _start_of(record: RunRecord) -> str | None:
    """Return the digest of the checkpoint that a training starts from, or None if there is none."""
    digest = str(record.training.get("weights", "")).rpartition(" ")[2]
    return digest if _DIGEST.fullmatch(digest) else None


def _run_of(record: RunRecord | None) -> tuple[Any, ...] | None:
    """Return what the trainings of one run have in common, or None without a record."""
    if record is None:
        return None
    training = record.training
    names = ("method", "epoch", "seed", "image_size")
    return (record.settings, *(training.get(name) for name in names), _trained_on(record))


def _trained_on(record: RunRecord) -> Any:
    """Return the training images: number, split, fingerprint."""
    data = record.training.get("dataset")
    return tuple(data.get(name) for name in ("images", "split", "fingerprint")) if data else None


_MEANS = {
    "image size": lambda record: record.method.get("image_size"),
    "backbone": lambda record: record.method.get("backbone"),
    "init": lambda record: record.start,
    "training images": _trained_on,
}
"""What a fair comparison shares besides the number of images seen."""


def _text(value: Any) -> str:
    """Format a value of `_MEANS`."""
    if isinstance(value, tuple):
        images, split, fingerprint = value
        return f"{images} of {split} ({str(fingerprint)[:8]})"
    return str(value)
