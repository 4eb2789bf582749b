"""Published ablations next to measured ones, and whether their direction holds.

    LITERATURE/claims.csv              what papers report (`wsolbench.records.claims`)
    results/compared/<data set>/...    what was measured (`wsolbench compare --claims`)

Each comparison of a claim has a verdict (`_verdict`). Claims without a comparison are listed with the reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsolbench.metrics.catalog import metric_title
from wsolbench.metrics.seed_intervals import holm
from wsolbench.records import RunRecord
from wsolbench.records.budget import BudgetGap, Budgets, is_equal_budget
from wsolbench.records.claims import Claim, find_unpaired, matches_claim, pairs_by_claim
from wsolbench.records.comparison import Comparison, MetricDifference, complete
from wsolbench.report.board.comparisons import format_p_value
from wsolbench.report.board.repetitions import init_text
from wsolbench.report.board.tables import escape_markdown, format_difference
from wsolbench.system.files import canonical_json

ALPHA = 0.05
"""Largest corrected p-value of a claim that holds."""

VERDICTS = ("holds", "opposite", "above", "below", "undecided", "one seed", "unequal budget")
"""Verdicts of claims with a comparison. Those without one are `no partner`."""


def _heading(comparison: Comparison, image_size: int | None) -> str:
    """Return the heading of a comparison. Comparisons with the same heading share a table."""
    data, a = comparison.dataset, comparison.a
    return ", ".join(
        filter(
            None,
            (
                f"{data['name']}/{data['split']}",
                a.get("transform"),
                str(a["backbone"]),
                f"{image_size} px" if image_size else None,
                f"trained {init_text(a['start'])}" if a.get("start") else None,
                comparison.protocol,
            ),
        )
    )


def _without_runs(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in {"seeds", "records"}}


@dataclass(frozen=True)
class _Measured:
    """A comparison with its heading, and what sets its groups apart besides the method."""

    comparison: Comparison
    heading: str
    gap: BudgetGap

    def matches(self, claim: Claim) -> bool:
        """Whether the groups are the two sides of a claim."""
        groups = self.comparison.a, self.comparison.b
        return all(matches_claim(group, *side) for group, side in zip(groups, claim.sides, strict=True))

    @property
    def key(self) -> str:
        """Key that is equal for comparisons that differ only in their seeds."""
        groups = [_without_runs(self.comparison.a), _without_runs(self.comparison.b)]
        return canonical_json([*groups, list(self.gap.images)])


@dataclass(frozen=True)
class _Row:
    """A claim, the comparison of its two sides, and that of A and its control."""

    claim: Claim
    measured: _Measured
    difference: MetricDifference
    control: MetricDifference | None

    @property
    def can_hold(self) -> bool:
        """Whether the row takes part in the tests of its table."""
        return not self.measured.gap.is_unequal and self.difference.spread is not None


def reproduction_markdown(
    claims: Sequence[Claim],
    comparisons: Iterable[Comparison],
    records: Sequence[tuple[Path, RunRecord]] = (),
    superseded: Collection[str] = (),
) -> str:
    """Return one table per data set, network, init and protocol, and the claims without a comparison.

    Args:
        claims: claims of papers.
        comparisons: comparisons that `wsolbench compare --claims` has written.
        records: all records. They give the budgets, and the reasons why claims were not compared.
        superseded: digests of superseded records. A comparison of nothing else has no row.
    """
    every = list(comparisons)
    current = [
        comparison
        for comparison in every
        if not {*comparison.a["records"], *comparison.b["records"]} <= set(superseded)
    ]
    # Of comparisons that differ only in their seeds, keep the one of most runs.
    by_heading: dict[str, dict[str, _Measured]] = defaultdict(dict)
    for measured in _with_budgets(current, records):
        known, key = by_heading[measured.heading], measured.key
        runs = len(measured.comparison.a["seeds"])
        if key not in known or len(known[key].comparison.a["seeds"]) < runs:
            known[key] = measured
    # One table per heading. Its rows are the family of tests that p-values are corrected for.
    tables = {heading: _rows(claims, list(found.values())) for heading, found in sorted(by_heading.items())}
    verdicts: dict[str, Counter[str]] = {}
    lines: list[str] = []
    for heading, rows in tables.items():
        corrected = _corrected(rows)
        found = [_verdict(row, corrected.get(_test_of(row))) for row in rows]
        verdicts[heading] = Counter(found)
        lines += [f"## {escape_markdown(heading)}", "", _HEADER, f"|{'---|' * (_HEADER.count('|') - 1)}"]
        lines += [
            _line(row, corrected.get(_test_of(row)), verdict)
            for row, verdict in zip(rows, found, strict=True)
        ]
        lines.append("")
    title = ["# Published ablations, measured here", "", *_EXPLANATION, "", *_summary(verdicts)]
    return "\n".join([*title, *lines, *_not_compared(claims, every, records)])


def _with_budgets(
    comparisons: Iterable[Comparison], records: Sequence[tuple[Path, RunRecord]]
) -> Iterable[_Measured]:
    """Yield the comparisons with their budgets: of the records, or as stored if a record is missing.

    Comparisons of older versions are completed from the records.
    """
    by_digest = {record.digest: record for _, record in records}
    budgets = Budgets(by_digest.values())
    for stored in comparisons:
        comparison = stored
        sides = [comparison.a["records"], comparison.b["records"]]
        size = None
        if all(digest in by_digest for side in sides for digest in side):
            a, b = ([by_digest[digest] for digest in side] for side in sides)
            comparison, size = complete(comparison, a, b, budgets), a[0].method.get("image_size")
        gap = comparison.budget or BudgetGap(images=(None, None))
        yield _Measured(comparison, _heading(comparison, size), gap)


def _rows(claims: Sequence[Claim], found: Sequence[_Measured]) -> list[_Row]:
    """Return the rows of a table, in the order of the claims."""
    rows = []
    for claim in claims:
        for measured in found:
            difference = measured.comparison.find(claim.metric) if measured.matches(claim) else None
            if difference is not None:
                rows.append(_Row(claim, measured, difference, _control(claim, measured, found)))
    return rows


def _control(claim: Claim, measured: _Measured, found: Sequence[_Measured]) -> MetricDifference | None:
    """Return the difference of A and the control, of a control that has seen as many images as B."""
    if not claim.control:
        return None
    a = _without_runs(measured.comparison.a)
    for other in found:
        same = _without_runs(other.comparison.a) == a and other.gap.images[0] == measured.gap.images[0]
        fair = is_equal_budget(other.gap.images[1], measured.gap.images[1])
        if same and fair and other.matches(claim.of_control):
            return other.comparison.find(claim.metric)
    return None


def _test_of(row: _Row) -> tuple[int, str]:
    """Return the key of a row's test. Two claims can be about the same test."""
    return id(row.measured), row.claim.metric


