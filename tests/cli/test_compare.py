"""`wsolbench compare`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.records import read_record, read_records
from wsolbench.records.comparison import read_comparison


def test_two_runs_are_compared_and_the_comparison_can_be_read_again(run, birds: Path) -> None:
    on = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--save-scores")
    small = ("eval", "--method", "center-box", "--set", "side=0.2", *on, "--out", "small")
    assert run(*small).code == 0, run(*small).err
    assert run("eval", "--method", "center-box", *on, "--out", "large").code == 0
    (a,), (b,) = (list(Path(folder).rglob("*.json")) for folder in ("small", "large"))
    result = run("compare", "--a", a, "--b", b, "--resamples", "100", "--out", "compared")
    assert result.code == 0, result.err
    assert "center-box side=none minus center-box side=0.2 on birds/test" in result.out
    (path,) = Path("compared").rglob("*.json")
    comparison = read_comparison(path)
    gt_known = comparison.find("gt_known")
    assert gt_known is not None
    assert gt_known.n == 9
    assert comparison.a["config"]["side"] == 0.2

    # Outcomes are enough, and give the same numbers.
    for folder in ("small", "large"):
        (path,) = Path(folder).rglob("*.scores.npz")
        path.rename(path.with_suffix(".moved"))
    lacking = run("compare", "--a", a, "--b", b)
    assert lacking.code == 2
    assert "there is no such file" in lacking.err
    on_outcomes = (*on[:-1], "--save-outcomes")
    assert run(*small[:5], *on_outcomes, "--out", "small").code == 0
    assert run("eval", "--method", "center-box", *on_outcomes, "--out", "large").code == 0
    assert run("compare", "--a", a, "--b", b, "--resamples", "100").out in result.out
    for folder in ("small", "large"):
        (path,), (outcomes,) = Path(folder).rglob("*.moved"), Path(folder).rglob("*.outcomes.npz")
        path.rename(path.with_suffix(".npz"))
        outcomes.unlink()

    # thresholds transferred or not: the images are the same
    assert run("eval", "--method", "center-box", *on, "--no-transfer", "--out", "bare").code == 0
    (bare,) = Path("bare").rglob("*.json")
    assert run("compare", "--a", a, "--b", bare, "--resamples", "100").code == 0

    # Budgets: the same maps as those of a network that has seen 900 images.
    record = read_record(b)
    training = {"seed": 0, "images_seen": 900}
    trained = replace(record, method={**record.method, "training": training}).write(Path("trained"))
    shutil.copy(b.with_suffix(".scores.npz"), trained.with_suffix(".scores.npz"))
    unequal = ("compare", "--a", a, "--b", trained, "--resamples", "100", "--out", "unequal")
    refused = run(*unequal)
    assert refused.code == 2
    assert f"{trained} and {a} have an unequal budget: 0 / 900 images" in refused.err
    assert not Path("unequal").exists()
    allowed = run(*unequal, "--allow-unequal-budget")
    assert allowed.code == 0
    assert "Unequal budget: 0 / 900 images." in allowed.out
    (path,) = Path("unequal").rglob("*.json")
    assert str(read_comparison(path).budget) == "unequal budget: 0 / 900 images"

    both = run("compare", "--a", a, "--a", b, "--b", b)
    assert both.code == 2
    assert "expected each run in one group" in both.err
    twice = run("compare", "--a", a, "--a", a, "--b", b)
    assert twice.code == 2
    assert f"{a} is named 2 times" in twice.err
    shorter = next(iter(ScoreTable.read(a.with_suffix(".scores.npz")))).select(np.arange(4))
    ScoreTable((shorter,)).write(a.with_suffix(".scores.npz"))
    other = run("compare", "--a", a, "--b", b)
    assert other.code == 2
    assert "has scores of 4 images; its record" in other.err

    a.with_suffix(".scores.npz").unlink()
    result = run("compare", "--a", a, "--b", b)
    assert result.code == 2
    assert "scores.npz cannot be read" in result.err


def test_runs_under_other_protocols_are_not_compared(run, birds: Path) -> None:
    on = (
        "--dataset",
        "csvfolder",
        "--data-root",
        birds,
        "--resamples",
        "100",
        "--save-scores",
        "--method",
        "center-box",
    )
    assert run("eval", *on, "--out", "one").code == 0
    assert run("eval", *on, "--out", "two", "--protocol", "spa").code == 0
    (a,), (b,) = (list(Path(folder).rglob("*.json")) for folder in ("one", "two"))
    result = run("compare", "--a", a, "--b", b)
    assert result.code == 2
    assert "another protocol" in result.err


def test_what_claims_are_about_is_compared_once(run, birds: Path) -> None:
    on = (
        "--dataset",
        "csvfolder",
        "--data-root",
        birds,
        "--resamples",
        "100",
        "--save-scores",
        "--out",
        "measured",
    )
    for side in ("0.2", "0.6"):
        assert run("eval", "--method", "center-box", "--set", f"side={side}", *on).code == 0
    columns = "paper,where,claim,metric,a,a_settings,b,b_settings,published_a,published_b,"
    columns += "control,control_settings,allow_unequal_budget"
    Path("claims.csv").write_text(
        f"{columns}\nP,Table 1,larger,gt_known,center-box,side=0.2,center-box,side=0.6,50,60,,,\n"
    )
    command = ("compare", "--claims", "claims.csv", "--records", "measured", "--resamples", "100")
    assert "center-box side=0.6 minus center-box side=0.2" in run(*command).out

    result = run(*command, "--out", "compared")
    assert result.code == 0, result.err
    assert "1 new, 0 kept" in result.out
    (path,) = Path("compared").rglob("*.json")
    assert (read_comparison(path).a["config"]["side"], read_comparison(path).b["config"]["side"]) == (
        0.2,
        0.6,
    )
    written = path.stat().st_mtime_ns
    assert "0 new, 1 kept" in run(*command, "--out", "compared").out
    assert path.stat().st_mtime_ns == written

    for old, record in read_records(Path("measured")):
        another = replace(record, method={**record.method, "training": {**record.training, "seed": 1}}).write(
            Path("measured")
        )
        shutil.copy(old.with_suffix(".scores.npz"), another.with_suffix(".scores.npz"))
    Path("measured/broken.json").write_text("{")
    result = run(*command, "--out", "compared")
    assert result.code == 0
    assert "1 new, 0 kept, 1 outdated removed" in result.out
    assert "left out: record measured/broken.json is not JSON" in result.err
    (path,) = Path("compared").rglob("*.json")
    assert read_comparison(path).a["seeds"] == [None, 1]  # a box in the middle has no training

    # A comparison of a record that is gone is removed, but not while some record cannot be read.
    gone = path.with_name("gone.json")
    text = path.read_text().replace(read_comparison(path).a["records"][0], "0" * 64)
    gone.write_text(text)
    assert "0 new, 1 kept, 0 outdated removed" in run(*command, "--out", "compared").out
    assert gone.exists()
    Path("measured/broken.json").unlink()
    assert "0 new, 1 kept, 1 outdated removed" in run(*command, "--out", "compared").out
    assert not gone.exists()
    assert path.exists()

    Path("claims.csv").write_text(f"{columns}\nP,Table 1,nobody,gt_known,cam,,spa,,50,60,,,\n")
    result = run(*command)
    assert result.code == 2
    assert "no two records in measured" in result.err
    assert "no pair: P, Table 1: nobody, gt_known: no record of cam and none of spa" in result.err
