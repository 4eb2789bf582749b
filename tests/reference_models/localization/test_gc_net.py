"""GC-Net: what the classifier is shown, which part learns when, and the box."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.weights import Weights
from reference_models.layers.correlation import last_stages
from reference_models.localization.cam import Cam
from reference_models.localization.gc_net.method import GcNet, GcNetConfig, background_loss, decay_factor
from reference_models.training.checkpoint import save_checkpoint
from tests.reference_models.conftest import squares, toy_backbone
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import TrainRequest

CLASSES = 3


def batch(epoch: int = 9, epochs: int = 10) -> Batch:
    return Batch(
        images=torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        labels=torch.tensor([0, 1, 2, 0]),
        indices=torch.arange(4),
        epoch=epoch,
        epochs=epochs,
        step=0,
        generator=torch.Generator().manual_seed(0),
    )


def model(**settings) -> GcNet:
    """In evaluation mode, with a classifier and a detector that say something."""
    network = GcNet(toy_backbone(), CLASSES, GcNetConfig(**settings)).eval()
    for parameter in [*network.head.parameters(), *network.regressor.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def detecting(**settings) -> GcNet:
    """In training, in the part of the run that trains the detector."""
    network = model(**settings).train()
    network.on_epoch(9, 10)
    return network


# --- the losses ---------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
def test_the_background_loss_is_not_negative(scores):
    assert background_loss(torch.tensor([scores])) >= -1e-6


def test_the_background_loss_is_zero_only_for_an_even_prediction_and_log_c_for_a_sure_one():
    assert abs(float(background_loss(torch.full((2, 7), 3.0)))) < 1e-6
    assert background_loss(torch.tensor([[0.0, 0.1, 0.0]])) > 1e-4
    assert abs(float(background_loss(torch.tensor([[100.0, 0, 0]]))) - math.log(3)) < 1e-5


def test_the_classifier_sees_the_image_in_the_mask_and_in_its_complement_in_one_call(monkeypatch):
    network, given_batch, seen = detecting(), batch(), []
    classify = network.classify
    monkeypatch.setattr(network, "classify", lambda images: seen.append(images) or classify(images))
    network.loss(given_batch)
    (both,) = seen
    inside, outside = both.chunk(2)
    torch.testing.assert_close(inside + outside, given_batch.images)
    mask = network.masks(network.numbers(given_batch.images), (32, 32))
    torch.testing.assert_close(inside, given_batch.images * mask[:, None])


def test_the_terms_are_those_of_the_equations():
    network, given_batch = model(), batch()
    network.on_epoch(9, 10)
    u = network.numbers(given_batch.images)
    mask = network.masks(u, (32, 32))[:, None]
    inside, outside = (
        network.classify(given_batch.images * mask),
        network.classify(given_batch.images * (1 - mask)),
    )
    shares = outside.softmax(dim=1)
    terms = network.loss(given_batch)
    torch.testing.assert_close(terms["object"], F.cross_entropy(inside, given_batch.labels))
    torch.testing.assert_close(terms["background"], math.log(3) + (shares * shares.log()).sum(1).mean())
    torch.testing.assert_close(terms["area"], 2.5 * math.log(3) / math.log(200) * (u[:, 2] * u[:, 3]).mean())


def test_by_default_the_shape_is_an_ellipse_drawn_by_the_formula():
    config = GcNetConfig()
    assert (config.shape, config.generator, config.generator_steps, config.generator_batch) == (
        "ellipse",
        "math",
        120_000,
        128,
    )
    assert float(GcNet(toy_backbone(), CLASSES, config).sharpness.detach()) == 10


def test_the_weight_of_the_area_depends_on_the_generator_and_can_be_nothing():
    assert GcNet(toy_backbone(), 200, GcNetConfig()).area_weight == 2.5
    assert GcNet(toy_backbone(), 200, GcNetConfig(generator="cnn")).area_weight == 1.0
    assert model(area_weight=2.0).area_weight == 2.0
    assert "area" not in detecting(area_weight=0.0).loss(batch())


# --- which part learns when ---------------------------------------------------------------------------------


def moved(network: GcNet, given_batch: Batch) -> set[str]:
    """The parts whose tensors one step changes; a counter of batches is no part."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=0.1)
    optimizer.zero_grad()
    sum(network.loss(given_batch).values()).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    return {name.partition(".")[0] for name in changed}


