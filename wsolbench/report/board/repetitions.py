"""Comparable runs: which may be compared, which differ only in the seed, and which settings differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.budget import Budgets
from wsolbench.records.claims import setting_text
from wsolbench.records.record import precedence
from wsolbench.records.submission import TRAINED, Submission
from wsolbench.system.files import canonical_json

_DATA = ("name", "split", "transform", "images", "fingerprint")


@dataclass(frozen=True)
class Run:
    """A record, its link from the folder of the leaderboard, and its path, if it is needed."""

    record: RunRecord
    link: str
    path: Path = Path()
    plan_run: str = ""
    """Name of the run of a plan that has made it (`wsolbench.records.planned`), or empty."""
    submission: Submission | None = None
    """The submission of a result from outside, or None for a run of this project."""
    badge: str = TRAINED
    """How far the numbers were checked."""

    def metric(self, name: str, policy: str | None) -> MetricValue | None:
        """Return the metric under a policy. A metric without a threshold is returned for every policy."""
        found = {metric.policy: metric for metric in self.record.metrics if metric.name == name}
        return found.get(policy) or found.get(None)

    @property
    def planned(self) -> bool:
        """Whether a job of a plan has made it."""
        return bool(self.plan_run)

    @property
    def backbone(self) -> str | None:
        """Backbone as the record states it, or as the metadata of a submission do."""
        stated: str | None = self.record.method.get("backbone")
        return stated if self.submission is None else self.submission.metadata.backbone

    @property
    def seed(self) -> int | None:
        """Seed of the training, or None if the record does not state it."""
        seed: int | None = self.record.training.get("seed")
        return seed


def grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[list[Run]]:
    """Group runs with equal keys.

    Each group keeps the order given. Groups are sorted by their keys as JSON.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[canonical_json(key(run))].append(run)
    return [groups[name] for name in sorted(groups)]


def data_of(run: Run) -> list[Any]:
    """Return the key of a run's images: annotations, number and transform.

    Untransformed images are sorted first.
    """
    data = run.record.dataset
    return ["" if data.get(key) is None else data[key] for key in _DATA]


def source_of(run: Run) -> Any:
    """Return the split that the run's transferred thresholds come from, or None.

    Parts that runs with other seeds hold out of the same split count as one source.
    """
    source = run.record.dataset.get("transfer_from")
    if isinstance(source, dict) and "part_of" in source:
        return {"split": source.get("split"), "fingerprint": source["part_of"]}
    return source


def init_text(start: str) -> str:
    """Return the init of a training as a phrase: `from scratch`, or `from` and the weights.

    >>> init_text("none"), init_text("imagenet")
    ('from scratch', 'from imagenet')
    """
    return f"from {'scratch' if start == 'none' else start}"


def source_title(source: Any) -> str:
    """Return the suffix for the policy name: the split that the thresholds were chosen on."""
    return (
        f" from {source.get('split')} (fingerprint {str(source.get('fingerprint'))[:12]})"
        if isinstance(source, dict)
        else ""
    )


def settings_of(run: Run) -> dict[str, Any]:
    """Return the key that is equal for runs that differ only in the seed.

    A run without a seed has it in common only with runs of the same method that have the same values.
    """
    method, training = run.record.method, run.record.training
    what = {key: method.get(key) for key in ("name", "backbone", "post", "image_size")}
    values = [[metric.name, metric.policy, metric.value] for metric in run.record.metrics]
    alone = [method, values] if run.seed is None else None
    return {
        **what,
        "config": run.record.settings,
        "start": run.record.start,
        "recipe": training.get("recipe"),
        "alone": alone,
    }


def one_of_each_seed(runs: Sequence[Run], *, of_each_source: bool = True) -> list[Run]:
    """Keep only one run per seed. A run on another revision or machine does not count as another seed.

    With `of_each_source`, keep one run per split that thresholds are transferred from. `precedence` decides
    which run is kept. Runs that a plan replaces are dropped, too.
    """
    kept = {shown.link for shown, _ in _repeats(runs, of_each_source)}
    return [run for run in runs if run.link in kept]


