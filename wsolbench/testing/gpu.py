"""Checks of what a GPU would do with a method, on a real one and on a fake one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wsolbench.methods import Localization, Numerics
from wsolbench.testing.subject import (
    CLASSES,
    MethodUnderTest,
    learns_by_loss,
    random_images,
    require,
)

if TYPE_CHECKING:
    from torch import Tensor

    from wsolbench.testing.fake_cuda import FakeCuda


def check_gpu(method: MethodUnderTest) -> None:
    """A GPU gives the maps of the processor, up to rounding. Nothing is checked without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return
    model, images, asked = method.create(), random_images(3), torch.tensor([[0, 1], [1, 2], [2, 0]])
    with Numerics(precision="ieee").held():
        expected = model.localize(images).score_maps(asked)
        shown, wanted = images.to("cuda"), asked.to("cuda")
        found = model.to("cuda").localize(shown).score_maps(wanted).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def check_fake_gpu(method: MethodUnderTest) -> None:
    """A GPU could run the method, in full and in mixed precision, and would never wait for the host.

    Maps, proposals, extra maps, every post-process that fits, and a training step run on a fake GPU, with the
    values of the CPU. Nothing is checked for a method that is not a `torch.nn.Module`.
    """
    import torch

    from wsolbench.testing.fake_cuda import FakeCuda

    images, asked = random_images(4), torch.arange(4)[:, None] % CLASSES
    for mixed in (False, True):
        model: Any = method.create()
        if not hasattr(model, "modules"):
            return
        expected = None if mixed else model.localize(images).score_maps(asked)
        with FakeCuda() as gpu, torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            gpu.move(model)
            result = model.localize(gpu.tensor(images))
            maps = result.score_maps(gpu.tensor(asked))
            if expected is not None and not gpu.made_up_gradients:
                torch.testing.assert_close(gpu.values(maps), expected)
            others = dict(result.extra_maps)
            if result.propose is not None:
                others["the proposals' boxes"] = result.propose().boxes
            others |= {f"maps of {name}": made for name, made in _processed(result, gpu.tensor(asked))}
            for name, tensor in {"maps": maps, **others}.items():
                require(tensor.device.type == "cuda", f"{name} are on {tensor.device}; expected the GPU")
            require(not gpu.events, f"on a GPU, maps need a {', a '.join(gpu.summary())}")
            if method.kind.trainable and learns_by_loss(method.kind):
                _train_on(gpu, method, model, gpu.tensor(images), gpu.tensor(asked[:, 0]))
                require(not gpu.events, f"on a GPU, a training step needs a {', a '.join(gpu.summary())}")


def _processed(result: Localization, asked: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps of every post-process that can be used with this result."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import list_posts, load_post

    for row in list_posts():
        post = load_post(row.name).create({})
        if not (post.needs_gradients or post.needs_reruns):
            try:
                yield row.name, post.maps(result, asked)
            except UsageError:  # it needs features that the method does not give
                continue


def _train_on(gpu: FakeCuda, method: MethodUnderTest, model: Any, images: Tensor, labels: Tensor) -> None:
    """Run one training step of each objective on the fake GPU, with gradients of 1."""
    import torch

    model.train()
    model.on_epoch(0, 10)
    batch = method.batch_of(images, labels, labels, gpu.generator())
    recipe = model.recipe_for(method.backbone, CLASSES, method.settings)
    for objective in model.objectives(recipe):
        terms = objective.loss(batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        require(total.device.type == "cuda", f"the loss is on {total.device}; expected the GPU")
        parameters = [parameter for group in objective.groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(parameters, lr=1e-3, fused=True).step()