def test_the_classifier_learns_first_and_the_detector_afterwards():
    network = model().train()
    assert moved(network, batch(epoch=0)) == {"backbone", "head"}
    network.on_epoch(2, 10)
    assert moved(network, batch(epoch=2)) == {"backbone", "head"}
    network.train()
    network.on_epoch(3, 10)
    assert moved(network, batch(epoch=3)) == {"detector", "regressor", "sharpness"}


def test_the_frozen_classifier_is_in_the_mode_of_the_setting():
    assert not detecting().backbone.training
    assert detecting().detector.training
    official = detecting(frozen_eval=False)
    assert official.backbone.training
    assert moved(official, batch()) == {
        "backbone",
        "detector",
        "regressor",
        "sharpness",
    }  # the statistics of batch norm
    weights = dict(official.backbone.named_parameters())
    assert not any(parameter.requires_grad for parameter in weights.values())


def test_every_parameter_of_the_detector_gets_a_gradient():
    network = detecting()
    sum(network.loss(batch()).values()).backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in learning} == {"detector", "regressor", "sharpness"}
    assert [
        name
        for name, parameter in network.named_parameters()
        if name in learning and not parameter.grad.any()
    ] == []


@pytest.mark.parametrize(("epochs", "start"), [(1, 0), (2, 1), (3, 1), (10, 3), (45, 15)])
def test_the_classifier_has_its_part_of_the_run_and_the_detector_at_least_one_epoch(epochs, start):
    assert model().detector_start(epochs) == start
    assert model(classifier_part=0.01).detector_start(45) == 1
    assert model(classifier_part=0.99).detector_start(45) == 44


def test_a_classifier_that_came_with_the_backbone_is_not_trained():
    backbone = toy_backbone()
    backbone.classifier = (torch.randn(CLASSES, 16), torch.randn(CLASSES))
    network = GcNet(backbone, CLASSES, GcNetConfig())
    assert network.detector_start(45) == 0
    assert moved(network.train(), batch(epoch=0)) & {"head", "regressor"} == {"regressor"}
    assert GcNet(backbone, CLASSES, GcNetConfig(head="conv")).detector_start(45) == 15


def test_a_classifier_can_come_from_a_checkpoint(tmp_path):
    settings = {"head": "conv"}
    cam = Cam.create(backbone="tiny", num_classes=CLASSES, weights="none", settings=settings, image_size=32)
    path = tmp_path / "cam.safetensors"
    save_checkpoint(path, cam, {})
    network = GcNet.create(
        backbone="tiny",
        num_classes=CLASSES,
        weights="none",
        settings={**settings, "classifier": str(path)},
        image_size=32,
    )
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.localize(images).logits, cam.localize(images).logits)
    assert network.detector_start(45) == 0
    assert len(network.config.classifier_sha256) == 64
    assert not torch.equal(next(network.detector.parameters()), next(network.backbone.parameters()))
    with pytest.raises(DataError, match="the classifier of gc-net, head"):
        GcNet.create(
            backbone="tiny",
            num_classes=CLASSES,
            weights="none",
            settings={"classifier": str(path)},
            image_size=32,
        )
    save_checkpoint(tmp_path / "gc.safetensors", network, {})
    path.unlink()
    loaded = GcNet.load(tmp_path / "gc.safetensors", device="cpu")
    assert torch.equal(
        loaded.score_maps(images, torch.zeros(2, 1, dtype=torch.int64)),
        network.score_maps(images, torch.zeros(2, 1).long()),
    )
    with pytest.raises(UsageError, match="no file"):
        GcNetConfig(classifier=str(path))


