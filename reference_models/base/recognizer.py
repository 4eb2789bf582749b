"""Base of fine-grained classifiers: an unchanged network, the input size and the recipes of the papers.

Papers on fine-grained classification fine-tune an ImageNet network at 448 pixels and, unlike localizers, do
not change its strides. Images are resized to a square (their aspect ratio is lost), and a random part is
cropped; at test, the centre. Published baselines differ in the recipe, not in the network. So compare a
method with a `baseline` that uses the same recipe.
"""

from __future__ import annotations

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.recipes import MANY_CLASSES, Recipe


class Recognizer(Localizer):
    """Base of the methods in `recognition/`, or a second base with `HeadLocalizer`."""

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the unchanged network if the backbone's default has a larger grid: 14x14 at 448."""
        return read_profile(backbone).grid(config.grid, "fine-grained")

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """Return 448 on the network of the papers, except for ImageNet."""
        return read_profile(backbone).fine_grained_size if num_classes < MANY_CLASSES else None

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the paper's recipe on the network of the papers, else the backbone's."""
        own = cls.paper_recipe(num_classes) if read_profile(backbone).fine_grained_recipes else None
        return own or super().recipe_name(backbone, num_classes)

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str | None:  # noqa: ARG003 - for methods whose recipe depends on it
        """Return the name of the paper's recipe for this number of classes, or None if there is none."""
        return None

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return as `Model.is_new`, but False for a Navigator, as for all layers of NTS-Net.

        At ten times the base rate its ranking loss diverges or stagnates.
        """
        return super().is_new(name, recipe) and not name.startswith("navigator.")
