"""The user's own images and models: records without boxes, names and splits of the data, input sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reference_models.core.outputs import ForwardPass
from reference_models.localization.cam import Cam
from reference_models.training.checkpoint import save_checkpoint
from tests.datasets.layouts import write_image
from wsolbench.cli._models import _resize
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for index in range(10):
            write_image(tmp_path / "animals" / name / f"{index}.png", (20, 20))
    return tmp_path / "animals"


def test_images_without_boxes_have_a_record_of_recognition_alone(run, animals: Path) -> None:
    lines = ["image,rank1,rank2"]
    for path in sorted(animals.glob("*/*.png")):
        image = path.relative_to(animals)
        (Path("maps") / image.parent).mkdir(parents=True, exist_ok=True)
        np.save(f"maps/{image}.npy", np.eye(4, dtype=np.float32))
        lines.append(f"{image},0,1")
    Path("predictions.csv").write_text("\n".join(lines) + "\n")
    on = ("--dataset", "imagefolder", "--data-root", animals, "--split-seed", "3")
    scored = run(
        *("score", "--maps", "maps", "--name", "mine", "--predictions", "predictions.csv", *on),
        *("--resamples", "100", "--out", "records"),
    )
    assert scored.code == 0, scored.err
    (path,) = Path("records/animals").glob("*.json")
    record = json.loads(path.read_text())
    assert record["dataset"]["name"] == "animals"
    assert record["dataset"]["format"] == "imagefolder"
    assert record["dataset"]["automatic_split"] == {"seed": 3, "fractions": [0.7, 0.1, 0.2]}
    values = {metric["name"]: metric["value"] for metric in record["metrics"]}
    assert values["top1_cls"] == 0.5  # every image is said to be a cat
    assert all(value is None for name, value in values.items() if "box" in name or name == "gt_known")


def test_options_of_own_data_are_refused_for_a_known_data_set(run) -> None:
    result = run("verify", "--dataset", "toybirds", "--split-seed", "1")
    assert result.code == 2
    assert "the dataset 'toybirds' has no option 'split_seed'" in result.err


def test_verify_says_how_images_are_split(run, animals: Path) -> None:
    result = run("verify", "--dataset", "imagefolder", "--data-root", animals)
    assert result.code == 0, result.out
    assert "14 images in train by the automatic split (train 0.7, val 0.1, test 0.2, by class, seed 0)" in (
        result.out
    )


# --- the input size of a trained model ----------------------------------------------------------------------


def saved(method: str, **settings: str) -> Path:
    torch.manual_seed(0)
    model = load_method(method).create(
        backbone="tiny", num_classes=3, weights="none", settings=settings, image_size=32
    )
    model.class_names = ("red", "green", "blue")
    path = Path("run/last.safetensors")
    save_checkpoint(path, model, {"seed": 0})
    return path


def test_a_trained_model_is_evaluated_at_another_input_size_and_the_record_says_so(run, birds: Path) -> None:
    model = ("--method", "cam", "--checkpoint", saved("cam"), "--device", "cpu")
    scoring = ("--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--no-transfer")
    described = {}
    for size in (32, 64):
        result = run("eval", *model, *scoring, "--image-size", size, "--out", f"at{size}")
        assert result.code == 0, result.err
        (path,) = Path(f"at{size}").rglob("*.json")
        described[size] = json.loads(path.read_text())["method"]
    assert "trained_image_size" not in described[32]
    assert (described[64]["image_size"], described[64]["trained_image_size"]) == (64, 32)


class FixedSize(Cam):
    """A model whose last layer has the size of the training's input."""

    def forward(self, images: torch.Tensor) -> ForwardPass:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_model_whose_layers_need_their_size_is_refused_at_another_one() -> None:
    model = FixedSize.create(backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32)
    with pytest.raises(UsageError, match=r"trained at 32, and its layers need that size \(mat1 and mat2"):
        _resize(model, Path("last.safetensors"), 48, "cpu")
