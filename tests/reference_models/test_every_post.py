"""What every post-process must do, whatever it does: one table of all that this package offers."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import reference_models
from reference_models.base.localizer import Localizer
from reference_models.base.post import PostProcess
from reference_models.catalog import posts
from reference_models.core.outputs import ForwardPass
from reference_models.layers import correlation
from tests.reference_models.conftest import squares
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import list_posts, load_method, load_post
from wsolbench.protocol import EvalProtocol

OURS = [row.name for row in list_posts() if row.module.startswith("reference_models.")]
CLASSES = 3
ASKED = torch.tensor([[0, 2], [1, 0], [2, 1]])
BACKBONES = ["tiny", "vgg16", "efficientnet_lite0"]


def create(name: str) -> list[PostProcess]:
    """One instance for each variant."""
    kind = load_post(name)
    return [kind.create({"variant": variant}) for variant in getattr(kind.Config, "variants", {})] or [
        kind.create({})
    ]


EVERY = [
    pytest.param(post, id=f"{name}-{number}") for name in OURS for number, post in enumerate(create(name))
]


def localizer(backbone: str = "tiny", image_size: int = 64) -> Localizer:
    return load_method("cam").create(
        backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=image_size
    )


def forward_pass(count: int = 3, dtype: torch.dtype = torch.float32, side: int = 9) -> ForwardPass:
    coarse, weights = torch.randn(count, CLASSES, side, side), torch.randn(CLASSES, 9)
    return ForwardPass(
        logits=torch.randn(count, CLASSES),
        maps_of=lambda class_ids: coarse.to(dtype).take_along_dim(class_ids[:, :, None, None], dim=1),
        stages=OrderedDict(
            (f"s{number}", torch.randn(count, 4 * number, side, side).relu().to(dtype))
            for number in (1, 2, 3)
        ),
        penultimate=torch.randn(count, 9, side, side).relu().to(dtype),
        weights_of=lambda class_ids: weights.to(dtype)[class_ids],
    )


def part(result: ForwardPass, start: int, stop: int) -> ForwardPass:
    """The same for some of the images."""
    images = slice(start, stop)

    def maps_of(class_ids: torch.Tensor) -> torch.Tensor:
        return (
            result.maps_of(class_ids[:1].expand(3, -1))[images]
            if len(class_ids) == 1
            else result.maps_of(class_ids)[images]
        )

    return ForwardPass(
        logits=result.logits[images],
        maps_of=maps_of,
        stages=OrderedDict((name, stage[images]) for name, stage in result.stages.items()),
        penultimate=result.penultimate[images],
        weights_of=result.weights_of,
    )


def test_every_file_is_offered_and_sums_itself_up():
    folder = Path(next(iter(reference_models.__path__))) / "postprocess"
    assert (
        {path.stem.replace("_", "-") for path in folder.glob("[!_]*")}
        == {row.name for row in posts()}
        == set(OURS)
    )
    assert {"lost", "pc1", "pca", "scg", "sem", "tokencut"} <= set(OURS)
    for row in posts():
        assert 20 <= len(row.summary) <= 70
        assert len(Path(str(importlib.import_module(row.module).__file__)).read_text().splitlines()) <= 380


@pytest.mark.parametrize("post", EVERY)
def test_maps_are_float32_in_the_unit_interval_without_a_graph(post):
    maps = post.maps(forward_pass(), ASKED)
    assert maps.shape == (3, 2, 9, 9)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert 0 <= maps.min() < maps.max() <= 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("post", EVERY)
def test_maps_of_a_localizer_are_on_its_last_grid(post, backbone):
    result = localizer(backbone, 128).localize(torch.randn(2, 3, 128, 128))
    maps = post.maps(result, torch.tensor([[2], [0]]))
    assert maps.shape[:2] == (2, 1)
    assert maps.shape[2:] == result.penultimate.shape[2:]
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("post", EVERY)
def test_maps_of_several_classes_are_those_of_each_alone(post):
    result = forward_pass()
    together = post.maps(result, ASKED)
    for column in range(2):
        alone = post.maps(result, ASKED[:, column : column + 1])
        torch.testing.assert_close(alone[:, 0], together[:, column], atol=2e-5, rtol=0)


@pytest.mark.parametrize("post", EVERY)
def test_a_batch_gives_what_its_images_give_alone(post):
    result = forward_pass()
    asked = ASKED[:1].expand(3, 2)
    together = post.maps(result, asked)
    for number in range(3):
        alone = post.maps(part(result, number, number + 1), asked[:1])
        torch.testing.assert_close(alone[0], together[number], atol=2e-5, rtol=0)


@pytest.mark.parametrize("post", EVERY)
def test_an_evaluation_gives_the_same_bits_for_every_batch_size(post):
    data, model = squares(9), localizer()

    def maps(batch_size: int) -> list[np.ndarray]:
        source = ModelSource(
            model, EvalProtocol(), num_classes=CLASSES, device="cpu", batch_size=batch_size, post=post
        )
        parts = [data.samples[start : start + batch_size] for start in range(0, 9, batch_size)]
        return [
            one
            for part in parts
            for one in source.maps(part, source.collate([source.load(sample) for sample in part])).maps
        ]

    np.testing.assert_array_equal(np.stack(maps(4)), np.stack(maps(9)))


@pytest.mark.parametrize("post", EVERY)
def test_how_many_images_are_taken_at_a_time_changes_nothing(post, monkeypatch):
    result = forward_pass()
    whole = post.maps(result, ASKED)
    monkeypatch.setattr(correlation, "CHUNK_BYTES", {"cpu": 1})
    torch.testing.assert_close(post.maps(result, ASKED), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("post", EVERY)
def test_maps_are_the_same_twice_and_nothing_is_drawn_or_changed(post):
    result = forward_pass()
    before = [stage.clone() for stage in (*result.stages.values(), result.penultimate)]
    state = torch.get_rng_state()
    assert torch.equal(post.maps(result, ASKED), post.maps(result, ASKED))
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(one, two)
        for one, two in zip(before, (*result.stages.values(), result.penultimate), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("post", EVERY)
def test_half_precision_features_are_computed_on_in_float32(post, dtype):
    result = forward_pass(dtype=dtype)
    maps = post.maps(result, ASKED)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() < maps.max() <= 1
    exact = replace(
        result,
        maps_of=lambda class_ids: result.maps_of(class_ids).float(),
        stages=OrderedDict((name, stage.float()) for name, stage in result.stages.items()),
        penultimate=result.penultimate.float(),
        weights_of=lambda class_ids: result.weights_of(class_ids).float(),
    )
    assert torch.equal(post.maps(exact, ASKED), maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(post.maps(exact, ASKED), maps)


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("post", EVERY)
def test_constant_features_and_constant_maps_give_finite_maps(post, constant):
    result = forward_pass()
    stages = OrderedDict((name, torch.full_like(stage, constant)) for name, stage in result.stages.items())
    flat = replace(result, stages=stages, penultimate=torch.full_like(result.penultimate, constant))
    maps = post.maps(flat, ASKED)
    assert 0 <= maps.min() <= maps.max() <= 1
    if constant == 0:
        assert not maps.any()
    flat_maps = replace(result, maps_of=lambda class_ids: torch.full((3, 2, 9, 9), constant))
    found = post.maps(flat_maps, ASKED)
    assert not found.any() or torch.equal(found, post.maps(result, ASKED))  # it reads features alone


@pytest.mark.parametrize("post", EVERY)
def test_a_map_on_another_grid_is_brought_to_that_of_the_features(post):
    result = forward_pass()
    finer = replace(result, maps_of=lambda class_ids: torch.randn(3, 2, 64, 64))
    assert post.maps(finer, ASKED).shape == (3, 2, 9, 9)


@pytest.mark.parametrize("post", EVERY)
def test_a_method_without_features_is_refused(post):
    result = (
        load_method("center-box").create(num_classes=CLASSES, settings={}).localize(torch.randn(3, 3, 32, 32))
    )
    with pytest.raises(UsageError, match=f"post-process '{post.method_name}' needs"):
        post.maps(result, ASKED)


@pytest.mark.parametrize("post", EVERY)
def test_features_that_are_being_trained_are_refused(post):
    model = localizer()
    for mode in (model.train(), model.eval()):
        with pytest.raises(RuntimeError, match="localize"):
            post.maps(mode(torch.randn(3, 3, 64, 64)), ASKED)


@pytest.mark.parametrize("post", EVERY)
def test_a_description_is_plain_json_with_every_setting(post):
    described = json.loads(json.dumps(post.describe(), allow_nan=False))
    assert described["name"] == post.method_name
    assert described["config"].keys() == {item.name for item in fields(post.Config)}


@pytest.mark.parametrize("name", OURS)
def test_an_unknown_setting_is_refused_with_the_nearest_one(name):
    known = fields(load_post(name).Config)[0].name
    with pytest.raises(UsageError, match=known):
        load_post(name).create({f"{known}x": "1"})
