"""Controls of part proposals: where they are, what they depend on, and what a record says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.layers.navigator import SIDES
from reference_models.recognition.control_parts import ControlParts, draw_uniform
from tests.reference_models.conftest import squares
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import UsageError
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import Supervision
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.testing import run_check
from wsolbench.types import Dataset

ALL = ("image_random", "image_center", "box_random", "box_center", "anchors")
PROTOCOL = EvalProtocol(taus=tau_grid(0.1))


def create(points: str, size: int = 64) -> ControlParts:
    return ControlParts.create(
        backbone="any", num_classes=3, weights="none", settings={"points": points}, image_size=size
    )


def centres(model: ControlParts, images: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
    found = model.localize(images, true_boxes=boxes).propose().boxes
    return (found[..., :2] + found[..., 2:]) / 2


# --- the draws ----------------------------------------------------------------------------------------------


def splitmix(z: int) -> int:
    """The published generator, on Python's integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_draws_are_those_of_splitmix_seeded_by_the_pixels():
    image = torch.randn(1, 3, 2, 2)
    seed = sum(
        int(level) * (2 * splitmix(place) + 1)
        for place, level in enumerate((image.double() * 64).round().flatten().tolist())
    )
    expected = [(splitmix((seed + n * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for n in range(1, 6)]
    assert draw_uniform(image, 5)[0].tolist() == expected


def test_draws_are_even_and_differ_between_images():
    numbers = draw_uniform(torch.randn(400, 3, 4, 4), 8)
    counts = np.histogram(numbers.flatten().numpy(), bins=10, range=(0, 1))[0]
    assert ((counts - 320) ** 2 / 320).sum() < 27.9  # chi-square with 9 degrees of freedom at 0.001
    assert abs(np.corrcoef(numbers.T.numpy())[np.triu_indices(8, 1)]).max() < 0.2
    assert len(np.unique(numbers.numpy())) == numbers.numel()


def test_a_last_bit_of_a_pixel_and_the_neighbours_of_an_image_change_no_draw():
    images = torch.round(torch.randn(4, 3, 8, 8) * 50) / 50 + 1e-3
    numbers = draw_uniform(images, 3)
    assert torch.equal(draw_uniform(torch.nextafter(images, torch.tensor(9.0)), 3), numbers)
    assert torch.equal(draw_uniform(images[2:3], 3), numbers[2:3])


# --- the parts ----------------------------------------------------------------------------------------------


def test_points_lie_where_their_name_says():
    images = torch.randn(300, 3, 8, 8)
    boxes = torch.tensor([[1.0, 2.0, 4.0, 7.0]]).expand(300, 4)
    assert torch.equal(centres(create("image_center", 8), images), torch.full((300, 4, 2), 4.0))
    assert torch.equal(
        centres(create("box_center", 8), images, boxes), torch.tensor([2.5, 4.5]).expand(300, 4, 2)
    )
    for points, low, high in (("image_random", (0, 0), (8, 8)), ("box_random", (1, 2), (4, 7))):
        found = centres(create(points, 8), images, boxes)
        start, end = torch.tensor(low), torch.tensor(high)
        assert (found >= start).all()
        assert (found < end).all()
        share = ((found - start) / (end - start)).flatten(0, 1)
        torch.testing.assert_close(share.mean(0), torch.full((2,), 0.5), atol=0.03, rtol=0)
        torch.testing.assert_close(share.var(0), torch.full((2,), 1 / 12), atol=0.01, rtol=0)


def test_points_have_the_squares_of_peaks():
    found = create("image_random", 448).localize(torch.randn(1, 3, 448, 448)).propose().boxes
    torch.testing.assert_close(found[..., 2:] - found[..., :2], torch.full((1, 4, 2), 160.0))


def test_anchors_are_nts_net_s_and_do_not_overlap():
    found = create("anchors", 448).localize(torch.randn(6, 3, 448, 448)).propose()
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).prod(-1).sqrt()
    known = torch.tensor([side for level in SIDES["nts"] for side in level])
    assert ((sides[..., None] - known).abs().amin(-1) < 1e-3).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert not found.padded.any()
    half = create("anchors", 224).localize(torch.randn(2, 3, 224, 224)).propose().boxes
    sides = (half[..., 2:] - half[..., :2]).prod(-1).sqrt()
    assert ((2 * sides[..., None] - known).abs().amin(-1) < 1e-3).all()


@pytest.mark.parametrize("points", ["image_center", "anchors"])
@pytest.mark.parametrize("check", ["maps", "independence", "determinism", "fake_gpu"])
def test_it_does_what_every_method_must(points, check):
    run_check("control-parts", check, settings={"points": points})


# --- records ------------------------------------------------------------------------------------------------


def annotated() -> Dataset:
    """Each image has its key point in the middle of its box; the last image has no box."""
    data = squares(12, size=64)
    samples = [
        replace(sample, key_points=np.array([[*(sample.boxes[0].reshape(2, 2).mean(0)), 1.0]]))
        for sample in data.samples
    ]
    return replace(data, samples=(*samples[:-1], replace(samples[-1], boxes=np.zeros((0, 4)))))


def value(record, name: str) -> float:
    return record.metric(name).value


@pytest.mark.parametrize("points", ALL)
def test_a_record_says_whether_the_ground_truth_was_used(points):
    data = annotated()
    source = ModelSource(create(points, 32), PROTOCOL, num_classes=3, device="cpu", batch_size=5)
    record = evaluate(data, source, PROTOCOL, options=RunOptions(resamples=50)).record
    assert record.method["config"]["points"] == points
    uses = Supervision(boxes=True, used_for="prediction") if points.startswith("box_") else None
    assert record.supervision == uses
    assert record.metric("keypoint_distance").n == 11
    assert value(record, "gt_known") == 0  # nothing of the ground truth is in the maps
    if points == "box_center":  # one point, met by four boxes
        assert value(record, "keypoint_distance") == pytest.approx(0, abs=1e-6)
        assert value(record, "keypoint_covered") == value(record, "keypoint_distinct") == 1
    elif points == "box_random":
        assert 0.1 < value(record, "keypoint_distance") < 0.4
    else:
        boxes = [map_to_view(s.boxes[0].reshape(2, 2), s.size, 32, PROTOCOL) for s in data.samples[:-1]]
        if points == "image_center":
            expected = [np.hypot(*(b.mean(0) - 16)) / np.hypot(*(b[1] - b[0])) for b in boxes]
            assert value(record, "keypoint_distance") == pytest.approx(np.mean(expected), abs=1e-6)


def test_without_the_ground_truth_it_says_what_it_needs():
    with pytest.raises(UsageError, match="needs the ground-truth box"):
        create("box_center").localize(torch.randn(1, 3, 64, 64))
