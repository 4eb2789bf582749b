"""`wsolbench report`."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_page_is_written_with_galleries_of_saved_maps(run, birds: Path) -> None:
    on = ("--dataset", "csvfolder", "--data-root", birds)
    made = run(
        "eval",
        "--method",
        "center-box",
        *on,
        "--resamples",
        "100",
        "--save-scores",
        "--save-maps",
        "maps",
        "--out",
        "results/measured",
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
        (("--results", "others"), "no folder of records"),
        (("--maps", "maps"), "both --maps and --dataset"),
        (("--dataset", "cub"), "both --maps and --dataset"),
        (("--maps", "maps", "--dataset", "csvfolder", "--data-root", "nowhere"), "nowhere"),
        *(
            (("--" + name, value), f"--{name} is for galleries")
            for name, value in (("split", "val"), ("protocol", "bas"), ("images", "3"))
        ),
        (("--data-root", "data"), "--data-root is for galleries"),
        (("--metadata-root", "data"), "--metadata-root is for galleries"),
        (("--runs", "nowhere"), "nowhere does not exist; expected a run folder"),
        (("--runs", "results"), "results has no log.csv; expected a run folder"),
        (("--out", "taken"), "a folder has that name"),
        (("--out", "results/file/report"), "is not a folder"),
    ],
)
def test_what_cannot_be_shown_or_written_is_an_error(run, arguments: tuple[str, ...], message: str) -> None:
    Path("results/measured").mkdir(parents=True)
    Path("results/file").write_text("")
    Path("taken/index.html").mkdir(parents=True)
    result = run("report", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("report").exists()


def test_without_galleries_options_that_have_a_default_need_not_be_named(run) -> None:
    Path("results/measured").mkdir(parents=True)
    assert run("report").out.strip() == "report/index.html"


def test_an_installed_package_shows_published_numbers_where_nobody_has_measured_anything(run) -> None:
    result = run("report")
    assert result.code == 0, result.err
    page = Path("report/index.html").read_text(encoding="utf-8")
    assert "There is no record with a value yet" in page
    assert "Where-to-Look" in page


def test_a_folder_with_papers_of_its_own_is_read_in_place_of_those_of_the_package(run) -> None:
    Path("results/measured").mkdir(parents=True)
    Path("results/papers.toml").write_text("")
    assert run("report").code == 0
    assert "Where-to-Look" not in Path("report/index.html").read_text(encoding="utf-8")


def test_training_logs_are_found_in_the_folder_of_runs(run) -> None:
    Path("results/measured").mkdir(parents=True)
    for folder in ("runs/cub/cam", "elsewhere"):
        Path(folder).mkdir(parents=True)
        Path(folder, "log.csv").write_text("epoch,train_loss\n1,0.5\n")
    for options, shown in (((), "runs/cub/cam"), (("--runs", "elsewhere"), "elsewhere")):
        assert run("report", *options).code == 0
        page = Path("report/index.html").read_text(encoding="utf-8")
        assert f"<li>{shown}/log.csv has no record of its checkpoint</li>" in page
        assert page.count("log.csv has no record") == 1
