"""Training recipes as data: optimiser, learning rates per group, schedule, crops.

Where published recipes depend on the data set, there is one for object-centric sets of a few hundred classes
(`_cub`) and one for ImageNet (`_ilsvrc`). A method file may have its own (`Localizer.recipes`). Every field
can be set on the command line: `--set recipe.weight_decay=1e-4`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

from reference_models.core.profile import RecipeFamily
from wsolbench.methods.inputs import RotationFilter
from wsolbench.ranges import BatchSize, Epochs, LearningRate, Range, Ranged, Share, ShareBelow1, Weight

FrozenStages = Annotated[int, Range(0, 8)]

NEW_FACTOR: Mapping[str, float] = MappingProxyType({"sgd": 10.0, "adam": 1.0, "adamw": 1.0})
"""Factor of the learning rate of new layers, by optimiser.

Ten times the rate is customary for SGD. Adam's steps do not shrink with the gradient: ten times the rate of
`tiny` moves each weight by up to 0.02 per step, and GT-known of a fine-tuned CAM drops.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe(Ranged):
    """Training recipe. Points in time are fractions of the run, so they scale with the number of epochs."""

    source: str
    epochs: Epochs
    batch_size: BatchSize
    lr: LearningRate
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: ShareBelow1 = 0.9
    """SGD's momentum (Nesterov), or Adam's first beta."""
    weight_decay: Weight = 5e-4
    schedule: Literal["step", "cosine", "poly", "constant"] = "step"
    milestones: tuple[Share, ...] = ()
    """`step`: fractions of the run at which the learning rate is multiplied by `gamma`."""
    first_epoch: Literal[0, 1] = 0
    """Number that the source gives to the first epoch.

    With 1, the rate drops before the epoch whose number is a milestone, one epoch earlier than with 0
    (wsolevaluation, NTS-Net). A drop that would then fall into the first epoch is not moved.
    """
    gamma: Share = 0.1
    power: Weight = 0.9
    """`poly`: (1 - progress) ** power."""
    warmup: Share = 0.0
    """Fraction of the run in which the learning rate grows linearly from 0."""
    new_factor: Weight | None = None
    """Learning rate of layers that were not pretrained, relative to `lr`.

    None becomes `NEW_FACTOR` of the optimiser, so an Adam recipe has to state any other number. The factor is
    ignored if the backbone has no pretrained weights.
    """
    bias_factor: Weight = 2.0
    """Learning rate of biases, relative to the weights of the same layer."""
    last_stage_is_new: bool = False
    """Whether the pretrained last stage of a ResNet counts as new (wsolevaluation).

    `is_new` of `acol` and `spg` has the other differences of wsolevaluation.
    """
    resize: Annotated[float, Range(1, 8)] = 256 / 224
    """Side of the resized image relative to the crop."""
    short_side: bool = False
    """Whether `resize` is for the shorter side and the image keeps its aspect ratio.

    Otherwise the image becomes a square.
    """
    flip: Share = 0.5
    rotation: Annotated[float, Range(0, 180)] = 0.0
    """Largest angle in degrees.

    The image is rotated by up to this much in either direction before the crop.
    """
    rotation_filter: RotationFilter = "bilinear"
    """Interpolation of a rotated image."""
    rotate_on: Literal["host", "device"] = "host"
    """Where views are rotated, cropped and mirrored: by Pillow, or on the device of the network.

    Pixels differ by at most one of 255 levels. `device` saves half of the work of processor cores if images
    are rotated.
    """
    clip_norm: Weight = 0.0
    """Largest norm of the gradient. 0: no clipping."""
    frozen_stages: FrozenStages = 0
    """Number of the backbone's first feature stages that keep their pretrained weights and statistics."""
    decay_vectors: bool = True
    """Whether weight decay applies to every parameter.

    Otherwise it applies to matrices and kernels only: not to biases, scales, positions and learned tokens.
    """
    drop_path: ShareBelow1 = 0.0
    """Probability with which the last block of a vision transformer is skipped, for each image.

    It grows linearly over the blocks, from 0 in the first one. Only in training.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_factor is None:
            object.__setattr__(self, "new_factor", NEW_FACTOR[self.optimizer])

    def lr_factor(self, progress: float) -> float:
        """Return the learning rate relative to its base after `progress` in [0, 1] of the run.

        >>> recipe = Recipe(source="", epochs=100, batch_size=1, lr=1.0, milestones=(0.8,))
        >>> recipe.lr_factor(79.9 / 100), round(recipe.lr_factor(80 / 100), 3)
        (1.0, 0.1)
        """
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "step":
            return self.gamma ** sum(
                progress >= self._fall(milestone) - 1e-9 for milestone in self.milestones
            )
        rest = (progress - self.warmup) / max(1.0 - self.warmup, 1e-9)
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))
        if self.schedule == "poly":
            return float(max(0.0, 1.0 - rest) ** self.power)
        return 1.0

    def _fall(self, milestone: float) -> float:
        """Return the fraction of the run after which the rate drops."""
        earlier = milestone - self.first_epoch / self.epochs
        return milestone if earlier < 1 / self.epochs - 1e-9 else earlier


LATER_FIELDS = frozenset(
    {
        "first_epoch",
        "short_side",
        "rotation_filter",
        "rotate_on",
        "frozen_stages",
        "decay_vectors",
        "drop_path",
    }
)
"""Fields that were added after records had been written. Those records stand for the defaults."""

MANY_CLASSES = 500
"""Smallest number of classes for which published values for ILSVRC are used in place of those for CUB."""

WSOLEVALUATION = "clovaai/wsolevaluation"
"""Source of the recipes in which names of layers decide what learns faster."""

# The learning rates of wsolevaluation were searched for each backbone; those in `RECIPES` are the ones known
# for CAM. It counts epochs from 1 and multiplies the rate before each epoch whose number 15 divides (ILSVRC:
# 3), so 14 epochs (2) have the full rate.
CLOVAAI_CUB = Recipe(
    source=WSOLEVALUATION,
    epochs=50,
    batch_size=32,
    lr=1.268e-5,
    milestones=(0.3, 0.6, 0.9),
    first_epoch=1,
    bias_factor=1.0,
)
CLOVAAI_ILSVRC = replace(CLOVAAI_CUB, epochs=10)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "spa_cub": Recipe(
            source="Panxjia/SPA_CVPR2021, CUB scripts", epochs=100, batch_size=30, lr=1e-3, milestones=(0.8,)
        ),
        "spa_ilsvrc": Recipe(
            source="Panxjia/SPA_CVPR2021, ILSVRC scripts",
            epochs=20,
            batch_size=16,
            lr=1e-3,
            milestones=(0.5, 0.75),
        ),
        "clovaai_cub_vgg16": CLOVAAI_CUB,
        "clovaai_cub_resnet50": replace(CLOVAAI_CUB, lr=2.322e-4, weight_decay=1e-4, last_stage_is_new=True),
        "clovaai_cub_inception_v3": replace(CLOVAAI_CUB, lr=2.248e-3),
        "clovaai_ilsvrc_vgg16": replace(CLOVAAI_ILSVRC, lr=1.654e-5),
        "clovaai_ilsvrc_resnet50": replace(
            CLOVAAI_ILSVRC, lr=3.108e-5, weight_decay=1e-4, last_stage_is_new=True
        ),
        "clovaai_ilsvrc_inception_v3": replace(CLOVAAI_ILSVRC, lr=3.606e-4),
        "finetune": Recipe(
            source="this project: pretrained EfficientNet and timm backbones on a few thousand images",
            epochs=20,
            batch_size=32,
            lr=3e-3,
            weight_decay=1e-4,
            schedule="cosine",
            warmup=0.05,
            bias_factor=1.0,
        ),
        "tiny": Recipe(
            source=(
                "this project: a small network from random weights on toybirds, about a minute on two cores"
            ),
            epochs=16,
            batch_size=16,
            lr=2e-3,
            optimizer="adamw",
            weight_decay=0.01,
            schedule="cosine",
            warmup=0.1,
            bias_factor=1.0,
        ),
    }
)


def default_recipe(family: RecipeFamily, num_classes: int) -> str:
    """Return the name of the default recipe for backbones of a family."""
    if family == "published":
        return "spa_cub" if num_classes < MANY_CLASSES else "spa_ilsvrc"
    return family


LIO = Recipe(
    source="CVPR 2020 (epochs, sizes) and JDAI-CV/LIO (the rest)",
    epochs=240,
    batch_size=16,
    lr=1e-3,
    weight_decay=0.0,
    milestones=(0.25, 0.5, 0.75),
    bias_factor=1.0,
    resize=512 / 448,
    rotation=15.0,
)

NTS = Recipe(
    source=(
        "yangze0930/NTS-Net; its loop runs to epoch 499, here 10 epochs after the last fall of the rate "
        "at 100"
    ),
    epochs=110,
    batch_size=16,
    lr=1e-3,
    weight_decay=1e-4,
    milestones=(60 / 110, 100 / 110),
    new_factor=1.0,
    bias_factor=1.0,
    resize=600 / 448,
)

SSANET = replace(
    NTS,
    source="arXiv:2001.01211; crop and batch as NTS-Net, 90 epochs chosen here",
    epochs=90,
    milestones=(60 / 90,),
)

DCL = Recipe(
    source="JDAI-CV/DCL (rate, batch, sizes, rotation) and Hawkeye (180 epochs)",
    epochs=180,
    batch_size=16,
    lr=8e-4,
    weight_decay=0.0,
    milestones=(1 / 3, 2 / 3),
    bias_factor=1.0,
    resize=512 / 448,
    rotation=15.0,
)

CUSTOMARY = Recipe(
    source="this project; crop of the papers at 448 pixels",
    epochs=90,
    batch_size=16,
    lr=1e-3,
    weight_decay=1e-4,
    milestones=(60 / 90,),
    bias_factor=1.0,
    resize=512 / 448,
)
"""Recipe of methods whose papers give no rates or were not at hand. Others change some of it."""

RACNN = replace(
    CUSTOMARY,
    source="this project, for RA-CNN: its paper gives no rates; `ra-cnn` has one schedule per stage",
    epochs=100,
    weight_decay=5e-4,
    milestones=(0.6,),
    new_factor=1.0,
)

FINE_GRAINED: Mapping[str, Recipe] = MappingProxyType(
    {
        "lio": LIO,
        "lio_upright": replace(LIO, source=f"{LIO.source}, without rotation", rotation=0.0),
        "lio_official": replace(
            LIO,
            source="JDAI-CV/LIO",
            epochs=359,
            milestones=tuple((epoch + 2) / 359 for epoch in (60, 120, 180, 240, 300)),
            warmup=2 / 359,
            rotation_filter="nearest",
        ),
        "lio_ilsvrc": Recipe(
            source="CVPR 2020 (momentum, 256 images a step); the rest is the usual one of ResNet",
            epochs=90,
            batch_size=64,
            lr=0.1,
            weight_decay=1e-4,
            milestones=(1 / 3, 2 / 3),
            new_factor=1.0,
            bias_factor=1.0,
        ),
        "nts": NTS,
        "nts_official": replace(
            NTS, source="yangze0930/NTS-Net", epochs=499, milestones=(60 / 499, 100 / 499), first_epoch=1
        ),
        "ssanet_cub": SSANET,
        "ssanet_cars": replace(
            SSANET, source="arXiv:2001.01211; batch and 90 epochs chosen here", resize=512 / 448
        ),
        "ssanet_aircraft": replace(
            SSANET,
            source="arXiv:2001.01211, without a crop; 90 epochs chosen here",
            batch_size=24,
            weight_decay=5e-4,
            resize=1.0,
        ),
        "fnd": Recipe(
            source="ICIP 2019; crop and batch chosen here",
            epochs=100,
            batch_size=16,
            lr=1e-3,
            weight_decay=5e-4,
            milestones=(0.4, 0.8),
            bias_factor=1.0,
            resize=600 / 448,
        ),
        "tasn": Recipe(
            source="researchmm/tasn (MXNet), without its jitter of colours",
            epochs=300,
            batch_size=96,
            lr=0.1,
            momentum=0.0,
            weight_decay=0.0,
            milestones=(1 / 3, 2 / 3),
            new_factor=1.0,
            bias_factor=1.0,
            resize=1.0,
            short_side=True,
            rotation=30.0,
        ),
        "fcan": replace(CUSTOMARY, source="this project: of the paper, no training details were available"),
        "mamc_hawkeye": Recipe(
            source="Hawkeye's re-implementation of MAMC, at 224 pixels (5 classes of 2 images a step)",
            epochs=60,
            batch_size=10,
            lr=4e-3,
            momentum=0.0,
            weight_decay=2e-5,
            schedule="cosine",
            warmup=5 / 60,
            new_factor=10.0,
            bias_factor=1.0,
        ),
        "dcl": DCL,
        "dcl_official": replace(
            DCL,
            source="JDAI-CV/DCL",
            epochs=359,
            milestones=tuple(epoch / 359 for epoch in (60, 120, 180, 240, 300)),
            rotation_filter="nearest",
        ),
        "dfl": replace(
            CUSTOMARY,
            source="this project: length, batch, rate and sizes; the paper's are not verified",
            epochs=100,
            milestones=(0.4, 0.8),
        ),
        "racnn": RACNN,
        "macnn": replace(
            RACNN,
            source=(
                "MA-CNN's released factors of the rate, except that of its first grouping layer; lengths and "
                "milestones chosen here, of each stage"
            ),
            new_factor=10.0,
            bias_factor=2.0,
        ),
        "partnet": Recipe(
            source="Gorilla-Lab-SCUT/PartNet; the batch is that of its detectors",
            epochs=350,
            batch_size=64,
            lr=1e-3,
            weight_decay=1e-4,
            milestones=(0.5, 0.75),
            new_factor=100.0,
            bias_factor=1.0,
            resize=512 / 448,
            flip=0.0,
        ),
        "opam": Recipe(
            source="PKU-ICST-MIPL/OPAM_TIP2018 (rate, batch, sizes); epochs chosen here",
            epochs=60,
            batch_size=16,
            lr=1e-4,
            new_factor=10.0,
            resize=256 / 224,
        ),
        "hsnet": CUSTOMARY,
        "coseq": Recipe(
            source="jkrause314/fg_without (rate, its fall, batch, decay); 100 epochs in place of 320",
            epochs=100,
            batch_size=16,
            lr=1e-3,
            milestones=(2 / 3,),
            resize=256 / 224,
        ),
    }
)
"""Recipes of fine-grained classifiers by name.

`batch_size` counts groups if a method's batches consist of groups of images (LIO).
"""
