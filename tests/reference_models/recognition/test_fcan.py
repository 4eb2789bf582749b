"""FCAN: places that are drawn, rewards, and the gradient that they make, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from oracles import regions as oracle

from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.regions import cell_boxes
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.fcan import (
    Fcan,
    FcanConfig,
    FcanHead,
    best_places,
    draw_places,
    greedy_rewards,
    policy_loss,
    prefix_predictions,
    square_weights,
)
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.recognition.training_checks import check_stopped_run, losses_on_eight_images
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

CLASSES = 4
SIDE = 160 / 448 * 32


def network(**settings) -> Fcan:
    """A model whose classifiers are not near zero and whose maps are not flat."""
    config = parse_settings(FcanConfig, {k: str(v) for k, v in settings.items()}, what="fcan")
    model = Fcan(toy_backbone(), CLASSES, config)
    for classifier in (model.image_classifier, *model.part_classifiers):
        torch.nn.init.normal_(classifier.weight, std=0.5)
    if model.head is not None:
        torch.nn.init.normal_(model.head.score.weight, std=0.5)
    return model.eval()


def batch(count: int = 4, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


# --- the policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [(0.0, 0.0), (0.3, -2.0)])
def test_the_expected_gradient_is_that_of_the_expected_reward(usual):
    """All pairs of places are enumerated: rewards of the second part depend on the first one."""
    cells = 4
    scores = torch.randn(2, cells, dtype=torch.float64, requires_grad=True)
    first = torch.rand(cells, dtype=torch.float64)
    second = torch.rand(cells, cells, dtype=torch.float64)
    log_maps = scores.log_softmax(1)
    expected_first = (log_maps[0].exp() * first).sum()
    joint = log_maps[0].exp()[:, None] * log_maps[1].exp()
    # Each R_t counts for its own place only, which is the greedy rule: so of (R_1, l_1) and (R_2, l_2).
    (wanted_first,) = torch.autograd.grad(expected_first, scores, retain_graph=True)
    (wanted_both,) = torch.autograd.grad((joint * second).sum(), scores, retain_graph=True)
    total = torch.zeros_like(scores)
    for a, b in itertools.product(range(cells), repeat=2):
        log_probabilities = torch.stack([log_maps[0, a], log_maps[1, b]])[None, None]
        rewards = torch.stack([first[a], second[a, b]])[None, None]
        loss = policy_loss(log_probabilities, rewards, torch.tensor(usual, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(loss, scores, retain_graph=True)
        total += joint[a, b].detach() * gradient
    torch.testing.assert_close(total[0], -wanted_first[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(total[1], -wanted_both[1], atol=1e-12, rtol=0)


def test_places_are_drawn_as_often_as_their_maps_say():
    maps = torch.tensor([[[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 0.1, 0.2, 0.3, 0.4]]])
    places = draw_places(maps.log(), 8000, torch.Generator().manual_seed(0))
    assert places.shape == (1, 8000, 2)
    for t in range(2):
        counts = torch.bincount(places[0, :, t], minlength=5) / 8000
        assert (counts - maps[0, t]).abs().max() < 5 * 0.5 / 8000**0.5
        assert counts[maps[0, t] == 0] == 0
    # Parts are drawn independently.
    both = ((places[0, :, 0] == 0) & (places[0, :, 1] == 4)).float().mean()
    assert both.item() == pytest.approx(0.2, abs=0.025)


def test_training_draws_from_the_batch_s_generator_alone():
    model, before = network(), torch.get_rng_state()
    one, two, other = (model.loss(batch(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["policy"], other["policy"])
    images = batch().images
    assert torch.equal(model.localize(images).logits, model.localize(images).logits)


def test_maps_are_probabilities_that_move_with_the_features():
    head = FcanHead(5, 8, 3)
    features = torch.zeros(1, 5, 12, 12)
    features[:, :, 4:7, 5:8] = torch.randn(1, 5, 3, 3)
    maps = head(features).exp()
    torch.testing.assert_close(maps.sum(2), torch.ones(1, 3))
    moved = head(features.roll((2, -1), (2, 3))).exp().unflatten(2, (12, 12))
    torch.testing.assert_close(
        moved[..., 3:9, 3:9], maps.unflatten(2, (12, 12)).roll((2, -1), (2, 3))[..., 3:9, 3:9]
    )
    # Each part has a head of its own.
    with torch.no_grad():
        head.score.weight[1] += 1
    changed = (head(features).exp() - maps).abs().amax(2)[0] > 1e-6
    assert changed.tolist() == [False, True, False]


# --- rewards ------------------------------------------------------------------------------------------------


def test_the_table_of_greedy_rewards():
    losses = torch.tensor([0.9, 0.7, 0.8, 0.5])
    right = torch.tensor([True, True, True, False])
    assert greedy_rewards(losses, right).tolist() == [1, 1, 0, 0]
    assert greedy_rewards(torch.tensor([0.5, 0.5]), torch.tensor([True, True])).tolist() == [1, 0]
    assert greedy_rewards(torch.tensor([0.5, 0.1]), torch.tensor([False, True])).tolist() == [0, 1]


def test_plain_rewards_are_those_of_the_final_prediction():
    model = network(reward="plain")
    predictions = torch.tensor([[[[0.9, 0.1], [0.2, 0.8]], [[0.2, 0.8], [0.9, 0.1]]]])  # (1, 2, 2, 2)
    losses = torch.rand(1, 2, 2)
    assert model.rewards(losses, predictions, torch.tensor([0])).tolist() == [[[0, 0], [1, 1]]]
    assert model.rewards(losses, predictions, torch.tensor([1])).tolist() == [[[1, 1], [0, 0]]]


def test_the_usual_reward_is_a_running_mean_in_training_alone():
    model, given = network(momentum=0.75), batch()
    model.usual_reward.fill_(0.5)
    model.loss(given)
    assert model.usual_reward.tolist() == [0.5, 0.5, 0.5]
    features = model.backbone.run(given.images)
    places = draw_places(model.head(features), 4, torch.Generator().manual_seed(0))
    predictions = prefix_predictions(model.score_places(features, places, 32))[:, :, 1:]
    losses = -torch.stack([predictions[n, ..., label] for n, label in enumerate(given.labels)])
    mean = model.rewards(losses, predictions, given.labels).mean((0, 1))
    model.training = True  # batch norm stays as it is
    model.loss(batch())
    torch.testing.assert_close(model.usual_reward, 0.75 * 0.5 + 0.25 * mean)


# --- parts --------------------------------------------------------------------------------------------------


def test_the_mean_over_a_square_counts_cells_by_their_area():
    boxes, features = cell_boxes((4, 5), 40, 17.0), torch.randn(3, 4, 5, dtype=torch.float64)
    weights = square_weights(boxes.double(), (4, 5), 40)
    torch.testing.assert_close(weights.sum(1), torch.ones(20).double())
    # Repeat each cell's value over 10 x 8 pixels of a fine picture, and average its pixels by brute force.
    fine = features.repeat_interleave(100, 1).repeat_interleave(80, 2)  # 400 x 400
    for number, box in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = (round(10 * value) for value in box)
        expected = fine[:, y0:y1, x0:x1].mean((1, 2))
        torch.testing.assert_close(weights[number] @ features.flatten(1).T, expected)


def test_places_at_test_are_the_best_ones_whose_squares_do_not_overlap():
    boxes = cell_boxes((8, 8), 32, SIDE)
    log_maps = torch.randn(5, 4, 64).log_softmax(2)
    places, padded = best_places(log_maps, boxes, 0.25)
    assert not padded.any()
    for maps, row in zip(log_maps, places[:, 0].tolist(), strict=True):
        chosen: list[int] = []
        for values in maps.tolist():
            free = [
                cell
                for cell in range(64)
                if all(oracle.iou(boxes[cell].tolist(), boxes[one].tolist()) <= 0.25 for one in chosen)
            ]
            chosen.append(max(free, key=values.__getitem__))
        assert row == chosen


def test_a_place_without_free_squares_is_marked_and_not_taken_twice():
    boxes = cell_boxes((2, 2), 32, 30.0)  # all squares overlap
    log_maps = torch.tensor([[[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]]).log()
    places, padded = best_places(log_maps, boxes, 0.25)
    assert places.tolist() == [[[0, 1, 3]]]
    assert padded.tolist() == [[False, True, True]]


def test_proposals_are_the_squares_of_the_parts_best_first():
    model, images = network(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    found = result.propose()
    maps = torch.stack([result.extra_maps[f"attention{t}"] for t in (1, 2, 3)], dim=1)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 3))
    places, _ = best_places(maps.flatten(2).log(), cell_boxes((8, 8), 32, SIDE), 0.25)
    scores = maps.flatten(2).gather(2, places.mT)[..., 0]
    torch.testing.assert_close(found.scores, scores.sort(dim=1, descending=True).values)
    for boxes, row, cells in zip(found.boxes, scores, places[:, 0], strict=True):
        order = row.argsort(descending=True)
        torch.testing.assert_close(boxes, cell_boxes((8, 8), 32, SIDE)[cells[order]])


# --- predictions and losses ---------------------------------------------------------------------------------


def test_predictions_are_means_of_probabilities():
    scores = torch.randn(2, 4, 5, dtype=torch.float64)
    found = prefix_predictions(scores)
    for count in range(1, 5):
        torch.testing.assert_close(found[:, count - 1].exp(), scores[:, :count].softmax(2).mean(1))
    huge = prefix_predictions(1000 * scores.float())
    assert not huge.isnan().any()


def test_logits_are_the_log_probabilities_of_image_and_parts():
    model, images = network(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    features = model.backbone.run(images)
    places, _ = best_places(model.head(features), cell_boxes((8, 8), 32, SIDE), 0.25)
    weights = square_weights(cell_boxes((8, 8), 32, SIDE), (8, 8), 32)
    for n in range(3):
        scores = [model.image_classifier(features[n].mean((1, 2)))]
        for t, cell in enumerate(places[n, 0].tolist()):
            scores.append(model.part_classifiers[t](features[n].flatten(1) @ weights[cell]))
        mean = torch.stack(scores).softmax(1).mean(0)
        torch.testing.assert_close(result.logits[n].exp(), mean, atol=1e-5, rtol=1e-4)


def test_terms_are_the_costs_of_the_image_of_the_parts_and_of_the_policy():
    model, given = network(), batch()
    model.usual_reward.copy_(torch.tensor([0.1, 0.2, 0.3]))
    terms = model.loss(given)
    assert list(terms) == ["image", "parts", "policy"]
    features = model.backbone.run(given.images)
    log_maps = model.head(features)
    places = draw_places(log_maps, 4, torch.Generator().manual_seed(0))
    image, parts, policy = [], [], []
    for n, label in enumerate(given.labels.tolist()):
        for m in range(4):
            probabilities = model.score_places(features, places, 32)[n, m].detach().softmax(1)
            costs = [-math.log(probabilities[: t + 1].mean(0)[label]) for t in range(4)]
            image.append(costs[0])
            parts += costs[1:]
            total = 0.0
            for t in range(3):
                right = probabilities[: t + 2].mean(0).argmax().item() == label
                reward = float(right and (t == 0 or costs[t + 1] < costs[t]))
                usual = (0.1, 0.2, 0.3)[t]
                total -= (reward - usual) * log_maps[n, t, places[n, m, t]].item()
            policy.append(total)
    for name, values in zip(terms, (image, parts, policy), strict=True):
        assert terms[name].item() == pytest.approx(sum(values) / len(values), rel=1e-4), name


def test_without_parts_it_is_the_baseline():
    model, given = network(parts=0), batch()
    base = Baseline(toy_backbone(), CLASSES, parse_settings(Baseline.Config, {}, what="baseline")).eval()
    base.backbone.load_state_dict(model.backbone.state_dict())
    base.head.classifier.load_state_dict(model.image_classifier.state_dict())
    terms = model.loss(given)
    assert list(terms) == ["image"]
    torch.testing.assert_close(terms["image"], sum(base.loss(given).values()))
    torch.testing.assert_close(
        model.localize(given.images).logits.softmax(1), base.localize(given.images).logits.softmax(1)
    )


def gradient_of(model: Fcan, *names: str) -> set[str]:
    model.zero_grad()
    terms = model.loss(batch())
    sum(terms[name] for name in names).backward()
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def test_the_head_learns_from_rewards_alone_and_nothing_else_does():
    assert gradient_of(network(), "policy") == {"head"}
    assert gradient_of(network(), "image") == {"backbone", "image_classifier"}
    assert gradient_of(network(), "parts") == {"backbone", "image_classifier", "part_classifiers"}


def test_the_control_does_not_train_the_head():
    model = network(reward="none")
    assert list(model.loss(batch())) == ["image", "parts"]
    assert "head" not in gradient_of(model, "image", "parts")


def test_maps_are_those_of_the_image_classifier():
    model, images = network(), torch.randn(2, 3, 32, 32)
    maps = model.localize(images).score_maps(torch.arange(CLASSES).expand(2, CLASSES))
    scores = model.image_classifier(model.backbone.run(images).mean((2, 3)))
    torch.testing.assert_close(maps.mean((2, 3)) + model.image_classifier.bias, scores, atol=1e-4, rtol=1e-4)


def test_predictions_are_computed_in_single_precision():
    model, given = network(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(given)
        logits = model.localize(given.images).logits
    assert logits.dtype == torch.float32
    assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())


# --- settings and runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": 17}, "parts"),
        ({"region_side": 449}, "region_side=449.0"),
        ({"region_side": 0}, "region_side"),
        ({"samples": 0}, "samples"),
        ({"reward": "all"}, "reward"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        network(**settings)


def test_more_parts_than_cells_are_refused():
    with pytest.raises(UsageError, match="only 4 cells"):
        Fcan(toy_backbone(8), CLASSES, FcanConfig(parts=5))


def test_the_recipe_is_the_baseline_s_too():
    recipe = Fcan.recipe_for("resnet50", 200, {})
    assert recipe == FINE_GRAINED["fcan"] == Baseline.recipe_for("resnet50", 200, {"recipe": "fcan"})
    assert (recipe.epochs, recipe.lr * recipe.new_factor, recipe.weight_decay) == (90, 0.01, 1e-4)
    assert Fcan.recipe_for("tiny", 12, {}).optimizer == "adamw"


def test_places_that_are_rewarded_become_probable():
    """The label is in one of four cells, and the features are held fixed: the head has to find the cell."""
    torch.manual_seed(0)
    head = FcanHead(3, 8, 1)
    cell = torch.arange(64) % 4
    features = torch.randn(64, 3, 2, 2) * 0.1
    features.flatten(2)[torch.arange(64), 0, cell] = 2.0
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    generator, usual = torch.Generator().manual_seed(0), torch.zeros(1)
    for _ in range(60):
        log_maps = head(features)
        places = draw_places(log_maps, 4, generator)
        rewards = (places == cell[:, None, None]).float()
        loss = policy_loss(log_maps.gather(2, places.mT).mT, rewards, usual)
        usual = usual.lerp(rewards.mean((0, 1)), 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(features)[:, 0].argmax(1) == cell).float().mean() > 0.9


def test_eight_images_are_learned():
    model = Fcan(toy_backbone(), 3, FcanConfig())
    losses = losses_on_eight_images(model)
    assert all(losses[-1][name] < 0.5 * losses[0][name] for name in ("image", "parts"))
    assert model.usual_reward[0] > 0.5


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    options = {"train": squares(8), "epochs": 2, "batch_size": 4, "settings": {"recipe.lr": "0.01"}}
    found = check_stopped_run(Fcan, lambda name: request(tmp_path / name, **options), (1,), monkeypatch)
    assert found["usual_reward"].any()


def test_cross_entropy_of_log_probabilities_is_their_negative():
    """Logits are normalised already, so evaluators that apply softmax again change nothing."""
    logits = network().localize(torch.randn(2, 3, 32, 32)).logits
    torch.testing.assert_close(F.log_softmax(logits, 1), logits)
