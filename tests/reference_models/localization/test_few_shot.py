"""The few-shot localizer: its loss and targets, its draws, and thresholds that never see a trained image."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_models.core.outputs import Batch
from reference_models.core.recipes import RECIPES
from reference_models.layers.cells import area_means
from reference_models.localization.cam import Cam
from reference_models.localization.few_shot import FewShot, FewShotConfig, pixel_loss
from reference_models.training.images import ImageReader, masks_of
from reference_models.training.run_folder import BEST
from tests.reference_models.conftest import squares, toy_backbone
from tests.reference_models.training.test_images import with_masks
from wsolbench.datasets.subsets import hold_out, transfer_part
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import Supervision, TrainRequest
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Dataset

CLASSES = 3


def few_shot(**settings) -> FewShot:
    return FewShot(toy_backbone(), CLASSES, FewShotConfig(**settings))


def batch(masks: torch.Tensor | None, images: torch.Tensor | None = None) -> Batch:
    images = torch.randn(4, 3, 32, 32) if images is None else images
    return Batch(
        images=images,
        labels=torch.arange(len(images)) % CLASSES,
        indices=torch.arange(len(images)),
        epoch=0,
        epochs=1,
        step=0,
        generator=torch.Generator().manual_seed(0),
        masks=masks,
    )


def request(out: Path, **changes) -> TrainRequest:
    values = {
        "train": squares(24),
        "backbone": "tiny",
        "weights": "none",
        "epochs": 1,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
    }
    return TrainRequest(out=out, **{**values, **changes})


# --- loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_without_weights_every_cell_costs_log_2_whatever_the_target(head):
    model = few_shot(head=head).train()
    torch.nn.init.zeros_(model.head.classifier.weight)
    torch.nn.init.zeros_(model.head.classifier.bias)
    (loss,) = model.loss(batch(torch.rand(4, 32, 32))).values()
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_map():
    model, images, masks = few_shot().eval(), torch.randn(4, 3, 32, 32), torch.rand(4, 32, 32)
    maps = model.score_maps(images, torch.zeros(4, 1, dtype=torch.long))[:, 0]
    share = masks.reshape(4, 8, 4, 8, 4).mean(dim=(2, 4))
    expected = -(share * maps.log() + (1 - share) * (1 - maps).log()).mean()
    torch.testing.assert_close(model.loss(batch(masks, images))["binary_cross_entropy"], expected)


def test_mirrored_features_and_targets_cost_the_same():
    model, f, masks = few_shot(), torch.randn(2, 16, 8, 8), torch.rand(2, 32, 32)
    torch.testing.assert_close(
        pixel_loss(model.logits_map(f.flip(3)), area_means(masks.flip(2), 8, 8)),
        pixel_loss(model.logits_map(f), area_means(masks, 8, 8)),
    )


def test_an_object_that_fills_every_image_drives_the_map_to_1():
    model = few_shot()
    images, asked = torch.randn(8, 3, 32, 32), torch.zeros(8, 1, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        model.train().loss(batch(torch.ones(8, 32, 32), images))["binary_cross_entropy"].backward()
        optimizer.step()
    assert float(model.eval().score_maps(images, asked).min()) > 0.95


def test_the_map_is_that_of_every_class_and_there_are_no_class_scores():
    model, images = few_shot().eval(), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.tensor([[0, 1, 2], [2, 2, 0]]))
    assert torch.equal(maps, maps[:, :1].expand_as(maps))
    assert result.logits is None
    assert 0 < float(maps.min()) < float(maps.max()) < 1


def test_a_batch_without_masks_is_refused():
    with pytest.raises(UsageError, match="needs the masks of a batch"):
        few_shot().loss(batch(None))


# --- targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 3, 5, 7, 12, 40])
def test_the_mean_of_the_target_is_the_share_of_the_box_on_any_grid(cells):
    data = squares(6)
    reader = ImageReader(data, 36, workers=0, masks="box")
    (pixels,) = reader.squares([np.arange(6)])
    target = area_means(masks_of(torch.from_numpy(pixels)), cells, cells)
    shares = [np.prod(sample.boxes[0, 2:] - sample.boxes[0, :2]) / 32**2 for sample in data.samples]
    # A pixel has one of 256 levels.
    np.testing.assert_allclose(target.mean(dim=(1, 2)).numpy(), shares, atol=2e-3)


def test_boxes_move_with_the_crop_and_the_mirror_image():
    # The box of every image is its brightest square.
    data = squares(12)
    reader = ImageReader(data, 36, workers=0, masks="box")
    for flip in (0.0, 1.0):
        (views,) = reader.views([np.arange(12)], 32, replace(RECIPES["tiny"], flip=flip), seed=1, epoch=2)
        bright, boxed = views[..., :3].max(axis=3) > 160, views[..., 3] > 127
        assert (bright & boxed).sum() / (bright | boxed).sum() > 0.75


# --- draws --------------------------------------------------------------------------------------------------


def drawn(out: Path, *, train: Dataset | None = None, seed: int = 0, **settings: str) -> Dataset:
    asked = request(out, train=train or squares(30), settings=settings, seed=seed)
    return FewShot.choose_images(asked).train


def test_shots_are_drawn_of_each_class_by_the_seed(tmp_path):
    one, again, other = (drawn(tmp_path, shots="4", seed=seed) for seed in (0, 0, 1))
    assert Counter(sample.label for sample in one.samples) == {0: 4, 1: 4, 2: 4}
    assert (one.ids, one.fingerprint) == (again.ids, again.fingerprint)
    assert set(one.ids) != set(other.ids)
    assert set(drawn(tmp_path, shots="2").ids) < set(one.ids)
    assert drawn(tmp_path, shots="all").ids == squares(30).ids


def test_a_class_with_fewer_images_gives_all_and_a_line_says_so(tmp_path, capsys):
    train = squares(30)
    train = replace(train, samples=tuple(one for one in train.samples if one.label or one.id < "train/2"))
    assert Counter(sample.label for sample in drawn(tmp_path, train=train).samples)[0] < 5
    assert "1 of 3 classes have fewer than 5 images" in capsys.readouterr().err


def test_only_images_with_the_ground_truth_are_drawn(tmp_path):
    masked, bare = with_masks(tmp_path).samples, squares(30).samples
    mixed = replace(squares(30), samples=(*masked[:3], *bare[6:9], replace(bare[9], boxes=np.zeros((0, 4)))))
    ids = {of: drawn(tmp_path, train=mixed, of=of, shots="all").ids for of in ("mask", "box", "any")}
    assert ids["mask"] == mixed.ids[:3]
    assert ids["box"] == ids["any"] == mixed.ids[:6]
    with pytest.raises(
        DataError, match=r"of=mask learns from ground-truth masks; found none in squares train"
    ):
        drawn(tmp_path, of="mask")


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["mask", "box"])
def test_a_few_images_lower_the_loss_and_the_map_is_higher_inside_of_the_object(of, tmp_path):
    train = with_masks(tmp_path) if of == "mask" else squares(6)
    settings = {"of": of, "recipe.lr": "0.01"}
    path = FewShot.fit(request(tmp_path / "run", train=train, epochs=15, batch_size=6, settings=settings))
    rows = (tmp_path / "run/log.csv").read_text().splitlines()
    losses = [float(row.split(",")[1]) for row in rows[1:]]
    assert losses[-1] < 0.7 * losses[0]
    model, test = FewShot.load(path, device="cpu"), squares(20, seed=5, split="test")
    (pixels,) = ImageReader(test, 32, workers=0, masks="box").squares([np.arange(20)])
    images = torch.from_numpy(pixels[..., :3]).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (model.input_spec.mean, model.input_spec.std)
    )
    maps = model.score_maps((images - mean) / std, torch.zeros(20, 1, dtype=torch.long))[:, 0]
    inside = area_means(masks_of(torch.from_numpy(pixels)), *maps.shape[1:])
    inside_mean = (maps * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))
    outside_mean = (maps * (1 - inside)).sum(dim=(1, 2)) / (1 - inside).sum(dim=(1, 2))
    assert int((inside_mean > outside_mean).sum()) >= 19


def test_a_run_states_what_it_has_read_and_keeps_its_last_epoch(tmp_path):
    val = squares(9, seed=1, split="val")
    settings = {"shots": "2", "of": "box"}
    path = FewShot.fit(request(tmp_path, val=val, epochs=2, settings=settings))
    assert not (tmp_path / BEST).exists()
    described = FewShot.load(path, device="cpu").describe()
    assert Supervision.parse(described["supervision"]) == Supervision(
        labels=True, boxes=True, used_for="training"
    )
    training = described["training"]
    assert (training["dataset"]["images"], training["dataset"]["split"]) == (6, "train")
    assert training["images_seen"] == 12
    assert training["val"] is None
    assert FewShot.fit(request(tmp_path, val=val, epochs=2, settings=settings)) == path  # finished
    assert few_shot(shots="all", of="mask").supervision == Supervision(masks=True, used_for="training")


def test_with_all_stages_frozen_only_the_head_learns(tmp_path):
    start = Cam.fit(request(tmp_path / "start", settings={"width": "8"}))
    stages = len(
        few_shot().create(backbone="tiny", num_classes=3, weights="none", settings={}).backbone.layout
    )
    settings = {"recipe.frozen_stages": str(stages)}
    end = FewShot.fit(request(tmp_path / "end", weights=str(start), settings=settings))
    before, after = load_file(start), load_file(end)
    same = {key: torch.equal(before[key], after[key]) for key in after if key.startswith("backbone.")}
    assert all(same.values())
    assert "head.classifier.weight" in after


def test_default_recipes_have_at_most_50_epochs():
    for backbone, classes in (("vgg16", 200), ("vgg16", 1000), ("efficientnet_lite0", 50)):
        own, cam = (kind.recipe_for(backbone, classes, {}) for kind in (FewShot, Cam))
        assert own == replace(cam, epochs=min(cam.epochs, 50))
    assert FewShot.recipe_for("vgg16", 200, {"recipe.epochs": "70"}).epochs == 70


# --- thresholds ---------------------------------------------------------------------------------------------


def record_of(path: Path, transfer_from: Dataset):
    protocol = EvalProtocol()
    source = ModelSource(
        FewShot.load(path, device="cpu"), protocol, num_classes=CLASSES, device="cpu", batch_size=4
    )
    test = squares(6, seed=2, split="test")
    return evaluate(
        test, source, protocol, transfer_from=transfer_from, options=RunOptions(resamples=20)
    ).record


def test_thresholds_come_only_from_the_part_of_val_that_was_not_trained_on(tmp_path):
    val = squares(30, seed=1, split="val")
    settings = {"split": "val", "shots": "all"}
    assert FewShot.train_split(settings) == "val"
    path = FewShot.fit(request(tmp_path, train=val, seed=3, settings=settings))
    training = FewShot.load(path, device="cpu").describe()["training"]
    fit, tune = hold_out(val, 3)
    assert not set(fit.ids) & set(tune.ids)
    assert sorted([*fit.ids, *tune.ids]) == sorted(val.ids)
    assert (training["dataset"]["split"], training["dataset"]["images"]) == ("val/fit", len(fit))
    # All of val, its trained part, and the part that another seed holds out have images that were trained on.
    for leak in (val, fit, hold_out(val, 4)[1]):
        with pytest.raises(UsageError, match=r"transferred from squares val.*trained on.*--no-transfer"):
            record_of(path, leak)
    rest = transfer_part(training, val)
    assert rest.ids == tune.ids
    record = record_of(path, rest)
    assert record.metric("gt_known", "transfer") is not None
    assert record.dataset["transfer_from"] == {
        "split": "val/tune",
        "fingerprint": tune.fingerprint,
        "part_of": val.fingerprint,
    }


def test_shots_of_train_leave_all_of_val_for_the_thresholds(tmp_path):
    val = squares(9, seed=1, split="val")
    path = FewShot.fit(request(tmp_path, settings={"shots": "1"}))
    assert transfer_part(FewShot.load(path, device="cpu").describe()["training"], val) is val
    assert record_of(path, val).metric("gt_known", "transfer") is not None


def test_images_of_an_earlier_run_are_not_forgotten(tmp_path):
    val = squares(30, seed=1, split="val")
    start = FewShot.fit(request(tmp_path / "start", train=val, settings={"split": "val"}))
    path = FewShot.fit(request(tmp_path / "end", weights=str(start)))
    (earlier,) = FewShot.load(path, device="cpu").describe()["training"]["earlier_data"]
    assert earlier["split"] == "val/fit"
    with pytest.raises(UsageError, match="trained on"):
        record_of(path, val)
    assert record_of(path, hold_out(val, 0)[1]).metric("gt_known", "transfer") is not None
