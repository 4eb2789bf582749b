"""Insertion and deletion against a loop over pixels, and for networks whose areas are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import MadeUpSource, dataset
from scipy.ndimage import convolve

from reference_models.localization.cam import Cam
from reference_models.localization.center_box import CenterBox
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.extra_metrics.insertion_deletion import BLUR, SIGMA, STEPS, area, blur, ranks
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))
SIDE = 14


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Logits whose softmax of class 1 is the mean of the first channel, which is in (0, 1)."""
    share = images[:, 0].mean(dim=(1, 2)).clamp(1e-6, 1 - 1e-6)
    return torch.stack([(1 - share).log(), share.log()], dim=1)


def test_ranks_are_the_order_of_falling_values():
    maps = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = (ranks(maps, SIDE) * SIDE**2).round().long()
    for image, places in zip(maps, found, strict=True):
        values = torch.empty(SIDE**2).scatter_(0, places.flatten(), image.flatten())
        assert (values.diff() <= 0).all()


def test_areas_are_those_of_a_loop_over_steps():
    rng = np.random.default_rng(0)
    image, score_map = rng.random((3, SIDE, SIDE)).astype(np.float32), rng.random((SIDE, SIDE))
    order = np.argsort(-score_map.ravel(), kind="stable")
    expected = []
    for start, end in ((np.zeros_like(image), image), (image, np.zeros_like(image))):
        heights = []
        for step in range(STEPS + 1):
            mixed = start.copy().reshape(3, -1)
            changed = [place for rank, place in enumerate(order) if rank < step / STEPS * SIDE**2 - 1e-9]
            mixed[:, changed] = end.reshape(3, -1)[:, changed]
            heights.append(mixed[0].mean())
        expected.append(np.trapezoid(heights) / STEPS)
    places = ranks(torch.from_numpy(score_map)[None], SIDE)
    image, empty, label = torch.from_numpy(image)[None], torch.zeros(1, 3, SIDE, SIDE), torch.tensor([1])
    found = [
        area(brightness, before, after, places, label).item()
        for before, after in ((empty, image), (image, empty))
    ]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_right_map_beats_the_wrong_one():
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[..., :4, :4] = 1.0  # all that the network looks at
    right, label = ranks(image[:, 0], SIDE), torch.tensor([1])
    wrong = ranks(1 - image[:, 0], SIDE)
    empty = torch.zeros_like(image)
    assert area(brightness, empty, image, right, label) > area(brightness, empty, image, wrong, label)
    assert area(brightness, image, empty, right, label) < area(brightness, image, empty, wrong, label)


def test_a_network_that_ignores_the_image_has_the_area_of_its_score():
    def constant(images):
        return torch.zeros(len(images), 4)

    places = ranks(torch.rand(2, SIDE, SIDE), SIDE)
    found = area(
        constant, torch.zeros(2, 3, SIDE, SIDE), torch.ones(2, 3, SIDE, SIDE), places, torch.tensor([0, 3])
    )
    assert found.tolist() == pytest.approx([0.25, 0.25])


def test_the_blur_is_a_gaussian():
    images = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    away = np.arange(BLUR) - BLUR // 2
    kernel = np.exp(-(away[:, None] ** 2 + away**2) / (2 * SIGMA**2))
    for channel in range(3):
        expected = convolve(images[0, channel].double().numpy(), kernel / kernel.sum(), mode="constant")
        np.testing.assert_allclose(blur(images)[0, channel].numpy(), expected, atol=1e-6)


def record_of(method, **options):
    source = ModelSource(method, PROTOCOL, num_classes=3, device="cpu", batch_size=4, **options)
    return evaluate(dataset(6), source, PROTOCOL, extra_metrics=["insertion-deletion"]).record


def test_a_network_gets_both_numbers():
    torch.manual_seed(0)
    cam = Cam.create(backbone="tiny", num_classes=3, weights="none", settings={"width": "8"}, image_size=32)
    metrics = {m.name: m for m in record_of(cam.eval()).metrics}
    for name in ("insertion", "deletion"):
        assert 0 < metrics[name].value < 1
        assert metrics[name].n == 6


def test_a_method_without_scores_has_none():
    box = CenterBox.create(backbone="none", num_classes=3, weights="none", settings={}, image_size=32)
    metrics = {m.name: m for m in record_of(box.eval()).metrics}
    assert metrics["insertion"].value is None
    assert "no class scores" in metrics["insertion"].reason


def test_stored_maps_are_refused():
    with pytest.raises(UsageError, match="insertion-deletion need the network"):
        evaluate(dataset(4), MadeUpSource(), PROTOCOL, extra_metrics=["insertion-deletion"])
