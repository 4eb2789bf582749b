"""`wsolbench submit` and `verify-submission`: the way of a result from outside to the leaderboard."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import make_record
from tests.submissions import PROTOCOL, read_all, write_run
from wsolbench.evaluation.submissions import folder_digest, write_submission
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError
from wsolbench.maps.predictions import write_predictions
from wsolbench.records.submission import OUTCOMES, Metadata
from wsolbench.report.board.board import Filters
from wsolbench.report.board.leaderboard import board_tables, check_leaderboard, write_leaderboard
from wsolbench.report.page.page import page_html

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("official")
FIELDS = {
    "--authors": "Ada Lovelace, Zoë Ångström",
    "--paper": "Maps of a | kind",
    "--venue": "Venue 2030",
    "--url": "https://example.org/paper?id=1",
    "--training-data": "train split, image labels",
    "--extra-data": "none",
    "--licence": "CC BY 4.0",
    "--maps-url": "https://example.org/maps.zip",
}
OPTIONS = [part for item in FIELDS.items() for part in item]


def test_a_result_goes_from_record_to_board(run, scored, tmp_path: Path) -> None:
    record = write_run(tmp_path / "mine", scored)
    (tmp_path / "mine.toml").write_text(
        run("submit", "--template").out.replace('url = ""', 'url = "ftp://x"', 1)
    )
    result = run("submit", record, "--metadata", "mine.toml", *OPTIONS)
    assert result.code == 0, result.err
    (path,) = Path("results/submitted").glob("*/*.json")
    assert path.name.startswith("outside-net-")
    assert f"wrote    {path}" in result.out
    assert json.loads(path.read_text())["record"] == json.loads(record.read_text())
    # Another checkout verifies the copy, and its board shows it.
    shutil.copytree("results/submitted", "other/submitted")
    assert run("verify-submission", "other/submitted").out.count("valid    outside-net-") == 1
    (table, *_) = board_tables(Path("other"), Filters(metric="gt_known"), read_all(Path("other")))
    (row,) = table.rows
    assert table.columns[-1] == "source"
    assert (row[0].text, row[-1].text, row[8].link) == ("Outside-Net+", "reported", FIELDS["--url"])
    assert any("Ada Lovelace, Zoë Ångström" in note for note in table.notes)


def test_a_run_of_toybirds_v2_is_submitted_and_shown_below_measured_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real reference values
    scores = min((ROOT / "results/measured/toybirds-v2").glob(f"*{OUTCOMES}"))
    record = scores.with_name(f"{scores.name.removesuffix(OUTCOMES)}.json")
    for file in (scores, record):
        target = tmp_path / "results/measured/toybirds-v2" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    metadata = Metadata(
        authors=("A <b>",), paper="p", backbone="b", training_data="t", extra_data="e", licence="l"
    )
    with pytest.raises(DataError, match="printable characters without < and >"):
        write_submission(record, metadata, tmp_path / "results/submitted")
    good = replace(metadata, authors=("A",))
    written = write_submission(record, good, tmp_path / "results/submitted")
    assert written.replaced == ()
    (table, *_) = board_tables(tmp_path / "results", Filters(metric="top1_cls"))
    assert [row[-1].text for row in table.rows] == ["trained here", "reported"]
    assert table.rows[0][5] == table.rows[1][5]
    assert table.rows[1][7].text == table.rows[1][9].text == ""
    # The files of the leaderboard and the page show it, too.
    write_leaderboard(tmp_path / "results")
    assert not check_leaderboard(tmp_path / "results")
    text = (tmp_path / "results/leaderboard/README.md").read_text()
    assert text.index("| *Submitted* |") < text.index("| reported |")
    page, problems = page_html(tmp_path / "results", galleries=[], methods=0, resamples=100)
    assert "reported" in page
    assert not problems


def test_a_newer_submission_replaces_the_older_one(run, scored, tmp_path: Path) -> None:
    record = write_run(tmp_path / "mine", scored)
    assert run("submit", record, *OPTIONS).code == 0
    again = run("submit", record, *OPTIONS)
    assert again.code == 2
    assert "is this submission already; nothing was written" in again.err
    changed = run("submit", record, *OPTIONS, "--paper", "A better title")
    assert changed.code == 0, changed.err
    assert changed.out.startswith("replaced results/submitted/squares/outside-net-")
    assert len(list(Path("results/submitted").rglob("*.*"))) == 2
    other = run("submit", record, *OPTIONS, "--authors", "Somebody Else")
    assert other.code == 2
    assert "has this record already, of Ada Lovelace" in other.err


def test_maps_are_scored_again_for_the_badge(
    run, scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scored[0]
    metrics = summarize(made.table, PROTOCOL)
    record = make_record(made.dataset, PROTOCOL, metrics, method={"name": "Outside-Net+"})
    path = write_run(tmp_path / "mine", (made, record))
    maps = tmp_path / "maps"
    for sample, raw in zip(made.dataset.samples, made.maps, strict=True):
        (maps / sample.id).parent.mkdir(parents=True, exist_ok=True)
        np.save(maps / f"{sample.id}.npy", raw)
    ranked = dict(zip(made.scores.ids.tolist(), made.scores.ranked.tolist(), strict=True))
    write_predictions(maps / "predictions.csv", ranked)
    assert run("submit", path, *OPTIONS, "--maps", maps).code == 0
    (file,) = Path("results/submitted").glob("*/*.json")
    monkeypatch.setattr("wsolbench.cli.options.DataOptions.open", lambda *_arguments: made.dataset)
    verify = ("verify-submission", file, "--maps", maps, "--workers", "1")
    assert "  reported" in run(*verify).out
    assert not Path("results/submitted/badges.json").exists()
    given = run(*verify, "--rescore")
    assert given.code == 0, given.err
    assert "  re-scored here" in given.out
    assert json.loads(Path("results/submitted/badges.json").read_text()) == {file.stem: "re-scored here"}
    assert "  re-scored here" in run("verify-submission", "results/submitted").out
    # Without the maintainers' file, the same field is a fault.
    Path("empty.json").write_text("{}")
    refused = run("verify-submission", file, "--badges", "empty.json")
    assert refused.code == 2
    assert "only maintainers set badges" in refused.err
    # Other maps do not get it.
    first = maps / f"{made.dataset.samples[0].id}.npy"
    np.save(first, np.load(first)[::-1])
    changed = run(*verify, "--rescore")
    assert changed.code == 2
    assert "their SHA-256 differs" in changed.err


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a/x.npy", "1"), ("b.npy", "2")):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(text)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/.DS_Store").write_text("junk")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two/b.npy").rename(tmp_path / "two/c.npy")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")
    (tmp_path / "two/link.npy").symlink_to("c.npy")
    with pytest.raises(DataError, match="symbolic link"):
        folder_digest(tmp_path / "two")


def test_faults_of_metadata_are_named_together(run, scored, tmp_path: Path) -> None:
    record = write_run(tmp_path / "mine", scored)
    result = run("submit", record, "--url", "example.org", "--authors", "Ada")
    assert result.code == 2
    for text in ("lacks paper", "lacks licence", "metadata.url is 'example.org'", "--template"):
        assert text in result.err
    assert not Path("results").exists()


def test_a_record_without_scores_or_of_a_part_is_refused(run, scored, tmp_path: Path) -> None:
    record = write_run(tmp_path / "mine", scored)
    record.with_suffix(OUTCOMES).unlink()
    result = run("submit", record, *OPTIONS)
    assert result.code == 2
    assert "--save-outcomes" in result.err
    changed = replace(scored[1], dataset={**scored[1].dataset, "images": 11}, metrics=())
    result = run("submit", changed.write(tmp_path / "part"), *OPTIONS)
    assert "squares/test has 11 images; expected all 12" in result.err
    assert not Path("results").exists()
