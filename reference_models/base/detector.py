"""`Detector`, the base of every class in `detection/`: a `DetectorModel` with what the commands call.

A detector file defines a config (a frozen dataclass) and a class. The class builds a network with
torchvision's detection interface (`build`) and loads its pretrained weights (`start_from`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from reference_models.core.config import from_json
from reference_models.core.outputs import as_input
from reference_models.core.weights import Weights, load_strictly, read_safetensors
from reference_models.training.checkpoint import read_header_of
from reference_models.training.detector_loop import fit
from reference_models.training.detector_model import DetectorModel
from wsolbench.exceptions import DataError
from wsolbench.methods import DetectorRequest
from wsolbench.methods.device import pick_device
from wsolbench.system.files import sha256_of_file
from wsolbench.types import Detections

MASK_THRESHOLD = 0.5
"""A pixel belongs to an object if its probability is greater than this."""

D = TypeVar("D", bound="Detector")


class Detector(DetectorModel):
    """Base of all detectors: loads, trains and detects.

    See `DetectorModel` for what a detector file defines.
    """

    @classmethod
    def fit(cls, request: DetectorRequest) -> Path:
        """Train a detector or resume a run; see `reference_models.training.detector_loop.fit`."""
        return fit(cls, request)

    @classmethod
    def load(cls: type[D], checkpoint: Path, *, device: str = "auto") -> D:
        """Load a trained model in eval mode.

        Raises `DataError` if the file is another method's, is damaged, or does not fit its own description.
        """
        facts = read_header_of(checkpoint, cls.method_name)
        tensors, _ = read_safetensors(checkpoint)
        try:
            described, names = facts["backbone"], tuple(facts["class_names"])
            with torch.random.fork_rng(devices=[]):  # initial values, which the checkpoint replaces
                model = cls(described["name"], names, from_json(cls.Config, facts["config"]))
            model.weights = Weights(**described["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"checkpoint {checkpoint} was written by another version of {cls.method_name!r} ({error}); "
                "train again"
            ) from error
        load_strictly(model, tensors, what=f"checkpoint {checkpoint}")
        model.facts = {
            **facts["training"],
            "checkpoint": {"file": checkpoint.name, "sha256": sha256_of_file(checkpoint)},
        }
        return model.to(pick_device(device)).eval()

    @torch.no_grad()
    def detect(self, image: UInt8[np.ndarray, "h w 3"]) -> Detections:
        """Detect the objects in one image, best first. The model must be in eval mode.

        It runs in full precision, which the coordinates of boxes need.
        """
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
