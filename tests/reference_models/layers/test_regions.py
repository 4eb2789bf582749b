"""Regions of images: which are chosen, what is cut out, what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import regions as oracle

from reference_models.core.outputs import Proposals
from reference_models.layers.regions import (
    cell_boxes,
    coverage,
    crop_resize,
    peak_regions,
    select,
    smooth,
    union,
)

RULES = ["gt", "ge"]
MODES = ["half_pixel", "align_corners"]


def mirrored(boxes: torch.Tensor, size: float) -> torch.Tensor:
    """The boxes of the image turned left to right."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([size - x1, y0, size - x0, y1], dim=-1)


def as_rows(boxes: torch.Tensor) -> list[list[float]]:
    """Boxes of one image in an order of their own."""
    return sorted(boxes.round(decimals=3).tolist())


# --- select -------------------------------------------------------------------------------------------------


@st.composite
def candidates(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, float, str]:
    """Boxes of whole pixels, also negative ones, of several images with many equal scores and many equal
    overlaps."""
    images, count = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    corner, side, score = st.integers(-6, 4), st.integers(1, 8), st.integers(0, 3)
    boxes = [
        [(draw(corner), draw(corner), draw(side), draw(side)) for _ in range(count)] for _ in range(images)
    ]
    tensor = torch.tensor(
        [[(x, y, x + w, y + h) for x, y, w, h in rows] for rows in boxes], dtype=torch.float32
    )
    scores = torch.tensor([[draw(score) for _ in range(count)] for _ in range(images)], dtype=torch.float32)
    return (
        tensor,
        scores,
        draw(st.integers(0, count)),
        draw(st.sampled_from([0.0, 1 / 7, 0.25, 1 / 3, 0.5, 1.0])),
        draw(st.sampled_from(RULES)),
    )


@given(candidates())
def test_boxes_are_chosen_greedily_by_score_and_of_equal_scores_the_first(case):
    boxes, scores, k, limit, rule = case
    found = select(boxes, scores, k, limit, rule)
    expected = [
        oracle.greedy(rows, values, k, limit, rule)
        for rows, values in zip(boxes.tolist(), scores.tolist(), strict=True)
    ]
    assert found.index.tolist() == [index for index, _ in expected]
    assert found.padded.tolist() == [padded for _, padded in expected]


@given(candidates())
def test_images_that_share_their_boxes_need_them_once(case):
    boxes, scores, k, limit, rule = case
    shared, every = (
        select(boxes[0], scores, k, limit, rule),
        select(boxes[:1].expand(len(scores), -1, -1), scores, k, limit, rule),
    )
    assert torch.equal(shared.index, every.index)
    assert torch.equal(shared.padded, every.padded)


@given(candidates())
def test_the_first_boxes_do_not_depend_on_how_many_are_asked_for(case):
    boxes, scores, k, limit, rule = case
    few, all_of_them = (
        select(boxes, scores, k, limit, rule),
        select(boxes, scores, scores.shape[1], limit, rule),
    )
    assert torch.equal(few.index, all_of_them.index[:, :k])
    assert torch.equal(few.padded, all_of_them.padded[:, :k])
    assert all(len(set(row)) == scores.shape[1] for row in all_of_them.index.tolist())


@pytest.mark.parametrize(
    ("rule", "expected", "padded"), [("gt", [0, 1], [False, False]), ("ge", [0, 2], [False, False])]
)
def test_two_squares_of_160_that_are_96_apart_overlap_by_exactly_a_quarter(rule, expected, padded):
    boxes = torch.tensor([[0.0, 0, 160, 160], [96, 0, 256, 160], [128, 0, 288, 160]])
    found = select(boxes, torch.tensor([[3.0, 2, 1]]), 2, 0.25, rule)
    assert found.index.tolist() == [expected]
    assert found.padded.tolist() == [padded]


