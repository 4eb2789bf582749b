"""PSOL: pseudo boxes from the images of a class, boxes that move with the images, and one regressed box."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.core.recipes import RECIPES
from reference_models.layers.descriptors import largest_box, principal_direction
from reference_models.localization.psol import (
    Psol,
    PsolConfig,
    both_corners,
    box_loss,
    corner_and_sides,
    extents,
    fill,
    keep_if_small,
)
from reference_models.training.images import ImageReader, masks_of, normalized_images
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import TrainRequest, load_method
from wsolbench.testing import squares

CLASSES = 3


def psol(**settings) -> Psol:
    return Psol(toy_backbone(), CLASSES, PsolConfig(**{"width": 16, **settings}))


def request(train, out, **options) -> TrainRequest:
    usual = {
        "backbone": "tiny",
        "weights": "none",
        "epochs": 2,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
        "settings": {"width": "16"},
    }
    return TrainRequest(train=train, out=out, **{**usual, **options})


# --- pseudo boxes -------------------------------------------------------------------------------------------


def test_pseudo_boxes_are_those_of_each_class_by_itself(train_set):
    model = psol(cells=8)
    model.before_training(train_set)
    labels = np.array([sample.label for sample in train_set.samples])
    (pixels,) = ImageReader(train_set, 64, workers=0).squares([np.arange(len(labels))])
    with torch.no_grad():
        stages = model.eval().backbone.stages(normalized_images(torch.from_numpy(pixels), model.input_spec))
    features = torch.nn.functional.max_pool2d(stages["three"], 2)
    for label in range(CLASSES):
        own = features[torch.from_numpy(labels == label)]
        heats = principal_direction([own]).heat(own).numpy()
        expected = np.stack([largest_box(heat) for heat in heats])
        np.testing.assert_allclose(model.pseudo_boxes[labels == label].numpy(), expected)
    cells = model.pseudo_boxes * 8
    assert torch.equal(cells, cells.round())
    before = model.pseudo_boxes.clone()
    model.before_training(squares(24, seed=3))  # a resumed run
    assert torch.equal(model.pseudo_boxes, before)


def test_the_order_of_the_images_gives_the_same_boxes(train_set):
    model, other = psol(), psol()
    other.load_state_dict(model.state_dict())
    order = np.random.default_rng(0).permutation(len(train_set))
    model.before_training(train_set)
    other.before_training(replace(train_set, samples=[train_set.samples[index] for index in order]))
    assert torch.equal(other.pseudo_boxes, model.pseudo_boxes[order])


def test_boxes_do_not_depend_on_the_ground_truth(train_set):
    bare = replace(train_set, samples=[replace(each, boxes=np.zeros((0, 4))) for each in train_set.samples])
    model, other = psol(), psol()
    other.load_state_dict(model.state_dict())
    model.before_training(train_set)
    other.before_training(bare)
    assert torch.equal(model.pseudo_boxes, other.pseudo_boxes)
    assert model.supervision is None
    targets = other.training_targets(bare)
    assert [len(sample.boxes) for sample in targets.samples] == [1] * len(bare)


def test_a_grid_without_inner_cells_is_refused(train_set):
    with pytest.raises(UsageError, match=r"method 'psol'.*2x2 cells"):
        psol(box_size=8).before_training(train_set)


def test_large_classes_are_computed_again():
    calls = []

    def batches():
        calls.append(1)
        return iter([torch.zeros(2, 4), torch.ones(1, 4)])

    for most, expected in ((48, 1), (47, 3)):
        calls.clear()
        again = keep_if_small(batches, most)
        assert [len(list(again())), len(list(again()))] == [2, 2]
        assert len(calls) == expected


# --- targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_targets_are_the_boxes_in_the_crop_and_the_mirror_image(flip, train_set):
    rng, size, side = np.random.default_rng(0), 28, 36
    cells = np.sort(rng.integers(0, 15, (len(train_set), 2, 2)), axis=1)
    cells[:, 1] += cells[:, 0] == cells[:, 1]
    boxes = cells.reshape(-1, 4).clip(0, 15) / 15
    model = psol()
    model.pseudo_boxes = torch.from_numpy(boxes).float()
    reader = ImageReader(model.training_targets(train_set), side, workers=0, masks="box")
    recipe = replace(RECIPES["tiny"], flip=flip)
    (views,) = reader.views([np.arange(len(boxes))], size, recipe, seed=1, epoch=2)
    found, known = extents(masks_of(torch.from_numpy(views)))
    for index, box in enumerate(boxes):
        _, row, column, _ = np.random.default_rng((1, 2, index, 0)).random(4)
        start = np.array([int(column * (side - size + 1)), int(row * (side - size + 1))] * 2)
        expected = (box * side - start).clip(0, size) / size
        if flip:
            expected[[0, 2]] = 1 - expected[[2, 0]]
        visible = (expected[2:] > expected[:2]).all()
        if visible and (expected[2:] - expected[:2]).min() * size > 1:
            np.testing.assert_allclose(found[index].numpy(), expected, atol=0.01 / size + 1 / 255 / size)
        assert bool(known[index]) == bool(visible) or (expected[2:] - expected[:2]).min() * size < 0.01


def test_a_mirrored_mask_has_the_mirrored_box():
    masks = torch.zeros(2, 8, 10)
    masks[0, 2:5, 1:4] = 1
    masks[0, 1, 1:4] = 0.25
    masks[1, :, 9] = 0.5
    boxes, known = extents(masks)
    assert boxes[0].tolist() == pytest.approx([0.1, 1.75 / 8, 0.4, 5 / 8])
    assert boxes[1].tolist() == pytest.approx([0.9, 0, 1, 1])
    mirrored, _ = extents(masks.flip(2))
    torch.testing.assert_close(mirrored[:, [0, 2]], 1 - boxes[:, [2, 0]])
    assert torch.equal(mirrored[:, [1, 3]], boxes[:, [1, 3]])
    assert known.tolist() == [True, True]
    assert extents(torch.zeros(1, 8, 10))[1].tolist() == [False]


# --- loss ---------------------------------------------------------------------------------------------------


def test_the_loss_is_50_times_the_mean_square_over_images_with_a_box():
    one, two = torch.rand(5, 4), torch.rand(5, 4)
    known = torch.tensor([True, False, True, True, False])
    expected = 50 * torch.nn.functional.mse_loss(one[known], two[known])
    torch.testing.assert_close(box_loss(one, two, known), expected)
    assert box_loss(one, two, known & False) == 0


def test_the_loss_is_that_of_the_predicted_box_and_labels_do_not_enter():
    model, masks = psol().eval(), torch.zeros(4, 32, 32)
    for index in range(4):
        masks[index, index : 8 + 2 * index, 3 : 20 + index] = 1
    batch = replace(toy_batch(4, classes=CLASSES), masks=masks)
    regressed = model.regress(model.localize(batch.images).penultimate)
    target = torch.tensor([[3, i, 20 + i, 8 + 2 * i] for i in range(4)]) / 32
    expected = 50 * (regressed - corner_and_sides(target)).square().mean()
    (loss,) = model.loss(batch).values()
    torch.testing.assert_close(loss, expected)
    assert model.loss(replace(batch, labels=batch.labels.flip(0)))["box"] == loss


def test_images_without_a_box_have_no_gradient():
    model = psol()
    batch = replace(toy_batch(3, classes=CLASSES), masks=torch.zeros(3, 32, 32))
    (loss,) = model.loss(batch).values()
    loss.backward()
    assert loss == 0
    assert not any(each.grad.any() for each in model.parameters())
    with pytest.raises(UsageError, match="needs the masks of a batch"):
        model.loss(toy_batch(3, classes=CLASSES))


# --- the map ------------------------------------------------------------------------------------------------


def test_the_map_is_the_box_for_every_class():
    model = psol().eval()
    images = torch.randn(2, 3, 32, 48)
    result = model.localize(images)
    maps = result.score_maps(torch.tensor([[2, 0, 1]] * 2))
    assert result.logits is None
    assert maps.shape == (2, 3, 32, 48)
    assert torch.equal(maps, maps[:, :1].expand_as(maps))
    assert set(maps.unique().tolist()) == {0.0, 1.0}  # so every threshold gives the same box
    boxes = result.propose().boxes
    assert boxes.shape == (2, 1, 4)
    for mask, box in zip(maps[:, 0], boxes[:, 0], strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (edges - box).abs().max() <= 0.5 + 1e-4
        assert mask.sum() == len(rows) * len(columns)


def test_pixels_count_by_their_centres_and_the_smallest_box_has_one():
    boxes = torch.tensor([[0.125, 0.5, 0.625, 1], [0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1]])
    maps = fill(boxes, 4, 4)
    assert maps[0].tolist() == [[0] * 4, [0] * 4, [1, 1, 0, 0], [1, 1, 0, 0]]
    assert maps[1].nonzero().tolist() == [[2, 2]]
    assert maps[2].nonzero().tolist() == [[3, 3]]


def test_regressed_sides_end_at_the_image():
    regressed = torch.tensor([[0.25, 0.5, 0.5, 0.75]])
    assert both_corners(regressed).tolist() == [[0.25, 0.5, 0.75, 1.0]]
    inside = torch.tensor([[0.25, 0.5, 0.75, 0.875]])
    assert torch.equal(both_corners(corner_and_sides(inside)), inside)


# --- training -----------------------------------------------------------------------------------------------


def test_the_regressor_learns_the_pseudo_boxes(train_set, val_set, tmp_path, monkeypatch):
    truth = np.stack([sample.boxes[0] for sample in train_set.samples]) / 32
    monkeypatch.setattr(Psol, "find_boxes", lambda model, passes, chosen: truth[chosen])
    settings = {"width": "16", "recipe.lr": "0.01"}
    path = Psol.fit(request(train_set, tmp_path, epochs=8, val=val_set, settings=settings))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < 0.7 * losses[0]
    assert {row["val_accuracy"] for row in rows} == {""}
    assert not (tmp_path / "best.safetensors").exists()
    model = Psol.load(path, device="cpu")
    torch.testing.assert_close(model.pseudo_boxes, torch.from_numpy(truth).float())
    assert "supervision" not in model.describe()


def test_a_resumed_run_keeps_the_boxes_and_notices_damage(train_set, tmp_path, monkeypatch):
    whole = Psol.load(Psol.fit(request(train_set, tmp_path / "whole")), device="cpu")
    original, searches = Psol.find_boxes, []

    def counted(model, passes, chosen):
        searches.append(len(chosen))
        return original(model, passes, chosen)

    def stop(model, epoch, epochs):
        if epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Psol, "find_boxes", counted)
    with monkeypatch.context() as patched:
        patched.setattr(Psol, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            Psol.fit(request(train_set, tmp_path / "cut"))
    assert sum(searches) == len(train_set)
    state = tmp_path / "cut/state.pt"
    sound = state.read_bytes()
    boxes = whole.pseudo_boxes.numpy().tobytes()
    assert sound.count(boxes) == 1
    state.write_bytes(sound.replace(boxes, boxes[4:] + boxes[:4]))
    with pytest.raises(DataError, match="is damaged"):
        Psol.fit(request(train_set, tmp_path / "cut"))
    state.write_bytes(sound)
    resumed = Psol.load(Psol.fit(request(train_set, tmp_path / "cut")), device="cpu")
    assert sum(searches) == len(train_set)  # found once
    assert all(
        torch.equal(one, two)
        for one, two in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_images_without_a_positive_cell_are_counted_and_left_out(train_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Psol, "find_boxes", lambda model, passes, chosen: np.zeros((len(chosen), 4)))
    Psol.fit(request(train_set, tmp_path))
    assert "24 of 24 training images have no pseudo box" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert {float(row["train_loss"]) for row in rows} == {0.0}


def test_recipes_are_those_of_the_released_programs():
    method = load_method("psol")
    few, many = (method.recipe_for("resnet50", classes, {}) for classes in (200, 1000))
    assert (many.epochs, many.batch_size, many.lr, many.new_factor, many.lr_factor(0.99)) == (
        6,
        256,
        1e-3,
        2,
        1,
    )
    assert (few.epochs, few.batch_size, few.lr, few.schedule) == (100, 64, 2e-3, "cosine")
    with torch.device("meta"):
        model = method.create(backbone="vgg16", num_classes=3, weights="none", settings={})
        assert model.descriptors(torch.zeros(1, 3, 448, 448)).shape == (1, 512, 14, 14)
        assert model.input_spec.size == 224
        assert (model.hidden.out_features, model.output.out_features) == (512, 4)
    assert method.grid_for("resnet50", PsolConfig()) == "stock"
