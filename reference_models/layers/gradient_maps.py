"""Gradients of class scores at a feature stage, for post-processes that weight features by them.

    A      features     (B, D, h, w)    output of a stage
    s_c    scores       (B, C)          before softmax
    g      gradient     (B, D, h, w)    d s_c / d A

In evaluation mode a score depends on its own image alone. So one backward pass of the sum over the batch
gives the gradients of all images, and K classes need K backward passes. `autograd.grad` leaves the gradients
of the parameters alone. Everything here is float32, also under autocast.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.layers.correlation import find_features, last_stages
from wsolbench.exceptions import UsageError
from wsolbench.methods import Localization

MapOf = Callable[[Tensor, Tensor], Tensor]
"""Signature `map_of(A, g)`: features and gradient (B, D, h, w) to the map of a class (B, h, w)."""


def find_stage(result: Localization, stage: str, *, who: str) -> tuple[str, Tensor]:
    """Return name and features (B, D, h, w) of a stage.

    `stage` is its name, its position among the stages (`-1`: the last), or `penultimate`. Raises `UsageError`
    for a method without stages, an unknown name, and a position that the method does not have.
    """
    last_stages(result, 1, who=who)
    names = list(result.stages)
    if re.fullmatch(r"-?[0-9]{1,4}", stage):
        position = int(stage)
        if not -len(names) <= position < len(names):
            raise UsageError(
                f"setting stage={stage} of post-process {who!r}: the method has {len(names)} feature stages "
                f"({', '.join(names)}); expected one of these names, or a position from {-len(names)} to "
                f"{len(names) - 1}"
            )
        stage = names[position]
    return find_features(result, stage, who=who)


def open_stage(result: Localization, stage: str, *, who: str) -> tuple[Tensor, Float[Tensor, "b c"]]:
    """Return the features (B, D, h, w) of a stage, and the class scores that can be differentiated by them.

    Raises `UsageError` as `find_stage`, for a method that does not classify, and for scores that do not
    depend on the stage. Raises `RuntimeError` for a result without a graph.
    """
    if result.logits is None:
        raise UsageError(
            f"post-process {who!r} needs class scores; this method gives none, so it cannot be used with it"
        )
    name, features = find_stage(result, stage, who=who)
    if not (result.logits.requires_grad or features.requires_grad):
        raise RuntimeError(
            f"post-process {who!r} was given scores without a graph: use what model.eval() and "
            "model.localize(images, gradients=True) give"
        )
    if not (result.logits.requires_grad and features.requires_grad):
        raise _independent(name, who)
    return features, result.logits


@contextlib.contextmanager
def float32_graph(like: Tensor) -> Iterator[None]:
    """Enable gradients and disable autocast on the device of `like` in a `with` statement."""
    with torch.enable_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def map_classes(
    map_of: MapOf, result: Localization, class_ids: Int[Tensor, "b k"], *, stage: str, who: str
) -> Float[Tensor, "b k h w"]:
    """Compute the maps of the given classes from the features of a stage and the gradients of the scores.

    `who` is the post-process that asks, for messages. Raises as `open_stage`.
    """
    features, logits = open_stage(result, stage, who=who)
    with float32_graph(features):
        scores = logits.float().gather(1, class_ids)  # (B, K)
        maps = [
            map_of(features.detach().float(), gradient_at(features, one, stage=stage, who=who))
            for one in scores.unbind(dim=1)
        ]
    return torch.stack(maps, dim=1)


def gradient_at(
    features: Float[Tensor, "b d h w"], scores: Float[Tensor, " b"], *, stage: str, who: str
) -> Float[Tensor, "b d h w"]:
    """Return g, the gradient of one score per image at the features, in float32.

    The graph is kept for further calls. Raises `UsageError` if the scores do not depend on the features.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), features, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise _independent(stage, who)
    return gradient.float()


def _independent(stage: str, who: str) -> UsageError:
    return UsageError(
        f"setting stage={stage} of post-process {who!r}: the class scores of this method do not depend on "
        "these features; expected a stage between the images and the scores. Use another one "
        f"(--post-set {who}.stage=-1), or for a vision transformer of timm --set grid=tokens"
    )


@contextlib.contextmanager
def guided_backward(scores: Tensor, features: Tensor) -> Iterator[None]:
    """Drop negative gradients at every ReLU between features and scores, in a `with` statement.

    This is the rule of guided backpropagation. ReLU6 counts as a ReLU; other activations are unchanged.
    """
    handles = [node.register_hook(_drop_negative) for node in _nodes_between(scores, features)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nodes_between(scores: Tensor, features: Tensor) -> list[Any]:
    """Return the nodes of the graph that are ReLUs, from the scores down to the features."""
    seen, rest = {features.grad_fn}, [scores.grad_fn]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            rest += [before for before, _ in node.next_functions]
    return [node for node in seen - {features.grad_fn} if _is_relu(node)]


def _is_relu(node: Any) -> bool:
    name: str = node.name()
    return name == "ReluBackward0" or (name == "HardtanhBackward0" and bool(node._saved_min_val == 0))


def _drop_negative(inputs: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...]:
    return tuple(None if each is None else each.clamp(min=0) for each in inputs)
