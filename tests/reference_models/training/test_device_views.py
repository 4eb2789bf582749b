"""Views that the device rotates are those that Pillow rotates, up to one level of rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_models.core.recipes import RECIPES
from reference_models.localization.cam import Cam
from reference_models.training.device_views import device_views
from reference_models.training.images import ImageReader, draw_views
from tests.reference_models.training.test_images import with_masks
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

SIZE, SIDE = 40, 52


def both(tmp_path, **changes) -> tuple[np.ndarray, np.ndarray]:
    """The same batch by Pillow and by the device, with the mask as the fourth channel."""
    recipe = replace(RECIPES["tiny"], **changes)
    reader = ImageReader(with_masks(tmp_path), SIDE, workers=0, masks="mask")
    indices = np.arange(6)
    (host,) = reader.views([indices], SIZE, recipe, seed=3, epoch=1)
    (whole,) = reader.views([indices], SIZE, replace(recipe, rotate_on="device"), seed=3, epoch=1)
    assert whole.shape == (6, SIDE, SIDE, 4)
    draws = draw_views(indices, 0, seed=3, epoch=1)
    return host, device_views(torch.from_numpy(whole), draws, SIZE, recipe).numpy()


@pytest.mark.parametrize("rotation", [3.0, 15.0, 120.0])
def test_rotated_views_differ_by_at_most_one_level(tmp_path, rotation):
    host, device = both(tmp_path, rotation=rotation)
    different = np.abs(host.astype(int) - device.astype(int))
    assert different.max() <= 1
    assert (different > 0).mean() < 0.01


def test_the_nearest_pixel_is_the_same_one(tmp_path):
    host, device = both(tmp_path, rotation=15.0, rotation_filter="nearest")
    assert (host != device).mean() < 1e-3  # ties of rounding


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_a_rotation_views_are_equal(tmp_path, flip):
    host, device = both(tmp_path, rotation=0.0, flip=flip)
    assert np.array_equal(host, device)


def test_a_training_with_rotation_on_the_device_resumes_with_the_same_weights(tmp_path, monkeypatch):
    settings = {"recipe.rotation": "15", "recipe.rotate_on": "device"}
    whole = load_file(Cam.fit(request(tmp_path / "whole", epochs=2, settings=settings)))
    with monkeypatch.context() as patch:
        patch.setattr(Cam, "on_epoch", lambda self, epoch, epochs: [][epoch - 1] if epoch else None)
        with pytest.raises(IndexError):
            Cam.fit(request(tmp_path / "broken", epochs=2, settings=settings))
    resumed = load_file(Cam.fit(request(tmp_path / "broken", epochs=2, settings=settings)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = load_file(Cam.fit(request(tmp_path / "plain", epochs=2)))
    assert not torch.equal(whole["head.classifier.weight"], plain["head.classifier.weight"])


def test_images_of_several_sizes_are_refused(tmp_path):
    settings = {"recipe.short_side": "true", "recipe.rotate_on": "device"}
    with pytest.raises(UsageError, match="images of one size"):
        Cam.fit(request(tmp_path, settings=settings))
