"""The method under test, random images for it, and a data set that is made in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from wsolbench.methods import load_method
from wsolbench.types import Dataset, Sample

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 3
"""Classes of the models that are checked."""
SIDE = 64
"""Side in pixels of the images that are checked."""


SMALL, SMALL_TRANSFORMER = "tiny", "timm:test_vit"
"""Backbones that methods are checked with, and those that need the tokens of a vision transformer."""


def small_backbone(name: str) -> str:
    """Return a small backbone that the method accepts.

    A method that needs a vision transformer says so by `needs_tokens`, as those of the reference models do.
    """
    return SMALL_TRANSFORMER if getattr(load_method(name), "needs_tokens", False) else SMALL


def squares(
    count: int = 24, *, classes: int = CLASSES, size: int = 32, seed: int = 0, split: str = "train"
) -> Dataset:
    """Make a data set in memory: noise with a bright square, whose colour is the class.

    >>> data = squares(6)
    >>> len(data.samples), data.samples[4].label, data.class_names
    (6, 1, ('class 0', 'class 1', 'class 2'))
    """
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        label = number % classes
        pixels = rng.integers(0, 80, (size, size, 3), dtype=np.uint8)
        x, y = rng.integers(0, size // 2, 2)
        side = size // 3
        pixels[y : y + side, x : x + side, [label % 3, (label // 3) % 3]] = 255
        box = np.array([[x, y, x + side, y + side]], dtype=np.float64)
        samples.append(
            Sample(id=f"{split}/{number}.png", label=label, size=(size, size), array=pixels, boxes=box)
        )
    return Dataset(
        name="squares",
        split=split,
        samples=samples,
        class_names=tuple(f"class {label}" for label in range(classes)),
        fingerprint=f"{count}-{classes}-{size}-{seed}",
    )


@dataclass(frozen=True)
class MethodUnderTest:
    """A method by its name, and how its models are made here.

    Attributes:
        name: name of the method.
        backbone: a small backbone that the method accepts.
        settings: settings of all models, as `--set name=value` gives them.
    """

    name: str
    backbone: str
    settings: Mapping[str, str]

    @cached_property
    def kind(self) -> type[Any]:
        """The class of the method."""
        return load_method(self.name)

    def create(self, **changed: str) -> Any:
        """Make a model with random weights; `changed` are further settings.

        A model that reads ground truth gets it with every call of `localize`: the upper left quarter, unless
        the call names another one.
        """
        model = self.kind.create(
            backbone=self.backbone,
            num_classes=CLASSES,
            weights="none",
            settings={**self.settings, **changed},
            image_size=SIDE,
        )
        if names := [name for name in ("boxes", "masks") if getattr(model, f"uses_true_{name}", False)]:
            model.localize = _with_truth(model.localize, names)
        return model

    def batch(self, count: int = 4) -> Any:
        """Make a random batch, of the type that the method's `loss` is annotated with."""
        import torch

        return self.batch_of(
            torch.randn(count, 3, SIDE, SIDE),
            torch.arange(count) % CLASSES,
            torch.arange(count),
            torch.Generator().manual_seed(0),
        )

    def batch_of(self, images: Tensor, labels: Tensor, indices: Tensor, generator: Any) -> Any:
        """Make the first batch of a run.

        If batches can have masks, they have the upper left quarter of each image.
        """
        kind = type_of_batch(self.kind)
        masks = {}
        if "masks" in getattr(kind, "__dataclass_fields__", ()):
            masks["masks"] = _upper_left(images)
        return kind(
            images=images,
            labels=labels,
            indices=indices,
            epoch=0,
            epochs=10,
            step=0,
            generator=generator,
            **masks,
        )


def _with_truth(localize: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return `localize` with the keywords of ground truth: the upper left quarter of each image."""

    def localized(images: Any, **options: Any) -> Any:
        count, _, height, width = images.shape
        boxes = images.new_zeros(count, 4)
        boxes[:, 2], boxes[:, 3] = width / 2, height / 2
        truths = {"true_boxes": boxes, "true_masks": _upper_left(images)}
        shown = {f"true_{name}": truths[f"true_{name}"] for name in names}
        return localize(images, **{**shown, **options})

    return localized


def _upper_left(images: Tensor) -> Tensor:
    """Return masks (B, H, W) of the upper left quarter of images (B, 3, H, W)."""
    count, _, height, width = images.shape
    masks = images.new_zeros(count, height, width)
    masks[:, : height // 2, : width // 2] = 1
    return masks


def type_of_batch(kind: type[Any]) -> type[Any]:
    """The annotated type of the argument of `loss`, of the first class in the order of inheritance that has
    one.
    """
    for each in kind.__mro__:
        loss = vars(each).get("loss")
        if loss is None:
            continue
        argument = list(inspect.signature(loss).parameters)[1]
        if isinstance(found := get_type_hints(loss).get(argument), type):
            return found
    raise TypeError("no `loss` says with an annotation what a batch is")


def require(condition: bool, message: str) -> None:
    """Raise `AssertionError` unless the condition holds; an `assert` would not under `python -O`."""
    if not condition:
        raise AssertionError(message)


def random_images(count: int, side: int = SIDE) -> Tensor:
    """Draw (count, 3, side, side) normalised images."""
    import torch

    return torch.randn(count, 3, side, side)


def learns_by_loss(kind: type[Any]) -> bool:
    """Whether a method is trained by the gradients of its loss, not by a pass that collects statistics."""
    return hasattr(kind, "loss") and getattr(kind, "learns_from", "gradients") == "gradients"
