"""`wsolbench compare`."""

from __future__ import annotations

from pathlib import Path

from wsolbench.report.comparisons import read_comparison


def test_two_runs_are_compared_and_the_comparison_can_be_read_again(run, birds: Path) -> None:
    on = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--save-scores")
    small = ("eval", "--method", "center-box", "--set", "side=0.2", *on, "--out", "small")
    assert run(*small).code == 0, run(*small).err
    assert run("eval", "--method", "center-box", *on, "--out", "large").code == 0
    (a,), (b,) = (list(Path(folder).rglob("*.json")) for folder in ("small", "large"))
    result = run("compare", "--a", a, "--b", b, "--resamples", "100", "--out", "compared")
    assert result.code == 0, result.err
    assert "center-box minus center-box" in result.out
    (path,) = Path("compared").rglob("*.json")
    comparison = read_comparison(path)
    gt_known = comparison.find("gt_known")
    assert gt_known is not None
    assert gt_known.n == 9
    assert comparison.a["config"]["side"] == 0.2

    # thresholds transferred or not: the images are the same
    assert run("eval", "--method", "center-box", *on, "--no-transfer", "--out", "bare").code == 0
    (bare,) = Path("bare").rglob("*.json")
    assert run("compare", "--a", a, "--b", bare, "--resamples", "100").code == 0

    a.with_suffix(".scores.npz").unlink()
    result = run("compare", "--a", a, "--b", b)
    assert result.code == 2
    assert "scores.npz cannot be read" in result.err


def test_runs_under_other_protocols_are_not_compared(run, birds: Path) -> None:
    on = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--save-scores", "--method", "center-box")
    assert run("eval", *on, "--out", "one").code == 0
    assert run("eval", *on, "--out", "two", "--protocol", "spa").code == 0
    (a,), (b,) = (list(Path(folder).rglob("*.json")) for folder in ("one", "two"))
    result = run("compare", "--a", a, "--b", b)
    assert result.code == 2
    assert "another protocol" in result.err
