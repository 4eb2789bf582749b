"""OPAM: the box of a map, the pair that covers it, groups of filters, and the stages of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from reference_models.core.profile import Stage
from reference_models.layers.navigator import anchor_boxes
from reference_models.layers.regions import crop_resize
from reference_models.recognition.opam import method
from reference_models.recognition.opam.method import SHARES, Opam, OpamConfig
from reference_models.recognition.opam.part_selection import (
    align_parts,
    areas,
    filter_similarity,
    halves,
    integrals,
    object_box,
    pair_scores,
    part_pair,
    ranked_parts,
    spectral_groups,
)
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec, TrainRequest

CLASSES = 5
OBJECT = torch.tensor([[8.0, 8, 88, 92]], dtype=torch.float64)
BOXES = torch.tensor([[[10.0, 10, 50, 50], [40, 20, 90, 80], [5, 60, 45, 95]]], dtype=torch.float64)


def opam(**settings) -> Opam:
    model = Opam(toy_backbone(), CLASSES, OpamConfig(**settings))
    for classifier in (model.image_classifier, *model.classifiers):
        nn.init.normal_(classifier.weight)
    return model.eval()


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def intersection(one, other) -> float:
    width, height = (min(one[a + 2], other[a + 2]) - max(one[a], other[a]) for a in (0, 1))
    return max(width, 0) * max(height, 0)


def pixels(box, size: int = 100) -> torch.Tensor:
    """The pixels of a box with whole corners."""
    x0, y0, x1, y1 = (int(end) for end in box)
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


# --- the object, (1) ----------------------------------------------------------------------------------------


def box_by_filling(grid: list[list[bool]]) -> list[int]:
    """The largest box of a region of 8 neighbours, (first column, first row, last column, last row)."""
    height, width, seen, found = len(grid), len(grid[0]), set(), []
    for start in ((y, x) for y in range(height) for x in range(width)):
        if not grid[start[0]][start[1]] or start in seen:
            continue
        region, waiting = [], [start]
        seen.add(start)
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= near[0] < height and 0 <= near[1] < width
                if inside and grid[near[0]][near[1]] and near not in seen:
                    seen.add(near)
                    waiting.append(near)
        rows, columns = zip(*region, strict=True)
        found.append([min(columns), min(rows), max(columns), max(rows)])
    return max(found, key=lambda box: (box[2] - box[0] + 1) * (box[3] - box[1] + 1))


@pytest.mark.parametrize("shape", [(8, 8), (7, 11), (14, 14)])
def test_the_object_is_the_largest_box_of_a_connected_region(shape):
    for density in (0.2, 0.4, 0.6):
        maps = torch.rand(12, *shape) * (torch.rand(12, *shape) < density)
        boxes = object_box(maps, 0.2, 64)
        for one, box in zip(maps, boxes, strict=True):
            x0, y0, x1, y1 = box_by_filling((one >= 0.2 * one.max()).logical_and(one > 0).tolist())
            cell = 64 / shape[1], 64 / shape[0]
            expected = [x0 * cell[0], y0 * cell[1], (x1 + 1) * cell[0], (y1 + 1) * cell[1]]
            assert box.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_winding_region_is_one_region_and_an_empty_map_is_the_image():
    snake = torch.zeros(1, 9, 9)
    snake[0, ::2] = 1
    snake[0, 1::4, -1] = 1
    snake[0, 3::4, 0] = 1
    assert object_box(snake, 0.2, 90).tolist() == [[0, 0, 90, 90]]
    snake[0, 3, 0] = 0  # cut in two
    assert object_box(snake, 0.2, 90).tolist() == [[0, 40, 90, 90]]
    assert object_box(torch.zeros(1, 9, 9), 0.2, 90).tolist() == [[0, 0, 90, 90]]


# --- the pair, (2) and (3) ----------------------------------------------------------------------------------


def test_golden_values_of_the_areas():
    scores = pair_scores(BOXES, OBJECT, torch.ones(1, 4, 4, dtype=torch.float64), 100)[0].exp()
    found = [scores[0, 1], scores[0, 2], scores[1, 2]]
    assert [one.item() for one in found] == pytest.approx([3880, 2784, 3864])


def test_areas_of_union_intersection_and_outside_are_counted_in_pixels():
    clipped = [pixels(box) & pixels(OBJECT[0]) for box in BOXES[0]]
    scores = pair_scores(BOXES, OBJECT, torch.ones(1, 4, 4, dtype=torch.float64), 100)[0].exp()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        one, two = pixels(BOXES[0, i]), pixels(BOXES[0, j])
        outside = (one | two) & ~pixels(OBJECT[0])
        value = (one | two).sum() - (clipped[i] & clipped[j]).sum() - outside.sum()
        assert scores[i, j].item() == pytest.approx(float(value))


def test_the_score_is_area_times_mean_and_does_not_depend_on_the_scale_of_the_map():
    maps = torch.rand(1, 10, 10, dtype=torch.float64)
    fine = maps[0].repeat_interleave(10, 0).repeat_interleave(10, 1)
    scores = pair_scores(BOXES, OBJECT, maps, 100)
    areas_alone = pair_scores(BOXES, OBJECT, torch.ones_like(maps), 100)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mean = fine[pixels(BOXES[0, i]) | pixels(BOXES[0, j])].mean()
        torch.testing.assert_close((scores - areas_alone)[0, i, j].exp(), mean)
    shifted = pair_scores(BOXES, OBJECT, 7 * maps, 100) - scores
    torch.testing.assert_close(shifted[0, 0, 1].item(), math.log(7))
    torch.testing.assert_close(scores, scores.mT)


def test_a_box_is_no_pair_with_itself():
    twice = BOXES[:, [0, 0]]
    scores = pair_scores(twice, OBJECT, torch.ones(1, 4, 4, dtype=torch.float64), 100)
    assert scores[0, 0, 1] == -math.inf


def pair_by_loops(boxes, around, cells, size) -> tuple[list, bool]:
    """The pair of one image: all candidates against each other."""
    count = len(cells)
    whole = intersection(around, around)

    def mass(box) -> float:
        side = size / count
        return sum(
            cells[y][x] * intersection(box, (x * side, y * side, (x + 1) * side, (y + 1) * side))
            for y in range(count)
            for x in range(count)
        )

    inside = [intersection(box, around) for box in boxes]
    share = [part / intersection(box, box) for part, box in zip(inside, boxes, strict=True)]
    loose = [n for n, part in enumerate(inside) if part / whole > 0.4]
    strict = [n for n in loose if share[n] > 0.7]
    chosen = strict if len(strict) >= 2 else loose
    if len(chosen) < 2:
        order = sorted(range(len(boxes)), key=lambda n: -share[n])
        return order[:2], False
    best, pair = -math.inf, None
    for place, i in enumerate(chosen):
        for j in chosen[place + 1 :]:
            one, two = (
                [max(b[0], around[0]), max(b[1], around[1]), min(b[2], around[2]), min(b[3], around[3])]
                for b in (boxes[i], boxes[j])
            )
            gain = inside[i] + inside[j] - 2 * intersection(one, two)
            both = [max(boxes[i][0], boxes[j][0]), max(boxes[i][1], boxes[j][1])]
            both += [min(boxes[i][2], boxes[j][2]), min(boxes[i][3], boxes[j][3])]
            if both[0] >= both[2] or both[1] >= both[3]:
                both = [0, 0, 0, 0]
            total = intersection(boxes[i], boxes[i]) + intersection(boxes[j], boxes[j])
            total -= intersection(both, both)
            mean = (mass(boxes[i]) + mass(boxes[j]) - mass(both)) / total
            if gain > 1e-6 and gain * mean > best:
                best, pair = gain * mean, [i, j]
    return pair, True


def test_the_pair_is_that_of_a_search_over_all_pairs():
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(12):
        corner = torch.rand(25, 2, generator=generator) * 60
        side = 15 + torch.rand(25, 2, generator=generator) * 45
        boxes = torch.cat([corner, (corner + side).clamp_max(100)], dim=1).double()
        maps = torch.rand(1, 5, 5, generator=generator).double()
        for around in ([10.0, 10, 70, 60], [0, 0, 100, 100], [30, 30, 60, 90]):
            pair, found = part_pair(boxes, torch.tensor([around], dtype=torch.float64), maps, 100)
            expected, enough = pair_by_loops(boxes.tolist(), around, maps[0].tolist(), 100)
            assert torch.equal(pair[0], boxes[expected])
            assert found.tolist() == [enough]
            seen.add(enough)
    assert seen == {True, False}


def test_what_two_boxes_share_outside_the_object_costs_nothing():
    one, other, around = (0, 0, 60, 60), (40, 0, 100, 60), (0, 20, 50, 60)
    in_one, in_other, inside = pixels(one), pixels(other), pixels(around)
    gain = ((in_one | in_other) & inside).sum() - (in_one & in_other & inside).sum()
    scores = pair_scores(
        torch.tensor([[one, other]]).float(), torch.tensor([around]).float(), torch.ones(1, 10, 10), 100
    )
    assert scores[0, 0, 1].exp() == pytest.approx(float(gain))  # the mean of M is 1
    assert (in_one & in_other & ~inside).any()


@pytest.mark.parametrize("size", [64, 224, 448])
def test_candidates_are_the_anchors_of_nts_net_whatever_the_grid(size, monkeypatch):
    seen = []

    def note(boxes, around, maps, image_size):
        seen.append(boxes)
        return part_pair(boxes, around, maps, image_size)

    monkeypatch.setattr(method, "part_pair", note)
    net = Opam(toy_backbone(), 3, OpamConfig())
    net.find(torch.rand(2, net.backbone.channels[-1], 7, 7), torch.tensor([0, 1]), size)
    (boxes,) = seen
    assert boxes.shape == (1614, 4)
    assert (boxes >= 0).all()
    assert (boxes <= size).all()
    centred = anchor_boxes("nts", ((14, 14), (7, 7), (4, 4)), 32, 448).clamp(0, 448)
    torch.testing.assert_close(boxes, centred * (size / 448))


def test_without_two_candidates_the_parts_are_those_most_within_the_object_and_padded():
    boxes = torch.tensor([[0.0, 0, 10, 10], [40, 40, 60, 60], [20, 20, 50, 50], [45, 45, 52, 52]])
    maps = torch.ones(1, 10, 10)
    pair, found = part_pair(boxes, torch.tensor([[40.0, 40, 100, 100]]), maps, 100)
    assert pair.tolist() == [[[40, 40, 60, 60], [45, 45, 52, 52]]]
    assert not found.any()
    assert ranked_parts(pair, maps, found, 100).padded.all()


def test_an_integral_counts_the_share_of_each_cell():
    maps = torch.tensor([[[1.0, 2], [3, 4]]])
    boxes = torch.tensor([[[0.0, 0, 8, 8], [2, 0, 6, 4], [3, 3, 5, 5], [7, 1, 7, 5]]])
    assert integrals(maps, boxes, 8)[0].tolist() == [160, 2 * 4 * 1 + 2 * 4 * 2, 1 + 2 + 3 + 4, 0]


def test_halves_share_an_edge_and_make_up_the_object():
    box = torch.tensor([[10.0, 20, 30, 60]])
    upper, lower = halves(box)[0].tolist()
    assert (upper, lower) == ([10, 20, 30, 40], [10, 40, 30, 60])


# --- which part is which, (4) and (5) -----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(6, 6), (20, 7), (3, 30)])
def test_two_blocks_of_similar_filters_are_separated_exactly(sizes):
    rng = np.random.default_rng(0)
    block = np.repeat([0, 1], sizes)
    similarity = np.where(block[:, None] == block, 1.0, 0.02)
    similarity += 1e-3 * rng.random(similarity.shape)
    order = rng.permutation(len(block))
    groups = spectral_groups(similarity[order][:, order], 2)
    pairs = {(int(a), int(b)) for a, b in zip(block[order], groups, strict=True)}
    assert len(pairs) == 2
    assert len({b for _, b in pairs}) == 2


def test_opposite_filters_are_not_separated_as_released():
    """Negative similarities make the eigenvector that tells two groups apart the first one, which is dropped."""
    similarity = np.outer(sign := np.tile([1.0, -1], 8), sign) + 1e-3 * np.random.default_rng(0).random(
        (16, 16)
    )
    groups = spectral_groups(similarity, 2)
    assert len({(a, int(b)) for a, b in zip(sign.tolist(), groups, strict=True)}) > 2


def test_similarities_are_cosines_and_a_dead_filter_is_like_no_other():
    weight = np.array([[1.0, 0], [2, 0], [3, 3], [0, 0]])
    root = math.sqrt(0.5)
    expected = [[1, 1, root, 0], [1, 1, root, 0], [root, root, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(filter_similarity(weight), expected, atol=1e-12)


def test_each_part_takes_the_box_where_its_channels_are_active():
    features = torch.zeros(2, 3, 4, 4)
    features[0, 0, :, :2] = 1  # the channel of group 0 on the left, those of group 1 on the right
    features[0, 1:, :, 2:] = 5
    features[1, 0, :, 2:] = 1
    features[1, 1:, :, :2] = 5
    left, right = [0.0, 0, 16, 32], [16.0, 0, 32, 32]
    group, boxes = torch.tensor([0, 1, 1]), torch.tensor([[left, right], [left, right]])
    assert align_parts(features, boxes, group, 32).tolist() == [[left, right], [right, left]]
    assert align_parts(features, boxes.flip(1), group, 32).tolist() == [[left, right], [right, left]]
    # Both groups are most active on the left: the difference decides, and no box is taken twice.
    features[0, 0] = torch.tensor([3.0, 3, 1, 1])
    features[0, 1:] = torch.tensor([9.0, 9, 0, 0])
    assert align_parts(features, boxes, group, 32)[0].tolist() == [right, left]


# --- the method ---------------------------------------------------------------------------------------------


def test_fusion_weights_sum_to_1_and_terms_predict_alone():
    assert sum(SHARES) == pytest.approx(1)
    names, images, models = ("full", "image", "object", "parts"), batch(3).images, {}
    for name in names:
        models[name] = opam(predict=name)
        models[name].load_state_dict(models["full"].state_dict())
    full, image, around, parts = (models[name].localize(images).logits.exp() for name in names)
    torch.testing.assert_close(full, 0.5 * image + 0.3 * around + 0.2 * parts)
    torch.testing.assert_close(full.sum(1), torch.ones(3))


def test_each_box_is_classified_by_its_own_network():
    model, images = opam(), batch(2).images
    for network in model.networks:
        nn.init.normal_(network.steps["one"][0].weight)
    boxes = torch.tensor([[0.0, 0, 32, 32], [8, 4, 30, 20], [2, 2, 9, 32]]).expand(2, 3, 4)
    logits = model.classify(images, boxes)
    for number, (network, classifier) in enumerate(zip(model.networks, model.classifiers, strict=True)):
        crops = crop_resize(images, boxes[:, number : number + 1], 16)
        expected = classifier(network.run(crops).mean(dim=(2, 3)))
        torch.testing.assert_close(logits[:, number], expected, atol=1e-4, rtol=1e-4)


def test_boxes_are_those_of_the_label_in_training_and_of_the_prediction_at_test(monkeypatch):
    model, given_batch, asked = opam(), batch(), []
    find = Opam.find
    monkeypatch.setattr(
        Opam, "find", lambda self, features, ids, size: asked.append(ids) or find(self, features, ids, size)
    )
    model.train().on_epoch(1, 2)
    model.loss(given_batch)
    model.eval()
    model.localize(given_batch.images)
    scores = model.image_classifier(model.backbone.run(given_batch.images).mean((2, 3)))
    assert torch.equal(asked[0], given_batch.labels)
    assert torch.equal(asked[1], scores.argmax(1))
    assert not torch.equal(*asked)


@pytest.mark.parametrize("part_boxes", ["pair", "halves"])
def test_proposals_are_two_parts_by_mean_saliency_and_the_object_is_a_map(part_boxes):
    model, images = opam(part_boxes=part_boxes), batch(4).images
    result = model.localize(images)
    proposals = result.propose()
    assert proposals.boxes.shape == (4, 2, 4)
    assert proposals.boxes.min() >= 0
    assert proposals.boxes.max() <= 32
    assert (proposals.scores[:, 0] >= proposals.scores[:, 1]).all()
    scores = model.image_classifier(model.backbone.run(images).mean((2, 3)))
    maps = result.score_maps(scores.argmax(1, keepdim=True))[:, 0].relu()
    means = integrals(maps, proposals.boxes, 32) / areas(proposals.boxes)
    torch.testing.assert_close(proposals.scores, means)
    around = object_box(maps, 0.2, 32)
    torch.testing.assert_close(result.extra_maps["object"].sum((1, 2)), areas(around))
    if part_boxes == "halves":
        assert not proposals.padded.any()
        torch.testing.assert_close(areas(proposals.boxes).sum(1), areas(around))


def test_stage_1_trains_the_image_classifier_and_stage_2_copies_of_it():
    model, given_batch = opam(stage_epochs=(2, 2)).train(), batch()
    for epoch, terms, learns in (
        (0, ["image"], {"backbone", "image_classifier"}),
        (2, ["object", "part1", "part2"], {"networks", "classifiers"}),
    ):
        model.train().on_epoch(epoch, 4)
        if epoch:
            for network, classifier in zip(model.networks, model.classifiers, strict=True):
                own, image = network.state_dict(), model.backbone.state_dict()
                assert all(torch.equal(own[name], image[name]) for name in image)
                assert torch.equal(classifier.weight, model.image_classifier.weight)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        found = model.loss(given_batch)
        assert list(found) == terms
        sum(found.values()).backward()
        optimizer.step()
        after = model.state_dict().items()
        assert {name.split(".")[0] for name, value in after if not torch.equal(value, before[name])} == learns
        for each in model.parameters():
            each.grad = None


def test_groups_are_those_of_the_trained_filters_and_are_not_made_again_within_a_stage():
    model = opam(stage_epochs=(2, 2)).train()
    first = model.channel_group.clone()
    weight = model.backbone.steps["three"][0].weight
    with torch.no_grad():  # even and odd filters use other channels, and all share a few
        weight.copy_(torch.rand_like(weight) * 0.01)
        weight[0::2, :5] += 1
        weight[1::2, 4:9] += 1
    model.on_epoch(1, 4)
    assert torch.equal(model.channel_group, first)
    model.on_epoch(2, 4)
    assert len(set(zip(model.channel_group.tolist(), [0, 1] * 8, strict=True))) == 2
    model.channel_group.zero_()
    model.on_epoch(3, 4)
    assert not model.channel_group.any()


@pytest.mark.parametrize("stop_before", [1, 2, 3])
def test_a_run_that_was_stopped_within_a_stage_or_between_two_ends_with_the_same_weights(
    tmp_path, monkeypatch, stop_before
):
    options = {
        "settings": {"stage_epochs": "2,2"},
        **{
            "backbone": "tiny",
            "weights": "none",
            "epochs": 4,
            "batch_size": 4,
            "image_size": 32,
            "workers": 0,
        },
    }
    unbroken, broken = (
        TrainRequest(train=squares(8), out=tmp_path / name, **options) for name in ("one", "two")
    )
    begin = Opam.on_epoch

    def stop(self, epoch, epochs):
        if epoch == stop_before:
            raise KeyboardInterrupt
        begin(self, epoch, epochs)

    monkeypatch.setattr(Opam, "on_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        Opam.fit(broken)
    monkeypatch.setattr(Opam, "on_epoch", begin)
    one, two = (load_file(Opam.fit(request)) for request in (unbroken, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_terms_are_cross_entropies_on_the_crops_of_the_found_boxes():
    model, given_batch = opam().train(), batch()
    model.on_epoch(1, 2)
    model.eval()
    features = model.backbone.run(given_batch.images)
    boxes, _, _ = model.find(features, given_batch.labels, 32)
    logits = model.classify(given_batch.images, boxes)
    terms = model.loss(given_batch)
    for number, name in enumerate(("object", "part1", "part2")):
        torch.testing.assert_close(terms[name], F.cross_entropy(logits[:, number], given_batch.labels))


# --- settings -----------------------------------------------------------------------------------------------


def test_filters_are_not_those_of_a_shortcut():
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(8, 12, 3))
    block.add_module("downsample", nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(12, 12, 1)))
    steps = {"one": nn.Conv2d(3, 8, 3), "two": block}
    backbone = Backbone("residual", steps, [Stage("two", 1, 12)], grid="std", input_spec=InputSpec(size=32))
    assert Opam(backbone, 3, OpamConfig()).filters == "steps.two.conv.weight"


def test_a_network_without_a_last_convolution_is_refused():
    steps = {"one": nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.PReLU(), nn.Flatten(2), nn.Linear(16, 16))}
    layout = [Stage("one", 8, 12)]
    backbone = Backbone("mixer", steps, layout, grid="std", input_spec=InputSpec(size=32))
    with pytest.raises(UsageError, match="mixer has none with 12 channels; use a convolutional network"):
        Opam(backbone, 3, OpamConfig())


def test_the_rate_starts_again_in_stage_2_and_copies_learn_as_the_backbone():
    model, recipe = opam(), Opam.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.new_factor) == (60, 16, 1e-4, 10)
    assert {model.lr_factor(recipe, epoch / 60) for epoch in range(60)} == {1.0}
    cosine = Opam.recipe_for("resnet50", 200, {"recipe.schedule": "cosine"})
    factors = [model.lr_factor(cosine, (epoch + 0.5) / 60) for epoch in range(60)]
    assert factors[39] < 0.01
    assert factors[40] > 0.99
    new = {name.split(".")[0] for name, _ in model.named_parameters() if model.is_new(name, recipe)}
    assert new == {"image_classifier", "classifiers"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": (1, 2, 3)}, "expected 2 lengths"),
        ({"crop_size": 1}, "at least 2 pixels"),
        ({"threshold": 1.0}, "threshold"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        OpamConfig(**settings)
