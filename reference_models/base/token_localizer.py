"""Base of methods on vision transformers: DeiT or DINOv2 as steps, with their published recipes."""

from __future__ import annotations

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.recipes import MANY_CLASSES
from reference_models.core.tokens import TokenBackbone
from wsolbench.exceptions import UsageError


class TokenLocalizer(Localizer):
    """A method on the tokens of a vision transformer that has a class token.

    Its first recipe is the default for data sets of up to a few hundred classes, its second one for ImageNet.
    """

    needs_tokens = True
    backbone: TokenBackbone

    def __init__(self, backbone: Backbone, num_classes: int, config: MethodConfig) -> None:
        super().__init__(backbone, num_classes, config)
        if not self.backbone.has_class_token:
            raise UsageError(
                f"method {self.method_name!r} needs a class token, and {backbone.name} has none; expected a "
                "network with one, for instance --backbone timm:deit_small_patch16_224"
            )

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:  # noqa: ARG003 - all are of one family
        """Return the name of the published recipe for this number of classes, on every transformer."""
        few, many = list(cls.recipes)[:2]
        return few if num_classes < MANY_CLASSES else many
