"""DA-WSOL: pull pixel features to the pooled ones that are classified.

L. Zhu, Q. She, Q. Chen, Y. You, B. Wang, Y. Lu, "Weakly supervised object localization as domain adaption",
CVPR 2022. Values and steps are those of the authors' code (zh460045050/DA-WSOL_CVPR2022), for ResNet-50 and
Inception-V3. Of its alternatives for (4) this file has the one of the released scripts.

Idea. CAM trains its classifier on pooled features and applies it to pixels, which have another distribution.
The pixels of each image are split into three sets: source (like the pooled feature), target (other parts of
the object), and universum (background). Target pixels are pulled to the distribution of the source, and the
activation of universum pixels is reduced. At test the method is CAM.

    paper      name                                shape
    F          pixels                              (B, N, D)       features of the last stage
    f          pooled                              (B, D)          mean of F over the pixels
    c_u        universum, universum_count          (D,), ()        buffers: mean centre of background pixels,
                                                                   and how many it is the mean of
    c_y        class_centres, class_counts         (C, D), (C,)    buffers: mean centre of source pixels
    u, s, t    0, 1, 2                             (B, N)          label of each pixel
    n          config.samples                               32 of 28x28 pixels, fewer on smaller grids
    lambda_1   config.adaptation
    lambda_2   config.universum

    (1)  labels of the pixels: 3-means from the centres (c_u, f, c_y); they have no gradient
    (2)  c_u <- running mean of the centres u; c_y <- running mean of the centres s, of images of the class
    (3)  source = f and n - 1 pixels of s, target = n pixels of t, both drawn at random
    (4)  MMD = mean over i of K(s_i, s_j) + K(t_i, t_j) - K(s_i, t_j) - K(s_j, t_i), j = i + 1 in a ring of n
    (5)  K(a, b) = sum over k = -2 .. 2 of exp(-|a - b|^2 / (2^k m)), m the mean squared distance of all pairs
         of source and target, a constant
    (6)  L = CE(W f, y) + lambda_1 mean MMD + lambda_2 mean of F over the pixels u of the batch

The mean of MMD is over the images with enough pixels: n of t and n - 1 of s. It is 0 if there is none. The
numbers of the equations are those of this file. The paper's text was not at hand.

The first epochs train with the cross-entropy alone, and the centres are not updated, as in the released code.

**Published Top-1 Loc.** The authors print two for one network: with its own classifier (one stage) and with a
separate one (two stages). `--method da-wsol` alone is the first.

Departures. The released k-means runs on the CPU, image by image, until it converges. Here all images of a
batch are clustered at once in `rounds` rounds. The released centres are updated after each image; here after
each step, with all of its images. The released n is 32 on every grid. Of 14x14 pixels so many are rarely in
both sets, so here n is in proportion to the pixels; `samples=32` is the released number. Without any image
with enough pixels the released loss is NaN. In (6) negative features
count as 0, so that they cannot be rewarded; those of the released networks are not negative. Inception here
ends with Mixed_6e, the released one with two more layers. Networks without a released script have the values
of ResNet-50. For OpenImages the script has lambda_1 0.2 and lambda_2 3; use them with the recipe
`da_wsol_openimages` and the grid `std14`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.outputs import Batch
from reference_models.core.recipes import MANY_CLASSES, Recipe
from reference_models.layers.heads import HeadKind, cross_entropy
from reference_models.training.parallel import all_reduce_sum
from wsolbench.ranges import Count, CountOrZero, Weight
from wsolbench.system.distributed import world

PAPER = "da-wsol"

SCALES = (-2, -1, 0, 1, 2)
"""Powers of 2 of the bandwidths."""
TINY = 1e-12

WEIGHTS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "cub": (0.3, 2.0),
        "ilsvrc": (0.3, 3.0),
        "cub_inception": (1.4, 4.0),
        "ilsvrc_inception": (0.1, 0.3),
    }
)
"""lambda_1 and lambda_2 of the released scripts."""
START = MappingProxyType({"cub_inception": 6})
"""First epochs with the cross-entropy alone, where a released script has more than one."""
RELEASED_SAMPLES, RELEASED_PIXELS = 32, 28 * 28
"""n and number of pixels in the released code."""

_CUB = Recipe(
    source="zh460045050/DA-WSOL_CVPR2022, script for CUB, ResNet-50",
    epochs=50,
    batch_size=32,
    lr=1e-3,
    weight_decay=1e-4,
    milestones=(0.6,),
    first_epoch=1,
    bias_factor=1.0,
)
_ILSVRC = replace(
    _CUB, source=_CUB.source.replace("CUB", "ILSVRC"), epochs=10, lr=1e-5, milestones=(0.3, 0.6, 0.9)
)


def _for_inception(recipe: Recipe, lr: float) -> Recipe:
    return replace(
        recipe, source=recipe.source.replace("ResNet-50", "Inception-V3"), lr=lr, weight_decay=5e-4
    )


@dataclass(frozen=True, kw_only=True)
class DaWsolConfig(HeadConfig):
    """Settings of `da-wsol`.

    None stands for the released value for CUB, or for ILSVRC if there are 500 classes or more.
    """

    head: HeadKind = "conv1x1"
    """Released code: one 1x1 convolution on the features."""
    adaptation: Weight | None = None
    """lambda_1, the weight of MMD: released scripts (0.1 to 1.4)."""
    universum: Weight | None = None
    """lambda_2, the weight of the background's activation: released scripts (0.3 to 4)."""
    samples: Count | None = None
    """n, number of source features and of target features of an image. None: 32 of 784 pixels, as in the
    released code, and in proportion on other grids, but at least 2."""
    rounds: Count = 20
    """Rounds of the 3-means: this project. Released code: until it converges."""
    start: CountOrZero | None = None
    """Epochs that train with the cross-entropy alone. None: 1, and 6 for Inception below 500 classes, as
    released."""


