"""`wsolbench compare A B`: records, folders and names of methods, and the family of the tests."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from wsolbench.metrics.seed_intervals import holm
from wsolbench.records import read_record
from wsolbench.records.comparison import Comparison, MetricDifference
from wsolbench.report.board.comparisons import SIGNIFICANT, comparison_tables

ON = (
    "--dataset",
    "csvfolder",
    "--resamples",
    "100",
    "--save-scores",
    "--no-transfer",
    "--method",
    "center-box",
)


def copied(path: Path, folder: Path, **training: object) -> Path:
    """The same maps as those of a training with this seed."""
    record = read_record(path)
    new = replace(record, method={**record.method, "training": training}).write(folder)
    shutil.copy(path.with_suffix(".scores.npz"), new.with_suffix(".scores.npz"))
    return new


@pytest.fixture
def two(run, birds: Path) -> tuple[Path, Path]:
    """Records of a small and a large centred box, in `all`."""
    for side in ("0.2", "0.6"):
        made = run("eval", *ON, "--data-root", birds, "--set", f"side={side}", "--out", "all")
        assert made.code == 0, made.err
    found = {read_record(path).settings["side"]: path for path in Path("all").rglob("*.json")}
    return found[0.2], found[0.6]


def test_a_record_a_name_and_options_name_the_same_run(run, two: tuple[Path, Path]) -> None:
    small, large = two
    by_path = run("compare", small, large, "--resamples", "100")
    assert by_path.code == 0, by_path.err
    assert "center-box side=0.6 minus center-box side=0.2" in by_path.out
    by_option = run("compare", "--a", small, "--b", large, "--resamples", "100")
    names = ("center-box side=0.2", "center-box side=0.6 dataset=birds protocol=wsoleval backbone=none")
    by_name = run("compare", *names, "--records", "all", "--resamples", "100")
    assert by_path.out == by_option.out == by_name.out
    # Fewer metrics are a smaller family.
    few = run("compare", small, large, "--resamples", "100", "--metrics", "gt_known,max_box_acc_v2")
    assert "corrected for the 2 tests of this table" in few.out
    assert "Top-1 Loc" not in few.out
    for options, message in (
        (("gt_know",), "unknown metric 'gt_know'; did you mean 'gt_known'?"),
        (("gt_known,top1_loc",), "not all of the runs have top1_loc; they share"),
        (("gt_known", "--out", "compared"), "found --metrics with --out"),
    ):
        refused = run("compare", small, large, "--resamples", "100", "--metrics", *options)
        assert refused.code == 2
        assert message in refused.err


def test_names_that_are_no_choice_list_the_choices(run, two: tuple[Path, Path]) -> None:
    small, large = two
    ambiguous = run("compare", "center-box", large, "--records", "all")
    assert ambiguous.code == 2
    assert "'center-box' is ambiguous: all holds 2 groups" in ambiguous.err
    assert f"side=0.2 ({small})" in ambiguous.err
    assert f"side=0.6 ({large})" in ambiguous.err
    folder = run("compare", "all", large)
    assert folder.code == 2
    assert "all holds 2 groups of runs that differ in more than the seed" in folder.err
    lacking = run("compare", "center-box side=0.3", large, "--records", "all")
    assert "no record of center-box in all has side=0.3" in lacking.err
    assert str(small) in lacking.err
    assert "did you mean 'center-box'" in run("compare", "centre-box", large, "--records", "all").err
    assert (
        "has 'side'; expected NAME SETTING=VALUE"
        in run("compare", "center-box side", large, "--records", "all").err
    )
    without = run("compare", "center-box", large)
    assert without.code == 2
    assert "found no file and no folder 'center-box'" in without.err
    for wrong in ((small,), (small, large, small), (small, large, "--a", small, "--b", large)):
        assert "found another combination of options" in run("compare", *wrong).err


def test_a_folder_of_seeds_is_a_group(run, two: tuple[Path, Path]) -> None:
    for side, path in zip("ab", two, strict=True):
        for seed in (0, 1, 2):
            copied(path, Path(side), seed=seed)
    # A run without scores is left out, and a repeated seed counts once.
    record = read_record(two[0])
    replace(record, method={**record.method, "training": {"seed": 3}}).write(Path("a"))
    result = run("compare", "a", "b", "--resamples", "100")
    assert result.code == 0, result.err
    assert "left out: 1 records without per-image scores" in result.err
    assert "over images and seeds" in result.out
    assert "expected each run in one group" in run("compare", "a", "a").err


def difference(name: str, p_value: float) -> MetricDifference:
    return MetricDifference(
        name=name, policy=None, a=0.5, b=0.6, low=0.0, high=0.2, p_value=p_value, n=9, per_pair=None
    )


def comparison(p_values: list[float], resamples: int) -> Comparison:
    group = {"name": "cam", "backbone": None, "config": {}, "seeds": [0], "records": ["0"]}
    rows = [difference(name, p) for name, p in zip(("gt_known", "top1_loc", "pxap"), p_values, strict=False)]
    data = {"name": "cub", "split": "test"}
    return Comparison(
        a=group, b=group, dataset=data, protocol="wsoleval", differences=tuple(rows), resamples=resamples
    )


def printed(table: object) -> str:
    import io

    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=200).print(table)
    return re.sub(r"\s+", " ", stream.getvalue())


def test_p_values_are_corrected_for_all_tests_of_all_tables() -> None:
    floor = 2 / 1001
    both = [comparison([floor, 0.02, 0.5], 1000), comparison([0.03], 1000)]
    first, second = map(printed, comparison_tables(both))
    assert "corrected for the 4 tests of these 2 comparisons" in first
    corrected = holm([floor, 0.02, 0.5, 0.03])
    assert corrected[0] < SIGNIFICANT < corrected[1]
    assert "< 0.002 < 0.008 *" in first  # both below what 1,000 resamples can show
    assert f"0.020 {corrected[1]:.3f} " in first
    assert f"0.030 {corrected[3]:.3f} " in second
    assert "0.000" not in first + second
    alone = printed(comparison_tables(both[1:])[0])
    assert "corrected for the 1 test of this table. *: p Holm below 0.05." in alone
    assert "0.030 0.030 *" in alone


def test_too_few_resamples_are_told() -> None:
    told = printed(comparison_tables([comparison([2 / 101, 0.5, 0.5], 100)])[0])
    assert "With 100 resamples, no p Holm can be below 0.059; use more --resamples." in told
    assert "*: " in told
    assert "< 0.06 " in told
