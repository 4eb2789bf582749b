"""Claims of papers: read, matched with records, and put beside what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.conftest import make_dataset, make_record
from wsolbench.exceptions import DataError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord, read_records
from wsolbench.records.claims import Claim, find_unpaired, matches_claim, pairs_of, read_claims
from wsolbench.records.comparison import Comparison, MetricDifference, read_comparison
from wsolbench.records.published import LITERATURE
from wsolbench.report.board.repetitions import Run, different_settings
from wsolbench.report.board.reproduction import reproduction_markdown

HEADER = "paper,where,claim,metric,a,a_settings,b,b_settings,published_a,published_b,"
HEADER += "control,control_settings,allow_unequal_budget"
CLAIM = Claim(
    paper="P",
    where="Table 1",
    claim="b over a",
    metric="gt_known",
    a="cam",
    a_settings="",
    b="spa",
    b_settings="ram=true",
    published_a="50",
    published_b="60",
)


def record(name: str, seed: int = 0, **config: object) -> RunRecord:
    method = {"name": name, "config": config, "training": {"seed": seed, "recipe": {"epochs": 3}}}
    return make_record(make_dataset(3), EvalProtocol(), (), method=method)


def stored(folder: Path) -> list[Comparison]:
    return [read_comparison(path) for path in sorted(folder.rglob("*.json"))]


def test_runs_under_other_protocols_are_no_pair() -> None:
    one, other = record("cam"), record("spa", ram=True)
    assert pairs_of([CLAIM], [(Path("cam"), one), (Path("spa"), other)]) == [([Path("cam")], [Path("spa")])]
    other = replace(other, protocol=replace(EvalProtocol(), components="union"))
    assert pairs_of([CLAIM], [(Path("cam"), one), (Path("spa"), other)]) == []


def test_a_comparison_of_fewer_seeds_is_part_of_one_of_more_and_of_nothing_else() -> None:
    def made(a: list[RunRecord], b: list[RunRecord]) -> Comparison:
        return Comparison.make(a, b, ())

    one, more, spa = [record("cam")], [record("cam"), record("cam", 1)], [record("spa", ram=True)]
    assert made(one, spa).is_part_of(made(more, spa))
    assert not made(one, spa).is_part_of(made(more, [record("has")]))
    assert not made(one, spa).is_part_of(made(one, spa))


def difference(low: float, high: float) -> MetricDifference:
    return MetricDifference(
        name="gt_known",
        policy="oracle",
        a=0.5,
        b=0.5 + (low + high) / 2,
        low=low,
        high=high,
        p_value=0.5,
        n=3,
        per_pair=(low, high),
    )


def trained(name: str, seed: int = 0, images: int = 4500, **config: object) -> RunRecord:
    made = record(name, seed, **config)
    made.method["training"]["images_seen"] = images
    return made


def seeds_of(*values: float, half_width: float = 0.001) -> MetricDifference:
    """A difference of these values over seeds, with a narrow interval over images."""
    mean = sum(values) / len(values)
    return replace(
        difference(mean - half_width, mean + half_width), b=0.5 + mean, per_pair=values, p_value=0.002
    )


def test_pairs_have_seen_as_many_images_unless_the_claim_allows_other_budgets() -> None:
    cam, spa = trained("cam"), trained("spa", ram=True, images=18000)
    runs = [(Path("cam"), cam), (Path("spa"), spa)]
    assert pairs_of([CLAIM], runs) == []
    assert pairs_of([replace(CLAIM, allow_unequal_budget="yes")], runs) == [([Path("cam")], [Path("spa")])]
    spa.method["training"].update(images_seen=4490)
    spa.method["training"]["recipe"]["epochs"] = 1  # fewer epochs of larger groups
    assert pairs_of([CLAIM], runs) == [([Path("cam")], [Path("spa")])]
    spa.method["training"].update(images_seen=18000)
    assert pairs_of([replace(CLAIM, allow_unequal_budget="yes")], runs) == []


def test_the_comparison_of_most_runs_stands_for_the_claim_and_transforms_have_tables_of_their_own(
    tmp_path: Path,
) -> None:
    for seeds in (1, 3, 2):
        groups = ([record(name, seed, ram=True) for seed in range(seeds)] for name in ("cam", "spa"))
        Comparison.make(*groups, [seeds_of(*[0.01 * seeds] * seeds)]).write(tmp_path)
    turned = [record("cam"), record("spa", ram=True)]
    for run in turned:
        run.dataset["transform"] = "rotate90"
    Comparison.make(turned[:1], turned[1:], [difference(-0.02, -0.01)]).write(tmp_path)
    second, first = reproduction_markdown([CLAIM], stored(tmp_path)).split("\n## ")[1:]
    assert first.count("| P") == second.count("| P") == 1
    assert "+3.0 [+2.9, +3.1]" in first
    assert "rotate90" in second.splitlines()[0]


def test_a_question_has_no_printed_numbers_and_says_which_side_is_above(tmp_path: Path) -> None:
    unprinted = replace(CLAIM, published_a="", published_b="")
    assert unprinted.direction == 1
    assert replace(CLAIM, published_b="40").direction == -1
    groups = ([record(name, seed, ram=True) for seed in range(3)] for name in ("cam", "spa"))
    Comparison.make(*groups, [seeds_of(-0.03, -0.03, -0.03)]).write(tmp_path)
    (line,) = [
        line for line in reproduction_markdown([unprinted], stored(tmp_path)).splitlines() if "| P" in line
    ]
    assert line.split(" | ")[3:5] == ["", "-3.0 [-3.1, -2.9]"]
    assert "| below " in line


def test_one_printed_number_is_not_enough(tmp_path: Path) -> None:
    row = 'P,"Table 1",b over a,gt_known,cam,,spa,ram=true,50,,,,'
    (tmp_path / "claims.csv").write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(DataError, match="one published value is missing"):
        read_claims(tmp_path / "claims.csv")


def test_settings_choose_among_the_runs_of_a_method() -> None:
    assert matches_claim({"name": "spa", "config": {"ram": True}}, "spa", "ram=true")
    assert not matches_claim({"name": "spa", "config": {"ram": False}}, "spa", "ram=true")
    assert not matches_claim({"name": "spa+scg", "config": {"ram": True}}, "spa", "ram=true")
    boosted = [{"name": "x", "config": {"rounds": rounds}} for rounds in (1, 3, 4)]
    assert [matches_claim(each, "x", "rounds=3|4") for each in boosted] == [False, True, True]
    assert matches_claim({"name": "x", "config": {"patch": [16, 32], "tau": 0.5}}, "x", "patch=16,32;tau=0.5")


def test_runs_are_paired_by_seed_and_not_across_budgets() -> None:
    runs = [
        (Path(f"{name}{seed}"), record(name, seed, ram=True)) for name in ("cam", "spa") for seed in (1, 0)
    ]
    runs.append((Path("cam2"), record("cam", 2, ram=True)))
    long = record("spa", 2, ram=True)
    long.method["training"]["recipe"]["epochs"] = 9
    runs.append((Path("spa2"), long))
    fast = record("cam", 0, ram=True)
    fast.method["training"]["recipe"]["lr"] = 0.1
    runs.append((Path("cam fast"), fast))
    assert pairs_of([CLAIM, CLAIM], runs) == [([Path("cam0"), Path("cam1")], [Path("spa0"), Path("spa1")])]
    assert pairs_of([CLAIM], runs[:2]) == []


def test_settings_that_a_claim_does_not_name_are_equal_on_both_sides() -> None:
    runs = [
        (Path(f"{name}-{head}"), record(name, ram=True, head=head))
        for name in ("cam", "spa")
        for head in ("fc", "conv")
    ]
    assert pairs_of([CLAIM], runs) == [
        ([Path("cam-conv")], [Path("spa-conv")]),
        ([Path("cam-fc")], [Path("spa-fc")]),
    ]


def test_a_setting_that_only_one_run_of_a_method_states_is_another_one() -> None:
    """Records state a later setting only if it is not at its default."""
    claim = replace(CLAIM, a="nts-net", a_settings="predict=raw", b="nts-net", b_settings="predict=concat")
    runs = [
        (Path(f"{predict}{number}"), record("nts-net", predict=predict, **stated))
        for predict in ("raw", "concat")
        for number, stated in enumerate(({}, {"norm_statistics": "per_input"}))
    ]
    pairs = [([Path("raw0")], [Path("concat0")]), ([Path("raw1")], [Path("concat1")])]
    assert sorted(pairs_of([claim], runs)) == pairs
    # An empty value is the default alone.
    empty = replace(
        claim, a_settings="predict=raw;norm_statistics=", b_settings="predict=concat;norm_statistics="
    )
    assert pairs_of([empty], runs) == pairs[:1]


def test_settings_of_a_methods_own_design_block_no_pair_of_two_methods() -> None:
    runs = [
        (Path("baseline"), record("baseline", dropout=0.0, head="fc")),
        (Path("nts"), record("nts-net", dropout=0.5, variant="paper")),
    ]
    claim = Claim(**{**CLAIM.__dict__, "a": "baseline", "b": "nts-net", "b_settings": ""})
    assert pairs_of([claim], runs) == [([Path("baseline")], [Path("nts")])]
    of_one = Claim(**{**CLAIM.__dict__, "a": "nts-net", "b": "nts-net+scg", "b_settings": ""})
    assert (
        pairs_of([of_one], [runs[1], (Path("scg"), record("nts-net+scg", dropout=0.0, variant="paper"))])
        == []
    )


@pytest.mark.parametrize("name", ["batch_size", "weight_decay", "schedule", "new_factor"])
def test_recipes_that_differ_in_any_number_are_no_pair_and_their_source_does_not_count(name: str) -> None:
    one, other = record("cam"), record("spa", ram=True)
    other.method["training"]["recipe"]["source"] = "elsewhere"
    assert len(pairs_of([CLAIM], [(Path("cam"), one), (Path("spa"), other)])) == 1
    other.method["training"]["recipe"][name] = 7
    assert pairs_of([CLAIM], [(Path("cam"), one), (Path("spa"), other)]) == []


def test_two_methods_are_a_pair_only_in_the_same_number_format() -> None:
    def run(name: str, amp: str = "", **config: object) -> tuple[Path, RunRecord]:
        made = record(name, **config)
        if amp:
            made.method["training"]["numerics"] = {"amp": amp}
        return Path(name + amp), made

    runs = [run("cam"), run("cam", "bf16"), run("spa", ram=True), run("spa", "bf16", ram=True)]
    assert sorted(pairs_of([CLAIM], runs)) == [
        ([Path("cam")], [Path("spa")]),
        ([Path("cambf16")], [Path("spabf16")]),
    ]
    assert reasons(runs[0][1], runs[3][1])[0].endswith("the closest differ in train.amp (none against bf16)")


def test_batches_of_groups_are_equal_to_batches_with_as_many_images() -> None:
    def run(name: str, batch: int, **config: object) -> tuple[Path, RunRecord]:
        made = record(name, **config)
        made.method["training"]["recipe"]["batch_size"] = batch
        return Path(f"{name}{batch}"), made

    plain = run("cam", 32)
    assert pairs_of([CLAIM], [plain, run("spa", 8, ram=True, num_positives=3)]) == [
        ([Path("cam32")], [Path("spa8")])
    ]
    assert pairs_of([CLAIM], [plain, run("spa", 5, ram=True, num_positives=5)])  # 30 images
    assert not pairs_of([CLAIM], [plain, run("spa", 8, ram=True)])
    assert not pairs_of([CLAIM], [plain, run("spa", 4, ram=True, num_positives=3)])
    # Equal numbers of groups were compared before; their budgets say what differs.
    assert pairs_of([CLAIM], [plain, run("spa", 32, ram=True, num_positives=3)])


def test_posts_with_other_settings_are_groups_of_their_own_and_no_run_is_lost() -> None:
    claim = Claim(**{**CLAIM.__dict__, "b": "cam+scg", "b_settings": ""})
    runs = [(Path("cam"), record("cam"))]
    for order in (1, 2):
        run = record("cam+scg")
        run.method["post"] = {"name": "scg", "config": {"order": order}}
        runs.append((Path(f"scg{order}"), run))
    assert pairs_of([claim], runs) == [([Path("cam")], [Path("scg1")]), ([Path("cam")], [Path("scg2")])]


def reasons(*runs: RunRecord) -> list[str]:
    value = MetricValue(name="gt_known", value=0.5, n=3, policy="oracle")
    return [
        str(missing)
        for missing in find_unpaired(
            [CLAIM], [(Path(str(n)), replace(r, metrics=(value,))) for n, r in enumerate(runs)]
        )
    ]


def test_a_claim_with_records_of_both_sides_and_no_pair_says_which_fields_differ() -> None:
    assert reasons(record("cam"), record("spa", ram=True)) == []
    assert reasons(record("cam")) == ["P, Table 1: b over a, gt_known: no record of spa (ram=true)"]
    assert reasons() == ["P, Table 1: b over a, gt_known: no record of cam and none of spa (ram=true)"]
    long, turned = record("spa", ram=True, head="fc"), record("spa", ram=True)
    long.method["training"]["recipe"]["epochs"] = 9
    turned.dataset["transform"] = "rotate90"
    assert reasons(record("cam", head="conv"), long, turned) == [
        "P, Table 1: b over a, gt_known on squares/test, tiny: records of both sides, and the closest "
        "differ in "
        "recipe.epochs (3 against 9), head (conv against fc)"
    ]
    assert reasons(record("cam"), turned) == [
        "P, Table 1: b over a, gt_known: records of both sides, and the closest differ in "
        "dataset.transform (none against rotate90)"
    ]
    assert reasons(record("cam", 1), record("spa", 2, ram=True))[0].endswith(
        "the closest differ in seed (1 against 2)"
    )
    other = replace(record("spa", ram=True), protocol=EvalProtocol.preset("spa"))
    assert reasons(record("cam"), other)[0].endswith("the closest differ in protocol (wsoleval against spa)")


def test_claims_without_a_comparison_are_on_the_page_with_the_reason(tmp_path: Path) -> None:
    value = MetricValue(name="gt_known", value=0.5, n=3, policy="oracle")
    one, other = (replace(each, metrics=(value,)) for each in (record("cam"), record("spa", ram=True)))
    records = [(Path("cam"), one), (Path("spa"), other)]
    waiting = reproduction_markdown([CLAIM], [], records)
    assert "## Claims without a comparison" in waiting
    assert (
        "| P, Table 1 | b over a | GT-known | squares/test, tiny, wsoleval | 1 pair of groups not compared "
        "yet" in waiting
    )
    Comparison.make([one], [other], [difference(0.01, 0.03)]).write(tmp_path)
    assert "without a comparison" not in reproduction_markdown([CLAIM], stored(tmp_path), records)
    assert "no record of spa" in reproduction_markdown([CLAIM], [], records[:1])


def test_the_records_of_this_project_have_a_pair_for_every_claim_whose_methods_were_run() -> None:
    results = Path(__file__).parents[3] / "results"
    unpaired = find_unpaired(read_claims(LITERATURE / "claims.csv"), read_records(results / "measured"))
    assert len(unpaired) < len(read_claims(LITERATURE / "claims.csv"))
    assert [
        missing.reason.partition(" (")[0]
        for missing in unpaired
        if not missing.reason.startswith("no record of")
    ] == []


def test_a_setting_that_names_a_checkpoint_is_the_same_for_all_seeds() -> None:
    claim = Claim(
        **{**CLAIM.__dict__, "a_settings": "part_net=", "b_settings": "ram=true;part_net=checkpoint"}
    )
    runs = [(Path(f"cam{seed}"), record("cam", seed)) for seed in (0, 1)]
    runs += [
        (Path(f"spa{seed}"), record("spa", seed, ram=True, part_net=f"{seed}.st", part_net_sha256=f"{seed}a"))
        for seed in (0, 1)
    ]
    runs.append((Path("alone"), record("spa", 0, ram=True, part_net="", part_net_sha256="")))
    assert pairs_of([claim], runs) == [([Path("cam0"), Path("cam1")], [Path("spa0"), Path("spa1")])]


def test_variants_of_different_methods_have_nothing_in_common() -> None:
    runs = [
        (Path(variant), record("spa", ram=variant == "light", variant=variant))
        for variant in ("paper", "light")
    ]
    runs.append((Path("cam"), record("cam", variant="official")))
    assert pairs_of([CLAIM], runs) == [([Path("cam")], [Path("light")])]
    of_one = Claim(**{**CLAIM.__dict__, "a": "spa", "a_settings": "ram=false"})
    assert pairs_of([of_one], runs) == []


def test_runs_of_other_budgets_have_rows_of_their_own() -> None:
    comparisons, records = [], []
    for images in (4500, 9000):
        pair = [trained("cam", images=images), trained("spa", images=images, ram=True)]
        records += [(Path(f"{images}{place}"), run) for place, run in enumerate(pair)]
        comparisons.append(Comparison.make(pair[:1], pair[1:], [seeds_of(0.05)]))
    text = reproduction_markdown([CLAIM], comparisons, records).partition("## Claims without")[0]
    rows = [line for line in text.splitlines() if line.startswith("| P")]
    assert [line.split(" | ")[10] for line in rows] == ["4,500", "9,000"]


def test_runs_from_a_checkpoint_and_from_nothing_are_not_compared() -> None:
    runs = [(Path(name), record(name, ram=True)) for name in ("cam", "spa")]
    runs[0][1].method["training"]["weights"] = "none"
    runs[1][1].method["training"]["weights"] = "last.safetensors 0a1b"
    assert pairs_of([CLAIM], runs) == []
    runs[0][1].method["training"]["weights"] = "last.safetensors 2c3d"
    assert pairs_of([CLAIM], runs) == [([Path("cam")], [Path("spa")])]


def test_the_claims_of_this_project_can_be_read() -> None:
    claims = read_claims(LITERATURE / "claims.csv")
    assert {claim.metric for claim in claims} <= {"gt_known", "peak_iou", "top1_cls", "top1_loc"}
    assert {claim.direction for claim in claims} == {1, -1}


@pytest.mark.parametrize(
    "text", ["a,b\n", f"{HEADER}\nP,T,c,gt_known,cam,,spa,,50,much,,,\n", f"{HEADER}\nP,T\n"]
)
def test_a_broken_file_of_claims_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "claims.csv").write_text(text)
    with pytest.raises(DataError, match=r"claims\.csv:[12] "):
        read_claims(tmp_path / "claims.csv")


ROWS = {
    "parts": ({"dsm": "none", "op": False, "mac_weight": 0.0}, 90),
    "mac": ({"dsm": "none", "op": False, "mac_weight": 0.5}, 90),
    "one module": ({"dsm": "none", "op": True, "mac_weight": 0.5}, 181),
    "on a part-net": (
        {"dsm": "none", "op": True, "mac_weight": 0.5, "part_net": "a.st", "part_net_sha256": "a"},
        91,
    ),
    "full": ({"dsm": "full", "op": True, "mac_weight": 0.5}, 271),
}
"""Settings of rows of an ablation whose runs last as long as their stages, and epochs."""


def row(name: str, epochs: int | None = None, stage_epochs: list[int] | None = None) -> RunRecord:
    settings, length = ROWS[name]
    made = record("ssanet", stage_epochs=stage_epochs or [90, 90, 90, 1], **{"part_net": "", **settings})
    made.method["training"]["recipe"]["epochs"] = epochs or length
    return made


def settings_text(name: str) -> str:
    settings = {"part_net": "", **ROWS[name][0]}
    settings["part_net"] = "checkpoint" if settings["part_net"] else ""
    return ";".join(
        f"{key}={str(value).lower()}" for key, value in settings.items() if not key.endswith("_sha256")
    )


def ablation(a: str, b: str) -> Claim:
    return Claim(
        **{
            **CLAIM.__dict__,
            "a": "ssanet",
            "a_settings": settings_text(a),
            "b": "ssanet",
            "b_settings": settings_text(b),
        }
    )


@pytest.mark.parametrize(
    ("a", "b"), [("parts", "mac"), ("mac", "one module"), ("mac", "on a part-net"), ("one module", "full")]
)
def test_rows_of_an_ablation_whose_runs_last_as_long_as_their_stages_are_pairs(a: str, b: str) -> None:
    runs = [(Path(name), row(name)) for name in ROWS]
    assert pairs_of([ablation(a, b)], runs) == [([Path(a)], [Path(b)])]
    assert (
        pairs_of([ablation(a, b)], [(Path(a), row(a)), (Path(b), row(b, stage_epochs=[90, 90, 45, 1]))]) == []
    )


def test_runs_shorter_than_their_stages_need_the_same_number_of_epochs() -> None:
    claim = ablation("mac", "full")
    assert pairs_of([claim], [(Path("mac"), row("mac", 16)), (Path("full"), row("full", 16))]) == [
        ([Path("mac")], [Path("full")])
    ]
    assert pairs_of([claim], [(Path("mac"), row("mac", 16)), (Path("full"), row("full", 20))]) == []
    assert pairs_of([claim], [(Path("mac"), row("mac")), (Path("full"), row("full", 16))]) == []


def test_two_methods_of_different_budgets_are_no_pair_and_the_budgets_are_named() -> None:
    baseline, value = record("baseline"), MetricValue(name="gt_known", value=0.5, n=3, policy="oracle")
    baseline.method["training"]["recipe"]["epochs"] = 90
    claim = Claim(**{**CLAIM.__dict__, "a": "baseline", "b": "ssanet", "b_settings": settings_text("full")})
    runs = [
        (Path("baseline"), replace(baseline, metrics=(value,))),
        (Path("full"), replace(row("full"), metrics=(value,))),
    ]
    assert pairs_of([claim], runs) == []
    (missing,) = find_unpaired([claim], runs)
    assert missing.reason.endswith("the closest differ in recipe.epochs (90 against 271)")


def sem(of: int, seed: int = 0) -> RunRecord:
    made = record("cam+sem", seed)
    made.method["post"] = {"name": "sem", "config": {"seeds": 60, "seeds_of": of}}
    return made


def test_a_claim_about_a_post_process_names_its_settings() -> None:
    claim = Claim(**{**CLAIM.__dict__, "b": "cam+sem", "b_settings": "post.seeds_of=0"})
    runs = [(Path("cam"), record("cam")), (Path("old"), sem(784)), (Path("new"), sem(0))]
    assert pairs_of([claim], runs) == [([Path("cam")], [Path("new")])]
    assert pairs_of([claim], runs[:2]) == []


def test_the_comparison_of_a_post_process_with_other_settings_stands_for_no_claim(tmp_path: Path) -> None:
    claim = Claim(**{**CLAIM.__dict__, "b": "cam+sem", "b_settings": "post.seeds_of=0"})
    Comparison.make([record("cam")], [sem(784)], [difference(0.01, 0.03)]).write(tmp_path)
    assert "| P" not in reproduction_markdown([claim], stored(tmp_path)).split("## ", 1)[1]
    Comparison.make([record("cam")], [sem(0)], [difference(0.01, 0.03)]).write(tmp_path)
    assert reproduction_markdown([claim], stored(tmp_path)).count("| P") == 1


def test_the_rows_of_sem_name_its_number_of_seeds() -> None:
    runs = [Run(sem(of), str(of)) for of in (0, 784)]
    assert [different_settings(run, [run]) for run in runs] == ["seeds=60", "seeds=60 of 784"]
    assert [different_settings(run, runs) for run in runs] == ["seeds=60", "seeds=60 of 784"]
    plain = Run(record("cam"), "cam")
    assert different_settings(plain, [plain]) == ""
