"""`wsolbench export`, `train-detector`, `eval-detector` and the board together, on a small folder of the
user's own pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsolbench.protocol import DetectionProtocol
from wsolbench.records import read_record

NETWORK = (
    "--backbone",
    "tiny",
    "--set",
    "min_size=48",
    "--set",
    "max_size=48",
    "--epochs",
    "1",
    "--device",
    "cpu",
)
TRAIN = (*NETWORK, "--limit", "4", "--workers", "0")


def records() -> list[Path]:
    return sorted(Path("results/measured").glob("*/*.json"))


def test_training_and_evaluation_in_one_command_train_once(run, birds: Path) -> None:
    for split in ("train", "val"):
        run("export", "--dataset", "csvfolder", "--data-root", birds, "--split", split, "--out", "coco")
    times = set()
    for _ in range(2):
        result = run("eval-detector", "--data-root", "coco", *NETWORK, "--workers", "0", "--train")
        assert result.code == 0, result.err
        (checkpoint,) = Path("runs").rglob("last.safetensors")
        times.add(checkpoint.stat().st_mtime_ns)
    assert len(times) == 1
    (path,) = records()
    assert read_record(path).method["training"]["dataset"]["images"] == 24
    # Another number format of the training is another run.
    mixed = ("eval-detector", "--data-root", "coco", *NETWORK, "--workers", "0", "--amp", "bf16")
    missing = run(*mixed)
    assert missing.code == 2
    assert "no trained detector" in missing.err
    result = run(*mixed, "--train")
    assert result.code == 0, result.err
    (other,) = set(records()) - {path}
    assert read_record(other).settings["train.amp"] == "bf16"
    assert "train.amp" not in read_record(path).settings


def test_export_then_train_then_evaluate_then_the_board(run, birds: Path) -> None:
    for split in ("train", "val"):
        result = run(
            "export", "--dataset", "csvfolder", "--data-root", birds, "--split", split, "--out", "coco"
        )
        assert result.code == 0, result.err
    assert "objects      6" in result.out
    trained = run("train-detector", "--data-root", "coco", *TRAIN)
    assert trained.code == 0, trained.err
    assert (
        "runs/birds/lio-mask-rcnn-tiny-seed0-epochs=1-max_size=48-min_size=48/last.safetensors" in trained.out
    )
    result = run("eval-detector", "--data-root", "coco", *NETWORK, "--save-detections", "found.json")
    assert result.code == 0, result.err
    assert "Detected boxes" in result.out
    (path,) = records()
    record = read_record(path)
    assert record.protocol == DetectionProtocol()
    assert (record.method["name"], record.method["backbone"], record.method["variant"]) == (
        "lio-mask-rcnn",
        "tiny",
        "official",
    )
    assert (record.dataset["name"], record.dataset["split"], record.dataset["images"]) == (
        "birds",
        "val",
        6,
    )
    assert [metric.name for metric in record.metrics][:2] == ["box_ap", "box_ap50"]
    large = record.metric("mask_ap_large")
    assert large is not None
    assert (large.value, large.reason) == (None, "no object of this size")
    assert record.provenance["versions"]["pycocotools"]
    found = json.loads(Path("found.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(found[0])

    board = run("leaderboard")
    assert board.code == 0, board.err
    text = Path("results/leaderboard/birds.md").read_text()
    assert "Protocol coco" in text
    assert "Mask AP50" in text
    compared = run("compare", "--a", path, "--b", path)
    assert compared.code == 2
    assert "is of a detector" in compared.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-detector", "--data-root", "nowhere"), "is missing"),
        (("train-detector",), "WSOLBENCH_COCO_ROOT"),
        (
            ("train-detector", "--method", "lio-maskrcnn"),
            "unknown detector 'lio-maskrcnn'; did you mean 'lio-mask-rcnn'",
        ),
        (("eval-detector", "--data-root", "coco"), "Train it with `wsolbench train-detector`"),
        (("eval-detector", "--data-root", "coco", "--split", "test"), "unknown split 'test'"),
        (
            ("eval-detector", "--data-root", "coco", "--checkpoint", "x", "--lr", "1"),
            "--lr has no effect with --checkpoint",
        ),
        (
            ("eval-detector", "--data-root", "coco", "--checkpoint", "x", "--set", "min_size=9"),
            "--set min_size has no effect",
        ),
        (
            ("eval-detector", "--data-root", "coco", "--checkpoint", "x", "--train"),
            "--checkpoint and --train exclude each other",
        ),
        (
            ("eval-detector", "--data-root", "coco", "--checkpoint", "x", "--amp", "bf16"),
            "leave them out, or use --train",
        ),
        (
            ("eval-detector", "--data-root", "coco", "--no-deterministic"),
            "have no effect on a detector that is trained already",
        ),
        (
            ("eval-detector", "--data-root", "coco", "--checkpoint", "nowhere.safetensors"),
            "no checkpoint nowhere.safetensors",
        ),
        (("eval-detector", "--data-root", "coco", "--save-detections", "birds"), "is a directory"),
        (
            ("train-detector", "--data-root", "coco", "--split", "val", "--set", "recipe.momentum=2"),
            "setting momentum of recipe 'lio_coco' is 2.0; expected a number in [0, 1)",
        ),
        (
            ("train-detector", "--data-root", "coco", "--split", "val", "--set", "recipe.flip=3"),
            "setting flip of recipe 'lio_coco' is 3.0; expected a number in [0, 1]",
        ),
        (("export", "--dataset", "coco", "--data-root", "coco", "--out", "again"), "is for detectors"),
        (
            ("export", "--dataset", "csvfolder", "--data-root", "birds", "--split", "tarin", "--out", "coco"),
            "did you mean 'train'",
        ),
        (("eval", "--dataset", "toybirds", "--method", "lio-mask-rcnn"), "eval-detector"),
    ],
)
def test_a_wrong_option_is_explained(
    run, birds: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("WSOLBENCH_COCO_ROOT", raising=False)
    monkeypatch.delenv("WSOLBENCH_DATA", raising=False)
    assert (
        run("export", "--dataset", "csvfolder", "--data-root", birds, "--split", "val", "--out", "coco").code
        == 0
    )
    result = run(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not records()


def test_a_checkpoint_of_other_classes_is_refused(run, birds: Path) -> None:
    for split in ("train", "val"):
        assert (
            run(
                "export", "--dataset", "csvfolder", "--data-root", birds, "--split", split, "--out", "coco"
            ).code
            == 0
        )
    assert run("train-detector", "--data-root", "coco", *TRAIN, "--out", "run").code == 0
    path = Path("coco/annotations/instances_val.json")
    path.write_text(path.read_text().replace('"red"', '"scarlet"'))
    result = run("eval-detector", "--data-root", "coco", "--checkpoint", "run/last.safetensors")
    assert result.code == 2
    assert "was trained on other classes" in result.err
