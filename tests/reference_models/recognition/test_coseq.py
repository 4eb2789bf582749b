"""CoSeq: a run from images and boxes to a checkpoint, what is transferred at test, and its maps."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from reference_models.layers.regions import crop_resize
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.coseq import method, preparation
from reference_models.recognition.coseq.method import Coseq
from reference_models.recognition.coseq.preparation import object_boxes, prepare, read_scene
from reference_models.recognition.coseq.settings import CoseqConfig
from reference_models.recognition.coseq.transfer import (
    mirror_boxes,
    nearest_poses,
    placed_in,
    transfer_parts,
)
from reference_models.training.run_folder import LAST, STATE
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.maps.truths import true_box
from wsolbench.methods import Supervision, TrainRequest
from wsolbench.protocol import EvalProtocol
from wsolbench.testing import squares

CLASSES = 3
SMALL = {"parts": "4", "points": "40"}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """Masks and parts of these tests, each found once."""
    return tmp_path_factory.mktemp("coseq") / "cache"


@pytest.fixture(autouse=True)
def _cached(shared_cache, monkeypatch):
    monkeypatch.setenv("WSOLBENCH_CACHE", str(shared_cache))


def model(**settings) -> Coseq:
    return Coseq(toy_backbone(), CLASSES, CoseqConfig(**{"parts": 4, "points": 40, **settings}))


def request(out, **changes) -> TrainRequest:
    values = {
        "train": squares(18),
        "backbone": "tiny",
        "weights": "none",
        "image_size": 32,
        "device": "cpu",
        "workers": 0,
        "epochs": 3,
        "batch_size": 6,
        "settings": SMALL,
    }
    return TrainRequest(out=out, **{**values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared_cache) -> Coseq:
    """A model that has seen bright squares, whose colour is the class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSOLBENCH_CACHE", str(shared_cache))
        path = Coseq.fit(request(tmp_path_factory.mktemp("coseq") / "run", epochs=36))
    return Coseq.load(path, device="cpu")


# --- a run --------------------------------------------------------------------------------------------------


def test_a_trained_model_knows_new_images(trained):
    data = squares(30, seed=5, split="test")
    images = torch.from_numpy(np.stack([sample.image() for sample in data.samples])).permute(0, 3, 1, 2)
    spec = trained.input_spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    found = trained.localize((images / 255 - mean) / std).logits.argmax(dim=1)
    labels = torch.tensor([sample.label for sample in data.samples])
    assert (found == labels).double().mean() > 0.7


def test_a_checkpoint_has_the_training_images_and_the_fitted_classifiers(trained):
    assert trained.memory.objects.shape == (18, 4)
    assert trained.memory.parts.shape == (18, 4, 4)
    torch.testing.assert_close(trained.memory.poses.float().norm(dim=1), torch.ones(18), atol=1e-2, rtol=0)
    assert trained.scorers.fitted == 1
    assert trained.scorers.weight.any(dim=2).all()
    boxes = torch.from_numpy(object_boxes(squares(18))).float()
    torch.testing.assert_close(trained.memory.objects, boxes)
    assert (trained.memory.parts >= 0).all()
    assert (trained.memory.parts <= 1 + 1e-6).all()


def test_an_interrupted_run_resumes_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    whole = Coseq.fit(request(tmp_path / "whole"))
    real = Coseq.loss

    def stop(self, batch):
        if batch.step == 7:  # in the last epoch, after the classifiers were fitted
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Coseq, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        Coseq.fit(request(tmp_path / "broken"))
    assert (tmp_path / "broken" / STATE).exists()
    monkeypatch.setattr(Coseq, "loss", real)
    monkeypatch.setattr(method, "prepare", None)  # a resumed run has the parts
    resumed = Coseq.fit(request(tmp_path / "broken"))
    assert resumed.name == LAST
    assert resumed.read_bytes() == whole.read_bytes()