def test_what_is_left_fills_up_the_number_and_is_marked():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9], [0, 0, 4, 5]])
    found = select(boxes, torch.tensor([[1.0, 4, 0, 3], [1, 4, 5, 3]]), 4, 0.5)
    assert found.index.tolist() == [[1, 2, 3, 0], [2, 1, 3, 0]]
    assert found.padded.tolist() == [[False, False, True, True]] * 2


def test_boxes_far_outside_of_one_image_do_not_suppress_those_of_the_next():
    boxes = torch.tensor([[[-40.0, -40, -4, -4]], [[-38.0, -38, -2, -2]]]).expand(2, 3, 4)
    assert select(boxes, torch.zeros(2, 3), 1, 0.1).padded.tolist() == [[False], [False]]
    image, neighbour = (
        torch.tensor([[-10.0, -10, 0, 0], [-20, -20, -10, -10]]),
        torch.tensor([[-9.0, -9, 1, 1], [-19, -19, -9, -9]]),
    )
    found = select(torch.stack([image, neighbour]), torch.tensor([[2.0, 1], [2, 1]]), 2, 0.1)
    assert not found.padded.any()


def test_the_choice_of_the_published_program_among_its_1614_anchors(golden_folder):
    golden = np.load(golden_folder / "nts_anchors.npz", allow_pickle=False)
    boxes = torch.from_numpy(golden["edge_anchors_padded_int"]).float()[:, [1, 0, 3, 2]]
    scores, limit = torch.from_numpy(golden["nms_scores"]), float(golden["nms_iou_thresh"])
    for k in np.unique(golden["nms_topn"]):
        rows = golden["nms_topn"] == k
        found = select(boxes, scores[torch.from_numpy(rows)], int(k), limit, "ge")
        expected = torch.from_numpy(golden["nms_index"][rows][:, :k])
        assert torch.equal(torch.where(found.padded, -1, found.index), expected)


# --- crop_resize --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 24, 32, 48, 33])
def test_the_whole_image_is_resized_bilinearly_without_antialias(size):
    images = torch.randn(3, 2, 32, 32, dtype=torch.float64)
    cut = crop_resize(images, torch.tensor([[[0.0, 0, 32, 32]]]).expand(3, 1, 4), size)
    torch.testing.assert_close(
        cut, F.interpolate(images, size=(size, size), mode="bilinear", antialias=False), atol=1e-9, rtol=0
    )


def padded_slice(image: torch.Tensor, box: list[float], size: int) -> torch.Tensor:
    """Pad with zeros, cut the corners to whole pixels, slice, resize so that the outermost pixels are the
    outermost samples."""
    pad = image.shape[-1] // 2
    x0, y0, x1, y1 = (int(value + pad) for value in box)
    piece = F.pad(image, (pad, pad, pad, pad))[None, :, y0:y1, x0:x1]
    return F.interpolate(piece, size=(size, size), mode="bilinear", align_corners=True)[0]


@pytest.mark.parametrize("size", [7, 16, 40])
def test_with_aligned_corners_it_is_a_slice_of_the_padded_image(size):
    images = torch.randn(4, 2, 32, 32, dtype=torch.float64)
    corners = torch.rand(4, 6, 2, dtype=torch.float64) * 32 - 15
    boxes = torch.cat(
        [corners, corners + 2 + torch.rand(4, 6, 2, dtype=torch.float64) * 27], dim=2
    )  # from -15 to 46
    cut = crop_resize(images, boxes, size, "align_corners").unflatten(0, (4, 6))
    for image, rows, pieces in zip(images, boxes.tolist(), cut, strict=True):
        for box, piece in zip(rows, pieces, strict=True):
            torch.testing.assert_close(piece, padded_slice(image, box, size), atol=1e-6, rtol=0)
    assert (boxes < 0).any()
    assert (boxes > 32).any()


