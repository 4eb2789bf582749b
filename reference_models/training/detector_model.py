"""`DetectorModel`: the interface between a detector and training, checkpoints and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from reference_models.core.config import parse_settings, split_settings, to_json
from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.outputs import Target
from reference_models.core.weights import NONE, Weights
from reference_models.training.checkpoint import write_checkpoint
from wsolbench.exceptions import unknown_name

D = TypeVar("D", bound="DetectorModel")


class DetectorModel(nn.Module):
    """Base of all detectors as training and checkpoints use them. `Detector` adds what the commands call.

    Class attributes:
        method_name: the file's name with dashes.
        Config: dataclass of the settings. It has a field `recipe`.
        backbones: allowed values of `backbone`.
        recipes: training recipes by name.
    """

    method_name: ClassVar[str]
    Config: ClassVar[type[Any]]
    backbones: ClassVar[tuple[str, ...]]
    recipes: ClassVar[Mapping[str, DetectionRecipe]]

    def __init__(self, backbone: str, class_names: Sequence[str], config: Any) -> None:
        super().__init__()
        if backbone not in self.backbones:
            raise unknown_name(f"backbone of {self.method_name!r}", backbone, self.backbones)
        self.backbone, self.class_names, self.config = backbone, tuple(class_names), config
        self.weights = Weights(NONE)
        self.facts: dict[str, Any] = {}
        """Training metadata of the weights, filled by training and by `load`."""
        self.network: Any = self.build()

    # --- what a detector file defines -----------------------------------------------------------------------
    def build(self) -> Any:
        """Build the network with random weights.

        In training it maps (images, targets) to named losses, otherwise images to detections. Images are (3,
        h, w) in [0, 1], of any sizes. Detections have `boxes`, `labels`, `scores`, and `masks` (N, 1, h, w)
        in [0, 1].
        """
        raise NotImplementedError

    def start_from(self, weights: str) -> Weights:
        """Load pretrained weights into the network, freeze layers if needed, and return their source."""
        raise NotImplementedError

    @classmethod
    def recipe_name(cls, backbone: str) -> str:
        """Return the name of the recipe for `recipe=default`."""
        raise NotImplementedError

    @property
    def wants_masks(self) -> bool:
        """Whether `loss` needs the objects' masks."""
        return False

    # --- what training and records use ----------------------------------------------------------------------
    @classmethod
    def create(
        cls: type[D], *, backbone: str, class_names: Sequence[str], weights: str, settings: Mapping[str, str]
    ) -> D:
        """Create a model in eval mode. Its new layers draw from torch's global generator.

        Raises `UsageError` on an unknown backbone or setting and on missing weights, and `DataError` on
        weights that do not fit.
        """
        config = parse_settings(cls.Config, split_settings(settings)[0], what=f"detector {cls.method_name!r}")
        model = cls(backbone, class_names, config)
        if weights != NONE:
            model.weights = model.start_from(weights)
        return model.eval()

    @classmethod
    def recipe_for(cls, backbone: str, settings: Mapping[str, str]) -> DetectionRecipe:
        """Return the recipe that `settings` ask for, with their changes (`recipe.lr=0.1`).

        Raises `UsageError` on unknown names, also of a backbone.
        """
        if backbone not in cls.backbones:
            raise unknown_name(f"backbone of {cls.method_name!r}", backbone, cls.backbones)
        own, changes = split_settings(settings)
        asked = parse_settings(cls.Config, own, what=f"detector {cls.method_name!r}").recipe
        name = cls.recipe_name(backbone) if asked == "default" else asked
        if name not in cls.recipes:
            raise unknown_name("recipe", name, cls.recipes)
        return parse_settings(DetectionRecipe, changes, what=f"recipe {name!r}", start=cls.recipes[name])

    def save(self, path: Path, training: dict[str, Any], run: dict[str, Any]) -> None:
        """Write a checkpoint and the `.json` file next to it.

        See `reference_models.training.checkpoint.save_checkpoint`.
        """
        facts = {
            "method": self.method_name,
            "config": to_json(self.config),
            "backbone": {
                "name": self.backbone,
                "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
            },
            "class_names": list(self.class_names),
            "training": training,
        }
        write_checkpoint(path, self, facts, run)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return named scalar terms, already weighted. Their sum is minimised.

        Images are (3, h, w) in [0, 1].
        """
        terms: dict[str, Tensor] = self.network(list(images), list(targets))
        return terms

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def describe(self) -> dict[str, Any]:
        """Describe the detector for the record; see `wsolbench.methods.contracts.Method.describe`."""
        described: dict[str, Any] = {
            "method": self.method_name,
            "variant": getattr(self.config, "variant", "default"),
            "config": to_json(self.config),
            "backbone": self.backbone,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
            "num_classes": len(self.class_names),
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        return {**described, "training": self.facts} if self.facts else described

    def provenance(self) -> dict[str, Any]:
        """Return the device and the packages whose versions affect the result."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"device": name, "packages": ("torch", "torchvision", "pycocotools")}
