"""Verdicts on claims: intervals, signs of seeds, corrected p-values, budgets and controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.board.test_reproduction import CLAIM, seeds_of, trained
from wsolbench.metrics.seed_intervals import independent_spread, paired_spread
from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.budget import Budgets
from wsolbench.records.claims import Claim, pairs_of
from wsolbench.records.comparison import Comparison, MetricDifference, complete
from wsolbench.report.board.reproduction import reproduction_markdown


def page_of(*differences: MetricDifference, claim: Claim = CLAIM, b_images: int = 4500) -> list[list[str]]:
    """The cells of the rows of a claim, one for each metric of one comparison."""
    seeds = range(len(differences[0].per_pair or ()))
    sides = [
        [trained(name, seed, images, **config) for seed in seeds]
        for name, images, config in (("cam", 4500, {}), ("spa", b_images, {"ram": True}))
    ]
    comparison = Comparison.make(*sides, differences)
    records = [(Path(str(place)), each) for place, each in enumerate((*sides[0], *sides[1]))]
    claims = [replace(claim, metric=each.name) for each in differences]
    text = reproduction_markdown(claims, [comparison], records).partition("## Claims without")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| P")
    ]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.05, 0.051, 0.049), "holds"),
        ((-0.05, -0.051, -0.049), "opposite"),
        ((0.05, 0.01, -0.02), "undecided"),
        ((0.02, 0.2, 0.01), "undecided"),  # every seed is above 0, and their spread is too large
        ((0.05,), "one seed"),
        ((0.0, 0.0, 0.0), "undecided"),
    ],
)
def test_a_claim_holds_if_the_interval_and_all_seeds_say_so(values: tuple[float, ...], verdict: str) -> None:
    ((*_, published, here, sd, per_seed, _, holm, control, images, found),) = page_of(seeds_of(*values))
    assert found == verdict
    assert (published, control, images) == ("+10.00", "", "4,500")
    assert per_seed.count("+") + per_seed.count("-") == len(values)
    assert ("¹" in here) == (sd == "") == (holm == "") == (len(values) == 1)
    loss = replace(CLAIM, published_b="40")
    opposite = {"holds": "opposite", "opposite": "holds"}.get(verdict, verdict)
    assert page_of(seeds_of(*values), claim=loss)[0][-1] == opposite


@pytest.mark.parametrize("shared", [False, True])
def test_independent_trainings_are_not_paired_also_in_older_comparisons(shared: bool) -> None:
    a, b = (0.40, 0.44, 0.42), (0.60, 0.62, 0.64)
    sides: list[list[RunRecord]] = [[], []]
    for side, name, values in zip(sides, ("cam", "spa"), (a, b), strict=True):
        for seed, value in enumerate(values):
            made = trained(name, seed, ram=True)
            digest = f"{seed}" if shared else f"{name}{seed}"
            made.method["training"]["checkpoint"] = {"sha256": digest}
            metric = MetricValue(name="gt_known", value=value, n=3, policy="oracle")
            side.append(replace(made, metrics=(metric,)))
    pairs = tuple(right - left for left, right in zip(a, b, strict=True))
    older = replace(seeds_of(*pairs), a=sum(a) / 3, b=sum(b) / 3)
    whole = complete(Comparison.make(*sides, [older]), *sides, Budgets([*sides[0], *sides[1]]))
    (found,) = whole.differences
    assert found.per_run == (a, b)
    expected = paired_spread(pairs) if shared else independent_spread(a, b)
    assert (found.spread, found.per_pair) == (expected, pairs)
    wrong = replace(older, b=0.7)  # of other values than the records
    (kept,) = complete(Comparison.make(*sides, [wrong]), *sides, Budgets(())).differences
    assert kept == wrong


def test_seeds_of_both_signs_leave_a_claim_undecided_however_small_the_p_value() -> None:
    mixed = seeds_of(*[0.05] * 30, -0.001)
    assert mixed.test < 0.001
    assert page_of(mixed)[0][-1] == "undecided"


def test_unequal_budgets_support_no_claim_and_name_both_numbers() -> None:
    (row,) = page_of(seeds_of(0.05, 0.051, 0.049), b_images=18000)
    assert row[-1] == "unequal budget: 4,500 / 18,000 images"
    assert row[-4] == ""  # no test, so nothing to correct


def test_p_values_are_corrected_for_the_tests_of_the_table_and_each_test_counts_once() -> None:
    metrics = ("gt_known", "max_box_acc", "top1_loc", "pxap")
    weak = [replace(seeds_of(0.05, 0.045, 0.055), name=name) for name in metrics]
    assert 0.0125 < weak[0].test * 4 < 0.05 * 4
    alone, together = page_of(weak[0]), page_of(*weak)
    assert alone[0][-1] == "holds"
    assert float(together[0][-4]) == pytest.approx(4 * weak[0].test, abs=0.001)
    assert {row[-1] for row in together} == {"holds" if 4 * weak[0].test < 0.05 else "undecided"}
    twice = page_of(weak[0], weak[0])  # two claims about one test
    assert [row[-4] for row in twice] == [alone[0][-4]] * 2


def test_the_difference_of_the_control_is_beside_the_claim() -> None:
    claim = replace(CLAIM, control="has", control_settings="", b_settings="ram=true")
    a, b, control = ([trained(name, seed, ram=True) for seed in (0, 1)] for name in ("cam", "spa", "has"))
    records = [(Path(str(place)), each) for place, each in enumerate((*a, *b, *control))]
    claimed = Comparison.make(a, b, [seeds_of(0.05, 0.051)])
    of_control = Comparison.make(a, control, [seeds_of(0.021, 0.023)])

    def cell(*comparisons: Comparison) -> str:
        text = reproduction_markdown([claim], comparisons, records)
        (line,) = (line for line in text.splitlines() if line.startswith("| P") and "+10.00" in line)
        return line.split(" | ")[9].strip()

    assert cell(claimed) == "no partner"
    assert cell(claimed, of_control).startswith("+2.2 [")
    assert len(pairs_of([claim], records)) == 2
    for run in control:  # another budget than B has
        run.method["training"]["images_seen"] = 9000
    other = Comparison.make(a, control, [seeds_of(0.021, 0.023)])
    records[4:] = [(Path(str(place)), each) for place, each in enumerate(control, 4)]
    assert cell(claimed, other) == "no partner"


def test_comparisons_of_superseded_records_have_no_row() -> None:
    a, b = trained("cam"), trained("spa", ram=True)
    comparison = Comparison.make([a], [b], [seeds_of(0.05)])
    records = [(Path("a"), a), (Path("b"), b)]
    shown = [
        reproduction_markdown([CLAIM], [comparison], records, gone).count("one seed |")
        for gone in ((), (a.digest,), (a.digest, b.digest))
    ]
    assert shown == [2, 2, 0]  # in the row, and as a column of the summary
