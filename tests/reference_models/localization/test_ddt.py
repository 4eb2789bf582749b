"""DDT: one direction for each class, from one pass over the training images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.layers.descriptors import principal_direction
from reference_models.localization.ddt import Ddt, DdtConfig
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method
from wsolbench.testing import squares


def request(out, **options) -> TrainRequest:
    usual = {
        "train": squares(24),
        "backbone": "tiny",
        "weights": "none",
        "batch_size": 5,
        "image_size": 64,
        "workers": 0,
        "device": "cpu",
    }
    return TrainRequest(out=out, **{**usual, **options})


def inputs(model: Ddt, data) -> torch.Tensor:
    pixels = torch.tensor(np.stack([sample.image() for sample in data.samples]))
    large = pixels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (model.input_spec.mean, model.input_spec.std)
    )
    return (large - mean) / std


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Ddt:
    return Ddt.load(Ddt.fit(request(tmp_path_factory.mktemp("ddt"))), device="cpu")


def test_a_class_has_the_direction_of_its_own_images(fitted, tmp_path):
    one = squares(24)
    own = replace(one, samples=[sample for sample in one.samples if sample.label == 1], fingerprint="own")
    alone = Ddt.load(Ddt.fit(request(tmp_path, train=own)), device="cpu")
    assert not alone.axis[[0, 2]].any()
    torch.testing.assert_close(alone.axis[1], fitted.axis[1])
    torch.testing.assert_close(alone.mean[1], fitted.mean[1])
    asked = torch.tensor([[0, 1]] * 2)
    maps = alone.score_maps(torch.randn(2, 3, 64, 64), asked)
    assert not maps[:, 0].any()  # a class without images
    assert maps[:, 1].std() > 0


def test_maps_are_the_coordinates_of_the_cells(fitted):
    images = torch.randn(3, 3, 64, 64)
    features = fitted.descriptors(images)[1]
    found = principal_direction([features])
    fitted.mean[2], fitted.axis[2] = found.mean, found.axis
    maps = fitted.score_maps(images, torch.tensor([[2], [2], [2]]))
    torch.testing.assert_close(maps[:, 0], found.heat(features).float(), atol=1e-5, rtol=1e-4)


def test_maps_of_training_images_are_0_in_the_mean_and_not_higher_on_the_border(fitted):
    data = squares(24)
    images, labels = inputs(fitted, data), torch.tensor([[sample.label] for sample in data.samples])
    maps = fitted.score_maps(images, labels)[:, 0]
    assert fitted.localize(images).logits is None
    for label in (0, 1):
        own = maps[labels[:, 0] == label]
        # The images were enlarged by another filter in training.
        inner = own[:, 1:-1, 1:-1].mean()
        assert abs(float(own.mean())) < 0.5 * float(own.std())
        assert inner > (own.sum() - own[:, 1:-1, 1:-1].sum()) / (own.numel() - own[:, 1:-1, 1:-1].numel())


def test_networks_of_the_papers_see_448_pixels():
    method = load_method("ddt")
    assert [method.default_size(name, 200) for name in ("vgg16", "resnet50", "tiny")] == [448, 448, None]
    with torch.device("meta"):
        model = method.create(backbone="resnet50", num_classes=3, weights="none", settings={})
        assert model.descriptors(torch.zeros(1, 3, 448, 448))[1].shape == (1, 2048, 14, 14)
        assert model.input_spec.size == 448


def test_a_grid_without_inner_cells_is_refused():
    model, batch = Ddt(toy_backbone(), 3, DdtConfig()).eval(), toy_batch(3, classes=3)
    batch = replace(batch, images=batch.images[..., :8, :8])
    with pytest.raises(UsageError, match=r"method 'ddt'.*2x2 cells, expected at least 3x3"):
        model.measure(squares(3), lambda chosen: iter([batch]))
