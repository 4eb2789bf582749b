"""`wsolbench correlations` on a small folder of pictures: what is drawn, what is stored, and what is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reference_models.postprocess.scg.method import Scg, point_correlations
from reference_models.training.checkpoint import save_checkpoint
from wsolbench.datasets import load_dataset
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method
from wsolbench.methods.inputs import to_input

IMAGE = "test/00.png"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model" / "last.safetensors"
    save_checkpoint(
        path,
        load_method("cam").create(backbone="tiny", num_classes=3, weights="none", settings={}, image_size=64),
        {},
    )
    return path


@pytest.fixture
def draw(run, birds: Path, checkpoint: Path):
    def call(*arguments: object) -> Any:
        model = ("--method", "cam", "--checkpoint", checkpoint, "--device", "cpu")
        return run("correlations", *model, "--dataset", "csvfolder", "--data-root", birds, *arguments)

    return call


def forward_pass(checkpoint: Path, birds: Path, image_id: str) -> tuple[Any, int]:
    model = load_method("cam").load(checkpoint, device="cpu")
    sample = load_dataset("csvfolder", "test", root=birds).find(image_id)
    return model.localize(torch.tensor(to_input(sample.image(), model.input_spec))[None]), sample.label


def test_the_stored_maps_are_the_correlations_with_the_cell_that_the_point_is_in(
    draw, birds: Path, checkpoint: Path
) -> None:
    orders = (1, 2, 3)
    result = draw(
        "--image",
        IMAGE,
        "--point",
        "40.5,11",
        "--point",
        "0,47.9",
        "--orders",
        "1,2,3",
        "--save-maps",
        "new/maps.npz",
    )
    assert result.code == 0, result.err
    stored = np.load("new/maps.npz")
    assert stored["images"].tolist() == [IMAGE, IMAGE]
    assert stored["points"].tolist() == [[40.5, 11], [0, 47.9]]
    assert stored["orders"].tolist() == [1, 2, 3]
    assert stored["stage"] == "stage3"
    features = forward_pass(checkpoint, birds, IMAGE)[0].stages["stage3"]
    assert features.shape[2:] == (8, 8)  # of a picture of 48 x 48, six pixels to a cell
    for row, cell in enumerate(([1, 6], [7, 0])):
        expected = point_correlations(features, torch.tensor([cell]), Scg.create({}).config, orders)[0]
        np.testing.assert_allclose(stored["maps"][row], expected.numpy(), rtol=1e-5, atol=1e-7)


def test_without_a_point_the_peak_of_the_map_of_the_true_class_is_taken(
    draw, birds: Path, checkpoint: Path
) -> None:
    images = [f"test/0{number}.png" for number in range(4)]
    result = draw(*(part for image in images for part in ("--image", image)), "--save-maps", "maps.npz")
    assert result.code == 0, result.err
    for image, point in zip(images, np.load("maps.npz")["points"], strict=True):
        found, label = forward_pass(checkpoint, birds, image)
        raw_map = found.score_maps(torch.tensor([[label]]))[0, 0].numpy()
        row, column = np.argwhere(raw_map == raw_map.max())[0]
        np.testing.assert_allclose(point, [6 * column + 3, 6 * row + 3])


def test_another_stage_and_the_paper_s_definition_can_be_asked_for(
    draw, birds: Path, checkpoint: Path
) -> None:
    result = draw(
        "--image",
        IMAGE,
        "--point",
        "1,1",
        "--stage",
        "stage1",
        "--post-set",
        "scg.variant=paper",
        "--save-maps",
        "maps.npz",
    )
    assert result.code == 0, result.err
    stored = np.load("maps.npz")
    features = forward_pass(checkpoint, birds, IMAGE)[0].stages["stage1"]
    expected = point_correlations(features, torch.tensor([[0, 0]]), Scg.create({"variant": "paper"}).config)[
        0
    ]
    np.testing.assert_allclose(stored["maps"][0], expected.numpy(), rtol=1e-4, atol=1e-6)
    assert stored["stage"] == "stage1"
    assert stored["maps"][0, 0].max() == pytest.approx(1)


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("b.jpg", "JPEG")])
def test_a_picture_grows_by_a_column_for_each_order_and_a_row_for_each_point(
    draw, name: str, kind: str
) -> None:
    sizes = []
    for points, orders in ((("9,9",), "1,2,3"), (("9,9", "30,20"), "1,2,3"), (("9,9",), "1,2,3,4")):
        result = draw(
            "--image",
            IMAGE,
            *(part for point in points for part in ("--point", point)),
            "--orders",
            orders,
            "--out",
            name,
        )
        assert result.code == 0, result.err
        assert name in result.out
        with Image.open(name) as picture:
            assert picture.format == kind
            sizes.append(picture.size)
    one, two_points, four_orders = sizes
    assert two_points[0] == one[0]
    assert two_points[1] > one[1] + 200
    assert four_orders[1] == one[1]
    assert four_orders[0] > one[0] + 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "test/0.png"), "did you mean 'test/0"),
        (("--image", "zebra"), "the first of its 9 ids is 'test/00.png'"),
        (("--image", IMAGE, "--point", "48,3"), "expected 0 <= X < 48 and 0 <= Y < 48"),
        (("--image", IMAGE, "--point", "3,-1"), "outside of image"),
        (("--image", IMAGE, "--point", "nan,1"), "expected X,Y in pixels of the image"),
        (("--image", IMAGE, "--point", "3"), "expected X,Y"),
        (("--image", IMAGE, "--point", "a,b"), "expected X,Y"),
        (("--image", IMAGE, "--image", "test/01.png", "--point", "3,3"), "2 images and 1 points"),
        (("--image", IMAGE, "--orders", "1,two"), "expected whole numbers"),
        (("--image", IMAGE, "--orders", "1,"), "expected whole numbers"),
        (("--image", IMAGE, "--orders", "1,0"), "expected whole numbers from 1 to 99"),
        (("--image", IMAGE, "--orders", "1,3", "--post-set", "scg.variant=paper"), "(8) is of order 2"),
        (("--image", IMAGE, "--stage", "stage9"), "did you mean 'stage"),
        (("--image", IMAGE, "--post-set", "scg.fo=1"), "fo_th"),
        (("--image", IMAGE, "--post-set", "sem.seeds=1"), "--post-set sem.seeds=1"),
        (("--image", IMAGE, "--post", "sem"), "'sem' has no correlations"),
        (("--image", IMAGE, "--post", "none"), "'none' has no correlations"),
        (("--image", IMAGE, "--post", "scg,sem"), "one post-process"),
        (("--image", IMAGE, "--split", "tset"), "tset"),
        (("--image", IMAGE, "--save-maps", "out/maps.npy"), "ends with .npz"),
    ],
    ids=lambda value: " ".join(value)[8:] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_drawn_is_explained_and_leaves_no_file(
    draw, arguments: tuple[str, ...], message: str
) -> None:
    result = draw("--out", "out/picture.png", "--save-maps", "out/maps.npz", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_a_picture_of_another_kind_is_refused(draw) -> None:
    result = draw("--image", IMAGE, "--out", "picture.gif")
    assert result.code == 2
    assert "expected .png, .jpg, .jpeg or .pdf" in result.err


def test_a_method_without_features_is_refused(run, birds: Path) -> None:
    result = run(
        "correlations",
        "--method",
        "center-box",
        "--dataset",
        "csvfolder",
        "--data-root",
        birds,
        "--image",
        IMAGE,
    )
    assert result.code == 2
    assert "needs 1 feature stages" in result.err


def test_an_id_is_found_wherever_it_is(birds: Path) -> None:
    dataset = load_dataset("csvfolder", "test", root=birds)
    assert [dataset.find(image_id) for image_id in dataset.ids] == list(dataset.samples)
    with pytest.raises(UsageError, match=r"no image 'tset/03.png' in .*/test; did you mean 'test/03.png'"):
        dataset.find("tset/03.png")
