"""Small models and batches for the tests of methods on vision transformers."""

from __future__ import annotations

from dataclasses import replace

import torch

from reference_models.core.outputs import Batch
from reference_models.training.loop import prepare_run
from tests.reference_models.conftest import squares
from wsolbench.methods import Numerics, load_method

VIT, DEIT = "timm:test_vit", "timm:deit_tiny_patch16_224"
CLASSES, SIDE = 3, 64
VIT_WIDTH, VIT_LAST_BLOCKS = 64, ["block3", "block4", "block5"]  # of the six of VIT


def small_model(name: str, backbone: str = VIT, side: int = SIDE, **settings):
    return load_method(name).create(
        backbone=backbone,
        num_classes=CLASSES,
        weights="none",
        settings={key: str(value) for key, value in settings.items()},
        image_size=side,
    )


def square_batch(count: int = 12, side: int = SIDE) -> Batch:
    """Squares whose colour is the class, normalised to [-1, 1]."""
    samples = squares(count, classes=CLASSES, size=side).samples
    pixels = torch.stack([torch.from_numpy(sample.array).permute(2, 0, 1) for sample in samples])
    return Batch(
        images=pixels.float() / 127.5 - 1,
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.arange(count),
        epoch=0,
        epochs=1,
        step=0,
        generator=torch.Generator().manual_seed(0),
    )


def losses_of_steps(model, steps: int, batch: Batch, lr: float = 5e-4) -> list[float]:
    """Total loss before each step of AdamW, in the groups of the method's recipe, without dropped blocks."""
    model.train().on_epoch(0, 1)
    recipe = replace(model.recipe_for(model.backbone.name, CLASSES, {}), lr=lr, drop_path=0.0)
    run = prepare_run(model, recipe, torch.device("cpu"), Numerics())
    found = []
    for _ in range(steps):
        run.optimizers[0].zero_grad()
        total = torch.stack(list(model.loss(batch).values())).sum()
        total.backward()
        run.optimizers[0].step()
        found.append(float(total.detach()))
    return found
