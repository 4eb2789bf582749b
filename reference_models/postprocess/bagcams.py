"""BagCAMs: gradient times features of an inner stage, for the log score.

L. Zhu, Q. Chen, L. Jin, Y. You, Y. Lu, "Bagging regional classification activation maps for weakly supervised
object localization", ECCV 2022. Released code: zh460045050/BagCAMs (no licence).

Idea. A classifier of pooled features is one localizer for all pixels. Its derivatives at the pixels of an
inner stage give one localizer per pixel, and the map is the weighted sum of their answers.

    released code    name            shape
    F                f               (B, D, h, w)    features of a stage
    s_c              scores          (B, C)          before softmax
    G                g               (B, D, h, w)
    lambda           factors         (B, D, 1, 1)
    M                bagcams(..)     (B, h, w)       not negative

    (1)  G = d log s_c / dF = (d s_c / dF) / s_c              released code (`score=log`)
         G = d log p_c / dF, with p = softmax(s)              this project's default (`score=logprob`)
    (2)  lambda_d = 1 + mean over the pixels of G_d F_d
    (3)  M = sum_d relu( lambda_d G_d F_d )

The text of the paper was not at hand. (1) to (3) are the released code, which says in a comment that (2) is a
sum; it computes a mean.

What the factor does. If s_c is homogeneous in F, as it is for a tail of ReLUs and linear layers without
biases, the sum of G F over channels and pixels is 1. With a mean, lambda is then 1 within about 1 / (h w). So
the map is nearly that of `grad-cam-elementwise`, times a constant. What differs from CAM is the stage, the
ReLU per channel, and the guided backward pass of `variant=official`, in which every ReLU above the stage
drops negative gradients.

Departures. The logarithm of a negative score is not defined, and 1 / s_c turns all signs of the map. Random
and uncertain classifiers have negative scores, so the default differentiates the log probability. Its
derivative is that of the log odds, o = s_c - log sum_{k != c} exp(s_k), times 1 - p_c, which rounds to 0 for
a confident classifier. So the map is computed from the derivative of o, and is M / (1 - p_c). One positive
factor per image and class has no effect after normalisation. A score of exactly 0 gives a map of 0. The
released code stretches and resizes the map; here the protocol does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import float32_graph, gradient_at, guided_backward, open_stage
from wsolbench.methods import Localization

PAPER = "bagcams"

NEVER = -1e30
"""Score of a class that a sum of exponentials leaves out. It is finite, for classifiers of one class."""


@dataclass(frozen=True, kw_only=True)
class BagCamsConfig(PostConfig):
    """Settings of `bagcams`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": MappingProxyType({}),
            "official": MappingProxyType({"score": "log", "guided": True}),
        }
    )

    variant: Literal["default", "official"] = "default"
    """`official`: released code. `default`: this project's score, and the plain gradient."""
    stage: str = "-2"
    """Features: name of a stage, its position, or `penultimate`.

    `-2`, the stage before the last one, is `layer3` of ResNet-50, as in the released scripts.
    """
    score: Literal["logprob", "log"] = "logprob"
    """Differentiated quantity: log probability (this project), or log of the score (released code)."""
    guided: bool = False
    """Whether ReLUs between the stage and the scores drop negative gradients; released code: yes."""


def log_odds(scores: Float[Tensor, "b c"], class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return o, the log odds of each given class. The derivative of log p_c is 1 - p_c times its, eq. (1)."""
    every = torch.arange(scores.shape[1], device=scores.device)
    own = every == class_ids[..., None]  # (B, K, C)
    others = scores[:, None].masked_fill(own, NEVER).logsumexp(dim=2)
    return scores.gather(1, class_ids) - others


def log_scores(scores: Float[Tensor, "b c"], class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return values whose derivative is that of log s_c, eq. (1): (d s_c) / s_c, and 0 where s_c is 0."""
    chosen = scores.gather(1, class_ids)
    inverse = chosen.detach().reciprocal().masked_fill(chosen == 0, 0.0)
    return chosen * inverse


def bagcams(
    f: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"], scale: Float[Tensor, " b"]
) -> Float[Tensor, "b h w"]:
    """Return M / scale, for a gradient g = G / scale."""
    products = g * f
    factors = 1 + scale[:, None, None, None] * products.mean(dim=(2, 3), keepdim=True)  # (2)
    return (factors * products).relu().sum(dim=1)  # (3)


class BagCams(PostProcess):
    """See the module."""

    method_name = "bagcams"
    Config = BagCamsConfig
    needs_gradients = True
    map_kind = "nonneg"
    config: BagCamsConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        stage, who = self.config.stage, self.method_name
        features, logits = open_stage(result, stage, who=who)
        backward = guided_backward(logits, features) if self.config.guided else contextlib.nullcontext()
        with float32_graph(features), backward:
            if self.config.score == "logprob":
                values = log_odds(logits.float(), class_ids)  # (B, K)
                scales = values.detach().neg().sigmoid()  # 1 - p_c
            else:
                values = log_scores(logits.float(), class_ids)
                scales = torch.ones_like(values.detach())
            maps = [
                bagcams(features.detach().float(), gradient_at(features, value, stage=stage, who=who), scale)
                for value, scale in zip(values.unbind(dim=1), scales.unbind(dim=1), strict=True)
            ]
        return torch.stack(maps, dim=1)
