"""What recognisers share: the network as it is, at the size of the papers, and the papers' recipes.

Papers of fine-grained recognition fine-tune an ImageNet network at 448 pixels, and do not change its strides
as localizers do. Images are resized to a square (their aspect ratio is lost), and a part of it is cut out at
random; the centre at test. Where published baselines differ the recipe differs, not the network: a gain means
something only beside a `baseline` of the same recipe.
"""

from __future__ import annotations

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import TIMM_PREFIX
from reference_models.core.config import MethodConfig
from reference_models.core.recipes import MANY_CLASSES, Recipe


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
        """A Navigator keeps the base rate, as all layers of NTS-Net do: at ten times that, its ranking loss
        diverges or stands still.
        """
        return super().is_new(name, recipe) and not name.startswith("navigator.")
