"""Focus and discriminate: the map of all classes, the regions at its peaks, the three classifiers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracles import regions as oracle

from reference_models.core.outputs import Batch
from reference_models.layers.regions import cell_boxes, crop_resize
from reference_models.recognition.focus_discriminate import (
    FocusDiscriminate,
    FocusDiscriminateConfig,
    attention_map,
    hybrid_features,
)
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
SIDE = 160 / 448 * 32


def network(classes: int = CLASSES, **settings) -> FocusDiscriminate:
    """A model whose classifiers are not near zero."""
    model = FocusDiscriminate(toy_backbone(), classes, FocusDiscriminateConfig(**settings))
    for classifier in (model.image_classifier, model.region_classifier, model.hybrid_classifier):
        if classifier is not None:
            torch.nn.init.normal_(classifier.weight, std=0.5)
    return model.eval()


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def shown(model: FocusDiscriminate, run) -> list[torch.Tensor]:
    """All that the backbone is given while `run` runs."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(
        lambda _step, arguments: seen.append(arguments[0])
    )
    run()
    handle.remove()
    return seen


def pooled(model: FocusDiscriminate, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.run(images).mean((2, 3))


# --- the map ------------------------------------------------------------------------------------------------


def test_the_map_of_two_known_classes_is_the_larger_one_in_each_cell():
    features = torch.tensor([[[[1.0, 2], [0, 1]], [[0.0, 1], [3, 1]]]])  # two channels of 2x2 cells
    weight = torch.tensor([[1.0, -1], [0, 2]])  # maps [[1, 1], [-3, 0]] and [[0, 2], [6, 2]]
    assert attention_map(features, weight, None).tolist() == [[[1, 2], [6, 2]]]
    assert attention_map(features, weight, torch.tensor([0])).tolist() == [[[1, 1], [-3, 0]]]


def test_regions_of_the_control_do_not_depend_on_the_image_and_are_drawn_anew_in_training():
    model, images = network(class_pool="random"), torch.randn(3, 3, 32, 32)
    result, other = model.localize(images), model.localize(torch.randn(3, 3, 32, 32))
    regions = result.propose()
    assert torch.equal(regions.boxes, other.propose().boxes)
    assert torch.equal(regions.boxes[0], regions.boxes[2])
    assert not regions.padded[:, :2].any()
    raw = result.extra_maps["M_raw"]
    assert len(raw[0].unique()) == raw[0].numel()  # noise, not a constant
    # In training, the regions are those of the batch's generator.
    one, two, again = (
        shown(model, lambda seed=seed: model.loss(toy_batch(4, classes=CLASSES, seed=seed)))[1]
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert set(model.loss(batch())) == {"image", "region", "hybrid"}


def test_with_one_class_the_map_is_that_of_the_class():
    result = network(classes=1).localize(torch.randn(3, 3, 32, 32))
    torch.testing.assert_close(
        result.extra_maps["M_raw"], result.score_maps(torch.zeros(3, 1, dtype=torch.int64))[:, 0]
    )


def test_maps_have_the_scores_as_their_means_and_the_raw_map_is_above_all_of_them():
    model, images = network(), torch.randn(4, 3, 32, 32)
    result = model.localize(images)
    maps, raw = result.score_maps(torch.arange(CLASSES).expand(4, CLASSES)), result.extra_maps["M_raw"]
    scores = pooled(model, images) @ model.image_classifier.weight.T
    torch.testing.assert_close(maps.mean((2, 3)), scores.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(raw, maps.amax(1))
    assert (raw.mean((1, 2)) >= scores.amax(1) - 1e-5).all()
    assert len({int(number) for number in maps.argmax(1).flatten()}) > 1  # not the map of one class


def test_the_map_is_smoothed_over_5x5_cells_or_not_at_all():
    images = torch.randn(2, 3, 32, 32)
    own = network().localize(images).extra_maps
    expected = torch.tensor([oracle.smoothed(one.tolist(), 1.0, 2) for one in own["M_raw"]])
    torch.testing.assert_close(own["M"], expected, atol=1e-5, rtol=1e-5)
    plain = network(sigma=0.0).localize(images).extra_maps
    assert torch.equal(plain["M"], plain["M_raw"])


def test_a_single_map_is_that_of_the_predicted_class_and_in_training_that_of_the_true_one():
    model, images = network(class_pool="single"), batch().images
    scores = pooled(model, images) @ model.image_classifier.weight.T
    result = model.localize(images)
    predicted = scores.argmax(1)
    torch.testing.assert_close(result.extra_maps["M_raw"], result.score_maps(predicted[:, None])[:, 0])
    assert not torch.equal(
        predicted, result.logits.argmax(1)
    )  # the image classifier's prediction, not the hybrid one's
    crops = shown(model, lambda: model.loss(batch()))[1]
    maps = model.localize(images).score_maps(batch().labels[:, None])[:, 0]
    focus = torch.tensor([oracle.smoothed(one.tolist(), 1.0, 2) for one in maps])
    torch.testing.assert_close(crops, crop_resize(images, model.regions(focus, images, 6).boxes, 16))
    assert not torch.equal(batch().labels, predicted)


# --- regions ------------------------------------------------------------------------------------------------


def test_a_flipped_map_has_mirrored_regions():
    model, features, images = network(), torch.randn(3, 16, 8, 8), torch.zeros(3, 3, 32, 32)
    weight = model.image_classifier.weight
    raw, turned = (attention_map(f, weight, None) for f in (features, features.flip(3)))
    torch.testing.assert_close(turned, raw.flip(2))
    one, two = (model.regions(m, images, 4) for m in (raw, turned))
    x0, y0, x1, y1 = one.boxes.unbind(-1)
    torch.testing.assert_close(two.boxes, torch.stack([32 - x1, y0, 32 - x0, y1], dim=-1))


def test_regions_are_squares_inside_the_image_that_barely_overlap():
    proposals = network().localize(torch.randn(8, 3, 32, 32)).propose()
    assert proposals.boxes.shape == (8, 4, 4)
    assert proposals.boxes.min() >= 0
    assert proposals.boxes.max() <= 32
    assert not proposals.padded.any()
    torch.testing.assert_close(
        proposals.boxes[..., 2:] - proposals.boxes[..., :2], torch.full((8, 4, 2), SIDE)
    )
    for boxes in proposals.boxes.tolist():
        assert all(oracle.iou(a, b) <= 0.25 for place, a in enumerate(boxes) for b in boxes[:place])


def test_a_score_is_the_smoothed_map_at_the_centre_of_its_region():
    result = network(region_fit="pad").localize(torch.randn(3, 3, 32, 32))
    proposals = result.propose()
    assert torch.equal(proposals.scores, proposals.scores.sort(dim=1, descending=True).values)
    centres = (proposals.boxes[..., :2] + proposals.boxes[..., 2:]) / 2
    column, row = ((centres / 4).floor().long()).unbind(-1)
    found = result.extra_maps["M"][torch.arange(3)[:, None], row, column]
    assert torch.equal(found, proposals.scores)
    assert torch.equal(proposals.scores[:, 0], result.extra_maps["M"].amax((1, 2)))


@pytest.mark.parametrize(
    ("settings", "side", "part"), [({}, SIDE, 16), ({"region_side": 224.0, "part_size": 10}, 16.0, 10)]
)
def test_sizes_are_those_of_an_image_of_448_scaled(settings, side, part):
    model, images = network(**settings), torch.randn(2, 3, 32, 32)
    boxes = model.localize(images).propose().boxes
    torch.testing.assert_close(boxes[..., 2] - boxes[..., 0], torch.full((2, 4), side))
    whole, crops = shown(model, lambda: model.localize(images))
    assert whole.shape == images.shape
    assert crops.shape == (8, 3, part, part)


def test_the_network_sees_the_regions_of_the_image_enlarged():
    model, images = network(crop_mode="align_corners", nms_rule="ge", nms=0.1), torch.randn(2, 3, 32, 32)
    crops = shown(model, lambda: model.localize(images))[1]
    assert torch.equal(
        crops, crop_resize(images, model.localize(images).propose().boxes, 16, "align_corners")
    )


# --- classifiers --------------------------------------------------------------------------------------------


def test_the_prediction_is_that_of_the_image_and_its_best_regions_together():
    model, images = network(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    for number in range(3):
        image = images[number : number + 1]
        parts = [
            pooled(model, crop_resize(image, box[None, None], 16)) for box in result.propose().boxes[number]
        ]
        features = torch.cat([pooled(model, image), *parts], dim=1)
        torch.testing.assert_close(
            model.hybrid_classifier(features)[0], result.logits[number], atol=1e-4, rtol=1e-4
        )


def test_features_are_joined_image_first():
    whole, parts = torch.tensor([[1.0, 2]]), torch.tensor([[[3.0, 4], [5, 6]]])
    assert hybrid_features(whole, parts).tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 6)])
def test_the_loss_is_the_cross_entropy_of_image_regions_and_both(reduction, factor):
    model, given_batch = network(region_reduction=reduction), batch()
    images, labels = given_batch.images, given_batch.labels
    terms = model.loss(given_batch)
    assert list(terms) == ["image", "region", "hybrid"]
    whole = pooled(model, images)
    boxes = model.regions(model.localize(images).extra_maps["M"], images, 6).boxes
    parts = [pooled(model, crop_resize(images, boxes[:, number : number + 1], 16)) for number in range(6)]
    torch.testing.assert_close(
        terms["image"], F.cross_entropy(whole @ model.image_classifier.weight.T, labels)
    )
    each = torch.stack([F.cross_entropy(model.region_classifier(part), labels) for part in parts])
    torch.testing.assert_close(terms["region"], factor * each.mean(), atol=1e-4, rtol=1e-4)
    together = model.hybrid_classifier(torch.cat([whole, *parts[:4]], dim=1))
    torch.testing.assert_close(terms["hybrid"], F.cross_entropy(together, labels), atol=1e-4, rtol=1e-4)


def test_six_regions_are_seen_in_training_and_four_at_test():
    model = network()
    assert [len(seen) for seen in shown(model.train(), lambda: model.loss(batch()))] == [4, 24]
    assert [len(seen) for seen in shown(model.eval(), lambda: model.localize(batch().images))] == [4, 16]


def test_image_level_only_predicts_from_the_image_and_still_trains_with_regions():
    model, images = network(hybrid=False), torch.randn(3, 3, 32, 32)
    seen: list[torch.Tensor] = shown(model, lambda: model.localize(images))
    assert [len(one) for one in seen] == [3]
    result = model.localize(images)
    torch.testing.assert_close(result.logits, pooled(model, images) @ model.image_classifier.weight.T)
    assert result.propose().boxes.shape == (3, 4, 4)
    assert not any(name.startswith("hybrid") for name, _ in model.named_parameters())
    assert list(model.loss(batch())) == ["image", "region"]


def test_without_regions_the_hybrid_classifier_is_a_linear_one_of_the_image():
    model, images = network(proposals=0, parts=0), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    torch.testing.assert_close(result.logits, model.hybrid_classifier(pooled(model, images)))
    assert result.propose().boxes.shape == (3, 0, 4)
    assert list(model.loss(batch())) == ["image", "hybrid"]
    assert [len(seen) for seen in shown(model, lambda: model.loss(batch()))] == [4]
    assert list(network(proposals=0, parts=0, hybrid=False).loss(batch())) == ["image"]


@pytest.mark.parametrize(
    "settings", [{}, {"hybrid": False}, {"class_pool": "single"}, {"parts": 0}, {"proposals": 0, "parts": 0}]
)
def test_every_parameter_gets_a_gradient(settings):
    model = network(**settings).train()
    sum(model.loss(batch()).values()).backward()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_no_gradient_goes_through_the_choice_of_regions():
    model = network()
    terms = model.loss(batch())
    (terms["region"] + terms["hybrid"]).backward()
    assert model.image_classifier.weight.grad is None
    assert not any(own.requires_grad for own in model(torch.randn(2, 3, 32, 32)).extra_maps.values())


def test_regions_are_chosen_in_single_precision():
    model, given_batch = network(), batch()
    features = torch.randn(2, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention_map(features, model.image_classifier.weight, None)
        terms = model.loss(given_batch)
        own = model.localize(given_batch.images).extra_maps["M"]
    assert torch.equal(mixed, attention_map(features, model.image_classifier.weight, None))
    assert own.dtype == torch.float32
    assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())


def test_eight_images_are_learned():
    data = squares(8)
    images = torch.stack(
        [torch.from_numpy(sample.array).permute(2, 0, 1) / 127.5 - 1 for sample in data.samples]
    )
    labels = torch.tensor([sample.label for sample in data.samples])
    model = FocusDiscriminate(toy_backbone(), 3, FocusDiscriminateConfig()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(25):
        given_batch = Batch(**{**vars(batch(8)), "images": images, "labels": labels})
        terms = model.loss(given_batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    assert all(losses[-1][name] < 0.5 * losses[0][name] for name in losses[0])


# --- settings -----------------------------------------------------------------------------------------------


def test_the_recipe_and_the_grid_are_those_of_the_paper_on_its_network():
    recipe = FocusDiscriminate.recipe_for("resnet50", 200, {})
    assert (recipe.lr * recipe.new_factor, recipe.lr, recipe.weight_decay, recipe.momentum) == (
        0.01,
        0.001,
        5e-4,
        0.9,
    )
    assert (recipe.epochs, recipe.batch_size) == (100, 16)
    assert [round(recipe.lr_factor(epoch / 100), 9) for epoch in (0, 39.9, 40, 79.9, 80, 99)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    assert round(448 * recipe.resize) == 600
    assert FocusDiscriminate.recipe_for("tiny", 200, {}).optimizer == "adamw"
    assert FocusDiscriminate.recipe_for("tiny", 200, {"recipe": "fnd"}) == recipe
    config = FocusDiscriminateConfig()
    grids = [FocusDiscriminate.grid_for(name, config) for name in ("resnet50", "efficientnet_lite0", "tiny")]
    assert grids == ["stock", "stock", "default"]
    assert FocusDiscriminate.grid_for("resnet50", FocusDiscriminateConfig(grid="std14")) == "std14"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"proposals": 3}, "proposals=3 and parts=4"),
        ({"parts": -1}, "parts=-1"),
        ({"proposals": 65}, "only 64 cells"),
        ({"region_side": 0.0}, "region_side=0.0"),
        ({"region_side": 449.0}, "region_side=449.0"),
        ({"part_size": 1}, "part_size=1"),
        ({"part_size": -8}, "part_size=-8"),
        ({"nms": 1.5}, "nms=1.5"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sigma": float("inf")}, "sigma=inf"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message.replace("=", "(?:=| of .* is )")):
        network(**setting)


@pytest.mark.parametrize(("nms", "rule"), [(0.6, "gt"), (0.1, "ge")])
def test_regions_are_chosen_by_the_overlap_that_is_asked_for(nms: float, rule: str) -> None:
    model, maps = network(nms=nms, nms_rule=rule), torch.randn(3, 8, 8)
    found = model.regions(maps, torch.zeros(3, 3, 32, 32), 6)
    boxes = cell_boxes((8, 8), 32, SIDE)
    for values, chosen in zip(maps, found.boxes, strict=True):
        index, _ = oracle.greedy(boxes.tolist(), values.flatten().tolist(), 6, nms, rule)
        assert torch.equal(chosen, boxes[index])
