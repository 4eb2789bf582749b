"""Frozen features: the map is their length, whatever the backbone, and post-processes find the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference_models.core.outputs import ForwardPass
from reference_models.localization.frozen import Frozen
from wsolbench.datasets import load_dataset
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.maps.truths import true_mask
from wsolbench.methods import TrainRequest, load_method, load_post
from wsolbench.protocol import EvalProtocol
from wsolbench.testing import squares

VIT = "timm:vit_tiny_patch16_224"
ASKED = torch.tensor([[0, 2], [1, 1]])


def create(backbone: str = "tiny", weights: str = "none", size: int = 64, **settings: str) -> Frozen:
    return Frozen.create(
        backbone=backbone, num_classes=3, weights=weights, settings=settings, image_size=size
    )


def test_the_map_is_the_length_of_the_last_features_for_every_class():
    model, images = create(), torch.randn(2, 3, 64, 64)
    result = model.localize(images)
    features = list(model.backbone.stages(images).values())[-1]
    maps = result.score_maps(ASKED)
    expected = (features**2).sum(dim=1).sqrt()
    for column in range(2):
        torch.testing.assert_close(maps[:, column], expected)
    assert result.logits is None
    assert torch.equal(result.penultimate, features)


def test_features_of_another_scale_scale_the_map():
    model, images = create(), torch.randn(2, 3, 64, 64)
    plain = model.score_maps(images, ASKED)
    last = next(reversed(model.backbone.steps.values()))
    last.register_forward_hook(lambda module, inputs, output: -3 * output)
    torch.testing.assert_close(model.score_maps(images, ASKED), 3 * plain)


def test_a_vision_transformer_gives_its_patches_and_tokens():
    model, images = create(VIT, size=96), torch.randn(2, 3, 96, 96)
    assert model.backbone.grid == "tokens"
    result = model.localize(images)
    tokens = result.tokens()
    maps = result.score_maps(ASKED)
    assert maps.shape == (2, 2, 6, 6)
    torch.testing.assert_close(maps[:, 0], tokens.patches.norm(dim=1))
    # TokenCut takes the keys, and another change of the last features is not seen.
    cut = load_post("tokencut").create({})
    other = ForwardPass(
        logits=None,
        maps_of=result.maps_of,
        stages=type(result.stages)(last=torch.randn(2, 5, 6, 6)),
        tokens=result.tokens,
    )
    assert torch.equal(cut.maps(result, ASKED), cut.maps(other, ASKED))
    # Every post-process that compares pixels can take keys, queries and values.
    for name in ("keys", "queries", "values"):
        for post, extra in (
            ("tokencut", {}),
            ("lost", {}),
            ("pca", {}),
            ("scg", {}),
            ("sem", {"seeds": "9"}),
        ):
            found = load_post(post).create({"features": name, **extra}).maps(result, ASKED)
            assert found.shape == (2, 2, 6, 6)
            assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("backbone", "asked", "grid"),
    [
        ("timm:vit_small_patch16_224.dino", "default", "tokens"),
        ("timm:deit_small_patch16_224", "default", "tokens"),
        ("timm:vit_small_patch14_dinov2", "default", "tokens"),
        ("timm:vit_small_patch16_224.dino", "stock", "stock"),
        ("timm:convnext_tiny", "default", "default"),
        ("timm:resnet18", "default", "default"),
        ("efficientnet_lite0", "default", "default"),
    ],
)
def test_vision_transformers_are_opened_with_their_tokens(backbone, asked, grid):
    assert Frozen.grid_for(backbone, Frozen.Config(grid=asked)) == grid


def test_it_is_neither_trained_nor_loaded(tmp_path):
    assert not Frozen.trainable
    assert create().ready
    with pytest.raises(UsageError, match="no checkpoints"):
        Frozen.load(tmp_path / "x.safetensors", device="cpu")
    with pytest.raises(UsageError, match="evaluate it without training"):
        Frozen.fit(TrainRequest(train=squares(6), out=tmp_path))


def test_the_backbone_of_a_trained_method_can_be_taken(tmp_path):
    path = load_method("cam").fit(
        TrainRequest(
            train=squares(6),
            out=tmp_path,
            backbone="tiny",
            weights="none",
            epochs=1,
            batch_size=6,
            image_size=32,
            workers=0,
            settings={"head": "fc"},
        )
    )
    trained, images = load_method("cam").load(path, device="cpu", settings={}), torch.randn(2, 3, 32, 32)
    model = create(weights=str(path), size=32)
    torch.testing.assert_close(
        model.score_maps(images, ASKED)[:, 0], trained.localize(images).penultimate.norm(dim=1)
    )
    assert model.describe()["weights"]["name"] == "last.safetensors"


def test_a_network_that_knows_objects_responds_to_them(tmp_path):
    """Generated birds; only the map itself, since the posts' signs need features of photographs."""
    counts = {"train": 1, "val": 1, "test": 24}
    data = load_dataset("toybirds", "test", tmp_path, size=96, counts=counts, workers=1)
    model = Frozen.create(
        backbone="efficientnet_lite0", num_classes=12, weights="imagenet", settings={}, image_size=224
    )
    source = ModelSource(model, EvalProtocol(), num_classes=12, device="cpu", batch_size=24)
    output = source.maps(data.samples, source.collate([source.load(sample) for sample in data.samples]))
    masks = np.stack([true_mask(sample, 224, EvalProtocol()) for sample in data.samples])
    cells = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(masks).float(), 14).numpy()
    inside = [np.average(one, weights=cell) for one, cell in zip(output.maps, cells, strict=True)]
    outside = [np.average(one, weights=1 - cell) for one, cell in zip(output.maps, cells, strict=True)]
    assert np.mean(np.array(inside) > np.array(outside)) > 0.8
