"""What every post-process must do, whatever it does: one table of all that this package offers."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

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
DIFFERENTIATING = [each for each in EVERY if each.values[0].needs_gradients]
OTHERS = [each for each in EVERY if not each.values[0].needs_gradients]
REFINING = [each for each in OTHERS if not each.values[0].needs_reruns]
"""Post-processes that refine the method's own map."""


def localizer(backbone: str = "tiny", image_size: int = 64) -> Localizer:
    return load_method("cam").create(
        backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=image_size
    )


@cache
def untouched(backbone: str) -> Localizer:
    """One localizer of each backbone for images of 128 pixels; tests do not change it."""
    return localizer(backbone, 128)


@dataclass(frozen=True, eq=False)
class Seen:
    """Images and what a made-up network makes of them. Its scores depend on the images and on every stage."""

    images: Tensor
    coarse: Tensor
    stages: tuple[Tensor, ...]
    penultimate: Tensor
    weights: Tensor
    class_weights: Tensor

    @classmethod
    def draw(cls, count: int = 3, side: int = 9) -> Seen:
        stages = tuple(torch.randn(count, 4 * number, side, side).relu() for number in (1, 2, 3))
        penultimate = torch.randn(count, 9, side, side).relu()
        coarse, images = torch.randn(count, CLASSES, side, side), torch.randn(count, 3, 2 * side, 2 * side)
        weights, class_weights = torch.randn(CLASSES, 12), torch.randn(CLASSES, 9)
        return cls(images, coarse, stages, penultimate, weights, class_weights)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Seen:
        """The same with other features."""
        stages = tuple(change(stage) for stage in self.stages)
        return replace(self, stages=stages, penultimate=change(self.penultimate))

    def of(self, images: slice) -> Seen:
        """The same for some of the images."""
        some = self.changed(lambda features: features[images])
        return replace(some, images=self.images[images], coarse=self.coarse[images])

    def result(self, post: PostProcess, dtype: torch.dtype = torch.float32) -> ForwardPass:
        """The result of the network, with a graph if the post-process needs one."""
        stages, penultimate, coarse = (
            [each.to(dtype) for each in group] for group in (self.stages, [self.penultimate], [self.coarse])
        )
        if post.needs_gradients:
            stages = [stage.requires_grad_() for stage in map(torch.clone, stages)]

        @torch.autocast("cpu", enabled=False)
        def logits_of(images: Tensor) -> Tensor:
            seen = (F.silu(each.float()).flatten(2) for each in (*stages, images))
            return sum((self.weights[:, : each.shape[1]] @ each).mean(dim=2) for each in seen)

        def rerun(change: Callable[[Tensor], Tensor]) -> ForwardPass:
            return replace(result, logits=logits_of(change(self.images)))

        with torch.set_grad_enabled(post.needs_gradients):
            result = ForwardPass(
                logits=logits_of(self.images),
                maps_of=lambda ids: coarse[0].take_along_dim(ids[:, :, None, None], dim=1),
                stages=OrderedDict((f"s{number}", each) for number, each in enumerate(stages)),
                penultimate=penultimate[0],
                weights_of=lambda class_ids: self.class_weights.to(dtype)[class_ids],
                rerun=rerun,
            )
        return result


def in_range(post: PostProcess, maps: Tensor) -> bool:
    """Whether maps are finite and of the kind that the post-process states."""
    low, high = {"signed": (-torch.inf, torch.inf), "nonneg": (0, torch.inf), "unit": (0, 1)}[post.map_kind]
    return bool(torch.isfinite(maps).all() and (maps >= low).all() and (maps <= high).all())


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
def test_maps_are_float32_in_their_range_without_a_graph(post):
    maps = post.maps(Seen.draw().result(post), ASKED)
    assert maps.shape == (3, 2, 9, 9)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert in_range(post, maps)
    assert maps.min() < maps.max()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("post", EVERY)
def test_maps_of_a_localizer_are_on_its_last_grid(post, backbone):
    if post.needs_reruns and backbone != "tiny":
        pytest.skip("a forward pass for each of hundreds of channels")
    model = untouched(backbone)
    result = model.localize(torch.randn(2, 3, 128, 128), gradients=post.needs_gradients)
    maps = post.maps(result, torch.tensor([[2], [0]]))
    assert maps.shape[:2] == (2, 1)
    assert maps.shape[2:] == result.penultimate.shape[2:]
    assert in_range(post, maps)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("post", EVERY)
