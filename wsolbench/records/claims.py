"""Claims of papers: read them from a file, and match both sides with records.

    LITERATURE/claims.csv     what papers report: method A, method B, a metric of both
    LITERATURE/variants.csv   the method and settings here that a published name refers to

Two runs are a pair for a claim if they agree in everything with the same meaning for both: data, protocol,
backbone, image size, init, recipe, number formats, and the number of images seen in training
(`wsolbench.records.budget`). Settings of one method's own design do not matter, even if another method has a
setting of the same name.

A claim can allow unequal budgets. The runs then need the same number of epochs. It may differ if each run
lasts as long as its stages, and both sides have the same stage lengths (`stage_epochs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from wsolbench.metrics.catalog import metric_info
from wsolbench.records.budget import Budgets, images_per_step, is_equal_budget
from wsolbench.records.checks import is_whole
from wsolbench.records.csv_rows import read_rows
from wsolbench.records.record import RunRecord, precedence, settings_of
from wsolbench.system.files import canonical_json

COMMON_SETTINGS = frozenset(("recipe", "head", "width"))
"""Settings with the same meaning in every method: they describe training and the underlying network."""

NUMBER_FORMATS = ("train.", "eval.")
"""Prefixes of settings that are number formats of the training and of the evaluation."""

STEP_TOLERANCE = 1 / 8
"""Largest relative difference of equal numbers of images per step. Three groups of six images replace 16."""

_MOST_STAGES = 8
"""Most stages that are considered, because the number of their sums grows exponentially."""

_SEEN = "images seen"

_DATA = ("name", "split", "transform", "fingerprint", "images", "limit")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the file.

    Settings select a method's runs. They are `name=value` pairs joined by `;`. Settings of the post-process
    have the prefix `post.`.

    Attributes:
        published_a, published_b: printed values of both sides, in percent. Both are empty for a question
            that no paper answers with two comparable values: is B above A?
        control: method that has everything of B except the idea that the claim is about, or empty. Its
            difference to A shows how much of the claim's difference has another cause.
        control_settings: settings of the control.
        allow_unequal_budget: `yes` if runs with unequal budgets are compared as well. They are shown, but
            cannot support the claim. Otherwise empty.
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
    control: str = ""
    control_settings: str = ""
    allow_unequal_budget: str = ""

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Name and settings of A and of B."""
        return (self.a, self.a_settings), (self.b, self.b_settings)

    @property
    def of_control(self) -> Claim:
        """The claim with its control in place of B."""
        return replace(
            self, b=self.control, b_settings=self.control_settings, control="", control_settings=""
        )

    @property
    def named(self) -> set[str]:
        """Names of the settings that the claim is about."""
        every = (self.a_settings, self.b_settings, self.control_settings)
        return {part.partition("=")[0] for settings in every for part in settings.split(";") if part}

    @property
    def published_difference(self) -> float | None:
        """B minus A as printed, in percentage points, or None if no paper prints it."""
        return float(self.published_b) - float(self.published_a) if self.published_a else None

    @property
    def direction(self) -> int:
        """1 if the paper has B above A, -1 if below. 1 for a question."""
        difference = self.published_difference
        return 1 if difference is None or difference > 0 else -1


def read_claims(path: Path) -> list[Claim]:
    """Read a file of claims. Raises `DataError` naming the line of an invalid row."""
    columns = [item.name for item in fields(Claim)]
    return [claim for _, claim in read_rows(path, columns, _checked_claim, what="claim")]


def _checked_claim(row: dict[str, str]) -> Claim:
    claim = Claim(**row)
    metric_info(claim.metric)
    if bool(claim.published_a) != bool(claim.published_b):
        raise ValueError("one published value is missing; expected both, or two empty cells")
    if claim.published_difference == 0:
        raise ValueError("both published values are equal; expected two that differ")
    if claim.control_settings and not claim.control:
        raise ValueError("it has control_settings but no control; expected the name of the control's method")
    if claim.allow_unequal_budget not in ("", "yes"):
        raise ValueError(
            f"allow_unequal_budget is {claim.allow_unequal_budget!r}; expected yes, or an empty cell"
        )
    return claim