def _corrected(rows: Sequence[_Row]) -> Mapping[tuple[int, str], float]:
    """Return the p-values of a table, corrected for the number of its tests."""
    tests = {_test_of(row): row.difference.test for row in rows if row.can_hold}
    return dict(zip(tests, holm(list(tests.values())), strict=True))


def _verdict(row: _Row, corrected: float | None) -> str:
    """Return what a comparison says about its claim.

    A claim holds if its corrected p-value is below `ALPHA` and all seeds have the published sign.
    """
    difference, direction = row.difference, row.claim.direction
    if row.measured.gap.is_unequal:
        return "unequal budget"
    if corrected is None:
        return "one seed"
    signs = {direction * value > 0 for value in difference.per_pair or (difference.difference,)}
    if corrected >= ALPHA or len(signs) > 1 or 0 in (difference.per_pair or ()):
        return "undecided"
    if row.claim.published_difference is None:
        return "above" if signs == {True} else "below"
    return "holds" if signs == {True} else "opposite"


def _summary(verdicts: Mapping[str, Counter[str]]) -> list[str]:
    """Return the table of the numbers of verdicts."""
    if not verdicts:
        return []
    lines = [f"| data and training | {' | '.join(VERDICTS)} |", f"|---|{'---:|' * len(VERDICTS)}"]
    lines += [
        f"| {escape_markdown(heading)} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |"
        for heading, counts in verdicts.items()
    ]
    return [*lines, ""]