def test_the_backbone_learns_in_all_epochs_but_the_last(train_set):
    net = model()
    net.before_training(train_set)
    net.train()
    for epoch, learns in ((0, True), (1, True), (2, False)):
        net.on_epoch(epoch, 3)
        assert net.backbone.training is learns
        assert all(parameter.requires_grad is learns for parameter in net.backbone.parameters())
        assert bool(net.scorers.fitted) is not learns
        assert net.training
    before = net.scorers.weight.clone()
    net.on_epoch(2, 3)
    torch.testing.assert_close(net.scorers.weight, before)
    recipe = Coseq.recipe_for("vgg16", CLASSES, {})
    assert [net.lr_factor(replace(recipe, epochs=4), at) for at in (0.0, 0.49, 0.51, 1.0)] == pytest.approx(
        [1, 1, 0.1, 0.1]
    )


def test_the_scores_are_those_of_the_trained_layers_until_the_classifiers_are_fitted():
    def relative(scores):
        return scores - scores.mean(dim=1, keepdim=True)

    net, features = model().eval(), torch.randn(2, 5, 16)
    scores = net.scorers.scores(features, net.object_classifier, net.part_classifier)
    torch.testing.assert_close(scores[:, 0], relative(net.object_classifier(features[:, 0])))
    torch.testing.assert_close(scores[:, 3], relative(net.part_classifier(features[:, 3])))
    net.scorers.fitted.fill_(1)
    net.scorers.weight.normal_()
    scores = net.scorers.scores(features, net.object_classifier, net.part_classifier)
    torch.testing.assert_close(scores[:, 3], relative(features[:, 3] @ net.scorers.weight[3].mT))


@pytest.mark.parametrize("settings", [{"parts": 0}, {"part_boxes": "grid"}], ids=str)
def test_controls_find_no_parts_and_need_no_masks(settings, train_set, monkeypatch):
    monkeypatch.setattr(method, "prepare", None)
    net = model(**settings)
    net.before_training(train_set)
    net.train().on_epoch(0, 1)
    assert net.memory.parts.shape == (24, settings.get("parts", 4), 4)
    terms = net.loss(toy_batch(4, classes=CLASSES))
    assert ("part" in terms) is ("parts" not in settings)
    result = net.eval().localize(torch.randn(2, 3, 32, 32))
    assert torch.isfinite(result.logits).all()
    assert ("parts" in result.extra_maps) is ("parts" not in settings)
    if "parts" not in settings:
        objects = torch.tensor([[4.0, 8.0, 20.0, 32.0]])
        torch.testing.assert_close(
            net.find_parts(torch.randn(1, 3, 32, 32), objects), placed_in(net.grid[None], objects)
        )
    else:
        assert net.scorers.combination.tolist() == [1.0]


@pytest.mark.parametrize("segment", ["coseg", "grabcut"])
def test_parts_lie_in_the_objects_and_are_the_same_each_time(segment, tmp_path, monkeypatch):
    found, train_set = [], squares(6)
    for number in range(2):
        monkeypatch.setenv("WSOLBENCH_CACHE", str(tmp_path / str(number)))
        net = model(segment=segment)
        net.backbone.load_state_dict(
            {name: torch.full_like(value, 0.01) for name, value in net.backbone.state_dict().items()}
        )
        net.before_training(train_set)
        found.append(net.memory.parts.clone())
    torch.testing.assert_close(*found, atol=0, rtol=0)
    sides = found[0][..., 2:] - found[0][..., :2]
    assert (sides > 0).all()
    assert (sides <= 0.6).all()
    assert (found[0] >= 0).all()
    assert (found[0] <= 1).all()


class RecomputedError(Exception):
    pass


def fail(*_):
    raise RecomputedError


def test_masks_and_parts_are_read_from_the_cache_if_nothing_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("WSOLBENCH_CACHE", str(tmp_path / "cache"))
    train_set = squares(6)
    boxes, poses = object_boxes(train_set), np.random.default_rng(0).normal(size=(6, 8))
    config = CoseqConfig(parts=4, points=40)
    first = prepare(train_set, boxes, poses, config)
    files = sorted((tmp_path / "cache" / "coseq").iterdir())
    assert [path.name[:5] for path in files] == ["masks", "parts"]
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "segment", fail)
        patch.setattr(preparation, "find_parts", fail)
        again = prepare(train_set, boxes, poses, config)
        np.testing.assert_array_equal(again.boxes, first.boxes)
        for one, two in zip(again.masks, first.masks, strict=True):
            np.testing.assert_array_equal(one, two)
        for changed in ({"part_seed": 1}, {"mask_pixels": 500}, {"segment": "grabcut"}, {"points": 41}):
            with pytest.raises(RecomputedError):
                prepare(train_set, boxes, poses, replace(config, **changed))
        with pytest.raises(RecomputedError):
            prepare(squares(6, seed=1), boxes, poses, config)
        with pytest.raises(RecomputedError):
            prepare(train_set, boxes, poses + 1, config)
    files[1].write_bytes(files[1].read_bytes()[:100])  # damaged
    np.testing.assert_array_equal(prepare(train_set, boxes, poses, config).boxes, first.boxes)


