"""Published ablations beside measured ones: does the direction hold?

    results/claims.csv                 what papers report: method A, method B, a metric of both
    results/compared/<data set>/...    what was measured (`wsolbench compare --claims`)

A claim's direction *holds* where the whole 95 % interval of the measured difference is on the published side of 0, is *opposite*
where it is on the other, and is *undecided* where the interval contains 0.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsolbench.compare import MetricDifference
from wsolbench.exceptions import DataError
from wsolbench.files import canonical_json
from wsolbench.listing import find_files
from wsolbench.metrics.catalog import metric_title
from wsolbench.records import RunRecord, settings_of
from wsolbench.report.comparisons import Comparison, read_comparison
from wsolbench.report.repetitions import setting_text
from wsolbench.report.tables import escape_markdown, format_difference


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of the file. Settings are `name=value` pairs joined by `;`: which of a method's runs are meant."""

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
        """1 where the paper has B above A, -1 where below."""
        return 1 if float(self.published_b) > float(self.published_a) else -1


def read_claims(path: Path) -> list[Claim]:
    """The rows of a file of claims. Raises `DataError` naming the line of a row that is none."""
    names = [item.name for item in fields(Claim)]
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != names:
            raise DataError(f"{path}:1 has the columns {reader.fieldnames}; expected {','.join(names)}")
        claims = []
        for line, row in enumerate(reader, start=2):
            try:
                claims.append(Claim(**row))
                if float(row["published_a"]) == float(row["published_b"]):
                    raise ValueError("both published values are equal")
            except (TypeError, ValueError) as error:
                raise DataError(f"{path}:{line} is no claim: {error}") from error
    return claims


def read_variants(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(paper, method as it is written in the published numbers) -> our method and its settings. Raises `DataError` on other columns."""
    names = ["paper", "method", "ours", "settings"]
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != names:
            raise DataError(f"{path}:1 has the columns {reader.fieldnames}; expected {','.join(names)}")
        return {(row["paper"], row["method"]): (row["ours"], row["settings"]) for row in reader}


def is_meant(method: dict[str, Any], name: str, settings: str) -> bool:
    """Whether a record's method, or a group of a comparison, is this side of a claim. A setting that it does not have is empty.

    >>> is_meant({"name": "caam", "config": {"patch": [16, 32], "ssam": True}}, "caam", "patch=16,32;ssam=true")
    True
    """
    config = {key: setting_text(value) for key, value in settings_of(method).items()}
    return bool(
        method["name"] == name
        and all(config.get(key, "") == value for key, _, value in (part.partition("=") for part in settings.split(";") if part))
    )


def pairs_of(claims: Sequence[Claim], records: Iterable[tuple[Path, RunRecord]]) -> list[tuple[list[Path], list[Path]]]:
    """What to compare: for each claim the records of A and those of B with the same data, protocol, backbone and budget, by seed.

    Settings that both methods have and that the claim does not name are equal in A and B, but for the variants of different methods,
    which have nothing in common.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, RunRecord]]] = defaultdict(list)
    for path, record in records:
        groups[_circumstances(record)].append((path, record))
    found = []
    for key in sorted(groups):
        for claim in claims:
            a, b = ([(path, record) for path, record in groups[key] if is_meant(record.method, *side)] for side in claim.sides)
            if not a or not b:
                continue
            apart = claim.named if claim.a == claim.b else claim.named | {"variant"}
            free = a[0][1].settings.keys() & b[0][1].settings.keys() - apart
            ones, others = ({(_fixed(record, free), _seed(record)): path for path, record in side} for side in (a, b))
            for fixed in sorted({fixed for fixed, _ in ones.keys() & others.keys()}):
                seeds = sorted(seed for other, seed in ones.keys() & others.keys() if other == fixed)
                pair = ([ones[fixed, seed] for seed in seeds], [others[fixed, seed] for seed in seeds])
                if pair not in found:
                    found.append(pair)
    return found


def _circumstances(record: RunRecord) -> tuple[str, ...]:
    """What two runs must share: data, protocol, backbone, what it started from, and the budget: length, optimiser and rate."""
    data, method = record.dataset, record.method
    recipe = record.training.get("recipe") or {}
    budget = (method.get("backbone"), method.get("image_size"), record.start, *(recipe.get(name) for name in ("epochs", "optimizer", "lr")))
    scored = (data["name"], data["fingerprint"], data.get("transform"), data["limit"], canonical_json(record.protocol.to_json()))
    return tuple(map(str, (*scored, *budget)))


def _fixed(record: RunRecord, names: set[str]) -> str:
    return canonical_json({name: value for name, value in record.settings.items() if name in names})


def _seed(record: RunRecord) -> int:
    return int(record.training.get("seed", 0))


def _heading(comparison: Comparison) -> str:
    """What two comparisons must share to stand in one table."""
    data, a = comparison.dataset, comparison.a
    start = f"trained from {a['start']}" if a.get("start") else None
    start = f"{start} for {a['epochs']} epochs" if start and a.get("epochs") else start
    return ", ".join(filter(None, (f"{data['name']}/{data['split']}", a.get("transform"), str(a["backbone"]), start, comparison.protocol)))


def _without_runs(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in {"seeds", "records"}}


def reproduction_markdown(claims: Sequence[Claim], folder: Path) -> str:
    """A table for each data set, backbone and protocol that comparisons below `folder` are of."""
    comparisons: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for path in find_files(folder, ".json"):
        comparison = read_comparison(path)
        known, what = comparisons[_heading(comparison)], canonical_json([_without_runs(comparison.a), _without_runs(comparison.b)])
        if what not in known or len(known[what].a["seeds"]) < len(comparison.a["seeds"]):  # the one of most runs
            known[what] = comparison
    lines = ["# Published ablations, measured here", "", *_EXPLANATION, ""]
    for heading, found in sorted(comparisons.items()):
        lines += [f"## {escape_markdown(heading)}", "", _HEADER, "|---|---|---|---|---|---|---|"]
        for claim in claims:
            for comparison in found.values():
                meant = all(is_meant(group, *side) for group, side in zip((comparison.a, comparison.b), claim.sides, strict=True))
                difference = comparison.find(claim.metric) if meant else None
                if difference is not None:
                    lines.append(_row(claim, difference))
        lines.append("")
    return "\n".join(lines)


_EXPLANATION = (
    "B minus A in percentage points, with the 95 % interval over images (not over seeds) and the difference of each pair of runs.",
    "*Holds*: the whole interval is on the published side of 0; *opposite*: on the other side; *undecided*: it contains 0. Published",
    "numbers are of other data, networks and budgets, so only the direction can be compared.",
)
_HEADER = "| paper | claim | metric | published | measured | per run | direction |"


def _row(claim: Claim, difference: MetricDifference) -> str:
    published = float(claim.published_b) - float(claim.published_a)
    low, high = difference.low, difference.high
    sides = (low, high) if claim.direction > 0 else (-high, -low)
    verdict = "holds" if sides[0] > 0 else "opposite" if sides[1] < 0 else "undecided"
    per_run = ", ".join(format_difference(difference.name, value) for value in difference.per_pair or ())
    cells = (
        escape_markdown(f"{claim.paper}, {claim.where}"),
        escape_markdown(claim.claim),
        metric_title(claim.metric),
        f"{published:+.2f}",
        "{} [{}, {}]".format(*(format_difference(difference.name, value) for value in (difference.difference, low, high))),
        per_run,
        verdict,
    )
    return f"| {' | '.join(cells)} |"