def test_maps_of_several_classes_are_those_of_each_alone(post):
    result = Seen.draw().result(post)
    together = post.maps(result, ASKED)
    for column in range(2):
        alone = post.maps(result, ASKED[:, column : column + 1])
        torch.testing.assert_close(alone[:, 0], together[:, column], atol=2e-5, rtol=0)


@pytest.mark.parametrize("post", EVERY)
def test_a_batch_gives_what_its_images_give_alone(post):
    seen = Seen.draw()
    together = post.maps(seen.result(post), ASKED)
    for number in range(3):
        alone = post.maps(seen.of(slice(number, number + 1)).result(post), ASKED[number : number + 1])
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


@pytest.mark.parametrize("post", REFINING)
def test_how_many_images_are_taken_at_a_time_changes_nothing(post, monkeypatch):
    result = Seen.draw().result(post)
    whole = post.maps(result, ASKED)
    monkeypatch.setattr(correlation, "CHUNK_BYTES", {"cpu": 1})
    torch.testing.assert_close(post.maps(result, ASKED), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("post", EVERY)
def test_maps_are_the_same_twice_and_nothing_is_drawn_or_changed(post):
    result = Seen.draw().result(post)
    before = [stage.clone() for stage in (*result.stages.values(), result.penultimate)]
    state = torch.get_rng_state()
    assert torch.equal(post.maps(result, ASKED), post.maps(result, ASKED))
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(one, two)
        for one, two in zip(before, (*result.stages.values(), result.penultimate), strict=True)
    )
    assert all(stage.grad is None for stage in result.stages.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("post", EVERY)
def test_half_precision_features_are_computed_on_in_float32(post, dtype):
    seen = Seen.draw()
    result = seen.result(post, dtype)
    maps = post.maps(result, ASKED)
    assert maps.dtype == torch.float32
    assert in_range(post, maps)
    assert maps.min() < maps.max()
    rounded = replace(
        seen.changed(lambda each: each.to(dtype).float()),
        coarse=seen.coarse.to(dtype).float(),
        class_weights=seen.class_weights.to(dtype).float(),
    )
    exact = rounded.result(post)
    expected = post.maps(exact, ASKED)
    if post.needs_gradients:  # the gradient itself has the precision of the features
        torch.testing.assert_close(maps, expected, atol=0.02 * float(expected.abs().max()), rtol=0)
    else:
        assert torch.equal(expected, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(post.maps(exact, ASKED), expected)


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("post", EVERY)
def test_constant_features_give_finite_maps(post, constant):
    flat = Seen.draw().changed(lambda features: torch.full_like(features, constant))
    maps = post.maps(flat.result(post), ASKED)
    assert in_range(post, maps)
    if constant == 0:
        assert not maps.any()


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("post", REFINING)
def test_a_constant_map_of_the_method_gives_a_map_of_zeros(post, constant):
    result = Seen.draw().result(post)
    flat = replace(result, maps_of=lambda class_ids: torch.full((3, 2, 9, 9), constant))
    found = post.maps(flat, ASKED)
    assert not found.any() or torch.equal(found, post.maps(result, ASKED))  # it reads features alone


@pytest.mark.parametrize("post", EVERY)
def test_a_map_on_another_grid_is_brought_to_that_of_the_features(post):
    result = Seen.draw().result(post)
    finer = replace(result, maps_of=lambda class_ids: torch.randn(3, 2, 64, 64))
    assert post.maps(finer, ASKED).shape == (3, 2, 9, 9)


@pytest.mark.parametrize("post", EVERY)
def test_a_method_without_features_is_refused(post):
    result = (
        load_method("center-box").create(num_classes=CLASSES, settings={}).localize(torch.randn(3, 3, 32, 32))
    )
    with pytest.raises(UsageError, match=f"post-process '{post.method_name}' needs"):
        post.maps(result, ASKED)


@pytest.mark.parametrize("post", OTHERS)
def test_features_that_are_being_trained_are_refused(post):
    model = localizer()
    for mode in (model.train(), model.eval()):
        with pytest.raises(RuntimeError, match="localize"):
            post.maps(mode(torch.randn(3, 3, 64, 64)), ASKED)


@pytest.mark.parametrize("post", DIFFERENTIATING)
def test_a_result_without_a_graph_is_refused(post):
    with pytest.raises(RuntimeError, match="gradients=True"):
        post.maps(localizer().localize(torch.randn(3, 3, 64, 64)), ASKED)


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
