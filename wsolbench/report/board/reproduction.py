"""Published ablations next to measured ones, and whether their direction holds.

    LITERATURE/claims.csv              what papers report (`wsolbench.records.claims`)
    results/compared/<data set>/...    what was measured (`wsolbench compare --claims`)

A claim's direction *holds* if the whole 95 % interval of the measured difference is on the published side of
0. It is *opposite* if the interval is on the other side, and *undecided* if the interval contains 0. Claims
without a comparison are listed with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wsolbench.metrics.catalog import metric_title
from wsolbench.records import RunRecord
from wsolbench.records.claims import Claim, find_unpaired, matches_claim, pairs_by_claim
from wsolbench.records.comparison import Comparison, MetricDifference
from wsolbench.report.board.repetitions import init_text
from wsolbench.report.board.tables import escape_markdown, format_difference
from wsolbench.system.files import canonical_json


def _heading(comparison: Comparison) -> str:
    """Return the heading of a comparison. Comparisons with the same heading share a table."""
    data, a = comparison.dataset, comparison.a
    start = f"trained {init_text(a['start'])}" if a.get("start") else None
    epochs = dict.fromkeys(str(side["epochs"]) for side in (a, comparison.b) if side.get("epochs"))
    start = f"{start} for {' and '.join(epochs)} epochs" if start and epochs else start
    return ", ".join(
        filter(
            None,
            (
                f"{data['name']}/{data['split']}",
                a.get("transform"),
                str(a["backbone"]),
                start,
                comparison.protocol,
            ),
        )
    )


def _without_runs(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in {"seeds", "records"}}


def reproduction_markdown(
    claims: Sequence[Claim], comparisons: Iterable[Comparison], records: Sequence[tuple[Path, RunRecord]] = ()
) -> str:
    """Return one table per data set, backbone and protocol, and a table of the claims without a comparison.

    Args:
        claims: claims of papers.
        comparisons: comparisons that `wsolbench compare --claims` has written.
        records: all records. They give the reasons why claims were not compared.
    """
    # Group the comparisons by heading, and keep the one of most runs.
    by_heading: dict[str, dict[str, Comparison]] = defaultdict(dict)
    every = list(comparisons)
    for comparison in every:
        known, what = (
            by_heading[_heading(comparison)],
            canonical_json([_without_runs(comparison.a), _without_runs(comparison.b)]),
        )
        if what not in known or len(known[what].a["seeds"]) < len(comparison.a["seeds"]):  # most runs win
            known[what] = comparison
    # One row per claim and comparison that matches both sides.
    lines = ["# Published ablations, measured here", "", *_EXPLANATION, ""]
    for heading, found in sorted(by_heading.items()):
        lines += [f"## {escape_markdown(heading)}", "", _HEADER, "|---|---|---|---|---|---|---|"]
        for claim in claims:
            for comparison in found.values():
                matches = all(
                    matches_claim(group, *side)
                    for group, side in zip((comparison.a, comparison.b), claim.sides, strict=True)
                )
                difference = comparison.find(claim.metric) if matches else None
                if difference is not None:
                    lines.append(_row(claim, difference))
        lines.append("")
    return "\n".join([*lines, *_not_compared(claims, every, records)])


def _not_compared(
    claims: Sequence[Claim], comparisons: Sequence[Comparison], records: Sequence[tuple[Path, RunRecord]]
) -> list[str]:
    """List the claims without a pair of runs, and those whose pairs were not compared, with the reason."""
    by_path = dict(records)
    digests = {path: record.digest for path, record in records}
    done = [(set(comparison.a["records"]), set(comparison.b["records"])) for comparison in comparisons]
    # Claims without a pair.
    rows = (
        [(missing.claim, missing.place, missing.reason) for missing in find_unpaired(claims, records)]
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
                waiting[_heading(Comparison.make(ones[:1], others[:1], ()))] += 1
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
        "| paper | claim | metric | data | reason |",
        "|---|---|---|---|---|",
    ]
    for claim, place, reason in sorted(rows, key=lambda row: (places[row[0]], row[1], row[2])):
        texts = (f"{claim.paper}, {claim.where}", claim.claim, metric_title(claim.metric), place, reason)
        lines.append(f"| {' | '.join(map(escape_markdown, texts))} |")
    return [*lines, ""]


_EXPLANATION = (
    "`B over A`: B minus A in percentage points, with a 95 % interval over images (not over seeds).",
    "`per run` is the difference of each pair of runs.",
    "",
    "- *holds*: the whole interval has the published sign.",
    "- *opposite*: the whole interval has the opposite sign.",
    "- *undecided*: the interval contains 0.",
    "",
    "Published numbers come from other data, networks and budgets, so only the sign can be compared.",
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
        "{} [{}, {}]".format(
            *(format_difference(difference.name, value) for value in (difference.difference, low, high))
        ),
        per_run,
        verdict,
    )
    return f"| {' | '.join(cells)} |"
