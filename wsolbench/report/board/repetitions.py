"""Which runs may be compared, which repeat one another with another seed, and what sets the others apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.claims import setting_text
from wsolbench.records.record import precedence
from wsolbench.system.files import canonical_json

_DATA = ("name", "split", "transform", "images", "fingerprint")


@dataclass(frozen=True)
class Run:
    """A record, its link from the board's folder, and its path where that is asked for."""

    record: RunRecord
    link: str
    path: Path = Path()

    def metric(self, name: str, policy: str | None) -> MetricValue | None:
        """The metric under that policy, or without any: a metric that uses no threshold stands in every
        table.
        """
        found = {metric.policy: metric for metric in self.record.metrics if metric.name == name}
        return found.get(policy) or found.get(None)

    @property
    def seed(self) -> int | None:
        """Of its training; None where nobody says so."""
        seed: int | None = self.record.training.get("seed")
        return seed


def grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Runs with equal keys together, each group in the order given, the groups in the order of their keys as
    JSON.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[canonical_json(key(run))].append(run)
    return [groups[name] for name in sorted(groups)]


def data_of(run: Run) -> list[Any]:
    """What makes two data sets the same: annotations, images and what was done to them. Plain images come
    before transformed ones.
    """
    data = run.record.dataset
    return ["" if data.get(key) is None else data[key] for key in _DATA]


def source_of(run: Run) -> Any:
    """The split that its transferred thresholds come from."""
    return run.record.dataset.get("transfer_from")


def init_text(start: str) -> str:
    """Where a training began: `from scratch`, or `from` and the weights.

    >>> init_text("none"), init_text("imagenet")
    ('from scratch', 'from imagenet')
    """
    return f"from {'scratch' if start == 'none' else start}"


def source_title(source: Any) -> str:
    """Of the split that thresholds come from, after the name of the policy."""
    return (
        f" from {source.get('split')} (fingerprint {str(source.get('fingerprint'))[:12]})"
        if isinstance(source, dict)
        else ""
    )


def settings_of(run: Run) -> dict[str, Any]:
    """What makes two runs repetitions of each other: all but the seed. A run without a seed repeats none."""
    method, training = run.record.method, run.record.training
    what = {key: method.get(key) for key in ("name", "backbone", "post", "image_size")}
    alone = run.record.digest if run.seed is None else None
    return {
        **what,
        "config": run.record.settings,
        "start": run.record.start,
        "recipe": training.get("recipe"),
        "alone": alone,
    }


def one_of_each_seed(runs: Sequence[Run], *, of_each_source: bool = True) -> list[Run]:
    """Keep one of the runs that repeat each other with the same seed. Another revision or machine makes no
    other seed.

    `of_each_source`: where thresholds come from other splits, keep one for each split. Which one is shown:
    see `precedence`.
    """
    kept = {shown.link for shown, _ in _repeats(runs, of_each_source)}
    return [run for run in runs if run.link in kept]


def superseded(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Each run that `one_of_each_seed` leaves out, with the run that is shown in its place, in the order
    given.
    """
    return [(run, shown) for shown, others in _repeats(runs, of_each_source=True) for run in others]


def _repeats(runs: Sequence[Run], of_each_source: bool) -> list[tuple[Run, list[Run]]]:
    """Runs by what they measure and their seed: the one that is shown, and the others."""
    protocols: dict[Any, str] = {}
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        source, protocol = source_of(run) if of_each_source else None, run.record.protocol
        if protocol not in protocols:  # writing a grid of thresholds takes most of the time
            protocols[protocol] = canonical_json(protocol.to_json())
        groups[
            canonical_json([data_of(run), source, protocols[protocol], settings_of(run), run.seed])
        ].append(run)
    found = []
    for group in groups.values():
        shown = (
            group[0] if len(group) == 1 else max(group, key=lambda run: (precedence(run.record), run.link))
        )
        found.append((shown, [run for run in group if run is not shown]))
    return found


def different_settings(run: Run, others: Sequence[Run]) -> str:
    """The settings in which a run differs from others of its method, after SEM's number of seeds: its verdict
    depends on it.
    """
    of_method = [_flat(other) for other in others if other.record.method["name"] == run.record.method["name"]]
    own = _flat(run)
    seeds = _seeds(run)
    told = _SEEDS if seeds else ()
    names = [
        name
        for name in own
        if name not in told and len({canonical_json(other.get(name)) for other in of_method}) > 1
    ]
    return ", ".join(
        [
            *seeds,
            *(f"{name}={'none' if own[name] in (None, '') else setting_text(own[name])}" for name in names),
        ]
    )


_SEEDS = ("post.seeds", "post.seeds_of")


def _seeds(run: Run) -> list[str]:
    """How many seeds SEM takes: a number, or so many of a number of pixels. Empty for other runs."""
    post = run.record.method.get("post") or {}
    seeds, of = (_flat(run).get(name) for name in _SEEDS)
    if post.get("name") != "sem" or seeds is None:
        return []
    return [f"seeds={setting_text(seeds)} of {setting_text(of)}" if of else f"seeds={setting_text(seeds)}"]


def _flat(run: Run) -> dict[str, Any]:
    settings = settings_of(run)
    recipe = {f"recipe.{key}": value for key, value in (settings["recipe"] or {}).items()}
    post = {f"post.{key}": value for key, value in ((settings["post"] or {}).get("config") or {}).items()}
    return {**settings["config"], **post, "image_size": settings["image_size"], **recipe}
