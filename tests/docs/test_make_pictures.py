"""docs/make_pictures.py on a small folder of pictures: rows, thresholds and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from reference_models.training.checkpoint import save_checkpoint
from wsolbench.cli._models import name_runs
from wsolbench.cli.options import DataOptions
from wsolbench.methods import load_method

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with untrained models of CAM and HaS in the run folders; it is called in an empty
    folder."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.chdir(tmp_path)
    from make_pictures import main

    torch.manual_seed(0)
    for method in ("cam", "has"):
        model = load_method(method).create(
            backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32
        )
        save_checkpoint(
            Path(f"runs/birds-a44d89d0/{method}-tiny-seed0-few/last.safetensors"), model, {"seed": 0}
        )

    def call(*arguments: object) -> Any:
        data = (
            "--dataset",
            "csvfolder",
            "--data-root",
            birds,
            "--backbone",
            "tiny",
            "--options",
            "few",
            "--out",
            "pictures",
        )
        return CliRunner().invoke(main, [*map(str, data), *map(str, arguments)])

    return call


@pytest.fixture
def evaluated(run, make, birds: Path) -> None:
    """Records of both methods, and of both with SCG."""
    for method in ("cam", "has"):
        checkpoint = ("--checkpoint", f"runs/birds-a44d89d0/{method}-tiny-seed0-few/last.safetensors")
        data = (
            "--dataset",
            "csvfolder",
            "--data-root",
            birds,
            "--device",
            "cpu",
            "--resamples",
            "100",
            "--no-transfer",
        )
        result = run("eval", "--method", method, *checkpoint, *data, "--post", "none,scg")
        assert result.code == 0, result.err


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, make) -> dict[str, dict]:
    """What is put into each grid, instead of drawing it."""
    import make_pictures

    found: dict[str, dict] = {}
    monkeypatch.setattr(
        make_pictures,
        "panel_grid",
        lambda rows, path, title, **more: found.update({path.name: {"rows": rows, "title": title, **more}}),
    )
    return found


def records() -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in Path("results/measured/birds").glob("*.json")]
    return {
        record["method"]["name"]: {metric["name"]: metric for metric in record["metrics"]} for record in found
    }


def test_every_trained_method_and_post_process_gets_a_small_jpeg_that_is_the_same_twice(
    make, evaluated: None
) -> None:
    bytes_of = []
    for _ in range(2):
        result = make("--post", "scg")
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in Path("pictures").iterdir()) == ["cam.jpg", "has.jpg", "scg.jpg"]
        bytes_of.append([path.read_bytes() for path in sorted(Path("pictures").iterdir())])
    assert bytes_of[0] == bytes_of[1]
    assert max(map(len, bytes_of[0])) <= 80_000
    heights = []
    for name in ("cam", "has", "scg"):
        with Image.open(f"pictures/{name}.jpg") as picture:
            assert picture.mode == "RGB"
            assert not picture.getexif()
            heights.append(picture.height)
    assert heights[1] > heights[0] == heights[2]


def test_each_row_is_cut_at_the_oracle_threshold_of_its_own_record(
    make, evaluated: None, shown: dict[str, dict]
) -> None:
    ids = [part for number in range(9) for part in ("--image", f"test/0{number}.png")]
    result = make("--post", "scg", *ids)
    assert result.exit_code == 0, result.output
    found = records()
    names = {
        "cam.jpg": ["cam", "cam+scg"],
        "has.jpg": ["cam", "has", "has+scg"],
        "scg.jpg": ["cam", "cam+scg"],
    }
    assert shown.keys() == names.keys()
    for file, methods in names.items():
        grid = shown[file]
        taus = [found[name]["gt_known"]["tau"][0] for name in methods]
        labels = [
            f"{name.replace('+', ' + ')}\ntau {round(tau, 3):g}"
            for name, tau in zip(methods, taus, strict=True)
        ]
        assert grid["row_names"] == ["image", *labels]
        for name, panels in zip(methods, grid["rows"][1:], strict=True):
            ious = np.array([float(panel.caption[0].removeprefix("IoU ")) for panel in panels])
            assert np.mean(ious >= 0.5) == pytest.approx(found[name]["gt_known"]["value"])


def test_every_picture_has_the_same_six_images_with_their_classes(make, shown: dict[str, dict]) -> None:
    assert make("--tau", "0.3").exit_code == 0
    ids = [f"test/0{number}.png" for number in (0, 2, 3, 5, 6, 8)]
    assert [grid["column_names"] for grid in shown.values()] == [ids, ids]
    first = shown["cam.jpg"]["rows"][0]
    assert [panel.caption[0] for panel in first] == ["red", "blue", "red", "blue", "red", "blue"]
    assert shown["has.jpg"]["row_names"] == ["image", "cam\ntau 0.3", "has\ntau 0.3"]


def test_with_regions_the_title_says_what_their_percent_are_of(make, shown: dict[str, dict]) -> None:
    for arguments, said in (((), False), (("--regions",), True)):
        assert make("--tau", "0.3", "--method", "cam", *arguments).exit_code == 0
        assert ("percent of the diagonal of the ground-truth box" in shown["cam.jpg"]["title"]) == said


def test_a_data_set_of_masks_is_cut_at_a_level(make, run, birds: Path, shown: dict[str, dict]) -> None:
    lines = (birds / "annotations.csv").read_text().splitlines()
    masks_only = [",".join([*line.split(",")[:5], line.rsplit(",", 1)[1]]) for line in lines]
    (birds / "annotations.csv").write_text("\n".join(masks_only) + "\n")
    # Other annotations have other run folders.
    folder = Path("runs", name_runs(DataOptions(dataset="csvfolder", data_root=birds, metadata_root=None)))
    Path("runs/birds-a44d89d0").rename(folder)
    checkpoint = (
        "--checkpoint",
        folder / "cam-tiny-seed0-few/last.safetensors",
        "--resamples",
        "100",
        "--no-transfer",
    )
    result = run(
        "eval",
        "--method",
        "cam",
        *checkpoint,
        "--dataset",
        "csvfolder",
        "--data-root",
        birds,
        "--device",
        "cpu",
    )
    assert result.code == 0, result.err
    result = make("--method", "cam")
    assert result.exit_code == 0, result.output
    assert shown["cam.jpg"]["row_names"] == ["image", f"cam\nlevel {records()['cam']['peak_t']['value']:.0f}"]
    assert all(not panel.caption for panel in shown["cam.jpg"]["rows"][1])


def test_a_run_without_a_record_is_named_with_the_command_that_makes_one(make) -> None:
    result = make("--method", "has")
    assert result.exit_code == 1
    assert (
        "wsolbench eval --method cam --checkpoint runs/birds-a44d89d0/cam-tiny-seed0-few/last.safetensors"
        in result.output
    )
    assert not Path("pictures").exists()


def test_post_processes_without_a_record_are_left_out_and_named(
    make, evaluated: None, shown: dict[str, dict]
) -> None:
    result = make("--post", "scg,sem")
    assert result.exit_code == 0, result.output
    assert {name: len(grid["rows"]) for name, grid in shown.items()} == {
        "cam.jpg": 3,
        "has.jpg": 4,
        "scg.jpg": 3,
    }
    assert "no row of cam+sem: no record; evaluate it with --post sem" in result.output
    assert "no row of has+sem" in result.output


def test_a_method_that_is_not_trained_is_refused_with_those_that_are(make) -> None:
    result = make("--method", "spa", "--tau", "0.2")
    assert result.exit_code == 1
    assert "spa-tiny-seed0-few; expected one of cam, has" in result.output
    assert "no trained model" in make("--backbone", "vgg16").output


def test_without_cam_its_row_is_left_out(make, shown: dict[str, dict]) -> None:
    Path("runs/birds-a44d89d0/cam-tiny-seed0-few/last.safetensors").unlink()
    result = make("--tau", "0.2", "--post", "scg")
    assert result.exit_code == 0, result.output
    assert "no row of cam" in result.output
    assert {name: grid["row_names"] for name, grid in shown.items()} == {
        "has.jpg": ["image", "has\ntau 0.2", "has + scg\ntau 0.2"],
    }


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_page_shows_its_pictures_and_how_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_methods

    monkeypatch.setattr(make_methods, "DOCS", tmp_path)
    for folder, names in {"methods": ["cam", "hbp", "lio"], "photographs": ["hbp"]}.items():
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "images" / folder / f"{name}{suffix}").touch()
    assert not list(make_methods.pictured("spa"))
    assert not list(make_methods.picture_commands("spa", "localization"))
    assert f"![Maps of cam](../images/methods/cam{suffix})" in list(make_methods.pictured("cam"))
    first, *_ = make_methods.pictured("hbp")
    assert first == f"![Maps of hbp on photographs](../images/photographs/hbp{suffix})"

    def has(text: str, name: str, task: str) -> bool:
        return any(text in line for line in make_methods.picture_commands(name, task))

    assert has("make_pictures.py --dataset toybirds ", "cam", "localization")
    assert not has("--regions", "cam", "localization")
    assert not has("make_photographs.py", "cam", "localization")
    assert has("--regions", "lio", "recognition")
    assert has("toybirds-v2", "hbp", "recognition")
    assert has("make_photographs.py --method hbp ", "hbp", "recognition")
