"""`wsolbench report`."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_page_is_written_with_galleries_of_saved_maps(run, birds: Path) -> None:
    on = ("--dataset", "csvfolder", "--data-root", birds)
    made = run(
        "eval", "--method", "center-box", *on, "--resamples", "100", "--save-scores", "--save-maps", "maps", "--out", "results/measured"
    )
    assert made.code == 0, made.err
    result = run("report", "--resamples", "100", "--maps", "maps", *on, "--images", "2")
    assert result.code == 0, result.err
    assert result.out.strip() == "report/index.html"
    page = Path("report/index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 4
    assert "center-box" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no folder of records"),
        (("--maps", "maps"), "both --maps and --dataset"),
        (("--dataset", "cub"), "both --maps and --dataset"),
        (("--maps", "maps", "--dataset", "csvfolder", "--data-root", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_an_error(run, arguments: tuple[str, ...], message: str) -> None:
    result = run("report", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("report").exists()
