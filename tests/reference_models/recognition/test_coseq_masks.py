"""CoSeq: masks by co-segmentation, the minimum cut, and the boxes of parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reference_models.recognition.coseq.parts import (
    Frame,
    grid_boxes,
    least_side,
    make_frame,
    mask_box,
    nearest_inside,
    part_boxes,
)
from reference_models.recognition.coseq.segmentation import (
    AREAS,
    EXTENT,
    Mixture,
    Scene,
    accepted_mask,
    cosegment,
    fit_mixture,
    grabcut,
    judge,
    largest_part,
    min_cut,
    neighbour_grid,
)

BOX = (6, 5, 34, 30)


def scene(seed: int = 0, colour: tuple[int, int, int] = (200, 60, 40)) -> tuple[Scene, np.ndarray]:
    """A blob on noise, and its mask. The box has pixels of both."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:36, :40]
    mask = ((x - 20) / 12) ** 2 + ((y - 17) / 9) ** 2 < 1
    pixels = rng.normal(90, 12, (36, 40, 3))
    pixels[mask] = np.array(colour) + rng.normal(0, 12, (int(mask.sum()), 3))
    return Scene(pixels.clip(0, 255).astype(np.uint8), BOX), mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


# --- the cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_cut_has_the_least_energy_of_all_labellings(seed):
    rng = np.random.default_rng(seed)
    grid = neighbour_grid(Scene(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), (1, 1, 4, 4)), 3.0)
    preference = rng.normal(0, 4, 9)

    def energy(x: np.ndarray) -> float:
        apart = x[grid.pairs[:, 0]] != x[grid.pairs[:, 1]]
        return float(-(preference * x).sum() + (grid.weights * apart).sum())

    best = min(energy(np.array(x)) for x in itertools.product((0, 1), repeat=9))
    found = min_cut(preference, grid.pairs, grid.weights)
    assert energy(found.astype(int)) == pytest.approx(best, abs=0.01)  # capacities are thousandths


def test_a_pixel_has_eight_neighbours_and_those_outside_count_as_border():
    pixels = np.zeros((5, 6, 3), np.uint8)  # flat: every weight is its largest
    grid = neighbour_grid(Scene(pixels, (1, 1, 4, 4)), 50.0)
    assert len(grid.pairs) == 6 + 6 + 8
    unit = 50 * np.sqrt(5 * 6 / 1e5)  # 50 for 100,000 pixels
    assert sorted(set(grid.weights.round(9))) == pytest.approx([unit / np.sqrt(2), unit])
    border = grid.border.reshape(3, 3)
    assert border[1, 1] == 0
    assert border[0, 1] == pytest.approx(unit * (1 + 2 / np.sqrt(2)))
    assert border[0, 0] == pytest.approx(unit * (2 + 3 / np.sqrt(2)))
    assert not neighbour_grid(Scene(pixels, (0, 0, 6, 5))).border.any()


@pytest.mark.parametrize("factor", [2, 3])
def test_an_enlarged_image_has_the_same_mask(factor):
    """Both sums of the energy grow with the number of pixels: the border's weight per pixel of length, too."""
    one, _ = scene()
    (mask,) = cosegment([one], 0, 0.0)
    large = one.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    x0, y0, x1, y1 = BOX
    (found,) = cosegment([Scene(large, (x0 * factor, y0 * factor, x1 * factor, y1 * factor))], 0, 0.0)
    assert iou(found, mask.repeat(factor, axis=0).repeat(factor, axis=1)) > 0.9


# --- mixtures -----------------------------------------------------------------------------------------------


def test_a_mixture_is_the_sum_of_its_gaussians():
    rng = np.random.default_rng(0)
    colours, labels = rng.normal(100, 30, (200, 3)), np.arange(200) % 2
    found, at = fit_mixture(colours, labels), rng.normal(100, 30, (7, 3))
    total = np.zeros(7)
    for label in (0, 1):
        own = colours[labels == label]
        covariance = np.cov(own.T, bias=True) + np.eye(3)
        apart = at - own.mean(axis=0)
        distance = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
        total += 0.5 * np.exp(-distance / 2) / np.sqrt(np.linalg.det(covariance))
    np.testing.assert_allclose(found.log_likelihood(at), np.log(total), rtol=1e-9)


def test_far_colours_have_a_finite_likelihood():
    mixture = Mixture(np.zeros(1), np.zeros((1, 3)), np.eye(3)[None])
    assert np.isfinite(mixture.log_likelihood(np.full((2, 3), 1e3))).all()


# --- masks --------------------------------------------------------------------------------------------------


def test_masks_are_the_objects_and_lie_in_the_boxes():
    scenes, truth = zip(*[scene(seed) for seed in range(3)], strict=True)
    for one, mask, true in zip(scenes, cosegment(scenes, 0), truth, strict=True):
        assert iou(mask, true) > 0.9 > iou(one.inside, true)
        assert not (mask & ~one.inside).any()
        assert judge(mask, BOX) == 0


def test_masks_satisfy_the_rules_or_are_the_box():
    y, x = np.mgrid[:36, :40]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
        if seed % 2:  # an object that is too small for its box
            pixels[(abs(x - 20) < 2) & (abs(y - 17) < 2)] = 255
        one = Scene(pixels, BOX)
        (mask,) = cosegment([one], 0)
        share = mask.sum() / one.inside.sum()
        left, top, right, bottom = mask_box(mask)
        rules = (
            AREAS[0] <= share <= AREAS[1]
            and right - left >= EXTENT * (BOX[2] - BOX[0])
            and bottom - top >= EXTENT * (BOX[3] - BOX[1])
        )
        assert rules or np.array_equal(mask, one.inside)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_flat_image_has_its_box_as_mask(share):
    flat = Scene(np.full((36, 40, 3), 128, np.uint8), BOX)
    (mask,) = cosegment([flat], 0, share)
    np.testing.assert_array_equal(mask, flat.inside)
    np.testing.assert_array_equal(grabcut(flat), flat.inside)


