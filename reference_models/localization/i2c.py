"""I2C: make object features agree across images of the same class.

X. Zhang, Y. Wei, Y. Yang, "Inter-image communication for weakly supervised localization", ECCV 2020. Released
code: xiaomengyc/I2C.

Idea. A CAM network sees each image alone, and the evidence that it uses differs between images. Here the
features of confident pixels are pulled together for two images of the same class in a batch (stochastic
consistency). Their mean is pulled to a running mean of the class over the data set (global consistency).

    paper      name                            shape
    F_c        maps_of(class_ids)              (B, K, h, w)
    phi        features, the last stage        (B, D, h, w)     input of the head, before dropout
    O          object_seeds                    (B, n)           n pixels with m > threshold, drawn from m =
                                                                min-max of F_y
    q          vectors                         (P, 2, n, D)     P pairs: images 2i and 2i + 1 of the batch
    mu         centres                         (P, D)           mean of the 2n vectors of a pair
    bank       bank, counts                    (C, D), (C,)     buffers: the class centres, and how often they
                                                                were updated

    (1)  L_local = mean over pairs and seeds |q_a - q_b|
    (2)  L_global = mean over pairs |bank_y - mu|            the bank as it was before this step, without
                                                             gradient
    (3)  eta = exp(-decay * counts_y)
    (4)  bank_y <- (1 - eta) bank_y + eta mu,  counts_y <- counts_y + 1
    (5)  L = CE + local_weight L_local + global_weight L_global

The numbers of the equations are those of this file. The paper's text was not at hand: values and steps are
those of the released code, in which the map chooses pixels and gets no gradient.

Batches are pairs of one class. Each image occurs once in an epoch. In a class with an odd number of images,
one of them occurs twice. The only image of a class is paired with itself. The released code draws 40 classes
and two images of each for each batch.

Departures from released code (`variant=official` undoes the first two). It draws a random order of the pixels
and does not use it, so its seeds are the first in raster order. Its bank starts with normal noise, which the
first global terms pull to; here the term is 0 until the class has a centre. If a map has fewer than 30 pixels
above 0.7, it takes those above 0.7 of the maximum, which are the same. Several pairs of a class in a batch
make one update with their mean. Pairs of different classes, which do not occur here, count only in the
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch
from reference_models.core.recipes import Recipe
from reference_models.layers.heads import cross_entropy
from reference_models.layers.maps import min_max
from reference_models.training.parallel import all_reduce_sum
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count, ShareBelow1, Weight
from wsolbench.system.distributed import world

PAPER = "i2c"


@dataclass(frozen=True, kw_only=True)
class I2cConfig(HeadConfig):
    """Settings of `i2c`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": MappingProxyType({}),
            "official": MappingProxyType({"seeds": "first", "cold_start": "random"}),
        }
    )

    variant: Literal["default", "official"] = "default"
    """`official`: as the released code runs. `default`: without its apparent mistakes."""
    dropout: ShareBelow1 = 0.5
    """Dropout before each convolution of the head: released code."""
    num_seeds: Count = 3
    """n, seeds per image: released script."""
    threshold: ShareBelow1 = 0.7
    """Threshold of the min-max normalised map of the label above which a pixel is object: released code."""
    seeds: Literal["random", "first"] = "random"
    """Choice of object pixels: drawn at random, or the `first` in raster order (released code)."""
    cold_start: Literal["mask", "random"] = "mask"
    """Treatment of a class without a centre.

    `mask`: no global term. `random`: a centre of normal noise (released code).
    """
    local_weight: Weight = 0.008
    """Weight of L_local: released script."""
    global_weight: Weight = 0.001
    """Weight of L_global: released script; the default of its program is 0.01."""
    decay: Weight = 0.002
    """Decay of eta with the number of updates: released code."""


def object_seeds(
    maps: Float[Tensor, "b h w"], count: int, threshold: float, generator: torch.Generator | None
) -> Int[Tensor, "b {count}"]:
    """Return positions (row * w + column) of object pixels.

    They are drawn without repetition, or the first ones if `generator` is None. If there are fewer than
    `count`, they repeat in the same order. A constant map, which has none, gives one arbitrary pixel.
    """
    inside = min_max(maps).flatten(1) > threshold  # (B, N)
    pixels = inside.shape[1]
    if generator is None:
        score = (torch.arange(pixels, 0, -1, device=maps.device) / pixels).expand(inside.shape)
    else:
        score = torch.rand(inside.shape, generator=generator, device=maps.device)
    # Scores are in [0, 1]: with 2 more, every object pixel comes before every other one.
    order = (score + 2 * inside).topk(min(count, pixels), dim=1).indices
    usable = inside.sum(dim=1, keepdim=True).clamp(1, order.shape[1])
    return order.gather(1, torch.arange(count, device=maps.device) % usable)


def gather_vectors(features: Float[Tensor, "b d h w"], seeds: Int[Tensor, "b n"]) -> Float[Tensor, "p 2 n d"]:
    """Return q, the features at the seeds by pair, in float32. A last image without a partner is dropped."""
    vectors = features.flatten(2).take_along_dim(seeds[:, None], dim=2).float().mT  # (B, n, D)
    pairs = len(vectors) // 2
    return vectors[: 2 * pairs].reshape(pairs, 2, *vectors.shape[1:])