def superseded(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return each run that `one_of_each_seed` drops, with the run that is kept instead, in order.

    That run repeats the dropped one, or is of a plan and has a fuller budget (`_replacements`).
    """
    return [(run, shown) for shown, others in _repeats(runs, of_each_source=True) for run in others]


def _repeats(runs: Sequence[Run], of_each_source: bool) -> list[tuple[Run, list[Run]]]:
    """Group the runs with the same measurement and seed: the run that is kept, and the others."""
    protocols: dict[Any, str] = {}
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        source, protocol = source_of(run) if of_each_source else None, run.record.protocol
        if protocol not in protocols:  # cached, because writing a grid of thresholds takes most of the time
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
    # A group whose run is replaced joins that of the replacement.
    replaced = _replacements([shown for shown, _ in found], runs)
    kept = [(shown, others) for shown, others in found if shown.link not in replaced]
    by_link = {shown.link: others for shown, others in kept}
    for shown, others in found:
        if shown.link in replaced:
            by_link[replaced[shown.link]] += [shown, *others]
    return kept


def _replacements(shown: Sequence[Run], runs: Sequence[Run]) -> dict[str, str]:
    """Return the link of the run that replaces each replaced run, by the link of the latter.

    A run of a plan replaces runs outside plans with the same images, protocol, method, settings, backbone,
    init and seed, if it has seen more training images and its input is not smaller. Settings that only one of
    them has are of different versions and do not count.
    """
    planned: dict[str, list[Run]] = defaultdict(list)
    for run in shown:
        if run.planned:
            planned[_task(run)].append(run)
    if not planned:
        return {}
    budgets, found = Budgets(run.record for run in runs), {}
    for run in shown:
        seen = None if run.planned else budgets.images_seen(run.record)
        for other in [] if seen is None else planned.get(_task(run), []):
            fuller = (budgets.images_seen(other.record) or 0) > (seen or 0)
            sizes = [each.record.method.get("image_size") or 0 for each in (run, other)]
            ones, others = (_flat_settings(each) for each in (run, other))
            same = all(ones[name] == others[name] for name in ones.keys() & others.keys())
            if fuller and sizes[0] <= sizes[1] and same:
                found[run.link] = other.link
    return found


def _task(run: Run) -> str:
    """Return the key of runs that measure the same, whatever their budget and settings."""
    record = run.record
    method = [record.method["name"], record.method.get("backbone"), record.start, run.seed]
    return canonical_json([data_of(run), record.protocol.to_json(), method])


def _flat_settings(run: Run) -> dict[str, Any]:
    """Return the settings of method and post-process by name."""
    post = (run.record.method.get("post") or {}).get("config") or {}
    return {**run.record.settings, **{f"post.{name}": value for name, value in post.items()}}


def different_settings(run: Run, others: Sequence[Run]) -> str:
    """Return the settings in which a run differs from others of its method.

    SEM's number of seeds comes first, because SEM's results depend on it.
    """
    of_method = [_flat(other) for other in others if other.record.method["name"] == run.record.method["name"]]
    own = _flat(run)
    seeds = _seeds(run)
    listed = _SEEDS if seeds else ()
    names = [
        name
        for name in own
        if name not in listed and len({canonical_json(other.get(name)) for other in of_method}) > 1
    ]
    return ", ".join(
        [
            *seeds,
            *(f"{name}={'none' if own[name] in (None, '') else setting_text(own[name])}" for name in names),
        ]
    )


_SEEDS = ("post.seeds", "post.seeds_of")


def _seeds(run: Run) -> list[str]:
    """Return how many seeds SEM takes: a number, or so many of a number of pixels. Empty for other runs."""
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
