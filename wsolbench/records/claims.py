"""Claims of papers: read from a file, and matched with records of both sides.

    LITERATURE/claims.csv     what papers report: method A, method B, a metric of both
    LITERATURE/variants.csv   which of our methods and settings a published name means

Two runs are a pair for a claim when they agree in all that both share in meaning: data, protocol, backbone,
image size, start and recipe. Settings of one method's own design do not matter, even where another method has
one of the same name. The number of epochs may differ where a run lasts as long as its stages, and both sides
have the same lengths of stages (`stage_epochs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from wsolbench.metrics.catalog import metric_info
from wsolbench.records.checks import is_whole
from wsolbench.records.csv_rows import read_rows
from wsolbench.records.record import RunRecord, precedence, settings_of
from wsolbench.system.files import canonical_json

COMMON_SETTINGS = frozenset(("recipe", "grid", "head", "width"))
"""Settings that mean the same in every method: they describe training and the network that a method is built
on.
"""

_MOST_STAGES = 8
"""More lengths than this are no stages: their sums would be too many."""

_DATA = ("name", "split", "transform", "fingerprint", "images", "limit")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the file. Settings are `name=value` pairs joined by `;`: which of a method's runs are meant.
    Those of its post-process have the prefix `post.`.
    """

    paper: str
    where: str
    claim: str
    metric: str
    a: str
    a_settings: str
    b: str
    b_settings: str
    published_a: str
    published_b: str

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Name and settings of A and of B."""
        return (self.a, self.a_settings), (self.b, self.b_settings)

    @property
    def named(self) -> set[str]:
        """Names of the settings that the claim is about."""
        return {part.partition("=")[0] for _, settings in self.sides for part in settings.split(";") if part}

    @property
    def direction(self) -> int:
        """1 if the paper has B above A, -1 if below."""
        return 1 if float(self.published_b) > float(self.published_a) else -1


def read_claims(path: Path) -> list[Claim]:
    """Read a file of claims. Raises `DataError` naming the line of an invalid row."""
    columns = [item.name for item in fields(Claim)]
    return [claim for _, claim in read_rows(path, columns, _checked_claim, what="claim")]


def _checked_claim(row: dict[str, str]) -> Claim:
    claim = Claim(**row)
    metric_info(claim.metric)
    if float(claim.published_a) == float(claim.published_b):
        raise ValueError("both published values are equal")
    return claim


def read_variants(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Read which method and settings here a published name means.

    The keys are the paper's key and the method's name in the published numbers; the values are the name and
    the settings of the method here. Raises `DataError` naming the line of an invalid row.
    """
    rows = read_rows(path, ("paper", "method", "ours", "settings"), dict, what="variant")
    return {(row["paper"], row["method"]): (row["ours"], row["settings"]) for _, row in rows}


def matches_claim(method: dict[str, Any], name: str, settings: str) -> bool:
    """Whether a method matches one side of a claim. A setting that the method lacks counts as empty.

    >>> matches_claim({"name": "caam", "config": {"patch": [16, 32], "ssam": True}}, "caam",
    ...     "patch=16,32;ssam=true")
    True
    """
    if method["name"] != name:
        return False
    config = {key: setting_text(value) for key, value in _design(method).items()}
    return all(
        config.get(key, "") == value
        for key, _, value in (part.partition("=") for part in settings.split(";") if part)
    )


def _design(method: dict[str, Any]) -> dict[str, Any]:
    """Settings of a record's method and of its post-process."""
    post = (method.get("post") or {}).get("config") or {}
    return {**settings_of(method), **{f"post.{name}": value for name, value in post.items()}}


