"""Prediction without labels: the numbers of an evaluation, the threshold of its record, and clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import CLASSES, dataset
from PIL import Image

from reference_models.localization.cam import Cam
from reference_models.localization.center_box import CenterBox, CenterBoxConfig
from reference_models.localization.oracle import Oracle
from reference_models.training.checkpoint import save_checkpoint
from wsolbench import predict
from wsolbench.evaluation.evaluate import Evaluation, evaluate
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import InputSpec
from wsolbench.methods.checkpoints import load_checkpoint, method_of_checkpoint
from wsolbench.protocol import EvalProtocol

WSOLEVAL = EvalProtocol.preset("wsoleval")


@pytest.fixture(scope="module")
def cam() -> Cam:
    torch.manual_seed(0)
    model = Cam.create(backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32)
    model.class_names = CLASSES
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(cam: Cam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.safetensors"
    training = {"dataset": {"name": "made-up", "split": "train", "fingerprint": "f", "images": 3}}
    save_checkpoint(path, cam, training)
    return path


def evaluated(checkpoint: Path) -> Evaluation:
    """The record of the checkpoint, with a threshold from the split val."""
    source = ModelSource(load_checkpoint(checkpoint), WSOLEVAL, num_classes=3, batch_size=4)
    return evaluate(dataset(6), source, WSOLEVAL, transfer_from=dataset(6, "val", 1))


def middle() -> CenterBox:
    return CenterBox(3, CenterBoxConfig(), InputSpec(size=64))


def test_boxes_are_in_pixels_of_the_image() -> None:
    """The pyramid of center-box above tau is the centred box whose sides are 1 - tau of the image's."""
    protocol = replace(WSOLEVAL, clip_boxes=False)
    image = Image.fromarray(np.zeros((100, 400, 3), np.uint8))
    (found,) = predict(middle(), [image], tau=0.5, protocol=protocol)
    assert found.size == (400, 100)
    assert found.labels == ()
    # Half of the 224 pixels of the frame; a pixel of the frame is 400/224 by 100/224 pixels.
    np.testing.assert_allclose(found.box, [100, 25, 300, 75], atol=4)
    np.testing.assert_array_equal(found.boxes, [found.box])
    assert found.unit_map().shape == (224, 224)


def test_files_pictures_and_pixels_give_the_same(cam: Cam, tmp_path: Path) -> None:
    pixels = dataset(1).samples[0].image()
    Image.fromarray(pixels).save(tmp_path / "bird.png")
    file, picture, array = predict(cam, [tmp_path / "bird.png", Image.fromarray(pixels), pixels], tau=0.3)
    assert file.path == tmp_path / "bird.png"
    assert picture.path is None
    assert [found.index for found in (file, picture, array)] == [0, 1, 2]
    for other in (picture, array):
        np.testing.assert_array_equal(file.map, other.map)
        np.testing.assert_array_equal(file.boxes, other.boxes)
        assert file.labels == other.labels


def test_the_map_is_of_the_most_probable_class(cam: Cam) -> None:
    """An evaluation in which the predicted class is the true one has the same map."""
    images = dataset(5).samples
    source = ModelSource(cam, WSOLEVAL, num_classes=3, batch_size=4)
    for found, sample in zip(predict(cam, [s.image() for s in images], tau=0.3), images, strict=True):
        assert [label.name for label in found.labels] == [CLASSES[label.index] for label in found.labels]
        assert sum(label.probability for label in found.labels) == pytest.approx(1)
        own = replace(sample, label=found.labels[0].index)
        output = source.maps([own], source.collate([source.load(own)]))
        assert output.ranked[0].tolist() == [label.index for label in found.labels]
        np.testing.assert_allclose(output.maps[0], found.map, rtol=1e-4, atol=1e-6)


def test_ten_crops_classify(cam: Cam) -> None:
    protocol = EvalProtocol.preset("bas")
    (found,) = predict(cam, [dataset(1).samples[0].image()], tau=0.3, protocol=protocol)
    assert sum(label.probability for label in found.labels) == pytest.approx(1)


def test_images_are_read_batch_by_batch(cam: Cam) -> None:
    seen: list[int] = []

    def images() -> object:
        for index in range(100):
            seen.append(index)
            yield np.zeros((8, 8, 3), np.uint8)

    next(iter(predict(cam, images(), tau=0.5, batch_size=2)))  # type: ignore[arg-type]
    assert len(seen) == 4  # this batch and the next one


def test_the_checkpoint_names_its_method_and_its_record_the_threshold(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert method_of_checkpoint(checkpoint) == "cam"
    record = evaluated(checkpoint).record
    metric = record.metric("gt_known", "transfer")
    assert metric is not None
    path = record.write(tmp_path)
    image = dataset(1).samples[0].image()
    for where in (record, path, tmp_path):
        (found,) = predict(checkpoint, [image], record=where)
        assert (found.tau,) == metric.tau
    with pytest.raises(UsageError, match="no transferred threshold under protocol 'spa'"):
        predict(checkpoint, [image], record=record, protocol="spa")


def test_without_a_record_the_threshold_must_be_given(cam: Cam, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no record of this model\. Give the threshold \(tau, --tau\)"):
        predict(cam, [], record=tmp_path)
    with pytest.raises(UsageError, match=r"tau=1\.5; expected a number in \[0, 1\]"):
        predict(cam, [], tau=1.5)
    assert list(predict(cam, [], tau=1.0)) == []


def test_what_is_no_image_is_named(cam: Cam, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for image, message in (
        (tmp_path / "broken.jpg", "broken.jpg"),
        (tmp_path / "absent.jpg", "absent.jpg"),
        (np.zeros((4, 4)), r"image 0 has shape \(4, 4\) and dtype float64; expected uint8"),
        (3, "image 0 is int; expected a path"),
    ):
        with pytest.raises(DataError, match=message):
            list(predict(cam, [image], tau=0.5))  # type: ignore[list-item]


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"1234")
    for path, message in (
        (tmp_path / "absent", "no checkpoint"),
        (other, "does not name its method"),
        (broken, "not a safetensors file"),
    ):
        with pytest.raises(DataError, match=message):
            predict(path, [], tau=0.5)


def test_methods_that_read_the_ground_truth_are_refused() -> None:
    model = Oracle.create(backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32)
    with pytest.raises(UsageError, match="reads the ground-truth"):
        predict(model, [], tau=0.5)
