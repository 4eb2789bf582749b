"""`wsolbench predict`: the same boxes in every file, for images without labels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reference_models.localization.cam import Cam
from reference_models.training.checkpoint import save_checkpoint
from wsolbench import predict

CLASSES = ("crow", "finch", "gull")
CPU = ("--device", "cpu", "--workers", "1", "--batch-size", "2")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Cam.create(backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32)
    model.class_names = CLASSES
    path = tmp_path / "run/last.safetensors"
    save_checkpoint(
        path, model, {"dataset": {"name": "x", "split": "train", "fingerprint": "f", "images": 3}}
    )
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (60, 40), "b.jpg": (30, 50), "more/a.PNG": (700, 350)}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos/readme.txt").write_text("x")
    (tmp_path / "photos/broken.png").write_text("x")
    return tmp_path / "photos"


def test_every_file_has_the_boxes_of_the_library(run, checkpoint: Path, photos: Path) -> None:
    result = run(
        "predict", "--checkpoint", checkpoint, "--images", photos, "--tau", "0.4", "--out", "out", *CPU
    )
    assert result.code == 0, result.err
    assert "1 cannot be read and are left out" in result.err
    names = ["a.png", "b.jpg", "more/a.PNG"]
    expected = dict(
        zip(names, predict(checkpoint, [photos / name for name in names], tau=0.4, device="cpu"), strict=True)
    )
    # JSON
    content = json.loads(Path("out/predictions.json").read_text())
    assert (content["tau"], content["tau_from"], content["method"]["name"]) == (0.4, "the user", "cam")
    assert [image["image"] for image in content["images"]] == names
    for image in content["images"]:
        found = expected[image["image"]]
        np.testing.assert_allclose(image["box"], found.box)
        np.testing.assert_allclose(image["boxes"], found.boxes)
        assert (image["width"], image["height"]) == found.size
        assert image["labels"][0]["name"] == CLASSES[found.labels[0].index]
    # CSV
    rows = list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == names
    np.testing.assert_allclose(
        [[float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row in rows],
        [expected[name].box for name in names],
        rtol=1e-5,
    )
    # COCO
    images = json.loads(Path("out/coco_images.json").read_text())
    assert [category["name"] for category in images["categories"]] == list(CLASSES)
    numbers = {image["id"]: image["file_name"] for image in images["images"]}
    for item in json.loads(Path("out/coco_results.json").read_text()):
        found = expected[numbers[item["image_id"]]]
        x, y, width, height = item["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], found.box)
        assert item["category_id"] == found.labels[0].index + 1
    # Overlays, at most 640 pixels long.
    sizes = {}
    for name in names:
        with Image.open(f"out/overlays/{name}.jpg") as picture:
            sizes[name] = picture.size
    assert sizes == {"a.png": (60, 40), "b.jpg": (30, 50), "more/a.PNG": (640, 320)}


def test_all_boxes_are_those_of_all_regions(run, checkpoint: Path, photos: Path) -> None:
    options = ("--tau", "0.5", "--all-boxes", "--no-overlays", "--protocol-set", "components=all")
    result = run(
        "predict", "--checkpoint", checkpoint, "--images", photos / "a.png", *options, "--out", "out", *CPU
    )
    assert result.code == 0, result.err
    (image,) = json.loads(Path("out/predictions.json").read_text())["images"]
    assert len(list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))) == len(
        image["boxes"]
    )
    assert not Path("out/overlays").exists()


def test_pictures_of_an_earlier_run_in_the_folder_are_not_predicted(
    run, checkpoint: Path, photos: Path
) -> None:
    command = ("predict", "--checkpoint", checkpoint, "--images", photos, "--tau", "0.4", *CPU)
    for out in (photos / "out", photos):
        for _ in range(2):
            result = run(*command, "--out", out)
            assert result.code == 0, result.err
        assert len(json.loads((out / "predictions.json").read_text())["images"]) == 3
        shutil.rmtree(out / "overlays")


def test_an_image_that_is_cut_short_is_left_out_and_named(run, checkpoint: Path, photos: Path) -> None:
    command = ("predict", "--checkpoint", checkpoint, "--images", photos, "--tau", "0.4", *CPU)
    command = (*command, "--batch-size", "1", "--out", "out")

    def predicted() -> list[str]:
        result = run(*command)
        assert result.code == 0, result.err
        if cut:
            message = f"1 cannot be read and are left out: image '{photos / cut}'"
            assert message in " ".join(result.err.split())
        found = json.loads((Path("out") / "predictions.json").read_text())["images"]
        shutil.rmtree("out")
        return [image["image"] for image in found]

    cut = ""
    names = predicted()
    cut, *others = names
    whole = (photos / cut).read_bytes()
    (photos / cut).write_bytes(whole[: len(whole) // 2])
    assert predicted() == others
    for name in others:
        (photos / name).write_bytes((photos / name).read_bytes()[:60])
    result = run(*command)
    assert result.code == 2
    assert "none of the" in result.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no threshold for method 'cam'"),
        (("--tau", "2"), "2 is not a number in [0, 1]"),
        (("--tau", "0.4", "--images", "nowhere"), "there is no such file or folder"),
        (("--tau", "0.4", "--images", "run"), "no file there ends in .jpg"),
        (("--tau", "0.4", "--checkpoint", "photos/a.png"), "is not a safetensors file"),
        (("--tau", "0.4", "--post", "scg,sem"), "expected one post-process"),
        (("--tau", "0.4", "--set", "head=fc"), "cannot be changed any more"),
    ],
)
def test_what_cannot_be_predicted_is_explained(
    run, checkpoint: Path, photos: Path, options: tuple[str, ...], message: str
) -> None:
    result = run("predict", "--checkpoint", checkpoint, "--images", photos, "--out", "out", *CPU, *options)
    assert result.code == 2
    assert message in result.err
    assert not Path("out").exists()