def test_a_box_that_is_the_whole_image_is_its_mask():
    one, _ = scene()
    whole = Scene(one.pixels, (0, 0, 40, 36))
    (mask,) = cosegment([whole], 0)
    assert judge(mask, whole.box) == 0 or mask.all()
    assert grabcut(whole).all()


def test_a_class_of_one_colour_helps_an_image_without_contrast():
    """The object of the hard image has almost the colour of what is around it; in other images it is clear."""

    def noisy(colour, around, seed):
        rng = np.random.default_rng(seed)
        _, mask = scene()
        pixels = np.where(mask[..., None], colour, around) + rng.normal(0, 9, (36, 40, 3))
        return Scene(pixels.clip(0, 255).astype(np.uint8), BOX), mask

    hard, true = noisy((150, 60, 40), (138, 66, 46), 0)
    easy = [noisy((150, 60, 40), (60, 160, 60), seed)[0] for seed in (1, 2, 3)]
    together, alone = (iou(cosegment([hard, *easy], 0, *share)[0], true) for share in ((), (0.0,)))
    assert together > 0.7
    assert together > alone + 0.1


def test_masks_are_the_same_each_time():
    scenes = [scene(seed)[0] for seed in range(2)]
    for one, two in zip(cosegment(scenes, 3), cosegment(scenes, 3), strict=True):
        np.testing.assert_array_equal(one, two)


def test_grabcut_finds_the_object():
    one, true = scene()
    assert iou(grabcut(one), true) > 0.8


@pytest.mark.parametrize(
    ("box", "verdict"),
    [((10, 10, 20, 20), 0), ((0, 0, 20, 20), 1), ((0, 0, 4, 4), -1), ((0, 0, 20, 4), -1), ((5, 5, 5, 5), -1)],
)
def test_the_rules_of_masks(box, verdict):
    mask = np.zeros((20, 20), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    assert judge(mask, (0, 0, 20, 20)) == verdict


def test_the_largest_part_stays():
    mask = np.zeros((8, 8), bool)
    mask[1:3, 1:3] = mask[4:8, 4:7] = True
    assert largest_part(mask).sum() == 12
    one = Scene(np.zeros((8, 8, 3), np.uint8), (0, 0, 4, 4))
    assert accepted_mask(mask, one).sum() == 4
    assert accepted_mask(np.zeros((8, 8), bool), one).sum() == 16


# --- boxes of parts -----------------------------------------------------------------------------------------


def test_a_frame_is_the_box_at_150_pixels():
    _, mask = scene()
    frame = make_frame(mask, BOX)
    assert frame.mask.shape == (150, round(28 * 150 / 25))
    left, top, right, bottom = mask_box(frame.mask)
    expected = [side * 6 for side in (9 - 6, 9 - 5, 32 - 6, 26 - 5)]
    assert np.abs(np.array([left, top, right, bottom]) - expected).max() <= 8
    assert make_frame(np.zeros((36, 40), bool), BOX).mask.all()


def test_a_part_is_a_square_shrunk_to_the_mask():
    mask = np.zeros((150, 200), bool)
    mask[50:130, 20:180] = True  # its box has sides 160 and 80
    half = 0.25 * np.sqrt(160 * 80)
    inner, corner, outside = part_boxes(Frame(mask), np.array([[100, 90], [25, 55], [190, 20.0]]), 5.0)
    np.testing.assert_allclose(inner, [100 - half, 90 - half, 100 + half, 90 + half])
    np.testing.assert_allclose(corner, [20, 50, 25 + half, 55 + half])
    np.testing.assert_allclose(outside, [179.5 - half, 50, 180, 50.5 + half])  # moved into the mask


def test_a_part_that_shrinks_too_far_keeps_its_square():
    mask = np.zeros((150, 200), bool)
    mask[20:120, 40:120] = True
    mask[70, 120:180] = True  # a thin line
    (thin,) = part_boxes(Frame(mask), np.array([[178.0, 70.5]]), 10.0)
    assert thin[3] - thin[1] > 40
    (kept,) = part_boxes(Frame(mask), np.array([[178.0, 70.5]]), 0.5)
    assert kept[3] - kept[1] == 1
    # Ten pixels of an image of 100,000 pixels, whose box has 75: twice as many in a frame of 150.
    assert least_side((0, 0, 50, 75), 1e5) == pytest.approx(20)
    assert least_side((0, 0, 50, 75), 1e3) == pytest.approx(2)


def test_points_outside_move_to_the_nearest_pixel():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 2:5] = True
    points = np.array([[3.2, 2.9], [0.0, 0.0], [9.0, 3.5], [-4.0, 3.4]])
    np.testing.assert_array_equal(
        nearest_inside(mask, points), [[3.2, 2.9], [2.5, 2.5], [4.5, 3.5], [2.5, 3.5]]
    )


@pytest.mark.parametrize("parts", [0, 1, 4, 31, 36])
def test_a_grid_has_as_many_boxes_as_parts_inside_the_object(parts):
    boxes = grid_boxes(parts)
    assert boxes.shape == (parts, 4)
    assert len(np.unique(boxes, axis=0)) == parts
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[:, 2:] - boxes[:, :2] <= 0.5).all()
    if parts == 31:
        covered = np.zeros((20, 20), bool)
        for x0, y0, x1, y1 in boxes * 20:
            covered[round(y0) : round(y1), round(x0) : round(x1)] = True
        assert covered.all()
