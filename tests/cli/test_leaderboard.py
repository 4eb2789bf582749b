"""`wsolbench leaderboard` outside of this repository."""

from __future__ import annotations

from pathlib import Path


def test_published_numbers_come_with_the_package(run) -> None:
    result = run("leaderboard")
    assert result.code == 0, result.err
    index = Path("results/leaderboard/README.md").read_text(encoding="utf-8")
    assert "There is no record yet." in index
    assert "[SPA](paper-spa.md)" in index
    assert run("leaderboard", "--check").code == 0


def test_published_numbers_can_be_filtered_and_printed(run) -> None:
    result = run("leaderboard", "--dataset", "cub", "--metric", "top1_loc", "--method", "spa")
    assert result.code == 0, result.err
    assert (
        "| SPA\\[RAM only\\] | inception\\_v3 | 52.04 % error | SPA | 2021 | Table 6, row 7 |" in result.out
    )
    assert not Path("results").exists()


def test_a_folder_that_is_named_must_hold_records(run) -> None:
    result = run("leaderboard", "--results", "others")
    assert result.code == 2
    assert "no folder of records" in result.err
