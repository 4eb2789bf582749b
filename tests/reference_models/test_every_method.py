"""What every method must do, whatever it does: one table of all methods that this package offers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import reference_models
from reference_models.base.localizer import Localizer
from reference_models.catalog import backbones, methods
from reference_models.core.backbone import load_backbone
from reference_models.core.outputs import Batch
from tests.reference_models.conftest import squares
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import Localization, Method, list_backbones, list_methods, load_method
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import read_record

OURS = [row.name for row in list_methods() if row.module.startswith("reference_models.")]
FITTED = [name for name in OURS if load_method(name).trainable]
TRAINABLE = [name for name in FITTED if load_method(name).learns_from == "gradients"]
CLASSES = 3


def backbone_of(name: str) -> str:
    """A small backbone that a method can have."""
    return "timm:vit_tiny_patch16_224" if load_method(name).needs_tokens else "tiny"


def create(name: str, **settings: str) -> Localizer:
    return load_method(name).create(
        backbone=backbone_of(name), num_classes=CLASSES, weights="none", settings=settings, image_size=64
    )


def batch(count: int = 4) -> Batch:
    labels = torch.arange(count) % CLASSES
    return Batch(
        images=torch.randn(count, 3, 64, 64),
        labels=labels,
        indices=torch.arange(count),
        epoch=0,
        epochs=10,
        step=0,
        generator=torch.Generator().manual_seed(0),
    )


def test_every_method_file_is_offered_and_the_baselines_are_there():
    folder = Path(next(iter(reference_models.__path__)))
    found = [
        path
        for task in ("localization", "recognition")
        for path in (folder / task).glob("[!_]*")
        if path.name != "__pycache__"
    ]
    files = {path.stem.replace("_", "-") for path in found}
    assert all((path / "method.py").is_file() for path in found if path.is_dir())
    assert files == {row.name for row in methods()} == set(OURS)
    assert {"cam", "center-box"} <= files


def test_every_backbone_file_is_offered():
    assert {row.name for row in backbones()} <= {row.name for row in list_backbones()}
    assert {"vgg16", "resnet50", "inception_v3", "efficientnet_lite0", "timm", "tiny"} <= {
        row.name for row in backbones()
    }


@pytest.mark.parametrize("name", OURS)
def test_a_method_file_is_short_and_begins_with_one_line_that_sums_it_up(name):
    row = next(row for row in list_methods() if row.name == name)
    text = Path(str(importlib.import_module(row.module).__file__)).read_text()
    assert len(text.splitlines()) <= 380
    assert 20 <= len(row.summary) <= 70


@pytest.mark.parametrize("name", OURS)
def test_maps_are_raw_float32_and_finite_for_any_classes_of_any_images(name):
    model = create(name)
    assert isinstance(model, Method)
    for images in (torch.randn(2, 3, 64, 64), torch.zeros(1, 3, 64, 64)):
        count = len(images)
        asked = torch.tensor([[2, 0]]).expand(count, 2)
        result = model.localize(images)
        assert isinstance(result, Localization)
        maps = result.score_maps(asked)
        assert maps.shape[:2] == (count, 2)
        assert maps.ndim == 4
        assert maps.dtype == torch.float32
        assert not maps.requires_grad
        assert torch.isfinite(maps).all()
        assert result.logits is None or result.logits.shape == (count, CLASSES)


@pytest.mark.parametrize("name", OURS)
def test_maps_of_several_classes_and_images_are_those_of_each_alone(name):
    model, images = create(name), torch.randn(3, 3, 64, 64)
    asked = torch.tensor([[0, 2], [1, 0], [2, 1]])
    together = model.score_maps(images, asked)
    for number in range(3):
        for column in range(2):
            alone = model.score_maps(
                images[number : number + 1], asked[number : number + 1, column : column + 1]
            )
            torch.testing.assert_close(alone[0, 0], together[number, column], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_localizing_changes_nothing_and_draws_nothing(name):
    model, images = create(name), torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    one = model.score_maps(images, torch.tensor([[0], [1]]))
    two = model.score_maps(images, torch.tensor([[0], [1]]))
    assert torch.equal(one, two)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", OURS)
def test_a_description_is_plain_json_and_names_what_a_record_needs(name):
    described = json.loads(json.dumps(create(name).describe(), allow_nan=False))
    assert described["method"] == name
    assert {"variant", "config", "image_size"} <= described.keys()
    if name in FITTED:
        assert described["backbone"] == (backbone_of(name) if load_method(name).needs_backbone else "none")
        assert described["weights"] == {"name": "none", "sha256": None}


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_model_must_be_in_evaluation_mode_to_localize(name):
    with pytest.raises(RuntimeError, match="eval"):
        create(name).train().localize(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_terms_of_the_loss_are_finite_scalars_whose_sum_moves_every_parameter(name):
    model = create(name).train()
    objectives = model.objectives(model.recipe_for(backbone_of(name), CLASSES, {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    missing = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    # A parameter behind a gate that starts at 0 is reached after the first step, one behind a choice when it
    # is chosen.
    for _ in range(30):
        optimizer.zero_grad()
        for objective in objectives:
            terms = objective.loss(batch())
            assert terms
            assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
            sum(terms.values()).backward()
        missing -= {
            key
            for key, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        if not missing:
            break
        optimizer.step()
    assert missing == set()


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_parameter_is_in_exactly_one_group(name):
    model = create(name)
    objectives = model.objectives(model.recipe_for(backbone_of(name), CLASSES, {}))
    grouped = [
        id(parameter)
        for objective in objectives
        for group in objective.groups
        for parameter in group["params"]
    ]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", TRAINABLE)
def test_an_epoch_shows_images_of_the_data_set_in_batches_that_a_seed_fixes(name):
    model, labels = create(name), np.arange(25) % CLASSES
    one = model.batches(labels, 8, np.random.default_rng(3))
    two = model.batches(labels, 8, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(len(part) > 1 and part.min() >= 0 and part.max() < 25 for part in one)
    assert len(set(np.concatenate(one).tolist())) >= 24


@pytest.mark.parametrize("name", FITTED)
def test_training_writes_a_checkpoint_that_loads_to_the_same_maps(name, tmp_path):
    from wsolbench.methods import TrainRequest

    method = load_method(name)
    request = TrainRequest(
        train=squares(12),
        out=tmp_path,
        backbone=backbone_of(name),
        weights="none",
        epochs=1 if name in TRAINABLE else None,
        batch_size=6,
        image_size=32,
        workers=0,
    )
    path = method.fit(request)
    one, two = method.load(path, device="cpu"), method.load(path, device="cpu")
    images, asked = torch.randn(2, 3, 32, 32), torch.tensor([[0], [2]])
    assert torch.equal(one.score_maps(images, asked), two.score_maps(images, asked))
    assert one.class_names == ("class 0", "class 1", "class 2")
    json.dumps(one.describe(), allow_nan=False)


def other_text(kind: type, field: str) -> str:
    """A value of a setting that is not its default."""
    hint, default = get_type_hints(kind)[field], getattr(kind(), field)
    if get_origin(hint) is Literal:
        return next(str(choice) for choice in get_args(hint) if choice != default)
    return str(not default) if isinstance(default, bool) else str(default + 1)


@pytest.mark.parametrize("name", [name for name in TRAINABLE if load_method(name).Config.at_test])
def test_training_does_not_depend_on_settings_of_the_use(name):
    def terms(model: Localizer) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # of the images, and of what the method draws
        model.train().on_epoch(0, 10)
        return model.loss(batch())

    method, model = load_method(name), create(name)
    for field in sorted(method.Config.at_test):
        other = create(name, **{field: other_text(method.Config, field)})
        assert getattr(other.config, field) != getattr(model.config, field)
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(terms(other), terms(model))


def test_backbones_do_not_need_a_method():
    assert load_backbone("tiny", weights="none").channels[-1] == 64


@pytest.mark.parametrize("name", TRAINABLE)
def test_half_precision_stays_finite_in_training_and_in_maps(name):
    model = create(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch())
    torch.stack([term.float() for term in terms.values()]).sum().backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.eval().score_maps(torch.randn(2, 3, 64, 64), torch.tensor([[0], [1]]))
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("name", OURS)
def test_an_evaluation_leaves_a_record_that_can_be_read_again(name, tmp_path):
    data = squares(6, size=64)
    source = ModelSource(
        create(name),
        EvalProtocol(taus=tau_grid(0.1), frame_size=64),
        num_classes=CLASSES,
        device="cpu",
        batch_size=4,
    )
    record = evaluate(data, source, source.protocol, options=RunOptions(batch_size=4, resamples=100)).record
    again = read_record(record.write(tmp_path))
    assert again.digest == record.digest
    assert again.metric("gt_known") is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OURS)
def test_a_gpu_gives_the_maps_of_the_processor(name):
    model, images, asked = create(name), torch.randn(3, 3, 64, 64), torch.tensor([[0, 1], [1, 2], [2, 0]])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = model.score_maps(images, asked)
    found = model.to("cuda").score_maps(images.cuda(), asked.cuda()).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
