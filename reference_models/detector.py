"""What a detector is made of: `Detector`, the base of every class in `detection/`.

A detector file defines a config (a frozen dataclass) and a class that builds a network with torchvision's detection interface and says
where its weights come from. Training, checkpoints and what the commands use are here and in `train_detector.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from reference_models.checkpoint import header_of, write_checkpoint
from reference_models.config import from_json, parse_settings, split_settings, to_json
from reference_models.detection_recipes import DetectionRecipe
from reference_models.weights import NONE, Weights, load_strictly, read_safetensors
from wsolbench.exceptions import DataError, unknown_name
from wsolbench.files import sha256_of_file
from wsolbench.methods import DetectorRequest
from wsolbench.sources import pick_device
from wsolbench.types import Detections

Target = dict[str, Tensor]
"""An image's objects: `boxes` (R, 4) xyxy, `labels` (R,) from 1, `masks` (R, h, w) uint8 where there are any."""

MASK_THRESHOLD = 0.5
"""A pixel belongs to an object when its probability is greater."""


D = TypeVar("D", bound="Detector")


class Detector(nn.Module):
    """Base of all detectors.

    Class attributes:
        method_name: the file's name with dashes.
        Config: dataclass of the settings; it has a field `recipe`.
        backbones: names that `backbone` can have.
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
        """How the weights came about: filled by training and by `load`."""
        self.network: Any = self.build()

    # --- what a detector file defines ----------------------------------------------------------------------------------
    def build(self) -> Any:
        """The network, from random values: (images, targets) -> named losses in training, images -> detections else.

        Images are (3, h, w) in [0, 1], of any sizes; detections have `boxes`, `labels`, `scores`, and `masks` (N, 1, h, w) in [0, 1].
        """
        raise NotImplementedError

    def start_from(self, weights: str) -> Weights:
        """Load pretrained weights into the network, freeze what stays as it is, and say where they come from."""
        raise NotImplementedError

    @classmethod
    def recipe_name(cls, backbone: str) -> str:
        """Recipe for `recipe=default`."""
        raise NotImplementedError

    @property
    def wants_masks(self) -> bool:
        """Whether `loss` needs the objects' masks."""
        return False

    # --- what training and the commands use ----------------------------------------------------------------------------
    @classmethod
    def create(cls: type[D], *, backbone: str, class_names: Sequence[str], weights: str, settings: Mapping[str, str]) -> D:
        """A new model in eval mode; its new layers draw from torch's global generator.

        Raises `UsageError` on an unknown backbone or setting and on weights that are not there; `DataError` on weights that do not fit.
        """
        config = parse_settings(cls.Config, split_settings(settings)[0], what=f"detector {cls.method_name!r}")
        model = cls(backbone, class_names, config)
        if weights != NONE:
            model.weights = model.start_from(weights)
        return model.eval()

    @classmethod
    def recipe_for(cls, backbone: str, settings: Mapping[str, str]) -> DetectionRecipe:
        """The recipe that `settings` ask for, with their changes (`recipe.lr=0.1`). Raises `UsageError` on unknown names."""
        own, changes = split_settings(settings)
        asked = parse_settings(cls.Config, own, what=f"detector {cls.method_name!r}").recipe
        name = cls.recipe_name(backbone) if asked == "default" else asked
        if name not in cls.recipes:
            raise unknown_name("recipe", name, cls.recipes)
        return parse_settings(DetectionRecipe, changes, what=f"recipe {name!r}", start=cls.recipes[name])

    @classmethod
    def fit(cls, request: DetectorRequest) -> Path:
        """Train, or go on where a killed run stopped; see `reference_models.train_detector.fit`."""
        from reference_models.train_detector import fit

        return fit(cls, request)

    @classmethod
    def load(cls: type[D], checkpoint: Path, *, device: str = "auto") -> D:
        """A trained model in eval mode. Raises `DataError` on a file of another method, or one that is broken or does not fit itself."""
        facts = header_of(checkpoint, cls.method_name)
        tensors, _ = read_safetensors(checkpoint)
        try:
            described, names = facts["backbone"], tuple(facts["class_names"])
            with torch.random.fork_rng(devices=[]):  # initial values, which the checkpoint replaces
                model = cls(described["name"], names, from_json(cls.Config, facts["config"]))
            model.weights = Weights(**described["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"checkpoint {checkpoint} was written by another version of {cls.method_name!r} ({error}); train again"
            ) from error
        load_strictly(model, tensors, what=f"checkpoint {checkpoint}")
        model.facts = {**facts["training"], "checkpoint": {"file": checkpoint.name, "sha256": sha256_of_file(checkpoint)}}
        return model.to(pick_device(device)).eval()

    def save(self, path: Path, training: dict[str, Any], run: dict[str, Any]) -> None:
        """Write a checkpoint and the `.json` beside it; see `reference_models.checkpoint.save_checkpoint`."""
        facts = {
            "method": self.method_name,
            "config": to_json(self.config),
            "backbone": {"name": self.backbone, "weights": {"name": self.weights.name, "sha256": self.weights.sha256}},
            "class_names": list(self.class_names),
            "training": training,
        }
        write_checkpoint(path, self, facts, run)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised. Images are (3, h, w) in [0, 1]."""
        terms: dict[str, Tensor] = self.network(list(images), list(targets))
        return terms

    @torch.no_grad()
    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Detections:
        """What is found in one image, best first; in full precision, which the places of boxes need. The model must be in eval mode."""
        if self.training:
            raise RuntimeError("detect() needs the model in eval mode; call model.eval()")
        (found,) = self.network([as_input(torch.from_numpy(image).permute(2, 0, 1), self.device)])
        masks = found.get("masks")
        return Detections(
            boxes=found["boxes"].double().cpu().numpy(),
            scores=found["scores"].double().cpu().numpy(),
            labels=(found["labels"] - 1).cpu().numpy(),
            masks=None if masks is None else (masks[:, 0] > MASK_THRESHOLD).cpu().numpy(),
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def describe(self) -> dict[str, Any]:
        """For the record: see `wsolbench.methods.Method.describe`."""
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
        """Device and the versions that matter."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {"device": name, "packages": ("torch", "torchvision", "pycocotools")}


def as_input(image: Tensor, device: torch.device) -> Tensor:
    """(3, h, w) uint8 -> float32 in [0, 1] on the device."""
    return image.to(device, non_blocking=True).float() / 255
