"""docs/make_excerpt.py: the excerpt in README.md is that of the leaderboard."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import make_excerpt

        yield make_excerpt


def test_the_committed_excerpt_is_up_to_date(script):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    board = (ROOT / "results/leaderboard/README.md").read_text(encoding="utf-8")
    assert script.with_excerpt(readme, board) == readme, "run `python docs/make_excerpt.py`"


def test_an_excerpt_has_the_floor_the_best_rows_and_a_ceiling_with_whole_addresses(script):
    heads = "| method | backbone | paper | runs | GT-known | GT-known, transferred | Top-1 Loc |"
    rows = ["| [prior](../../p.md) | | | | 9 | | |", "| [center-box](../../c.md) | | | | 8 | | |"]
    rows += [
        f"| m{place} | | | [1](../measured/m.json) | {'**70**' if place == 0 else 60 - place} | | |"
        for place in range(20)
    ]
    rows += ["| oracle | | | | 99 | | |"]
    board = "\n".join([script.TITLE, "", "> banner", "", heads, "|---|", *rows, "", "after"])
    text = script.excerpt(board)
    assert text.startswith("> banner\n\n| method | GT-known | GT-known, transferred |")
    names = [line.split("|")[1].strip() for line in text.splitlines()[4:]]
    assert names[0].startswith("[center-box](https://github.com/")
    assert names[1:] == [*(f"m{place}" for place in range(script.BEST)), "oracle"]
    assert "](https://github.com/wsolbench/wsolbench/blob/main/results/measured/m.json)" in text


def test_the_page_of_the_site_has_links_that_exist(script):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import conf

    text = conf.board_for_docs((ROOT / "results/leaderboard/README.md").read_text(encoding="utf-8"))
    assert "](../" not in text
    assert "](methods/spa.md)" in text
    assert "results/leaderboard/cub.md)" in text
