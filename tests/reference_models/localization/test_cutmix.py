"""CutMix: the box, what is pasted, and how labels are weighted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.outputs import Batch
from reference_models.localization.cam import Cam
from reference_models.localization.cutmix import (
    CutMix,
    CutMixConfig,
    clipped_box,
    draw_lambda,
    mixed_cross_entropy,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5


def cutmix(**settings) -> CutMix:
    return CutMix(toy_backbone(), CLASSES, CutMixConfig(**settings)).train()


def batch(count: int = 6, *, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def box(kept: float, row: int, column: int, height: int, width: int) -> torch.Tensor:
    return clipped_box(torch.tensor([kept]), torch.tensor([row]), torch.tensor([column]), height, width)[0, 0]


def loss_and_images(model: CutMix, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the images that the network was shown."""
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _model, arguments: seen.append(arguments[0]))
    (loss,) = model.loss(given).values()
    handle.remove()
    return loss, seen[0]


@pytest.mark.parametrize(
    ("kept", "centre", "size", "rows", "columns", "expected"),
    [(0.5, (1, 6), 8, (0, 3), (4, 8), 0.8125), (0.3, (10, 200), 224, (0, 103), (107, 224), 0.759825)],
)
def test_the_box_is_clipped_and_its_clipped_area_weights_the_labels(
    kept, centre, size, rows, columns, expected
):
    inside = box(kept, *centre, size, size)
    wanted = torch.zeros(size, size, dtype=torch.bool)
    wanted[rows[0] : rows[1], columns[0] : columns[1]] = True
    assert torch.equal(inside, wanted)
    assert abs(1 - float(inside.float().mean()) - expected) < 1e-6


@given(st.floats(0, 1, width=32), st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_box_has_the_sides_of_the_definition_on_images_of_any_shape(kept, height, width, data):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    root = float(torch.tensor(1 - kept).sqrt())
    half_height, half_width = math.floor(height * root + 1e-5) // 2, math.floor(width * root + 1e-5) // 2
    almost = [abs(length * root - round(length * root)) < 1e-4 for length in (height, width)]
    assume(kept in (0.0, 1.0) or not any(almost))  # float32 may round to either side of a whole number
    inside = box(kept, row, column, height, width)
    for y in range(height):
        for x in range(width):
            assert bool(inside[y, x]) == (
                row - half_height <= y < row + half_height and column - half_width <= x < column + half_width
            )


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_the_part_kept_follows_a_symmetric_beta_distribution(beta):
    kept = draw_lambda(20000, beta, torch.Generator().manual_seed(0)).double()
    assert 0 <= kept.min() <= kept.max() <= 1
    assert abs(float(kept.mean()) - 0.5) < 0.01
    assert abs(float(kept.var()) - 1 / (4 * (2 * beta + 1))) < 0.005


def test_by_default_any_part_kept_is_equally_likely_in_every_batch():
    assert (CutMixConfig().beta, CutMixConfig().prob) == (1.0, 1.0)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_inside_the_box_is_another_image_outside_the_own(scope):
    model, given_batch = cutmix(box_scope=scope), batch(seed=3)
    before = given_batch.images.clone()
    loss, shown = loss_and_images(model, given_batch)
    assert torch.equal(given_batch.images, before)
    own = (shown == before).all(1)  # (B, H, W)
    kept, others = torch.ones(6), torch.arange(6)
    for number in range(6):
        pasted = ~own[number]
        if not pasted.any():
            continue
        rows, columns = (pasted.any(dim) for dim in (1, 0))
        assert torch.equal(pasted, rows[:, None] & columns[None, :])  # it is a box
        sources = [
            other for other in range(6) if torch.equal(shown[number, :, pasted], before[other, :, pasted])
        ]
        assert len(sources) == 1
        others[number], kept[number] = sources[0], 1 - pasted.float().mean()
    assert kept.min() < 1
    expected = mixed_cross_entropy(model(shown).logits, given_batch.labels, given_batch.labels[others], kept)
    torch.testing.assert_close(loss, expected)
    moved = [number for number in range(6) if others[number] != number]
    assert len(set(kept[moved].tolist())) == (1 if scope == "batch" else len(moved))


def test_one_box_for_the_batch_or_one_for_each_image():
    assert cutmix().draw_box(batch()).shape == (1, 1, 32, 32)
    boxes = cutmix(box_scope="sample").draw_box(batch())
    assert boxes.shape == (6, 1, 32, 32)
    assert len({tuple(map(bool, one.flatten())) for one in boxes}) > 1


def test_the_loss_is_linear_in_the_part_kept_between_the_two_labels():
    logits, labels, others = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 4, 3])

    def at(kept: float) -> torch.Tensor:
        return mixed_cross_entropy(logits, labels, others, torch.tensor([kept]))

    torch.testing.assert_close(at(1.0), F.cross_entropy(logits, labels))
    torch.testing.assert_close(at(0.0), F.cross_entropy(logits, others))
    torch.testing.assert_close(at(0.3), 0.3 * at(1.0) + 0.7 * at(0.0))


def test_weights_of_single_images_count_for_their_own_labels():
    logits, labels, others = torch.randn(2, CLASSES), torch.tensor([0, 1]), torch.tensor([3, 4])
    loss = mixed_cross_entropy(logits, labels, others, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0, 4])))


def test_unmixed_batches_are_those_of_cam_and_are_as_frequent_as_prob_says():
    model, given_batch = cutmix(prob=0.0), batch()
    loss, shown = loss_and_images(model, given_batch)
    assert torch.equal(shown, given_batch.images)
    torch.testing.assert_close(loss, F.cross_entropy(model(shown).logits, given_batch.labels))
    half, always = cutmix(prob=0.5, box_scope="sample"), cutmix(box_scope="sample")
    mixed, possible = (
        model.draw_box(batch(2000)).flatten(1).any(1).float().mean() for model in (half, always)
    )
    assert possible > 0.9
    assert abs(float(mixed / possible) - 0.5) < 0.06
    alone = cutmix(prob=0.5)
    assert abs(sum(bool(alone.draw_box(batch(2, seed=seed)).any()) for seed in range(200)) / 200 - 0.5) < 0.15


def test_all_randomness_comes_from_the_generator_of_the_batch():
    model, state = cutmix(), torch.get_rng_state()
    one, two, other = (loss_and_images(model, batch(seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_pasted_at_test():
    model, cam = cutmix().eval(), Cam(toy_backbone(), CLASSES, HeadConfig()).eval()
    cam.load_state_dict(model.state_dict())
    images, asked = batch().images, torch.arange(CLASSES).expand(6, CLASSES)
    assert torch.equal(model.localize(images).logits, cam.localize(images).logits)
    assert torch.equal(model.score_maps(images, asked), cam.score_maps(images, asked))


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"beta": 0.0}, "beta of method 'cutmix' is 0"), ({"prob": 1.2}, "prob of method")],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        cutmix(**setting)
