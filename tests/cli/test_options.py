"""Values of options: each is checked when the command line is read, and the message says what is expected."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from wsolbench.cli._models import default_backbone
from wsolbench.cli.settings import read_protocol
from wsolbench.evaluation.runs import Shard
from wsolbench.exceptions import UsageError

LONG = "9" * 5000


def on(birds: Path) -> tuple[object, ...]:
    return ("--dataset", "csvfolder", "--data-root", birds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["taus=0"], "taus=0: .*steps of 0.0; expected a step above 0"),
        (["taus=2"], "expected a step above 0 and below 1"),
        (["taus=60"], "expected a step above 0 and below 1"),
        (["taus=1.2"], "expected a step above 0 and below 1"),
        (["taus=-0.1"], "expected a step above 0"),
        (["taus=inf"], "three finite numbers"),
        (["taus=nan"], "three finite numbers"),
        (["taus=1e-9"], "makes more than 10,000 thresholds"),
        (["taus=0.5,0.4"], "expected one or more strictly increasing"),
        (["taus=0.5,2"], r"expected a number in \[0, 1\]"),
        (["taus="], "expected a step such as 0.01, or thresholds such as 0.1,0.2"),
        (["frame_size=0"], r"frame_size=0; expected a whole number in \[1, 8192\]"),
        (["frame_size=-1"], "frame_size=-1; expected a whole number"),
        (["frame_size=100000"], "frame_size=100000; expected a whole number"),
        (["frame_size=0.5"], "frame_size=0.5: expected a value like 224"),
        ([f"frame_size={LONG}"], r"frame_size=9{77}\.\.\.: expected a value like 224"),
        (["normalize_eps=nan"], r"normalize_eps=nan; expected a number in \[0, 1\]"),
        (["normalize_eps=-1"], "normalize_eps=-1.0; expected a number in"),
        (["normalize_eps=1e308"], "expected a number in"),
        (["error_iou=1.5"], r"error_iou=1.5; expected a number in \[0, 1\]"),
        (["percentile=101"], r"percentile=101.0; expected a number in \[0, 100\]"),
        (["fixed_tau=2"], "fixed_tau=2.0; expected a number in"),
        (["deltas=0.5,0.5"], "expected one or more different numbers"),
        (["relu=maybe"], "relu=maybe: expected true or false"),
        (["normalize=paas"], "expected one of .*'pas'"),
        (["pas=1"], "unknown protocol field 'pas'"),
    ],
)
def test_a_convention_outside_its_range_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_protocol("wsoleval", changes)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("toybirds", "tiny"), ("toybirds-v2", "tiny"), ("cub", "real"), ("toybirds-of-mine", "real")],
)
def test_generated_data_has_the_small_backbone_unless_another_is_given(dataset: str, expected: str) -> None:
    assert default_backbone(dataset, None, "real") == expected
    assert default_backbone(dataset, "vgg16", "real") == "vgg16"


@pytest.mark.parametrize("changes", [["resize_size=100"], ["resize_size=0"], ["frame_size=448"]])
def test_a_crop_that_is_larger_than_the_image_is_refused(changes: list[str]) -> None:
    with pytest.raises(UsageError, match=r"resize_size=\d+"):
        read_protocol("bas", changes)


def test_conventions_in_their_ranges_are_taken() -> None:
    protocol = read_protocol("bas", ["resize_size=512", "frame_size=448", "taus=0.2,"])
    assert (protocol.resize_size, protocol.frame_size, protocol.taus) == (512, 448, (0.2,))
    assert read_protocol("wsoleval", ["normalize=pas"]).normalize == "pas"
    assert read_protocol("wsoleval", ["fixed_tau=none"]).fixed_tau is None


@pytest.mark.parametrize(
    "text",
    [
        "0/2",
        "3/2",
        "2",
        "/",
        "a/b",
        "1/0",
        "-1/2",
        "1/2/3",
        f"1/{LONG}",
        f"{LONG}/{LONG}",
        "1/9999999",
        "١/٢",
    ],
)
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected i/n with 1 <= i <= n <= 1,000,000") as refusal:
        Shard.parse(text)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", r"0 is not a whole number in \[1, 100000\]"),
        ("--epochs", LONG, "is not a whole number in"),
        ("--lr", "1e308", r"1e308 is not a number in \(0, 1000\]"),
        ("--lr", "nan", "nan is not a number"),
        ("--lr", "-1", "-1 is not a number"),
        ("--seed", "-1", r"-1 is not a whole number in \[0, 4294967295\]"),
        ("--seed", "99999999999999999999", "is not a whole number in"),
        ("--image-size", "16", r"16 is not a whole number in \[32, 4096\]"),
        ("--image-size", "1000000", "is not a whole number in"),
        ("--batch-size", "0", r"0 is not a whole number in \[1, 65536\]"),
        ("--batch-size", "1000000000", "is not a whole number in"),
        ("--workers", "-1", "is not a whole number in"),
        ("--workers", "1000000", "is not a whole number in"),
        ("--device", "meta", "'meta' is not auto, cpu, cuda or cuda:N"),
        ("--device", "cuda:-1", "is not auto, cpu, cuda or cuda:N"),
        ("--limit", "0", r"0 is not a whole number in \[1, 1000000\]"),
        ("--limit", LONG, "is not a whole number in"),
        ("--resamples", "99", r"99 is not a whole number in \[100, 100000\]"),
        ("--resamples", "100000000", "is not a whole number in"),
        ("--fixed-tau", "2", r"2 is not a number in \[0, 1\]"),
        ("--fixed-tau", "nan", "nan is not a number"),
        ("--shard", LONG, "expected i/n"),
    ],
)
def test_an_option_outside_its_range_is_refused_before_any_data_are_read(
    run, option: str, value: str, message: str
) -> None:
    import re

    result = run(
        "eval", "--method", "cam", "--dataset", "csvfolder", "--data-root", "not-there", option, value
    )
    assert result.code == 2
    assert re.search(message, result.err), result.err
    assert "Traceback" not in result.err
    assert len(result.err) < 600
    assert not list(Path().iterdir())


def test_every_command_that_takes_a_number_has_its_range(run) -> None:
    for arguments in (
        ("train", "--method", "cam", "--dataset", "toybirds", "--lr", "1e308"),
        ("train-detector", "--batch-size", "0"),
        ("eval-detector", "--limit", "0"),
        ("score", "--maps", "maps", "--dataset", "toybirds", "--resamples", "1"),
        ("compare", "--resamples", "1"),
        ("report", "--resamples", "1000000000"),
    ):
        result = run(*arguments)
        assert result.code == 2
        assert "is not a" in result.err, arguments


def test_unknown_names_are_said_where_no_trained_model_is_found(run, birds: Path) -> None:
    backbone = run("eval", "--method", "cam", *on(birds), "--backbone", "resnet5")
    assert backbone.code == 2
    assert "unknown backbone 'resnet5'; did you mean 'resnet50'" in backbone.err
    network = run("eval", "--method", "cam", *on(birds), "--backbone", "timm:resnet1888")
    assert network.code == 2
    assert "unknown timm model 'resnet1888'; did you mean" in network.err
    setting = run("eval", "--method", "cam", *on(birds), "--backbone", "tiny", "--set", "hed=fc")
    assert "unknown setting 'hed' of method 'cam'; did you mean 'head'" in setting.err
    recipe = run("eval", "--method", "cam", *on(birds), "--backbone", "tiny", "--set", "recipe.lr=1e308")
    assert "expected a number in (0, 1000]" in recipe.err
    known = run("eval", "--method", "cam", *on(birds), "--backbone", "tiny")
    assert "no trained model" in known.err


# --- what the loader found ----------------------------------------------------------------------------------


def spoil(birds: Path, split: str) -> None:
    """Two boxes that stick out of their image and one without area."""
    table = birds / "annotations.csv"
    rows = [row.split(",") for row in table.read_text().splitlines()]
    own = [row for row in rows if row[2] == split]
    own[0][7:9], own[1][7:9] = ["60", "60"], ["48", "70"]
    own[2][5:9] = ["60", "60", "70", "70"]
    table.write_text("\n".join(map(",".join, rows)) + "\n")


def write_maps(birds: Path, splits: tuple[str, ...] = ("test",)) -> None:
    for row in (birds / "annotations.csv").read_text().splitlines()[1:]:
        name, _, split = row.split(",")[:3]
        if split in splits:
            path = Path("maps") / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(
                path,
                np.random.default_rng(len(list(path.parent.iterdir()))).random((12, 12), dtype=np.float32),
            )


def test_warnings_and_errors_of_the_loader_are_counted_in_one_line_with_the_way_to_see_them(
    run, birds: Path
) -> None:
    spoil(birds, "test")
    write_maps(birds)
    line = f"2 errors, 2 warnings; to see them: wsolbench verify --dataset csvfolder --data-root {birds} --split test"
    for arguments in (("eval", "--method", "center-box"), ("score", "--maps", "maps")):
        result = run(*arguments, *on(birds), "--resamples", "100")
        assert result.code == 0, result.err
        found = [each for each in result.err.splitlines() if "verify" in each]
        assert len(found) == 1
        assert line in found[0], found
    shown = run("verify", *on(birds), "--split", "test")
    assert shown.code == 1
    assert "boxes that exceed the image" in shown.out


def test_a_sound_data_set_is_not_mentioned(run, birds: Path) -> None:
    result = run("eval", "--method", "center-box", *on(birds), "--resamples", "100")
    assert "verify" not in result.err


def test_training_counts_what_the_loader_found_too(run, birds: Path) -> None:
    spoil(birds, "train")
    tiny = (
        "--backbone",
        "tiny",
        "--epochs",
        "1",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--workers",
        "1",
    )
    result = run("train", "--method", "cam", *on(birds), *tiny)
    assert result.code == 0, result.err
    assert "birds train: 2 errors, 2 warnings; to see them: wsolbench verify" in result.err


# --- val without images -------------------------------------------------------------------------------------


def policies(folder: str) -> set[str]:
    (record,) = Path(folder).rglob("*.json")
    return {metric["policy"] for metric in json.loads(record.read_text())["metrics"] if "policy" in metric}


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--method", "center-box"),
        ("eval", "--method", "center-box", "--limit", "4"),
        ("score", "--maps", "maps", "--pictures", "pictures"),
    ],
)
def test_a_val_without_its_images_costs_the_transfer_and_one_line(
    run, birds: Path, arguments: tuple[str, ...]
) -> None:
    write_maps(birds)
    shutil.rmtree(birds / "images/val")
    shutil.rmtree(birds / "masks/val")
    result = run(*arguments, *on(birds), "--resamples", "100", "--out", "a")
    assert result.code == 0, result.err
    (line,) = (each for each in result.err.splitlines() if " val " in each)
    assert "none of the 12 files of csvfolder val is on this disk" in line
    assert "--no-transfer" in line
    assert policies("a") == {"oracle"}
    plain = run(*arguments, *on(birds), "--resamples", "100", "--no-transfer", "--out", "b")
    assert plain.code == 0
    assert " val " not in plain.err
    assert [path.name for path in Path("a").rglob("*.json")] == [
        path.name for path in Path("b").rglob("*.json")
    ]


def test_shards_and_several_methods_go_on_without_val_too(run, birds: Path) -> None:
    shutil.rmtree(birds / "images/val")
    shutil.rmtree(birds / "masks/val")
    for part in ("1/2", "2/2"):
        result = run(
            "eval",
            "--method",
            "center-box",
            *on(birds),
            "--resamples",
            "100",
            "--shard",
            part,
            "--out",
            "shards",
        )
        assert result.code == 0, result.err
        assert result.err.count("--no-transfer") == 1
    assert run("merge", "shards", "--out", "merged").code == 0
    assert policies("merged") == {"oracle"}


def test_a_val_that_lacks_some_of_its_images_is_broken_and_the_way_out_is_named(run, birds: Path) -> None:
    (birds / "images/val/03.png").unlink()
    result = run("eval", "--method", "center-box", *on(birds), "--resamples", "100")
    assert result.code == 2
    assert "1 files of 6 images are missing" in result.err
    assert "--no-transfer" in result.err
    assert run("eval", "--method", "center-box", *on(birds), "--resamples", "100", "--no-transfer").code == 0


def test_a_val_with_broken_annotations_stays_an_error(run, birds: Path) -> None:
    table = birds / "annotations.csv"
    table.write_text(table.read_text().replace("val/03.png,0,val", "val/03.png,zero,val"))
    result = run("eval", "--method", "center-box", *on(birds), "--resamples", "100")
    assert result.code == 2
    assert "annotations.csv" in result.err


def test_training_goes_on_without_a_val_whose_images_are_not_there(run, birds: Path) -> None:
    shutil.rmtree(birds / "images/val")
    shutil.rmtree(birds / "masks/val")
    tiny = (
        "--backbone",
        "tiny",
        "--epochs",
        "1",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--workers",
        "1",
    )
    result = run("train", "--method", "cam", *on(birds), *tiny)
    assert result.code == 0, result.err
    assert "none of the 12 files of csvfolder val is on this disk: no epoch is validated" in result.err


# --- models of other data sets ------------------------------------------------------------------------------


def test_the_run_folder_of_another_users_data_set_is_not_taken_unless_it_is_named(
    run, birds: Path, tmp_path: Path
) -> None:
    tiny = ("--backbone", "tiny", "--epochs", "1", "--image-size", "32")
    here = ("--batch-size", "8", "--device", "cpu", "--workers", "1")
    assert run("train", "--method", "cam", *on(birds), *tiny, *here).code == 0
    assert run("eval", "--method", "cam", *on(birds), *tiny, *here, "--resamples", "100").code == 0
    trained = "runs/birds-a44d89d0/cam-tiny-seed0-epochs=1-image_size=32/last.safetensors"
    # Another folder with the same images and annotations is the same data.
    same = shutil.copytree(birds, tmp_path / "copies/birds")
    assert run("eval", "--method", "cam", *on(same), *tiny, *here, "--resamples", "100").code == 0
    # Other annotations in a folder of the same name are other data, and so is a folder of another name.
    table = same / "annotations.csv"
    table.write_text(table.read_text().replace("train/03.png,0,train", "train/03.png,1,train"))
    result = run("eval", "--method", "cam", *on(same), *tiny, *here, "--resamples", "100")
    assert result.code == 2
    assert f"Of other data or annotations named 'birds': {trained}" in result.err
    other = same.rename(tmp_path / "other")
    result = run("eval", "--method", "cam", *on(other), *tiny, *here, "--resamples", "100")
    assert result.code == 2
    assert "no trained model: runs/other-" in result.err
    assert "--checkpoint" in result.err
    # A run folder that was moved there is not taken either.
    moved = Path(re.search(r"runs/other-\w+/", result.err)[0])
    shutil.copytree(Path(trained).parent, moved / Path(trained).parent.name)
    result = run("eval", "--method", "cam", *on(other), *tiny, *here, "--resamples", "100")
    assert result.code == 2
    assert "was trained on other data than that in" in result.err
    shutil.rmtree(moved)
    checkpoint = next(Path("runs").rglob("last.safetensors"))
    named = run(
        *("eval", "--method", "cam", *on(other), "--checkpoint", checkpoint, "--resamples", "100"),
        *("--device", "cpu"),
    )
    assert named.code == 0, named.err
    assert f"model    {checkpoint} was trained on other data than that in {other}" in named.err