def local_distance(vectors: Float[Tensor, "p 2 n d"]) -> Float[Tensor, " p"]:
    """Return the distance of each pair, averaged over the seeds: eq. (1) before the mean over pairs."""
    distance: Tensor = torch.linalg.vector_norm(vectors[:, 0] - vectors[:, 1], dim=-1)
    return distance.mean(dim=1)


def update_rate(counts: Int[Tensor, " c"], decay: float) -> Float[Tensor, " c"]:
    """Return the update rate of the class centres, eq. (3): 1 at first, then decreasing."""
    eta: Tensor = torch.exp(counts * -decay)
    return eta


def masked_mean(values: Float[Tensor, " p"], counted: Bool[Tensor, " p"]) -> Float[Tensor, ""]:
    """Return the mean of the values that count, or 0 if none does."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


class I2C(HeadLocalizer):
    """See the module. Maps and logits are those of `head_localizer.py`."""

    method_name = "i2c"
    Config = I2cConfig
    config: I2cConfig
    recipes: ClassVar[Mapping[str, Recipe]] = MappingProxyType(
        {
            "i2c_ilsvrc": Recipe(
                source="xiaomengyc/I2C, ILSVRC scripts",
                epochs=5,
                batch_size=80,
                lr=1e-3,
                milestones=(0.4, 0.6, 0.8),
                short_side=True,
            )
        }
    )

    bank: Tensor
    counts: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: I2cConfig) -> None:
        if config.num_seeds < 1 or not 0 <= config.threshold < 1:
            raise UsageError(
                f"settings num_seeds={config.num_seeds} and threshold={config.threshold} of method 'i2c': "
                "expected at least 1, and a number from 0 to below 1"
            )
        for name in ("local_weight", "global_weight", "decay"):
            if not getattr(config, name) >= 0:
                raise UsageError(
                    f"setting {name}={getattr(config, name)} of method 'i2c': expected a number that is "
                    "not negative"
                )
        super().__init__(backbone, num_classes, config)
        shape = (num_classes, backbone.channels[-1])
        self.register_buffer(
            "bank", torch.randn(shape) if config.cold_start == "random" else torch.zeros(shape)
        )
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return ACoL's 28x28 grid on VGG-16, as in the released code."""
        return read_profile(backbone).grid(config.grid, "overlapping-pools")

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipe in place of SPA's for ILSVRC."""
        name = super().recipe_name(backbone, num_classes)
        return "i2c_ilsvrc" if name == "spa_ilsvrc" else name

    def batches(
        self, labels: Int[np.ndarray, " n"], batch_size: int, rng: np.random.Generator
    ) -> list[Int[np.ndarray, " _"]]:
        """Return shuffled pairs of one class, images 2i and 2i + 1.

        `batch_size` is rounded down to an even number, at least 2.
        """
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        pairs = []
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            again = members[:1] if len(members) % 2 else members[:0]  # the order is random
            pairs.append(np.concatenate([members, again]).reshape(-1, 2))
        shuffled = rng.permutation(np.concatenate(pairs))
        size = max(1, batch_size // 2)
        return [shuffled[start : start + size].reshape(-1) for start in range(0, len(shuffled), size)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of eq. (5), and update the bank."""
        result = self(batch.images)
        sure = result.maps_of(batch.labels[:, None])[:, 0].detach()
        generator = batch.generator if self.config.seeds == "random" else None
        seeds = object_seeds(sure, self.config.num_seeds, self.config.threshold, generator)
        with torch.autocast(batch.images.device.type, enabled=False):
            vectors = gather_vectors(next(reversed(result.stages.values())), seeds)
            centres = vectors.mean(dim=(1, 2))  # (P, D)
            classes, partners = batch.labels[0 : 2 * len(centres) : 2], batch.labels[1::2]
            same = classes == partners
            known = same if self.config.cold_start == "random" else same & (self.counts[classes] > 0)
            distance = torch.linalg.vector_norm(self.bank[classes] - centres, dim=1)  # (2)
            terms = {
                "cross_entropy": cross_entropy(result.logits, batch.labels),
                "local": self.config.local_weight * masked_mean(local_distance(vectors), same),
                "global": self.config.global_weight * (distance * known).sum() / same.sum().clamp(min=1),
            }
            self._update(centres.detach(), classes, same)
        return terms

    @torch.no_grad()
    def _update(
        self, centres: Float[Tensor, "p d"], classes: Int[Tensor, " p"], same: Bool[Tensor, " p"]
    ) -> None:
        """Update the bank with the pairs of all processes, eq. (4)."""
        every_class = torch.arange(self.num_classes, device=classes.device)
        mine = ((every_class[:, None] == classes) & same).float()  # (C, P)
        sums = torch.cat([mine @ centres, mine.sum(dim=1, keepdim=True)], dim=1)  # (C, D + 1)
        all_reduce_sum(sums, world())
        pairs = sums[:, -1:]
        eta = update_rate(self.counts, self.config.decay)[:, None]
        moved = (1 - eta) * self.bank + eta * (sums[:, :-1] / pairs.clamp(min=1))
        self.bank.copy_(torch.where(pairs > 0, moved, self.bank))
        self.counts += (pairs > 0)[:, 0]