def read_variants(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Read the method and settings here that each published name refers to.

    Keys are the paper's key and the method's name in the published numbers. Values are name and settings of
    the method here. Raises `DataError` naming the line of an invalid row.
    """
    rows = read_rows(path, ("paper", "method", "ours", "settings"), dict, what="variant")
    return {(row["paper"], row["method"]): (row["ours"], row["settings"]) for _, row in rows}


def matches_claim(method: dict[str, Any], name: str, settings: str) -> bool:
    """Whether a method matches one side of a claim. A setting that the method lacks counts as empty.

    So an empty value stands for the default of a setting that records state only if it is another one. `|`
    separates values that count alike.

    >>> matches_claim(
    ...     {"name": "caam", "config": {"patch": [16, 32], "ssam": True}}, "caam", "patch=16,32;ssam=true"
    ... )
    True
    """
    if method["name"] != name:
        return False
    config = {key: setting_text(value) for key, value in _design(method).items()}
    return all(
        config.get(key, "") in value.split("|")
        for key, _, value in (part.partition("=") for part in settings.split(";") if part)
    )


def _design(method: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a record's method and of its post-process."""
    post = (method.get("post") or {}).get("config") or {}
    return {**settings_of(method), **{f"post.{name}": value for name, value in post.items()}}


@dataclass(frozen=True)
class _Side:
    """A record as a candidate for one side of a claim."""

    path: Path
    record: RunRecord
    protocol: str
    """The protocol with all its fields, as canonical JSON."""
    images: int | None
    """Images seen in training, or None if it is not known."""

    @cached_property
    def circumstances(self) -> dict[str, Any]:
        """Everything that both runs of a pair must share, by name."""
        data, method = self.record.dataset, self.record.method
        recipe = {
            f"recipe.{name}": value
            for name, value in (self.record.training.get("recipe") or {}).items()
            if name != "source"
        }
        scored = {f"dataset.{name}": data.get(name) for name in _DATA}
        network = {
            "backbone": method.get("backbone"),
            "grid": method.get("grid"),
            "image_size": method.get("image_size"),
            "start": self.record.start,
            "training images": (self.record.training.get("dataset") or {}).get("fingerprint"),
        }
        return {**scored, "protocol": self.protocol, **network, **recipe}

    @cached_property
    def design(self) -> dict[str, Any]:
        """Settings of the method and of its post-process, without the grid: `circumstances` has it."""
        return {name: value for name, value in _design(self.record.method).items() if name != "grid"}

    @cached_property
    def lengths(self) -> list[int] | None:
        """Lengths of all stages that a run of the method can have, or None.

        None unless this run lasted the sum of some of them. The settings say which stages a run has, so the
        number of epochs is then not an independent choice.
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
    def images_per_step(self) -> int | None:
        """Images of a training step, or None if it is not known."""
        method = self.record.method
        return images_per_step(self.record.training, method.get("config") or {})

    @cached_property
    def group(self) -> str:
        """Key that is equal for runs that differ only in the seed."""
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
    """Return the method's name without its post-process and without its extra map."""
    return name.partition("+")[0].partition(":")[0]


def _find_differences(claim: Claim, a: _Side, b: _Side) -> list[str]:
    """Return the names of everything that keeps two runs from being a pair for a claim."""
    names = [
        name
        for name in {**a.circumstances, **b.circumstances}
        if a.circumstances.get(name) != b.circumstances.get(name)
    ]
    # Groups of images: batches count as equal if they have about as many images.
    if "recipe.batch_size" in names and _are_close(a.images_per_step, b.images_per_step):
        names.remove("recipe.batch_size")
    # The number of epochs matters if the images seen are not known to be equal.
    names = [name for name in names if name != "recipe.epochs"]
    if None in (a.images, b.images) or not is_equal_budget(a.images, b.images):
        same_stages = a.lengths is not None and a.lengths == b.lengths
        if not same_stages and a.circumstances.get("recipe.epochs") != b.circumstances.get("recipe.epochs"):
            names.append("recipe.epochs")
        elif not claim.allow_unequal_budget and not is_equal_budget(a.images, b.images):
            names.append(_SEEN)
    # A setting that only one run states is not at its default. Those of a post-process need both.
    stated, both = a.design.keys() | b.design.keys(), a.design.keys() & b.design.keys()
    if _base(claim.a) != _base(claim.b):
        compared = {name for name in both if name in COMMON_SETTINGS or name.startswith("post.")}
        compared |= {name for name in stated if name.startswith(NUMBER_FORMATS)}
    else:
        compared = both | {name for name in stated if not name.startswith("post.")}
    different = {name for name in compared - claim.named if a.design.get(name) != b.design.get(name)}
    return names + sorted(different)


def _are_close(a: int | None, b: int | None) -> bool:
    """Whether two numbers of images per step agree up to what groups of any size can divide."""
    return a is not None and b is not None and abs(a - b) <= STEP_TOLERANCE * min(a, b)


def pairs_of(
    claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]
) -> list[tuple[list[Path], list[Path]]]:
    """Return the pairs of groups to compare, each pair once, with those of A and the control.

    A pair holds the records of A and of B that differ in nothing else, by seed.
    """
    found = []
    of_controls = [claim.of_control for claim in claims if claim.control]
    for _, pairs in pairs_by_claim([*claims, *of_controls], records):
        found += [pair for pair in pairs if pair not in found]
    return found