@dataclass(frozen=True)
class _Side:
    """A record as a side of claims."""

    path: Path
    record: RunRecord
    protocol: str
    """The protocol with all its fields."""

    @cached_property
    def circumstances(self) -> dict[str, Any]:
        """What both runs of a pair share, by name."""
        data, method = self.record.dataset, self.record.method
        recipe = {
            f"recipe.{name}": value
            for name, value in (self.record.training.get("recipe") or {}).items()
            if name != "source"
        }
        scored = {f"dataset.{name}": data.get(name) for name in _DATA}
        network = {
            "backbone": method.get("backbone"),
            "image_size": method.get("image_size"),
            "start": self.record.start,
        }
        return {**scored, "protocol": self.protocol, **network, **recipe}

    @cached_property
    def design(self) -> dict[str, Any]:
        """Settings of the method and of its post-process."""
        return _design(self.record.method)

    @cached_property
    def lengths(self) -> list[int] | None:
        """Lengths of all stages that a run of the method can have, if this run lasted the sum of some of
        them; otherwise None.

        The settings say which stages a run has, so its epochs are then no choice of their own.
        """
        lengths = self.design.get("stage_epochs")
        if not (
            isinstance(lengths, list)
            and len(lengths) <= _MOST_STAGES
            and all(is_whole(length, 0) for length in lengths)
        ):
            return None
        sums = {sum(part) for count in range(len(lengths)) for part in combinations(lengths, count + 1)}
        return lengths if self.circumstances.get("recipe.epochs") in sums else None

    @cached_property
    def group(self) -> str:
        """Equal for runs that repeat each other with other seeds."""
        return canonical_json([self.circumstances, self.record.method["name"], self.design])

    @property
    def seed(self) -> int:
        """The seed of the training; 0 if there is none."""
        return int(self.record.training.get("seed") or 0)

    @property
    def place(self) -> tuple[str, ...]:
        """Data set, split, transform and backbone."""
        data = self.record.dataset
        return tuple(
            str(part or "")
            for part in (
                data["name"],
                data["split"],
                data.get("transform"),
                self.record.method.get("backbone"),
            )
        )


def _base(name: str) -> str:
    """The method without its post-process and without the name of one of its extra maps."""
    return name.partition("+")[0].partition(":")[0]


def _differing(claim: Claim, a: _Side, b: _Side) -> list[str]:
    names = [
        name
        for name in {**a.circumstances, **b.circumstances}
        if a.circumstances.get(name) != b.circumstances.get(name)
    ]
    if a.lengths is not None and a.lengths == b.lengths:
        names = [name for name in names if name != "recipe.epochs"]
    shared = [name for name in a.design if name in b.design and name not in claim.named]
    if _base(claim.a) != _base(claim.b):
        shared = [name for name in shared if name in COMMON_SETTINGS or name.startswith("post.")]
    return names + [name for name in shared if a.design[name] != b.design[name]]


def pairs_of(
    claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]
) -> list[tuple[list[Path], list[Path]]]:
    """What to compare: for each claim the records of A and of B that differ in nothing else, by seed, each
    pair of groups once.
    """
    found = []
    for _, pairs in pairs_by_claim(claims, records):
        found += [pair for pair in pairs if pair not in found]
    return found


def pairs_by_claim(
    claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]
) -> list[tuple[Claim, list[tuple[list[Path], list[Path]]]]]:
    """For each claim its pairs of groups: records of A, and records of B with the same seeds."""
    sides = _sides(records)
    return [
        (
            claim,
            [
                ([side.path for side in a], [side.path for side in b])
                for a, b in _pairs(claim, *_both_sides(claim, sides))
            ],
        )
        for claim in claims
    ]


def _sides(records: Iterable[tuple[Path, RunRecord]]) -> list[_Side]:
    """Records of the same run and seed count once: the one that the board shows."""
    protocols: dict[Any, str] = {}
    kept: dict[tuple[str, int], _Side] = {}
    for path, record in records:
        if record.protocol not in protocols:
            protocols[record.protocol] = canonical_json(record.protocol.to_json())
        side = _Side(path, record, protocols[record.protocol])
        key = side.group, side.seed
        if key not in kept or precedence(side.record) > precedence(kept[key].record):
            kept[key] = side
    return list(kept.values())


def _both_sides(claim: Claim, sides: Sequence[_Side]) -> tuple[list[_Side], list[_Side]]:
    a, b = ([side for side in sides if matches_claim(side.record.method, *wanted)] for wanted in claim.sides)
    return a, b