def test_true_masks_are_refused_where_there_are_none(train_set):
    with pytest.raises(DataError, match="no ground-truth mask; use segment=coseg"):
        prepare(train_set, object_boxes(train_set), np.zeros((24, 2)), CoseqConfig(segment="mask"))


def test_an_image_without_a_box_is_refused_and_the_whole_image_needs_none(train_set):
    samples = [replace(train_set[0], boxes=np.zeros((0, 4))), *train_set.samples[1:]]
    data = replace(train_set, samples=samples)
    with pytest.raises(DataError, match=r"has no ground-truth box; .*object_box=image"):
        model().before_training(data)
    net = model(object_box="image", part_boxes="grid")
    net.before_training(data)
    torch.testing.assert_close(net.memory.objects, torch.tensor([[0.0, 0, 1, 1]]).expand(24, 4))
    assert "supervision" not in net.describe()
    described = json.loads(json.dumps(model().describe()))
    assert Supervision.parse(described["supervision"]) == Supervision(
        labels=True, boxes=True, used_for="training"
    )


@pytest.mark.parametrize(
    ("settings", "masks"),
    [({}, True), ({"object_box": "image"}, True), ({"parts": 0}, False), ({"part_boxes": "grid"}, False)],
    ids=str,
)
def test_a_record_says_that_masks_of_training_images_were_read(settings, masks):
    described = model(segment="mask", **settings).describe()
    supervision = Supervision.parse(described["supervision"])
    assert supervision == Supervision(
        labels=True, boxes="object_box" not in settings, masks=masks, used_for="training"
    )


def test_of_several_boxes_the_largest_is_the_object(train_set):
    sample = replace(train_set[0], boxes=np.array([[0, 0, 4, 4], [8, 4, 24, 20], [30, 0, 40, 2.0]]))
    boxes = object_boxes(replace(train_set, samples=[sample]))
    np.testing.assert_allclose(boxes, [[0.25, 0.125, 0.75, 0.625]])
    scene = read_scene(sample, boxes[0], 256)
    assert scene.pixels.shape == (16, 16, 3)
    assert scene.box == (4, 2, 12, 10)


# --- recipes ------------------------------------------------------------------------------------------------


def test_recipes_show_whole_images():
    for backbone in ("vgg16", "tiny", "efficientnet_lite0"):
        recipe = Coseq.recipe_for(backbone, CLASSES, {})
        assert (recipe.resize, recipe.flip, recipe.rotation, recipe.short_side) == (1.0, 0.0, 0.0, False)
    with pytest.raises(UsageError, match=r"flip=0.5.*boxes belong to whole images"):
        Coseq.recipe_for("tiny", CLASSES, {"recipe.flip": "0.5"})
    baseline = Baseline.recipe_for(
        "vgg16", 200, {"recipe": "coseq"}
    )  # crops and mirrors, as CoSeq does itself
    assert (baseline.resize, baseline.flip) == (256 / 224, 0.5)
    assert replace(baseline, resize=1.0, flip=0.0) == Coseq.recipe_for("vgg16", 200, {})
    assert Coseq.default_size("vgg16", 200) == 448


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "terms"),
    [
        ("cam", {"object", "part", "image"}),
        ("regress", {"object", "part", "box"}),
        ("image", {"object", "part"}),
    ],
)
def test_the_terms_of_the_loss(box, terms, train_set):
    net = model(object_box=box, part_boxes="grid").train()
    net.before_training(train_set)
    found = net.train().loss(toy_batch(4, classes=CLASSES))
    assert set(found) == terms
    assert all(torch.isfinite(term) for term in found.values())


