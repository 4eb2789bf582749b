"""What recognisers share: the network as it is, at the size of the papers, and the papers' recipes.

Papers of fine-grained recognition fine-tune an ImageNet network at 448 pixels, and do not change its strides
as localizers do. Images are resized to a square (their aspect ratio is lost), and a part of it is cut out at
random; the centre at test. Where published baselines differ the recipe differs, not the network: a gain means
something only beside a `baseline` of the same recipe.
"""

from __future__ import annotations

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import profile_of
from reference_models.core.config import MethodConfig
from reference_models.core.recipes import MANY_CLASSES, Recipe


class Recognizer(Localizer):
    """Base, or a second base beside `HeadLocalizer`, of the methods in `recognition/`."""

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """The network as it is, where the backbone's default would have a larger grid: 14x14 at 448."""
        return profile_of(backbone).grid(config.grid, "fine-grained")

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """448 on the network of the papers, except for ImageNet."""
        return profile_of(backbone).fine_grained_size if num_classes < MANY_CLASSES else None

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """The paper's recipe on the network of the papers, else the backbone's."""
        own = cls.paper_recipe(num_classes) if profile_of(backbone).fine_grained_recipes else None
        return own or super().recipe_name(backbone, num_classes)

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str | None:  # noqa: ARG003 - for methods whose recipe depends on it
        """Name of the paper's recipe for this number of classes. None if there is none."""
        return None

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """A Navigator keeps the base rate, as all layers of NTS-Net do: at ten times that, its ranking loss
        diverges or stands still.
        """
        return super().is_new(name, recipe) and not name.startswith("navigator.")
