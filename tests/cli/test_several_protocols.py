"""`--protocol a,b` and `--protocol all`, and the outcomes that are stored without being asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsolbench.protocol import EvalProtocol
from wsolbench.records import read_record, read_records
from wsolbench.records.plans import command_key, read_plan

IDS = [f"test/{index:02d}.png" for index in range(9)]


@pytest.fixture
def score(run, birds: Path, tmp_path: Path):
    """`wsolbench score` of maps that are the bright colour of each picture."""
    from PIL import Image

    for image_id in IDS:
        pixels = np.asarray(Image.open(birds / "images" / image_id), dtype=np.float32)
        path = tmp_path / "maps" / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels.max(axis=2)[::2, ::2])
    data = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--no-transfer")
    return lambda *more: run("score", "--maps", "maps", *data, *more)


def protocols_in(folder: str) -> list[str]:
    return sorted(record.protocol.name for _, record in read_records(Path(folder)))


def test_every_protocol_gets_its_record(score) -> None:
    result = score("--protocol", "all", "--crop-maps", "--save-boxes", "boxes/all.json", "--out", "all")
    assert result.code == 0, result.err
    assert protocols_in("all") == sorted(EvalProtocol.presets())
    assert len(list(Path("all").rglob("*.outcomes.npz"))) == len(EvalProtocol.presets())
    assert {path.parent.name for path in Path("boxes").rglob("all.json")} == set(EvalProtocol.presets())
    # The same numbers as those of a run for each.
    for name in ("spa", "bas"):
        crop = ["--crop-maps"] if name == "bas" else []
        assert score("--protocol", name, *crop, "--out", name).code == 0
        ((_, alone),) = read_records(Path(name))
        assert alone.digest in {record.digest for _, record in read_records(Path("all"))}


def test_protocols_that_do_not_fit_are_refused(score) -> None:
    mixed = score("--protocol", "all")
    assert mixed.code == 2
    assert (
        "protocols bas, psol score maps of the centre crop, and wsoleval, spa, tscam, lid maps of"
        in mixed.err
    )
    assert "Add --crop-maps" in mixed.err
    assert "names 'spa' twice" in score("--protocol", "spa,spa").err
    assert "unknown protocol 'spaa'; did you mean 'spa'?" in score("--protocol", "wsoleval,spaa").err
    outside = score("--protocol", "wsoleval,spa", "--fixed-tau", "0.97")  # beyond the grid of spa
    assert (outside.code, "0.97" in outside.err) == (2, True)
    assert not Path("results").exists()


def test_changes_hold_for_each_protocol(score) -> None:
    assert score("--protocol", "wsoleval,tscam", "--protocol-set", "relu=true").code == 0
    assert protocols_in("results/measured") == ["tscam+relu=true", "wsoleval+relu=true"]


def test_outcomes_are_stored_unless_they_are_switched_off(score) -> None:
    def stored(*options: str) -> set[str]:
        result = score(*options, "--out", "".join(options) or "plain")
        assert result.code == 0, result.err
        (path,) = Path("".join(options) or "plain").rglob("*.json")
        read_record(path)
        return {"".join(other.suffixes[-2:]) for other in path.parent.glob("*.npz")}

    assert stored() == {".outcomes.npz"}
    assert stored("--no-outcomes") == set()
    assert stored("--save-scores") == {".scores.npz"}  # which give the same and more
    assert stored("--save-scores", "--save-outcomes") == {".scores.npz", ".outcomes.npz"}


def test_shards_and_their_merge(score, run) -> None:
    for index in (1, 2):
        made = score("--protocol", "wsoleval,lid", "--shard", f"{index}/2", "--out", "shards")
        assert made.code == 0, made.err
        assert made.out.count("shard ") == 2
    assert "need all shards" in score("--shard", "1/2", "--save-outcomes").err
    assert run("merge", "shards", "--out", "merged", "--keep").code == 0
    assert protocols_in("merged") == ["lid", "wsoleval"]
    assert len(list(Path("merged").rglob("*.outcomes.npz"))) == 2
    assert run("merge", "shards", "--out", "bare", "--no-outcomes").code == 0
    assert not list(Path("bare").rglob("*.npz"))


def test_a_model_is_evaluated_under_several_protocols(run, birds: Path) -> None:
    data = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--no-transfer")
    result = run(
        "eval", "--method", "center-box", *data, "--protocol", "wsoleval,tscam,psol", "--save-maps", "maps"
    )
    assert result.code == 0, result.err
    assert protocols_in("results/measured") == ["psol", "tscam", "wsoleval"]
    # Ten crops of a transformed view are refused before the first protocol is scored.
    moved = run(
        "eval", "--method", "center-box", *data, "--protocol", "all", "--transform", "rotate90", "--out", "no"
    )
    assert (moved.code, "classifies ten crops" in moved.err) == (2, True)
    assert not Path("no").exists()
    # One folder of maps per view.
    assert {path.parent.name for path in Path("maps").rglob("maps.json")} == {"wsoleval", "psol"}
    together = {
        record.protocol.name: record.provenance.get("scored_together")
        for _, record in read_records(Path("results/measured"))
    }
    shared = ["wsoleval", "tscam"]
    assert together == {"wsoleval": shared, "tscam": shared, "psol": None}


def test_a_job_of_a_plan_has_a_record_per_protocol(tmp_path: Path) -> None:
    for names, count in (("wsoleval", 1), ("wsoleval,spa", 2), ("all", len(EvalProtocol.presets()))):
        path = tmp_path / "plan.toml"
        path.write_text(
            'title = "boxes"\n[defaults]\ndataset = "csvfolder"\nseeds = [0]\n'
            f'[[run]]\nname = "box"\nmethod = "center-box"\nprotocol = "{names}"\n'
        )
        (job,) = read_plan(path, lambda _: tmp_path / "last.safetensors").jobs
        assert job.records == count
    assert command_key("wsolbench eval --method cam --no-outcomes --seed 3") == command_key(
        "wsolbench eval --method cam --save-outcomes --seed 3"
    )