def test_a_run_trains_both_parts_and_going_on_gives_the_same_weights(tmp_path, monkeypatch):
    settings = {"recipe.weight_decay": "0.1"}
    requests = [
        TrainRequest(
            train=squares(8), out=tmp_path / name, backbone="tiny", weights="none", epochs=3, batch_size=4, image_size=32, workers=0,
            device="cpu", settings=settings,
        )
        for name in ("whole", "cut")
    ]  # fmt: skip
    whole = GcNet.load(GcNet.fit(requests[0]), device="cpu")
    on_epoch = GcNet.on_epoch

    def cut(self: GcNet, epoch: int, epochs: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        on_epoch(self, epoch, epochs)

    monkeypatch.setattr(GcNet, "on_epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        GcNet.fit(requests[1])
    monkeypatch.undo()
    again = GcNet.load(GcNet.fit(requests[1]), device="cpu")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    log = (tmp_path / "whole/log.csv").read_text().splitlines()
    assert {"cross_entropy", "object", "background", "area"} <= set(log[0].split(","))


# --- rates --------------------------------------------------------------------------------------------------


def test_the_detector_s_rate_falls_after_two_thirds_of_its_epochs():
    assert decay_factor(0.5, 30, "linear") == decay_factor(0.5, 30, "compounding") == 1
    assert decay_factor(25 / 30, 30, "linear") == pytest.approx(0.5)
    assert decay_factor(1.0, 30, "linear") == pytest.approx(0.0, abs=1e-9)
    # The released loop multiplies the rate when an epoch after the 20th is over.
    rate, released = 1.0, []
    for epoch in range(30):
        released.append(rate)
        rate *= (30 - epoch) / 10 if epoch > 20 else 1
    assert released[20:24] == pytest.approx([1, 1, 0.9, 0.9 * 0.8])
    assert [
        decay_factor((epoch + part) / 30, 30, "compounding") for epoch in range(30) for part in (0, 0.99)
    ] == pytest.approx([factor for factor in released for _ in range(2)])
    rates = [decay_factor((epoch + 0.5) / 30, 30, "compounding") for epoch in range(30)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) >= 0


def test_each_part_of_the_run_has_the_whole_schedule():
    network = model()
    own = GcNet.recipe_for("vgg16", 200, {})
    assert (own.optimizer, own.lr, own.epochs) == ("adam", 1e-4, 45)
    assert [network.lr_factor(own, epoch / 45) for epoch in (0, 9, 15, 30, 35)] == pytest.approx(
        [1, 1, 1, 1, 1]
    )
    assert network.lr_factor(own, 12.5 / 45) == pytest.approx(0.5)
    assert network.lr_factor(own, 40 / 45) == pytest.approx(0.5)
    tiny = GcNet.recipe_for("tiny", 12, {})
    assert (
        network.lr_factor(tiny, 0.0)
        == network.lr_factor(tiny, network.detector_start(tiny.epochs) / tiny.epochs)
        == 0
    )
    assert GcNet.recipe_name("timm:x", 12) == "finetune"


def test_the_detector_s_backbone_learns_at_the_rate_of_pretrained_layers():
    backbone = toy_backbone()
    backbone.weights = Weights("some", "0" * 64)
    network = GcNet(backbone, CLASSES, GcNetConfig())
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    factors = {}
    for group in network.parameter_groups(GcNet.recipe_for("vgg16", 200, {})):
        for parameter in group["params"]:
            factors.setdefault(names[id(parameter)].partition(".")[0], set()).add(group["factor"])
    assert factors == {
        "backbone": {1, 2},
        "detector": {1, 2},
        "head": {1, 2},
        "regressor": {1, 2, 10, 20},
        "sharpness": {10},
    }


def test_of_the_regressor_only_the_last_layer_learns_faster_in_the_released_recipe_and_all_of_it_in_others():
    backbone = toy_backbone()
    backbone.weights = Weights("some", "0" * 64)
    network = GcNet(backbone, CLASSES, GcNetConfig(pool=2))
    names = [name for name, _ in network.named_parameters()]
    assert [name for name in names if network.is_new(name, GcNet.recipe_for("vgg16", 200, {}))] == [
        "sharpness",
        "regressor.layers.4.weight",
        "regressor.layers.4.bias",
    ]
    others = [
        name for name in names if network.is_new(name, GcNet.recipe_for("vgg16", 200, {"recipe": "spa_cub"}))
    ]
    assert {name.partition(".")[0] for name in others} == {"sharpness", "regressor", "head"}
    assert {"regressor.layers.2.weight", "regressor.layers.4.weight"} <= set(others)


# --- what it finds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ellipse", "rect", "rot_rect"])
def test_the_map_is_one_mask_for_all_classes_whose_half_level_is_the_box(shape):
    network, images = model(shape=shape), torch.randn(3, 3, 96, 96)
    result = network.localize(images)
    maps = result.score_maps(torch.tensor([[0, 2]]).expand(3, 2))
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert maps.min() > 0
    assert maps.max() < 1
    proposals = result.propose()
    boxes, scores = proposals.boxes, proposals.scores
    assert (boxes.shape, scores.tolist()) == ((3, 1, 4), [[1.0]] * 3)
    for image, (box,) in zip(maps[:, 0], boxes, strict=True):
        rows, columns = (image >= 0.5).nonzero(as_tuple=True)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (found - box).abs().max() <= 4  # narrow corners lie between the centres of pixels
    areas = (boxes[:, 0, 2:] - boxes[:, 0, :2]).prod(dim=1)
    torch.testing.assert_close(
        result.extra_maps["union"].sum((1, 2)), areas, atol=1e-2, rtol=1e-4
    )  # the box itself, as a map


def test_there_is_nothing_for_a_post_process():
    with pytest.raises(UsageError, match="cannot be used"):
        last_stages(model().localize(torch.randn(1, 3, 32, 32)), 2, who="scg")


def test_a_fresh_detector_sees_half_the_image_in_the_middle():
    network = GcNet(toy_backbone(), CLASSES, GcNetConfig()).eval()
    boxes = network.localize(torch.zeros(1, 3, 32, 32)).propose().boxes
    torch.testing.assert_close(boxes[0, 0], torch.tensor([8.0, 8, 24, 24]), atol=0.5, rtol=0)


def test_the_scores_are_those_of_the_whole_image():
    network, images = model(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.localize(images).logits, network.classify(images).detach())


def test_the_regressor_sees_a_grid_or_the_mean():
    assert model().regressor.layers[0].output_size == 7
    assert len(model().regressor.layers) == 5
    assert len(model(pool=1).regressor.layers) == 3
    wide = GcNet.create(backbone="resnet50", num_classes=CLASSES, weights="none", settings={}, image_size=32)
    assert wide.regressor.layers[-1].in_features == 2048


def test_the_drawing_network_is_trained_before_the_run_and_by_nothing_else():
    network = model(generator="cnn", generator_steps=1, generator_batch=2)
    network.before_training(squares(2))
    assert network.generator.steps_done == 1
    assert network.sharpness is None
    network.train()
    network.on_epoch(9, 10)
    assert moved(network, batch()) == {"detector", "regressor"}
    as_released = model(generator="cnn", generator_steps=1, generator_batch=2, frozen_eval=False).train()
    as_released.on_epoch(9, 10)
    assert "generator" in moved(as_released, batch())  # the statistics of its batch norm
    assert not any(parameter.requires_grad for parameter in as_released.generator.parameters())
    assert network.eval().score_maps(torch.randn(1, 3, 32, 32), torch.tensor([[0]])).shape == (1, 1, 32, 32)


def test_mixed_precision_keeps_the_losses_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = detecting().loss(batch())
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_the_official_variant_is_what_the_released_code_does():
    official = parse_settings(GcNetConfig, {"variant": "official"}, what="gc-net")
    assert (official.frozen_eval, official.lr_decay) == (False, "compounding")


@pytest.mark.parametrize(
    "changes",
    [
        {"sharpness": 0.0},
        {"generator_steps": 0},
        {"pool": -1},
        {"classifier_part": 0.0},
        {"classifier_part": 1.0},
        {"area_weight": -1.0},
    ],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        model(**changes)
