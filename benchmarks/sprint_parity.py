"""Comparison of a method on two devices: same weights, same batch, same random draws.

Both devices run the code of the evaluation and of the training loop: the memory format of `place`, mixed
precision and gradient scaler of `Numerics`, fused optimisers, and the step of every objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from reference_models.training import loop
from wsolbench.exceptions import UsageError
from wsolbench.methods import Numerics
from wsolbench.methods.device import place
from wsolbench.testing.subject import CLASSES, SIDE, MethodUnderTest, learns_by_loss, random_images

STEPS, BATCH, RATE = 10, 8, 1e-3
FORMATS: Mapping[str, Literal["off", "bf16", "fp16"]] = {
    "float32": "off",
    "bfloat16": "bf16",
    "float16": "fp16",
}
"""Number formats by name, with their `--amp`."""
SETTINGS = {"focus-discriminate": {"proposals": "4"}}
"""Settings for images of `SIDE` pixels, whose last stage has 2 x 2 cells in ResNet-50."""


class SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The context in which all random numbers are drawn on the CPU.

    They come from one generator where a method gives one, otherwise from the global one.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_dropout.default:  # has no generator; only GPUs use it
            values, rate = args[:2]
            kept = torch.empty_like(values, device="cpu").bernoulli_(1 - rate, generator=self.generator)
            kept = kept.to(values.device)
            return values * kept / (1 - rate), kept.bool()
        tensors = [each for each in args if isinstance(each, Tensor)]
        target = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        names = [argument.name for argument in func._schema.arguments]
        if "generator" in names[: len(args)]:
            args = list(args)
            args[names.index("generator")] = self.generator
        elif "generator" in names:
            kwargs["generator"] = self.generator
        on_host = tree_map(lambda item: item.cpu() if isinstance(item, Tensor) else item, args)
        drawn = func(*on_host, **kwargs)
        if func._schema.name.endswith("_"):  # in place
            return args[0] if drawn is args[0] else args[0].copy_(drawn)
        return tree_map(lambda item: item.to(target) if isinstance(item, Tensor) else item, drawn)


@dataclass(frozen=True)
class Trace:
    """Results of a method on a device, as float64 of the CPU. Without a loss, the first two are empty."""

    losses: Tensor
    gradient: Tensor
    maps: Tensor
    boxes: Tensor


def trace(
    method: MethodUnderTest, weights: dict[str, Tensor], device: torch.device, numerics: Numerics
) -> Trace:
    """Localize as the evaluation does, then run `STEPS` steps of the training loop with SGD."""
    torch.manual_seed(0)
    model: Any = method.create()
    model.load_state_dict(weights)
    place(model, device)
    images, asked = random_images(BATCH).to(device), (torch.arange(BATCH)[:, None] % CLASSES).to(device)
    images = images.to(memory_format=torch.channels_last)
    with SameDraws(0), numerics.autocast(device):
        result = model.eval().localize(images)
        maps = result.score_maps(asked)
        boxes = result.propose().boxes if result.propose is not None else maps.new_zeros(0)
    losses, gradient = [], maps.new_zeros(0)
    if method.kind.trainable and learns_by_loss(method.kind):
        run = _training_run(method, model, device, numerics)
        batch = method.batch(BATCH)
        moved = {name: getattr(batch, name).to(device) for name in ("images", "labels", "indices")}
        batch = replace(batch, **moved, generator=torch.Generator(device).manual_seed(0))
        model.train().on_epoch(0, batch.epochs)
        with SameDraws(1):
            for step in range(STEPS):
                scale = run.scaler.get_scale()
                terms = loop._step(run, batch, weight=1.0)
                losses.append(torch.stack(list(terms.values())).sum())
                if step == 0:
                    found = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
                    gradient = torch.cat(found) / scale  # a fused optimiser leaves gradients scaled
    return Trace(*(each.detach().double().cpu() for each in (
        torch.stack(losses) if losses else maps.new_zeros(0), gradient, maps, boxes
    )))  # fmt: skip


def _training_run(method: MethodUnderTest, model: Any, device: torch.device, numerics: Numerics) -> loop.Run:
    """Return a run of the training loop with SGD, whose steps depend less on rounding than Adam's."""
    recipe = model.recipe_for(method.backbone, CLASSES, method.settings)
    recipe = replace(recipe, optimizer="sgd", momentum=0.9, lr=RATE, clip_norm=0.0)
    return loop.prepare_run(model, recipe, device, numerics)


def compare_method(name: str, backbone: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield relative differences to the CPU's float32, for each number format that the device has.

    `loss` is the first one, `steps` the worst of `STEPS`. `gradient` is the length of the difference, as a
    share of the gradient's length. `maps` is the largest difference, as a share of the largest value.
    `proposals` is the largest difference of a coordinate, as a share of the image's side. In float16
    the first steps look for the scale of the loss: only maps, proposals and the first loss are compared.
    """
    method = MethodUnderTest(name, backbone, SETTINGS.get(name, {}))
    torch.manual_seed(0)
    first: Any = method.create()
    if not hasattr(first, "modules"):
        yield {"method": name, "precision": "float32", "note": "has no weights"}
        return
    weights = {key: value.clone() for key, value in first.state_dict().items()}
    expected = trace(method, weights, torch.device("cpu"), Numerics(amp="off"))
    for precision, amp in FORMATS.items():
        numerics = Numerics(amp=amp)
        try:
            numerics.check(device)
        except UsageError:  # the device does not have this format
            continue
        found = trace(method, weights, device, numerics)
        distance = (found.maps - expected.maps).abs().max() / expected.maps.abs().max().clamp(1e-9)
        values = {"maps": float(distance)}
        if len(expected.losses):
            losses = (found.losses - expected.losses).abs() / expected.losses.abs().clamp(1e-9)
            values["loss"] = float(losses[0])
            if amp != "fp16":
                distance = (found.gradient - expected.gradient).norm() / expected.gradient.norm().clamp(1e-9)
                values |= {"gradient": float(distance), "steps": float(losses.max())}
        if expected.boxes.numel():
            values["proposals"] = float((found.boxes - expected.boxes).abs().max() / SIDE)
        worst = max(values, key=lambda key: values[key])
        yield {"method": name, "precision": precision, **values, "worst": values[worst], "worst in": worst}