def pairs_by_claim(
    claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]
) -> list[tuple[Claim, list[tuple[list[Path], list[Path]]]]]:
    """Return for each claim its pairs of groups: records of A, and records of B with the same seeds."""
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
    """Wrap the records. Of records with the same run and seed, keep the one that the leaderboard shows."""
    protocols: dict[Any, str] = {}
    kept: dict[tuple[str, int], _Side] = {}
    records = list(records)
    budgets = Budgets(record for _, record in records)
    for path, record in records:
        if record.protocol not in protocols:
            protocols[record.protocol] = canonical_json(record.protocol.to_json())
        side = _Side(path, record, protocols[record.protocol], budgets.images_seen(record))
        key = side.group, side.seed
        if key not in kept or precedence(side.record) > precedence(kept[key].record):
            kept[key] = side
    return list(kept.values())


def _both_sides(claim: Claim, sides: Sequence[_Side]) -> tuple[list[_Side], list[_Side]]:
    a, b = ([side for side in sides if matches_claim(side.record.method, *wanted)] for wanted in claim.sides)
    return a, b


def _pairs(claim: Claim, a: Sequence[_Side], b: Sequence[_Side]) -> Iterator[tuple[list[_Side], list[_Side]]]:
    """Yield groups of A and of B that may be compared, with the same seeds, in the order of their groups."""
    ones, others = (
        {group: [side for side in of if side.group == group] for group in sorted({s.group for s in of})}
        for of in (a, b)
    )
    for group in ones.values():
        for other in others.values():
            if group[0].group == other[0].group or _find_differences(claim, group[0], other[0]):
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
    """A claim without a pair of runs: the place, or empty for all places, and the reason."""

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
    """Return the claims without a comparable pair of runs.

    Each is listed for every data set and backbone with runs of both sides, or once if there is none. Only
    runs with a value of the claim's metric count.
    """
    sides, found = _sides(records), []
    for claim in claims:
        # One side has no run at all.
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
        # Both sides have runs, but never in the same place, or nowhere a pair.
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
    """Return the differences between the two records that come closest to being a pair."""

    def differences(pair: tuple[_Side, _Side]) -> list[str]:
        return _find_differences(claim, *pair) + ["seed"] * (pair[0].seed != pair[1].seed)

    firsts = [list({side.group: side for side in of}.values()) for of in (a, b)]
    one, other = min(
        ((one, other) for one in firsts[0] for other in firsts[1]),
        key=lambda pair: len(differences(pair)),
    )
    names = differences((one, other)) or ["seed"]
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
    known = {**side.design, **side.circumstances, _SEEN: f"{side.images:,}" if side.images else None}
    value = known.get(name)
    return "none" if value in (None, "") else setting_text(value)


def setting_text(value: Any) -> str:
    """Format a setting as `--set` takes it.

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