def _not_compared(
    claims: Sequence[Claim], comparisons: Sequence[Comparison], records: Sequence[tuple[Path, RunRecord]]
) -> list[str]:
    """List the claims without a pair of runs, and those whose pairs were not compared, with the reason."""
    by_path = dict(records)
    digests = {path: record.digest for path, record in records}
    done = [(set(comparison.a["records"]), set(comparison.b["records"])) for comparison in comparisons]
    # Claims without a pair.
    rows = (
        [
            (missing.claim, missing.place, f"no partner: {missing.reason}")
            for missing in find_unpaired(claims, records)
        ]
        if records
        else []
    )
    # Claims with a pair that no comparison covers.
    for claim, pairs in pairs_by_claim(claims, records):
        waiting: dict[str, int] = defaultdict(int)
        for a, b in pairs:
            ones, others = ([by_path[path] for path in side] for side in (a, b))
            if not all(
                any(m.name == claim.metric and m.value is not None for m in record.metrics)
                for record in (*ones, *others)
            ):
                continue
            mine = tuple({digests[path] for path in side} for side in (a, b))
            if not any(mine[0] <= known[0] and mine[1] <= known[1] for known in done):
                size = ones[0].method.get("image_size")
                waiting[_heading(Comparison.make(ones[:1], others[:1], ()), size)] += 1
        rows += [
            (
                claim,
                place,
                f"{count} {'pair' if count == 1 else 'pairs'} of groups not compared yet: run `wsolbench "
                "compare --claims`",
            )
            for place, count in sorted(waiting.items())
        ]
    if not rows:
        return []
    # The table, in the order of the claims.
    places = {claim: number for number, claim in enumerate(claims)}
    lines = [
        "## Claims without a comparison",
        "",
        "| paper | claim | metric | data | verdict and reason |",
        "|---|---|---|---|---|",
    ]
    for claim, place, reason in sorted(rows, key=lambda row: (places[row[0]], row[1], row[2])):
        texts = (f"{claim.paper}, {claim.where}", claim.claim, metric_title(claim.metric), place, reason)
        lines.append(f"| {' | '.join(map(escape_markdown, texts))} |")
    return [*lines, ""]


_EXPLANATION = (
    "*published* and *here* are B minus A for a claim or question `B over A`, in percentage points.",
    "It is empty for a question that no paper answers with two comparable values: is B above A?",
    "The 95 % interval is over images and seeds, or over images alone for one seed (marked ¹).",
    "*sd* is the standard deviation over seeds of the difference of two runs.",
    "*per seed* is the difference of the runs of each seed.",
    "*p Holm* is *p*, corrected for the number of tests in the table.",
    "*control* is the difference of the claim's control and A.",
    "*images seen* is the number of training images that a run of A has seen.",
    "",
    f"- *holds*: p Holm is below {ALPHA}, and all seeds have the published sign.",
    "- *opposite*: the same with the opposite sign.",
    "- *above*, *below*: the same for a question.",
    "- *undecided*: neither.",
    "- *one seed*: another training may give another sign, so there is no verdict.",
    "- *unequal budget*: B and A differ in more than the method, so there is no verdict.",
    "- *no partner*: no two runs match both sides of the claim.",
    "",
    "Published numbers come from other data, networks and budgets, so only the sign can be compared.",
)
_HEADER = (
    "| paper | claim | metric | published | here | sd | per seed | p | p Holm | control | images seen "
    "| verdict |"
)


def _line(row: _Row, corrected: float | None, verdict: str) -> str:
    """Return a row of a table as Markdown."""
    claim, difference, gap = row.claim, row.difference, row.measured.gap
    spread, remark = difference.spread, str(gap)
    control = ""
    if claim.control:
        control = "no partner" if row.control is None else _with_ends(row.control)
    if verdict == "unequal budget":
        verdict = remark
    elif remark:
        verdict = f"{verdict} ({remark})"
    cells = (
        escape_markdown(f"{claim.paper}, {claim.where}"),
        escape_markdown(claim.claim),
        metric_title(claim.metric),
        "" if (printed := claim.published_difference) is None else f"{printed:+.2f}",
        _with_ends(difference),
        "" if spread is None else format_difference(difference.name, spread.sd).removeprefix("+"),
        ", ".join(format_difference(difference.name, value) for value in difference.per_pair or ()),
        format_p_value(difference.test, row.measured.comparison.p_floor(difference)),
        "" if corrected is None else format_p_value(corrected),
        control,
        "" if gap.images[0] is None else f"{gap.images[0]:,}",
        verdict,
    )
    return f"| {' | '.join(cells)} |"


def _with_ends(difference: MetricDifference) -> str:
    """Return a difference with its interval, marked ¹ if it is of one seed."""
    values = (difference.difference, *difference.ends)
    text = "{} [{}, {}]".format(*(format_difference(difference.name, value) for value in values))
    return text if difference.spread is not None else f"{text}¹"