def test_crops_of_the_mirror_image_are_mirrored_crops():
    images = torch.randn(2, 3, 32, 32)
    boxes = torch.tensor([[2.0, 3, 17, 20], [10, 0, 30, 31]])
    one = crop_resize(images, boxes[:, None], 16)
    other = crop_resize(images.flip(-1), mirror_boxes(boxes, 32)[:, None], 16)
    torch.testing.assert_close(other, one.flip(-1), atol=1e-5, rtol=1e-5)


def test_the_loss_crops_each_image_at_its_boxes(train_set, monkeypatch):
    net = model(object_box="image", part_boxes="grid").train()
    net.before_training(train_set)
    net.memory.objects.copy_(
        torch.rand(24, 4) * torch.tensor([0.3, 0.3, 0, 0]) + torch.tensor([0, 0, 0.6, 0.9])
    )
    seen = []

    def crop(images, boxes, size):
        seen.append((images.clone(), boxes))
        return crop_resize(images, boxes, size)

    monkeypatch.setattr(method, "crop_resize", crop)
    batch = toy_batch(24, classes=CLASSES)
    net.train().loss(batch)
    (images, objects), (_, parts) = seen
    mirrored = torch.tensor([not torch.equal(*pair) for pair in zip(images, batch.images, strict=True)])
    assert 4 < mirrored.sum() < 20
    torch.testing.assert_close(images[mirrored], batch.images[mirrored].flip(-1))
    own = net.memory.objects * 32
    own[mirrored] = mirror_boxes(own[mirrored], 32)
    sides = (objects[:, 0, 2:] - objects[:, 0, :2]) / (own[:, 2:] - own[:, :2])
    torch.testing.assert_close(sides, torch.full_like(sides, 224 / 256))
    for crops in (objects[:, 0], parts[:, 0]):
        assert (crops[:, :2] >= own[:, :2] - 1e-4).all()
        assert (crops[:, 2:] <= own[:, 2:] + 1e-4).all()


# --- boxes at test ------------------------------------------------------------------------------------------


def test_a_training_image_finds_its_own_parts_and_its_mirror_image_the_mirrored_ones(trained):
    data, spec = squares(18), trained.input_spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    image = torch.from_numpy(data[4].image()).permute(2, 0, 1) / 255
    image = ((image - mean) / std)[None]
    box = trained.memory.objects[4:5] * 32
    with torch.no_grad():
        poses = torch.stack(
            [
                trained.describe_poses(image, box),
                trained.describe_poses(image.flip(-1), mirror_boxes(box, 32)),
            ],
            dim=1,
        )
        for asked, turned in ((poses, False), (poses.flip(1), True)):
            index, mirrored = nearest_poses(asked, trained.memory.poses, 1)
            assert (index.item(), mirrored.item()) == (4, turned)
            found = transfer_parts(index, mirrored, trained.memory.parts)[0]
            own = trained.memory.parts[4]
            torch.testing.assert_close(found, mirror_boxes(own) if turned else own)


@pytest.mark.parametrize("box", ["cam", "regress", "image"])
def test_the_object_s_box_at_test(box):
    net = model(object_box=box).eval()
    features = net.backbone.run(torch.randn(3, 3, 32, 32))
    found = net.object_finder(features, 32)
    assert found.shape == (3, 4)
    if box == "image":
        torch.testing.assert_close(found, torch.tensor([[0.0, 0, 32, 32]]).expand(3, 4))
    if box == "regress":
        with torch.no_grad():
            net.object_finder.box_layer.weight.zero_()
            net.object_finder.box_layer.bias.copy_(torch.logit(torch.tensor([0.25, 0.25, 0.5, 0.75])))
        torch.testing.assert_close(
            net.object_finder(features, 32), torch.tensor([[8.0, 8, 16, 24]]).expand(3, 4)
        )


