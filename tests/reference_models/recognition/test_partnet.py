"""PartNet: the part classifiers, the sum of all scores, maps, and the stages of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.profile import Stage
from reference_models.layers.regions import crop_resize
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.partnet.detectors import (
    detection_weights,
)
from reference_models.recognition.partnet.fusion import (
    best_boxes,
    draw_boxes,
    fixed_boxes,
    fused_scores,
    mean_detections,
    ranked_boxes,
)
from reference_models.recognition.partnet.method import Partnet, PartnetConfig
from reference_models.recognition.partnet.part_proposals import SHAPES, part_boxes, shape_corners
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest

CLASSES = 5


def partnet(**settings) -> Partnet:
    """A model whose classifiers are not near zero, in evaluation mode."""
    config = parse_settings(
        PartnetConfig, {name: str(value) for name, value in settings.items()}, what="method 'partnet'"
    )
    model = Partnet(toy_backbone(), CLASSES, config)
    for module in (model.image_classifier, *model.part_classifiers):
        nn.init.normal_(module.weight)
    return model.eval()


def at_stage(stage: int, **settings) -> Partnet:
    """A model in training, in the first epoch of a stage."""
    model = partnet(stage_epochs="2,2,2", **settings).train()
    model.on_epoch(2 * stage, 6)
    return model


def batch(count: int = 4, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


# --- SVB, (7) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("svb", "epoch", "bounded"), [(1.5, 2, True), (1.5, 3, False), (1.5, 1, False), (0, 2, False)]
)
def test_both_last_layers_are_bounded_after_each_epoch_of_the_detectors_but_the_last(svb, epoch, bounded):
    model = partnet(stage_epochs="2,2,2", svb=svb).train()
    model.on_epoch(epoch, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.after_epoch(epoch, 6)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    last = {f"detectors.{stream}.last.weight" for stream in ("classification", "detection")}
    assert changed == (last if bounded else set())


# --- parts, (8) ---------------------------------------------------------------------------------------------


def test_training_draws_among_the_best_boxes_and_the_test_takes_the_first():
    detections = torch.rand(3, 20, 2)
    best = detections.argsort(dim=1, descending=True)
    assert torch.equal(best_boxes(detections), best[:, 0])
    generator, seen = torch.Generator().manual_seed(0), [set() for _ in range(6)]
    for _ in range(200):
        for number, box in enumerate(draw_boxes(detections, 4, generator).flatten().tolist()):
            seen[number].add(box)
    assert seen == [set(best[i, :4, p].tolist()) for i in range(3) for p in range(2)]
    assert draw_boxes(detections, 50, generator).max() < 20  # not more candidates than boxes


def test_the_control_takes_boxes_whatever_the_detectors_say():
    detections = torch.rand(2, 28 * 49, 3)
    fixed = fixed_boxes(detections)
    assert torch.equal(fixed, fixed_boxes(torch.rand(2, 28 * 49, 3)))
    assert len(set((fixed[0] // 28).tolist())) == 3
    model, generator = partnet(choice="random", candidates=1), torch.Generator().manual_seed(0)
    drawn = torch.cat([model.choose(detections, generator).flatten() for _ in range(50)])
    assert len(drawn.unique()) > 250


def test_parts_are_cut_out_and_enlarged_and_each_has_its_classifier():
    for network in ("one", "each"):
        model, images = partnet(part_network=network), batch(2).images
        for each in model.part_networks:
            nn.init.normal_(each.steps["one"][0].weight)
        boxes = torch.tensor([[0.0, 0, 16, 16], [8, 4, 30, 20], [2, 2, 9, 32]]).expand(2, 3, 4)
        logits = model.classify_parts(images, boxes)
        for part in range(3):
            crops = crop_resize(images, boxes[:, part : part + 1], 16)
            features = model.part_networks[part if network == "each" else 0].run(crops).mean(dim=(2, 3))
            expected = model.part_classifiers[part](features)
            torch.testing.assert_close(logits[:, part], expected, atol=1e-4, rtol=1e-4)


# --- the sum of the scores, (9) -----------------------------------------------------------------------------


def test_all_terms_count_the_same_and_make_a_distribution():
    image, parts, scores = torch.randn(2, 4), torch.randn(2, 3, 4), torch.rand(2, 4) / 4
    expected = image.softmax(1) + sum(parts[:, p].softmax(1) for p in range(3)) + scores / scores.sum(1, True)
    torch.testing.assert_close(fused_scores(image, parts, scores), expected / 5)
    torch.testing.assert_close(fused_scores(image, parts, scores).sum(1), torch.ones(2))
    assert fused_scores(image, parts, torch.zeros(2, 4)).isfinite().all()


def test_a_prediction_is_the_sum_or_one_of_its_terms():
    models = {name: partnet(predict=name) for name in ("full", "image", "partnet", "parts")}
    images = batch(3).images
    found = {}
    for name, model in models.items():
        model.load_state_dict(models["full"].state_dict())
        found[name] = model.localize(images).logits.exp()
    model = models["full"]
    torch.testing.assert_close(
        found["image"], model.image_classifier(model.backbone.run(images).mean((2, 3))).softmax(1)
    )
    share = found["partnet"] / found["partnet"].sum(1, keepdim=True)
    torch.testing.assert_close(found["full"], (found["image"] + 3 * found["parts"] + share) / 5)
    assert (found["partnet"].sum(1) < 1).all()


def test_class_maps_are_those_of_the_image_classifier():
    model, images = partnet(), batch(2).images
    maps = model.localize(images).score_maps(torch.arange(CLASSES).expand(2, CLASSES))
    scores = model.image_classifier(model.backbone.run(images).mean((2, 3))) - model.image_classifier.bias
    torch.testing.assert_close(maps.mean((2, 3)), scores, atol=1e-5, rtol=1e-4)


def test_a_map_of_a_part_counts_each_box_by_its_pixels_in_the_cell():
    boxes, detections = torch.randint(0, 16, (2, 9, 4)), torch.rand(2, 9, 3)
    boxes[..., 2:] += boxes[..., :2] + 1
    maps = mean_detections(boxes.float(), detections, (4, 8), 32)
    assert maps.shape == (2, 3, 4, 8)
    for image in range(2):
        total, count = torch.zeros(3, 32, 32), torch.zeros(32, 32)
        for (x0, y0, x1, y1), values in zip(boxes[image].tolist(), detections[image], strict=True):
            total[:, y0:y1, x0:x1] += values[:, None, None]
            count[y0:y1, x0:x1] += 1
        sums = [F.avg_pool2d(one[None], (8, 4)) for one in (total, count[None])]
        torch.testing.assert_close(maps[image], (sums[0] / sums[1].clamp_min(1e-9))[0])


@pytest.mark.parametrize(("size", "cells"), [(448, 28), (224, 14), (128, 16)])
def test_a_map_of_a_part_lies_on_its_boxes_and_not_beside_them(size, cells):
    corners = shape_corners("repaired")
    centres = torch.tensor([[[cells // 2, cells // 2 - 1]]])
    boxes, detections = part_boxes(centres, corners, (cells, cells), size), torch.rand(1, 28, 2)
    maps = mean_detections(boxes, detections, (cells, cells), size)
    # Only the boxes that the image does not clip are symmetric about their centre.
    whole = [n for n, (x, y) in enumerate(SHAPES) if max(x, y) < 12]
    for number in (whole[0], whole[7], whole[-1]):
        one = mean_detections(boxes[:, [number]], detections[:, [number]], (cells, cells), size)[0, 0] > 0
        rows, columns = one.nonzero().float().mean(0).tolist()
        assert (columns, rows) == (cells // 2, cells // 2 - 1)
    mirrored = boxes[..., [2, 1, 0, 3]].clone()
    mirrored[..., [0, 2]] = size - mirrored[..., [0, 2]]
    torch.testing.assert_close(mean_detections(mirrored, detections, (cells, cells), size), maps.flip(3))


def test_proposals_are_the_best_box_of_each_detector_and_a_box_counts_once():
    result = partnet().localize(batch(4).images)
    proposals = result.propose()
    assert proposals.boxes.shape == (4, 3, 4)
    assert torch.equal(proposals.scores, proposals.scores.sort(dim=1, descending=True).values)
    assert {"part1", "part2", "part3", "parts", "union"} == set(result.extra_maps)
    boxes, chosen = torch.arange(3.0)[None, :, None].expand(1, 3, 4), torch.tensor([[7, 9, 7]])
    twice = ranked_boxes(boxes, torch.tensor([[0.2, 0.5, 0.9]]), chosen)
    assert twice.boxes[0, :, 0].tolist() == [2, 1, 0]
    assert twice.padded.tolist() == [[False, False, True]]


# --- stages -------------------------------------------------------------------------------------------------

LEARNS = {
    "light": [
        {"backbone", "image_classifier"},
        {"detectors"},
        {"part_networks", "part_classifiers"},
    ],
    "paper": [
        {"backbone", "image_classifier"},
        {"detector_network", "detectors"},
        {"part_networks", "part_classifiers"},
    ],
}
TERMS = ["image", "detectors", "parts"]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("variant", ["light", "paper"])
def test_a_stage_trains_its_part_and_leaves_the_others_to_the_bit(variant, stage):
    model = at_stage(stage, variant=variant, hidden=16, part_size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    terms = model.loss(batch())
    assert list(terms) == [TERMS[stage]]
    sum(terms.values()).backward()
    optimizer.step()
    after = model.state_dict().items()
    moved = {name.split(".")[0] for name, value in after if not torch.equal(value, before[name])}
    assert moved == LEARNS[variant][stage]
    learning = {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert learning == LEARNS[variant][stage]
    without = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert without == []


def test_networks_of_a_later_stage_start_as_the_trained_image_classifier():
    model = partnet(variant="paper", hidden=16, part_size=16, stage_epochs="2,2,2").train()
    for parameter in (*model.backbone.parameters(), *model.image_classifier.parameters()):
        nn.init.normal_(parameter)
    trained = {name: value.clone() for name, value in model.backbone.state_dict().items()}

    def is_copy(network) -> bool:
        return all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())

    model.on_epoch(1, 6)
    assert not is_copy(model.detector_network)
    model.on_epoch(2, 6)
    assert is_copy(model.detector_network)
    assert not is_copy(model.part_networks[0])
    with torch.no_grad():
        next(model.detector_network.parameters()).add_(1)
    model.on_epoch(3, 6)  # not the first epoch of the stage
    assert not is_copy(model.detector_network)
    model.on_epoch(4, 6)
    assert all(is_copy(network) for network in model.part_networks)
    assert all(
        torch.equal(classifier.weight, model.image_classifier.weight) for classifier in model.part_classifiers
    )


def test_a_run_that_is_shorter_than_its_stages_trains_everything_at_once():
    model = partnet(variant="paper", hidden=16, part_size=16).train()
    model.on_epoch(0, 2)
    terms = model.loss(batch())
    assert list(terms) == TERMS
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_terms_of_the_loss_are_those_of_the_module():
    model, given_batch = at_stage(1, dropout=0.0).eval(), batch()
    found = model.detect(given_batch.images, model.backbone.stages(given_batch.images))
    scores = (found.classes[..., None] * detection_weights(found.detections)[:, :, None]).sum(1).mean(2)
    wanted = F.one_hot(given_batch.labels, CLASSES).float()
    terms = model.loss(given_batch)
    torch.testing.assert_close(terms["detectors"], F.binary_cross_entropy(scores, wanted))
    for network, divisor in (("one", 3), ("each", 1)):
        model = at_stage(2, part_network=network, candidates=1).eval()
        boxes = found_boxes = model.detect(given_batch.images, model.backbone.stages(given_batch.images))
        boxes = found_boxes.boxes.take_along_dim(best_boxes(found_boxes.detections)[..., None], dim=1)
        logits = model.classify_parts(given_batch.images, boxes)
        each = [F.cross_entropy(logits[:, part], given_batch.labels) for part in range(3)]
        torch.testing.assert_close(model.loss(given_batch)["parts"], sum(each) / divisor)


def test_a_frozen_stage_of_the_backbone_stays_frozen_in_its_copies():
    model = partnet(variant="paper", hidden=16, part_size=16, stage_epochs="1,1,1").train()
    model.backbone.frozen = ("one",)
    for epoch, networks in ((1, [model.detector_network]), (2, list(model.part_networks))):
        model.train()
        model.on_epoch(epoch, 3)
        for network in networks:
            assert not network.steps["one"].training
            assert network.steps["two"].training
            assert not any(parameter.requires_grad for parameter in network.steps["one"].parameters())


@pytest.mark.parametrize("frozen", [(), ("one",), ("one", "four")])
def test_the_network_of_the_detectors_ends_at_their_features(frozen):
    """Layers behind the features would be computed and counted, and never learn."""
    toy = toy_backbone()
    steps = dict(toy.steps.items())
    steps["four"] = nn.Sequential(nn.Conv2d(16, 20, 3, stride=8, padding=1), nn.ReLU())
    backbone = Backbone(
        "deep", steps, [*toy.layout, Stage("four", 32, 20)], grid="std", input_spec=toy.input_spec
    )
    config = PartnetConfig(detector_network="own", hidden=8, stage_epochs=(2, 2, 2))
    model = Partnet(backbone, CLASSES, config).train()
    model.backbone.frozen = frozen
    model.on_epoch(2, 6)
    sum(model.loss(batch()).values()).backward()
    learning = [(name, each.grad) for name, each in model.named_parameters() if each.requires_grad]
    assert [name for name, gradient in learning if gradient is None] == []
    steps = {name.split(".")[2] for name, _ in learning if name.startswith("detector_network")}
    assert steps == {"one", "two", "three"} - set(frozen)
    trained = model.backbone.state_dict()
    weights = model.detector_network.named_parameters()
    assert all(torch.equal(value, trained[name]) for name, value in weights)


def test_each_stage_has_the_whole_schedule():
    model = partnet()
    recipe = Partnet.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.flip, recipe.lr * recipe.new_factor) == (350, 0, pytest.approx(0.1))
    factors = [round(model.lr_factor(recipe, (epoch + 0.5) / 350), 9) for epoch in range(350)]
    stage = [1] * 80 + [0.1] * 40 + [0.01] * 40
    assert factors == stage + stage + [1] * 15 + [0.1] * 7 + [0.01] * 8


def test_copies_of_the_backbone_learn_at_its_rate():
    model, recipe = partnet(variant="paper", hidden=16), Partnet.recipe_for("resnet50", 200, {})
    new = {name.split(".")[0] for name, _ in model.named_parameters() if model.is_new(name, recipe)}
    assert new == {"image_classifier", "detectors", "part_classifiers"}


@pytest.mark.parametrize(("variant", "stop_before"), [("paper", 2), ("light", 3), ("paper", 4), ("light", 5)])
def test_a_run_that_was_stopped_within_a_stage_or_between_two_ends_with_the_same_weights(
    tmp_path, monkeypatch, stop_before, variant
):
    options = {
        "settings": {"variant": variant, "stage_epochs": "2,2,2", "hidden": "8", "part_size": "16"},
        **{
            "backbone": "tiny",
            "weights": "none",
            "epochs": 6,
            "batch_size": 4,
            "image_size": 32,
            "workers": 0,
        },
    }
    unbroken, broken = (
        TrainRequest(train=squares(8), out=tmp_path / name, **options) for name in ("one", "two")
    )
    begin = Partnet.on_epoch

    def stop(self, epoch, epochs):
        if epoch == stop_before:
            raise KeyboardInterrupt
        begin(self, epoch, epochs)

    monkeypatch.setattr(Partnet, "on_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        Partnet.fit(broken)
    monkeypatch.setattr(Partnet, "on_epoch", begin)
    one, two = (load_file(Partnet.fit(request)) for request in (unbroken, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_each_stage_lowers_its_loss_on_eight_images():
    data = squares(8)
    images = torch.stack([torch.from_numpy(one.array).permute(2, 0, 1) / 127.5 - 1 for one in data.samples])
    labels = torch.tensor([sample.label for sample in data.samples])
    for stage in range(3):
        model = at_stage(stage)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        losses = []
        for _ in range(12):
            loss = sum(model.loss(replace(batch(8), images=images, labels=labels)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0]


# --- settings -----------------------------------------------------------------------------------------------


def test_parts_are_found_on_the_last_stage_with_cells_of_16_pixels():
    for name, channels in (("resnet50", 1024), ("vgg16", 512), ("tiny", 64)):
        grid = Partnet.grid_for(name, PartnetConfig())
        model = Partnet(
            Baseline.open_backbone(name, weights="none", grid=grid), 3, PartnetConfig(hidden=4, parts=1)
        )
        assert (model.part_stage.stride <= 16, model.part_stage.channels) == (True, channels)


def test_variants_have_the_released_networks_and_one_of_them_the_released_errors():
    values = {
        name: parse_settings(PartnetConfig, {"variant": name}, what="partnet")
        for name in ("light", "paper", "official")
    }
    for name in ("paper", "official"):
        config = values[name]
        found = (config.detector_network, config.part_network, config.hidden, config.part_size)
        assert found == ("own", "each", 4096, 448)
    assert [config.proposals for config in values.values()] == ["repaired", "repaired", "official"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": (1, 2)}, "expected 3 lengths"),
        ({"svb": 0.5}, "expected at least 1, or 0"),
        ({"part_size": 1}, "at least 2 pixels"),
        ({"parts": 0}, r"a whole number in \[1, 16\]"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        PartnetConfig(**settings)