def _pairs(claim: Claim, a: Sequence[_Side], b: Sequence[_Side]) -> Iterator[tuple[list[_Side], list[_Side]]]:
    """Groups of A and of B that may be compared, each with the same seeds, in the order of their groups."""
    ones, others = (
        {group: [side for side in of if side.group == group] for group in sorted({s.group for s in of})}
        for of in (a, b)
    )
    for group in ones.values():
        for other in others.values():
            if _differing(claim, group[0], other[0]):
                continue
            by_seed = {side.seed: side for side in other}
            together = sorted(
                ((side, by_seed[side.seed]) for side in group if side.seed in by_seed),
                key=lambda pair: pair[0].seed,
            )
            if together:
                yield [one for one, _ in together], [two for _, two in together]


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """A claim without a pair of runs: where (empty: nowhere), and why."""

    claim: Claim
    place: str
    reason: str

    def __str__(self) -> str:
        where = f" on {self.place}" if self.place else ""
        return (
            f"{self.claim.paper}, {self.claim.where}: {self.claim.claim}, {self.claim.metric}{where}: "
            f"{self.reason}"
        )


def find_unpaired(claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]) -> list[Unpaired]:
    """Claims that no pair of runs can be compared for: for each data set and backbone with runs of both
    sides, or nowhere.

    Only runs with a value of the claim's metric count.
    """
    sides, found = _sides(records), []
    for claim in claims:
        a, b = (
            [side for side in of if _has_metric(side.record, claim.metric)]
            for of in _both_sides(claim, sides)
        )
        if not a or not b:
            wanted = [f"{name} ({settings})" if settings else name for name, settings in claim.sides]
            missing = [side for side, of in zip(wanted, (a, b), strict=True) if not of]
            found.append(
                Unpaired(claim=claim, place="", reason=f"no record of {' and none of '.join(missing)}")
            )
            continue
        places = sorted({side.place for side in a} & {side.place for side in b})
        if not places:
            found.append(Unpaired(claim=claim, place="", reason=_reason(claim, a, b)))
        for place in places:
            ones, others = ([side for side in of if side.place == place] for of in (a, b))
            if not any(_pairs(claim, ones, others)):
                name = ", ".join(filter(None, (f"{place[0]}/{place[1]}", *place[2:])))
                found.append(Unpaired(claim=claim, place=name, reason=_reason(claim, ones, others)))
    return found


def _has_metric(record: RunRecord, name: str) -> bool:
    return any(metric.name == name and metric.value is not None for metric in record.metrics)


def _reason(claim: Claim, a: Sequence[_Side], b: Sequence[_Side]) -> str:
    """In what the two records differ that come closest to being a pair."""

    def differing(pair: tuple[_Side, _Side]) -> list[str]:
        return _differing(claim, *pair) + ["seed"] * (pair[0].seed != pair[1].seed)

    firsts = [list({side.group: side for side in of}.values()) for of in (a, b)]
    one, other = min(
        ((one, other) for one in firsts[0] for other in firsts[1]), key=lambda pair: len(differing(pair))
    )
    names = differing((one, other)) or ["seed"]
    return (
        "records of both sides, and the closest differ in "
        f"{', '.join(_contrast(name, one, other) for name in names)}"
    )


def _contrast(name: str, one: _Side, other: _Side) -> str:
    if name == "protocol":
        return f"protocol ({one.record.protocol.name} against {other.record.protocol.name})"
    if name == "seed":
        return f"seed ({one.seed} against {other.seed})"
    values = (_value(name, side) for side in (one, other))
    return "{} ({} against {})".format(name, *values)


def _value(name: str, side: _Side) -> str:
    known = {**side.design, **side.circumstances}
    value = known.get(name)
    return "none" if value in (None, "") else setting_text(value)


def setting_text(value: Any) -> str:
    """A setting as it is written with `--set`.

    >>> setting_text([7, 14]), setting_text(True)
    ('7,14', 'true')
    """
    return (
        ",".join(map(setting_text, value))
        if isinstance(value, list)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