def test_the_ground_truth_box_replaces_the_found_one(trained, monkeypatch):
    """With the boxes that the network finds, given as the truth, nothing changes; with others all does."""
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = trained.object_finder(trained.backbone.run(images), 32)
    plain = trained.localize(images)
    monkeypatch.setattr(trained, "config", replace(trained.config, test_box="truth"))
    assert trained.uses_true_boxes
    same, other = (trained.localize(images, true_boxes=boxes) for boxes in (found, found / 2))
    torch.testing.assert_close(same.logits, plain.logits)
    assert (other.logits - plain.logits).abs().min() > 1e-3
    corners = other.propose().boxes
    assert (corners[..., 2:] <= found[:, None, 2:] / 2 + 1e-4).all()
    with pytest.raises(UsageError, match=r"'coseq' with these settings needs the ground-truth box"):
        trained.localize(images)


def test_a_record_says_that_boxes_of_test_images_were_read(tmp_path, monkeypatch):
    path = Coseq.fit(request(tmp_path / "run"))
    net = Coseq.load(path, device="cpu", settings={"test_box": "truth"})
    source = ModelSource(net, EvalProtocol(), num_classes=CLASSES, device="cpu", batch_size=2)
    assert source.describe()["supervision"] == Supervision.of_prediction(["boxes"]).to_json()
    samples = squares(18).samples[:2]
    given = []
    find = net.find_parts
    monkeypatch.setattr(net, "find_parts", lambda images, boxes: given.append(boxes) or find(images, boxes))
    source.maps(samples, source.collate([source.load(sample) for sample in samples]))
    expected = np.stack([true_box(sample, 32, source.protocol) for sample in samples])
    torch.testing.assert_close(given[0], torch.from_numpy(expected).float())


# --- scores and maps ----------------------------------------------------------------------------------------


def test_the_mean_of_a_class_map_is_the_score(trained):
    result = trained.localize(torch.randn(4, 3, 32, 32))
    ids = torch.arange(CLASSES).expand(4, CLASSES)
    torch.testing.assert_close(result.score_maps(ids).mean(dim=(2, 3)), result.logits, atol=1e-4, rtol=1e-4)


def test_scores_are_the_weighted_sums_of_the_regions(trained):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = trained.backbone.run(images)
        objects = trained.object_finder(features, 32)
        parts = trained.find_parts(images, objects)
        logits = torch.zeros(2, CLASSES)
        for region in range(5):
            boxes, size = (objects, 32) if region == 0 else (parts[:, region - 1], 16)
            statistics = trained.part_statistics if region else trained.object_statistics
            with statistics.in_use(trained.backbone):
                seen = trained.backbone.run(crop_resize(images, boxes[:, None], size)).mean(dim=(2, 3))
            score = seen @ trained.scorers.weight[region].mT + trained.scorers.bias[region]
            logits += trained.scorers.combination[region] * (score - score.mean(dim=1, keepdim=True))
    result = trained.localize(images)
    torch.testing.assert_close(result.logits, logits, atol=1e-4, rtol=1e-4)
    proposed = result.propose()
    assert proposed.boxes.shape == (2, 4, 4)
    assert (proposed.scores.diff(dim=1) <= 0).all()


def test_scores_are_relative_to_the_classes(trained):
    """The best class is preferred by each map's mean, and its map is not negative as a whole."""
    result = trained.localize(torch.randn(4, 3, 32, 32))
    torch.testing.assert_close(result.logits.mean(dim=1), torch.zeros(4), atol=1e-5, rtol=0)
    best = result.logits.argmax(dim=1, keepdim=True)
    assert (result.score_maps(best).mean(dim=(2, 3)) > 0).all()


def test_one_image_and_a_black_one_have_finite_results(trained):
    for images in (torch.randn(1, 3, 32, 32), torch.zeros(2, 3, 32, 32)):
        result = trained.localize(images)
        assert torch.isfinite(result.logits).all()
        assert torch.isfinite(result.score_maps(torch.zeros(len(images), 1, dtype=torch.long))).all()
        assert torch.isfinite(result.propose().boxes).all()


def test_parts_can_have_running_statistics_of_their_own(train_set):
    net = model(norm_statistics="per_input", part_boxes="grid")
    net.before_training(train_set)
    net.train().loss(toy_batch(4, classes=CLASSES))
    own = partial(getattr, net.part_statistics.layers["steps/one/1"])
    assert not torch.equal(own("running_mean"), net.backbone.steps["one"][1].running_mean)