def three_means(
    pixels: Float[Tensor, "b n d"], centres: Float[Tensor, "b 3 d"], rounds: int
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b 3 d"]]:
    """Return the cluster of each pixel and the means of the clusters, eq. (1).

    All images are clustered at once, from their own centres. Of equal distances the first cluster wins. An
    empty cluster takes the pixel that is farthest from its centre, as in the released code.
    """
    numbers = torch.arange(3, device=pixels.device)
    labels = nearest(pixels, centres)
    for _ in range(rounds):
        labels = fill_empty(pixels, centres, labels)
        member = (labels[:, None] == numbers[:, None]).to(pixels.dtype)  # (B, 3, N)
        sizes = member.sum(dim=2, keepdim=True)
        centres = torch.where(sizes > 0, member @ pixels / sizes.clamp(min=1), centres)
        labels = nearest(pixels, centres)
    return labels, centres


def fill_empty(
    pixels: Float[Tensor, "b n d"], centres: Float[Tensor, "b 3 d"], labels: Int[Tensor, "b n"]
) -> Int[Tensor, "b n"]:
    """Return labels in which an empty cluster has a pixel: the first one the pixel farthest from its centre.

    A pixel that equals its centre stays.
    """
    distance = (pixels - centres.take_along_dim(labels[:, :, None], dim=1)).square().sum(dim=2)  # (B, N)
    far = distance.topk(min(2, pixels.shape[1]), dim=1)
    empty = ~(labels[:, None] == torch.arange(3, device=labels.device)[:, None]).any(dim=2)  # (B, 3)
    order = empty.cumsum(dim=1) * empty  # 1 for the first empty cluster, 2 for the second
    for place in range(far.indices.shape[1]):
        chosen, pixel = order == place + 1, far.indices[:, place, None]
        moves = (chosen.any(dim=1) & (far.values[:, place] > 0))[:, None]
        label = torch.where(moves, chosen.int().argmax(dim=1, keepdim=True), labels.gather(1, pixel))
        labels = labels.scatter(1, pixel, label)
    return labels


def nearest(pixels: Float[Tensor, "b n d"], centres: Float[Tensor, "b k d"]) -> Int[Tensor, "b n"]:
    """Return the centre with the smallest distance. The length of the pixel itself does not matter."""
    return (centres.square().sum(dim=2)[:, None] - 2 * pixels @ centres.mT).argmin(dim=2)


def draw(
    pixels: Float[Tensor, "b n d"], member: Bool[Tensor, "b n"], count: int, generator: torch.Generator
) -> Float[Tensor, "b _ d"]:
    """Return `count` pixels of a set, drawn without repetition, eq. (3).

    A set that is too small is filled with other pixels.
    """
    score = torch.rand(member.shape, generator=generator, device=pixels.device) + 2 * member
    chosen = score.topk(min(count, pixels.shape[1]), dim=1).indices
    return pixels.take_along_dim(chosen[:, :, None], dim=1)


def bandwidth(points: Float[Tensor, "b m d"]) -> Float[Tensor, " b"]:
    """Return m of eq. (5), the mean squared distance of all pairs of an image, without a graph."""
    points = points.detach()
    spread = (points - points.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    return (2 * spread / max(1, points.shape[1] - 1)).clamp(min=TINY)


def linear_mmd(source: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """Return the discrepancy of source and target of each image, eq. (4)."""
    m = bandwidth(torch.cat([source, target], dim=1))[:, None]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = (a - b).square().sum(dim=2) / m  # (B, n)
        return torch.stack([torch.exp(-distance / 2.0**scale) for scale in SCALES]).sum(dim=0)  # (5)

    next_source, next_target = source.roll(-1, dims=1), target.roll(-1, dims=1)
    same = kernel(source, next_source) + kernel(target, next_target)
    return (same - kernel(source, next_target) - kernel(next_source, target)).mean(dim=1)  # (4)


def mean_of(values: Float[Tensor, "*n"], counted: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Return the mean of the values that count, or 0 if none does."""
    return (values * counted).sum() / counted.sum().clamp(min=1)


class DaWsol(HeadLocalizer):
    """See the module. Maps and logits are those of `head_localizer.py`."""

    method_name = "da-wsol"
    Config = DaWsolConfig
    config: DaWsolConfig
    recipes = MappingProxyType(
        {
            "da_wsol_cub": _CUB,
            "da_wsol_ilsvrc": _ILSVRC,
            "da_wsol_cub_inception": _for_inception(_CUB, 2e-3),
            "da_wsol_ilsvrc_inception": _for_inception(_ILSVRC, 1e-3),
            "da_wsol_openimages": replace(
                _ILSVRC, source=_ILSVRC.source.replace("ILSVRC", "OpenImages"), lr=1e-3
            ),
        }
    )
    universum_count: Tensor
    universum: Tensor
    class_counts: Tensor
    class_centres: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: DaWsolConfig) -> None:
        data = "cub" if num_classes < MANY_CLASSES else "ilsvrc"
        suffix = "_inception" if backbone.profile.kin == "inception" else ""
        released = WEIGHTS[data + suffix]
        adaptation = released[0] if config.adaptation is None else config.adaptation
        universum = released[1] if config.universum is None else config.universum
        super().__init__(backbone, num_classes, replace(config, adaptation=adaptation, universum=universum))
        self.adaptation_weight, self.universum_weight = adaptation, universum
        self.start = START.get(data + suffix, 1) if config.start is None else config.start
        width = self.head.classifier.weight.shape[1]
        self.register_buffer("universum", torch.zeros(width))
        self.register_buffer("universum_count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("class_centres", torch.zeros(num_classes, width))
        self.register_buffer("class_counts", torch.zeros(num_classes, dtype=torch.int64))

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipes in place of SPA's."""
        name = super().recipe_name(backbone, num_classes)
        suffix = "_inception" if read_profile(backbone).kin == "inception" else ""
        return name.replace("spa_", "da_wsol_") + suffix if name in ("spa_cub", "spa_ilsvrc") else name

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (6), and update the centres. The first epochs have the first term alone."""
        result = self(batch.images)
        terms = {"cross_entropy": cross_entropy(result.logits, batch.labels)}
        if batch.epoch < self.start:
            return terms
        with torch.autocast(batch.images.device.type, enabled=False):
            assert result.penultimate is not None
            pixels = result.penultimate.float().flatten(2).mT  # F (B, N, D)
            pooled = pixels.mean(dim=1)  # f (B, D)
            labels = self.assign(pixels.detach(), pooled.detach(), batch.labels)  # (B, N)
            discrepancy, enough = self.discrepancy(pixels, pooled, labels, batch.generator)
            active = pixels.relu().mean(dim=2)  # (B, N)
            terms["adaptation"] = self.adaptation_weight * mean_of(discrepancy, enough)
            terms["universum"] = self.universum_weight * mean_of(active, labels == 0)
        return terms

    def discrepancy(
        self,
        pixels: Float[Tensor, "b n d"],
        pooled: Float[Tensor, "b d"],
        labels: Int[Tensor, "b n"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Return MMD of each image, and whether the image has enough pixels: eqs. (3) to (5)."""
        number = pixels.shape[1]
        in_proportion = max(2, round(RELEASED_SAMPLES * number / RELEASED_PIXELS))
        wanted = in_proportion if self.config.samples is None else self.config.samples
        count = min(wanted, number)
        source_set, target_set = labels == 1, labels == 2
        drawn = draw(pixels, source_set, count - 1, generator)
        source = torch.cat([pooled[:, None], drawn], dim=1)  # (B, n, D)
        target = draw(pixels, target_set, count, generator)
        enough = (source_set.sum(dim=1) >= wanted - 1) & (target_set.sum(dim=1) >= wanted)
        return linear_mmd(source, target), enough

    @torch.no_grad()
    def assign(
        self, pixels: Float[Tensor, "b n d"], pooled: Float[Tensor, "b d"], classes: Int[Tensor, " b"]
    ) -> Int[Tensor, "b n"]:
        """Return the labels of the pixels, eq. (1), and update the centres, eq. (2).

        A class without a centre starts from the pooled features of its images, which count once.
        """
        known = (self.class_counts[classes] > 0)[:, None]
        own = torch.where(known, self.class_centres[classes], pooled)
        universum = self.universum.expand(len(pooled), -1)
        labels, centres = three_means(
            pixels, torch.stack([universum, pooled, own], dim=1), self.config.rounds
        )
        # Sums over the images of each class in all processes: source centres, pooled features, number.
        every_class = torch.arange(self.num_classes, device=classes.device)
        mine = (every_class[:, None] == classes).to(pixels.dtype)  # (C, B)
        sums = torch.cat([mine @ centres[:, 1], mine @ pooled, mine.sum(dim=1, keepdim=True)], dim=1)
        everywhere = torch.cat([centres[:, 0].sum(dim=0), pooled.new_full((1,), len(pooled))])
        all_reduce_sum(sums, world())
        all_reduce_sum(everywhere, world())
        # Running means.
        width = pooled.shape[1]
        found = sums[:, -1:]
        new = ((self.class_counts == 0)[:, None] & (found > 0)).to(pixels.dtype)
        first = new * sums[:, width:-1] / found.clamp(min=1)
        before = self.class_counts[:, None]
        total = before + new + found
        mean = (before * self.class_centres + first + sums[:, :width]) / total.clamp(min=1)
        self.class_centres.copy_(torch.where(found > 0, mean, self.class_centres))
        self.class_counts.copy_(total[:, 0])
        total_universum = self.universum_count + everywhere[-1]
        self.universum.copy_((self.universum_count * self.universum + everywhere[:-1]) / total_universum)
        self.universum_count.copy_(total_universum)
        return labels
