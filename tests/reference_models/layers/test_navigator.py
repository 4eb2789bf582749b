"""NTS-Net's anchors, their scores, and the ranking loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.layers.navigator import (
    Navigator,
    Scored,
    anchor_boxes,
    best_cover,
    nominate,
    part_costs,
    rank_loss,
)
from wsolbench.exceptions import UsageError

PAPER = [(14, 14), (7, 7), (4, 4)]


def boxes_at_448() -> torch.Tensor:
    return anchor_boxes("nts", PAPER, 32, 448)


# --- anchors ------------------------------------------------------------------------------------------------


def test_anchors_are_those_of_the_published_program_in_its_order(golden_folder):
    golden = np.load(golden_folder / "nts_anchors.npz", allow_pickle=False)
    expected = torch.from_numpy(golden["edge_anchors"])[:, [1, 0, 3, 2]]  # the file has y before x
    torch.testing.assert_close(boxes_at_448(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("number", "box"),
    [
        (0, [-8.6955, -21.0247, 40.6955, 53.0247]),
        (1, [23.3045, -21.0247, 72.6955, 53.0247]),
        (196, [-14.2381, -14.2381, 46.2381, 46.2381]),
        (1176, [-17.3910, -42.0494, 81.3910, 106.0494]),
        (1470, [-14.4033, -53.5461, 142.4033, 181.5461]),
        (1613, [261.3605, 323.5737, 634.6395, 572.4263]),
    ],
)
def test_some_anchors_at_448(number, box):
    torch.testing.assert_close(boxes_at_448()[number], torch.tensor(box), atol=1e-4, rtol=0)


def test_anchors_reach_beyond_the_image():
    boxes = boxes_at_448()
    outside = ((boxes < 0) | (boxes > 448)).any(1)
    assert round(100 * float(outside.float().mean()), 1) == 35.6
    assert abs(float(boxes.min()) + 122.6) < 0.1
    assert abs(float(boxes.max()) - 634.6) < 0.1
    assert 224 + boxes.min() > 0
    assert boxes.max() - 448 < 224


@pytest.mark.parametrize(
    ("kind", "side", "image_size", "count"),
    [
        ("nts", 14, 448, 1614),
        ("nts", 7, 224, 426),
        ("nts", 16, 128, 2064),
        ("nts", 4, 32, 129),
        ("single", 14, 448, 1764),
    ],
)
def test_there_is_one_anchor_for_each_score(kind, side, image_size, count):
    scored = Navigator(8, image_size // side, kind)(torch.rand(2, 8, side, side), image_size)
    assert scored.scores.shape == (2, count)
    assert scored.anchors.shape == (count, 4)


def test_anchors_of_half_an_image_are_half_as_large_and_as_far_apart():
    half = anchor_boxes("nts", [(7, 7), (4, 4), (2, 2)], 32, 224)
    sides = (half[:, 2:] - half[:, :2]).prod(1).sqrt()
    for number, side in enumerate([60.5, 76.2, 121.0, 152.4, 192, 241.9, 304.8]):
        level = 0 if number < 2 else 1 if number < 4 else 2
        start = (0, 147, 294, 342, 390, 402, 414)[number]
        rows = slice(start, start + 3 * (49, 16, 4)[level])
        torch.testing.assert_close(sides[rows], torch.full_like(sides[rows], side / 2), atol=0.05, rtol=0)
    assert torch.equal((half[1] - half[0])[[0, 2]].round(decimals=3), torch.tensor([32.0, 32.0]))


def test_a_single_level_has_squares_and_rectangles_of_three_areas():
    boxes = anchor_boxes("single", [(1, 1)], 448, 448)
    sides = boxes[:, 2:] - boxes[:, :2]
    torch.testing.assert_close(
        sides.prod(1), torch.tensor([64.0, 128, 256]).square().repeat_interleave(3), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(sides[:, 0] / sides[:, 1], torch.tensor([0.667, 1, 1.5]).repeat(3))
    torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, torch.full((9, 2), 224.0))


# --- scores -------------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_level_channel_by_channel():
    navigator, features = Navigator(8, 8), torch.randn(2, 8, 6, 6)
    scores = navigator(features, 48).scores
    x, start = features, 0
    for level, (sides, side) in enumerate(((2, 6), (2, 3), (3, 2))):
        x = F.relu(
            F.conv2d(
                x,
                navigator.down[level].weight,
                navigator.down[level].bias,
                stride=1 if level == 0 else 2,
                padding=1,
            )
        )
        assert x.shape == (2, 128, side, side)
        score = navigator.score[level](x)
        for channel in range(3 * sides):
            for row in range(side):
                for column in range(side):
                    found = scores[:, start + (channel * side + row) * side + column]
                    torch.testing.assert_close(found, score[:, channel, row, column], atol=1e-5, rtol=1e-4)
        start += 3 * sides * side * side
    assert start == scores.shape[1]


def test_no_gradient_goes_to_the_features():
    features = torch.rand(1, 8, 8, 8, requires_grad=True)
    scored = Navigator(8, 8)(features, 64)
    rank_loss(nominate(scored, 64, 6, 0.25).scores, torch.rand(1, 6)).backward()
    assert features.grad is None


def test_the_ranking_loss_reaches_every_level_of_which_some_image_has_a_part():
    navigator, features = Navigator(16, 8), torch.randn(300, 16, 8, 8) + 3 * torch.randn(300, 16, 1, 1)
    found = nominate(navigator(features.relu(), 64), 64, 6, 0.25)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).prod(2).sqrt() * 448 / 64
    assert all(((sides > low) & (sides < high)).any() for low, high in ((50, 80), (110, 160), (180, 320)))
    rank_loss(found.scores, torch.rand(300, 6)).backward()
    assert all(parameter.grad.any() for parameter in navigator.parameters())


def test_scores_are_computed_in_float32_under_autocast_too():
    navigator, features = Navigator(8, 8), torch.rand(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = navigator(features, 64).scores
    assert torch.equal(mixed, navigator(features, 64).scores)


@pytest.mark.parametrize(("init", "smallest", "largest"), [("even", 0.4, 2.5), ("torch", 0, 0.5)])
def test_scores_of_all_levels_vary_alike_at_first_and_with_the_published_start_they_do_not(
    init, smallest, largest
):
    navigator, features = Navigator(64, 8, init=init), torch.randn(8, 64, 16, 16).relu()
    first, second, third = navigator(features, 128).scores.split([6 * 256, 6 * 64, 9 * 16], dim=1)
    for level in (second, third):
        assert smallest < float((level.std() / first.std()).detach()) < largest


def test_the_choice_of_the_published_program(golden_folder):
    golden = np.load(golden_folder / "nts_anchors.npz", allow_pickle=False)
    limit = float(golden["nms_iou_thresh"])
    for scores, wanted, expected in zip(
        golden["nms_scores"], golden["nms_topn"], golden["nms_index"], strict=True
    ):
        scored = Scored(torch.from_numpy(scores)[None], boxes_at_448())
        found = nominate(scored, 448, int(wanted), limit, "ge")
        real = torch.from_numpy(expected[expected >= 0])
        assert torch.equal(found.boxes[0, : len(real)], scored.anchors[real])
        assert torch.equal(found.scores[0, : len(real)], scored.scores[0, real])
        assert found.padded[0].tolist() == [number >= len(real) for number in range(int(wanted))]


def test_whole_pixels_can_make_another_choice():
    anchors = torch.tensor([[0.0, 0, 16, 10], [11.9, 0, 20.0, 20.0], [30, 30, 40, 40]])
    scored = Scored(torch.tensor([[3.0, 2, 1]]), anchors)
    limit = 0.16
    shared = [4.1 * 10 / (160 + 8.1 * 20 - 41), 5 * 10 / (160 + 9 * 20 - 50)]
    assert shared[0] < limit < shared[1]
    assert nominate(scored, 64, 2, limit).scores.tolist() == [[3, 2]]
    assert nominate(scored, 64, 2, limit, "ge").scores.tolist() == [[3, 1]]


def test_more_parts_than_anchors_are_refused():
    scored = Scored(torch.rand(1, 9), anchor_boxes("single", [(1, 1)], 32, 32))
    assert nominate(scored, 32, 9, 0.25).boxes.shape == (1, 9, 4)
    with pytest.raises(UsageError, match="10 parts are wanted of only 9 anchors"):
        nominate(scored, 32, 10, 0.25)


def test_a_cell_has_the_best_of_the_anchors_around_its_centre():
    scored = Scored(torch.randn(2, 129), anchor_boxes("nts", [(4, 4), (2, 2), (1, 1)], 8, 32))
    found = best_cover(scored, (4, 4), 32)
    for image in range(2):
        for row in range(4):
            for column in range(4):
                x, y = 8 * column + 4, 8 * row + 4
                around = [
                    float(score)
                    for score, (x0, y0, x1, y1) in zip(
                        scored.scores[image].sigmoid(), scored.anchors.tolist(), strict=True
                    )
                    if x0 <= x < x1 and y0 <= y < y1
                ]
                assert float(found[image, row, column]) == max(around)


# --- the loss -----------------------------------------------------------------------------------------------


def test_the_ranking_loss_of_a_known_image():
    scores, costs = torch.tensor([[2, 0.5, 1, 0, -1, 3]]), torch.tensor([[0.1, 0.2, 0.9, 0.4, 2, 0.3]])
    assert abs(float(rank_loss(scores, costs)) - 9.5) < 1e-6


def test_equal_scores_cost_one_for_each_pair_and_a_clear_order_nothing():
    costs = torch.tensor([[0.3, 0.1, 0.5, 0.2, 0.9, 0.4]])
    assert float(rank_loss(torch.zeros(1, 6), costs)) == 15
    order = costs.argsort(dim=1).argsort(dim=1).float()
    assert float(rank_loss(-order, costs)) == 0
    assert float(rank_loss(order, costs)) > 15


@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 6))
def test_the_ranking_loss_adds_up_pairs_that_are_in_the_wrong_order(seed, images, parts):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, parts, generator=generator)
    costs = torch.randint(0, 4, (images, parts), generator=generator).float()
    expected = sum(
        max(0.0, 1 - float(scores[b, i]) + float(scores[b, j]))
        for b in range(images)
        for i in range(parts)
        for j in range(parts)
        if costs[b, j] > costs[b, i]
    )
    assert abs(float(rank_loss(scores, costs)) - expected / images) < 1e-5


def test_the_ranking_loss_has_no_gradient_for_the_costs():
    scores, costs = torch.randn(2, 6, requires_grad=True), torch.rand(2, 6, requires_grad=True)
    rank_loss(scores, costs).backward()
    assert scores.grad.any()
    assert costs.grad is None


def test_the_cost_of_a_part_is_its_cross_entropy():
    logits, labels = torch.randn(3, 4, 5), torch.tensor([1, 4, 0])
    costs = part_costs(logits, labels)
    for image in range(3):
        for part in range(4):
            torch.testing.assert_close(
                costs[image, part], F.cross_entropy(logits[image, part], labels[image])
            )
