"""What recognisers share: the network as it is, at the size of the papers, and the papers' recipes.

Papers of fine-grained recognition fine-tune an ImageNet network at 448 pixels, and do not change its strides as localizers do.
Images are resized to a square (their aspect ratio is lost), and a part of it is cut out at random; the centre at test. Where
published baselines differ the recipe differs, not the network: a gain means something only beside a `baseline` of the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from reference_models.backbone import TIMM_PREFIX
from reference_models.base import Localizer
from reference_models.config import MethodConfig
from reference_models.recipes import MANY_CLASSES, Recipe


class Recognizer(Localizer):
    """Base, or a second base beside `HeadLocalizer`, of the methods in `recognition/`."""

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """The network as it is, where the backbone's default would have a larger grid: 14x14 at 448."""
        larger = backbone in {"resnet50", "efficientnet_lite0"} or backbone.startswith(TIMM_PREFIX)
        return "stock" if config.grid == "default" and larger else config.grid

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """448 on the papers' network, but for ImageNet."""
        return 448 if backbone == "resnet50" and num_classes < MANY_CLASSES else None

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """A Navigator keeps the base rate, as all layers of NTS-Net do: at ten times that, its ranking loss diverges or stands still."""
        return super().is_new(name, recipe) and not name.startswith("navigator.")


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
    source="yangze0930/NTS-Net; its loop runs to epoch 499, here 10 epochs after the last fall of the rate at 100",
    epochs=110,
    batch_size=16,
    lr=1e-3,
    weight_decay=1e-4,
    milestones=(60 / 110, 100 / 110),
    new_factor=1.0,
    bias_factor=1.0,
    resize=600 / 448,
)
SSANET = replace(NTS, source="arXiv:2001.01211; crop and batch as NTS-Net, 90 epochs chosen here", epochs=90, milestones=(60 / 90,))

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
        "nts_official": replace(NTS, source="yangze0930/NTS-Net", epochs=499, milestones=(60 / 499, 100 / 499), first_epoch=1),
        "ssanet_cub": SSANET,
        "ssanet_cars": replace(SSANET, source="arXiv:2001.01211; batch and 90 epochs chosen here", resize=512 / 448),
        "ssanet_aircraft": replace(
            SSANET, source="arXiv:2001.01211, without a crop; 90 epochs chosen here", batch_size=24, weight_decay=5e-4, resize=1.0
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
    }
)
"""By name. `batch_size` counts groups where a method's batches are made of groups of images (LIO)."""