@pytest.mark.parametrize("mode", MODES)
def test_a_box_of_whole_pixels_at_its_own_size_is_a_slice(mode):
    images = torch.randn(2, 3, 32, 32)
    boxes = torch.tensor([[[3.0, 5, 13, 15], [20, 0, 30, 10]], [[0.0, 22, 10, 32], [11, 11, 21, 21]]])
    cut = crop_resize(images, boxes, 10, mode)
    for number, (image, (x0, y0, x1, y1)) in enumerate(
        zip([0, 0, 1, 1], boxes.flatten(0, 1).int().tolist(), strict=True)
    ):
        torch.testing.assert_close(cut[number], images[image, :, y0:y1, x0:x1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_outside_of_the_image_everything_is_zero(mode):
    images = torch.rand(1, 2, 16, 16) + 1
    boxes = torch.tensor([[[-8.0, -4, 8, 12], [8, 4, 24, 20], [-8, -8, 0, 0], [16, 16, 24, 24]]])
    left, right, before, behind = crop_resize(images, boxes, 16, mode)
    for piece, there, image in (
        (left, (slice(4, 16), slice(8, 16)), images[0, :, :12, :8]),
        (right, (slice(0, 12), slice(0, 8)), images[0, :, 4:, 8:]),
    ):
        expected = torch.zeros(2, 16, 16)
        expected[:, there[0], there[1]] = image
        torch.testing.assert_close(piece, expected, atol=1e-5, rtol=0)
    assert before.abs().max() < 1e-6
    assert behind.abs().max() < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_pieces_of_a_mirrored_image_are_mirrored(mode):
    images, boxes = (
        torch.randn(2, 3, 32, 32),
        torch.tensor([[4.0, 7, 20, 25], [-6, 0, 12, 30], [10, 10, 40, 21]]).expand(2, 3, 4),
    )
    one = crop_resize(images, boxes, 12, mode)
    torch.testing.assert_close(
        crop_resize(images.flip(3), mirrored(boxes, 32), 12, mode), one.flip(3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("mode", MODES)
def test_pieces_are_those_of_each_image_and_box_alone_and_have_no_graph(mode):
    images, boxes = torch.randn(3, 2, 32, 32, requires_grad=True), torch.rand(3, 4, 4) * 16 - 8
    boxes = torch.cat([boxes[..., :2], boxes[..., :2] + 6 + boxes[..., 2:].abs()], dim=2)
    together = crop_resize(images, boxes, 9, mode)
    assert together.shape == (12, 2, 9, 9)
    assert not together.requires_grad
    for image in range(3):
        for number in range(4):
            alone = crop_resize(
                images[image : image + 1], boxes[image : image + 1, number : number + 1], 9, mode
            )
            assert torch.equal(alone[0], together[4 * image + number])
    assert crop_resize(images, boxes[:, :0], 9, mode).shape == (0, 2, 9, 9)


@pytest.mark.parametrize(
    ("given_type", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_cut_out_in_single(mode, given_type, expected):
    images, boxes = torch.randn(1, 1, 16, 16).to(given_type), torch.tensor([[[2.5, 3, 9, 11]]])
    with torch.autocast("cpu", torch.bfloat16):
        cut = crop_resize(images, boxes, 6, mode)
    assert cut.dtype == expected
    torch.testing.assert_close(cut, crop_resize(images.to(expected), boxes.to(expected), 6, mode))


# --- cell_boxes, peak_regions -------------------------------------------------------------------------------


def test_every_cell_of_a_14x14_grid_has_its_square_moved_into_the_image():
    boxes = cell_boxes((14, 14), 448, 160.0)
    assert boxes.shape == (196, 4)
    assert len(torch.unique(boxes, dim=0)) == 100
    assert boxes.min() == 0
    assert boxes.max() == 448
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], torch.full((196, 2), 160.0))
    assert boxes[4 * 14 + 7].tolist() == [
        7.5 * 32 - 80,
        4.5 * 32 - 80,
        7.5 * 32 + 80,
        4.5 * 32 + 80,
    ]  # rows first
    assert boxes[0].tolist() == [0, 0, 160, 160]
    assert boxes[13].tolist() == [288, 0, 448, 160]


def test_squares_that_are_not_moved_lie_around_the_centres_of_their_cells():
    boxes = cell_boxes((2, 4), 64, 40.0, fit="pad")
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centres.tolist() == [[8 + 16 * u, 16 + 32 * v] for v in range(2) for u in range(4)]
    assert boxes[0].tolist() == [-12, -4, 28, 36]


@pytest.mark.parametrize(
    ("grid", "size", "side"),
    [((14, 14), 448, 160.0), ((7, 7), 224, 80.0), ((16, 16), 128, 160 * 128 / 448), ((6, 9), 90, 31.0)],
)
def test_peaks_have_the_scores_of_their_cells_and_lie_inside_without_overlap(grid, size, side):
    maps = torch.randn(4, *grid)
    found = peak_regions(maps, size, side=side, k=6)
    assert (found.boxes.shape, found.scores.shape) == ((4, 6, 4), (4, 6))
    assert found.boxes.min() >= -1e-4
    assert found.boxes.max() <= size + 1e-4
    torch.testing.assert_close(
        found.boxes[..., 2:] - found.boxes[..., :2], torch.full((4, 6, 2), side), atol=1e-4, rtol=0
    )
    assert torch.equal(found.scores[:, 0], maps.flatten(1).amax(1))
    for rows, scores, padded, cells in zip(
        found.boxes.tolist(), found.scores, found.padded, maps, strict=True
    ):
        assert set(scores.tolist()) <= set(cells.flatten().tolist())
        kept = [row for row, filled in zip(rows, padded.tolist(), strict=True) if not filled]
        assert scores[: len(kept)].tolist() == sorted(scores[: len(kept)].tolist(), reverse=True)
        assert all(oracle.iou(a, b) <= 0.25 + 1e-6 for place, a in enumerate(kept) for b in kept[:place])


def test_six_regions_of_the_papers_size_are_always_found_on_a_14x14_grid():
    found = peak_regions(torch.randn(400, 14, 14), 448, side=160.0, k=6)
    assert not found.padded.any()


@pytest.mark.parametrize("fit", ["shift", "pad"])
def test_peaks_of_a_mirrored_map_are_mirrored(fit):
    maps = torch.randn(3, 14, 14)
    one, two = (peak_regions(m, 448, side=160.0, k=5, fit=fit) for m in (maps, maps.flip(2)))
    torch.testing.assert_close(two.boxes, mirrored(one.boxes, 448.0))
    assert torch.equal(one.scores, two.scores)
    turned = peak_regions(maps.mT.contiguous(), 448, side=160.0, k=5, fit=fit)
    torch.testing.assert_close(turned.boxes, one.boxes[..., [1, 0, 3, 2]])


def test_peaks_of_several_maps_are_those_of_each_and_there_are_no_more_than_cells():
    maps = torch.randn(3, 2, 2)
    together = peak_regions(maps, 16, side=9.0, k=6)
    assert together.boxes.shape == (3, 4, 4)
    for number in range(3):
        alone = peak_regions(maps[number : number + 1], 16, side=9.0, k=6)
        assert all(
            torch.equal(getattr(alone, name)[0], getattr(together, name)[number])
            for name in ("boxes", "scores", "padded")
        )


# --- coverage, smooth ---------------------------------------------------------------------------------------


def test_the_coverage_of_a_pixel_is_the_weight_of_the_boxes_around_it():
    size = 28  # smoothed by one pixel
    boxes = torch.tensor(
        [
            [[2.0, 3, 11.5, 17], [-4, 8, 9, 30], [20.5, 20, 28, 24.4]],
            [[1, 1, 2, 2], [5.2, 6, 27, 8], [3, 3, 9, 9]],
        ]
    )
    scores = torch.tensor([[2.0, 0.5, 0], [1, 0, -2]])
    found = coverage(Proposals(boxes=boxes, scores=scores), size)
    for image in range(2):
        plain = oracle.covered(boxes[image].tolist(), scores[image].tolist(), size)
        torch.testing.assert_close(
            found[image], torch.tensor(oracle.smoothed(plain, 1.0, 3)), atol=1e-6, rtol=0
        )
        alone = coverage(Proposals(boxes=boxes[image][None], scores=scores[image][None]), size)
        torch.testing.assert_close(alone[0], found[image], atol=1e-6, rtol=0)


def test_a_box_around_everything_covers_every_pixel_fully():
    boxes = torch.tensor([[[-1.0, -1, 40, 40]]]).expand(2, 3, 4)
    torch.testing.assert_close(
        coverage(Proposals(boxes=boxes, scores=torch.randn(2, 3)), 32), torch.ones(2, 32, 32)
    )


def test_the_union_is_the_smallest_box_around_all_and_cut_at_the_border():
    boxes = torch.tensor(
        [
            [[2.0, 3, 4, 5], [1.5, 4, 3, 6.25]],
            [[-3, 2, 0, 4], [6, 7, 9, 8]],
            [[-5, -5, -1, -1], [-4, -2, -3, -1]],
        ]
    )
    drawn = union(Proposals(boxes=boxes, scores=torch.zeros(3, 2)), 8)
    expected = torch.zeros(3, 8, 8)
    expected[0, 3:6, 2:4], expected[0, 3:6, 1], expected[0, 6, 2:4], expected[0, 6, 1] = 1, 0.5, 0.25, 0.125
    expected[1, 2:8, :] = 1
    torch.testing.assert_close(drawn, expected)


@pytest.mark.parametrize(("sigma", "size", "reach"), [(1.0, 5, 2), (0.7, None, 3), (2.0, 3, 1)])
def test_smoothing_is_the_gaussian_mean_with_the_border_repeated(sigma, size, reach):
    maps = torch.randn(2, 6, 4)
    expected = torch.tensor([oracle.smoothed(one.tolist(), sigma, reach) for one in maps])
    torch.testing.assert_close(smooth(maps, sigma=sigma, size=size), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("sigma", "size"), [(1.0, 5), (2.5, None)])
def test_smoothing_keeps_a_constant_and_does_not_prefer_a_direction(sigma, size):
    constant, maps = torch.full((2, 7, 5), 3.25), torch.randn(3, 8, 8)
    torch.testing.assert_close(smooth(constant, sigma=sigma, size=size), constant)
    done = smooth(maps, sigma=sigma, size=size)
    for turned, expected in ((maps.flip(1), done.flip(1)), (maps.flip(2), done.flip(2)), (maps.mT, done.mT)):
        torch.testing.assert_close(smooth(turned, sigma=sigma, size=size), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(smooth(maps[1:2], sigma=sigma, size=size)[0], done[1], atol=1e-6, rtol=0)


def test_without_a_width_nothing_is_smoothed():
    maps = torch.randn(2, 8, 8)
    assert smooth(maps, sigma=0.0) is maps
    for sigma in (1e-3, 1e-30):
        torch.testing.assert_close(smooth(maps, sigma=sigma, size=5), maps)


def test_mixed_precision_changes_neither_smoothing_nor_coverage():
    maps, proposals = (
        torch.randn(2, 8, 8),
        Proposals(boxes=torch.rand(2, 3, 4) * 20 + torch.tensor([0.0, 0, 10, 10]), scores=torch.randn(2, 3)),
    )
    plain = smooth(maps, sigma=1.0), coverage(proposals, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = smooth(maps, sigma=1.0), coverage(proposals, 32)
    assert all(torch.equal(one, two) for one, two in zip(plain, mixed, strict=True))
    assert math.isclose(float(plain[1].max()), float(mixed[1].max()))
