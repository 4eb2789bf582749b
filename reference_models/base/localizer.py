"""`Localizer`, the base of every class in `localization/` and `recognition/`: a model with what the commands
call.

A method file defines a config (a frozen dataclass) and a class with three things: `__init__` (the layers),
`forward` (images -> `ForwardPass`) and `loss` (batch -> named terms). Everything else has a default in
`core/model.py` and can be overridden: the order of the images, parameter groups, recipe, schedule, what
happens at the start of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.core.model import Model
from reference_models.core.outputs import ForwardPass
from reference_models.layers.regions import coverage, predicted_peaks, union
from reference_models.training.checkpoint import load_checkpoint
from reference_models.training.loop import fit
from wsolbench.methods import TrainRequest
from wsolbench.methods.device import pick_device

L = TypeVar("L", bound="Localizer")


class Localizer(Model):
    """Base of all methods: loads, trains and localizes. See `Model` for what a method file may change."""

    @classmethod
    def load(
        cls: type[L],
        checkpoint: Path,
        *,
        device: str = "auto",
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> L:
        """A trained model in eval mode; see `wsolbench.methods.contracts.Method.load`."""
        return load_checkpoint(cls, checkpoint, settings).to(pick_device(device)).eval()

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Train, or go on where a killed run stopped; see `wsolbench.methods.contracts.Method.fit`."""
        return fit(cls, request)

    @torch.no_grad()
    def localize(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Logits and maps without a graph; changes neither parameters nor buffers. The model must be in eval
        mode.

        A method that proposes boxes gets two more extra maps: `parts`, what the boxes cover by their weight,
        and `union`, the box around all of them. One that classifies and does not propose gets the best
        regions of the predicted class's map.
        """
        if self.training:
            raise RuntimeError(
                "localize() needs the model in eval mode: batch norm and dropout would change the maps; "
                "call model.eval()"
            )
        result: ForwardPass = self(images)
        size = images.shape[-1]
        if result.propose is not None:
            found = result.propose()
            if not found.boxes.shape[1]:  # a method that was told to propose none
                return result
            return replace(
                result,
                extra_maps={**result.extra_maps, "parts": coverage(found, size), "union": union(found, size)},
            )
        if result.logits is None:
            return result
        return replace(result, propose=partial(predicted_peaks, result.logits, result.maps_of, size))

    def score_maps(
        self, images: Float[Tensor, "b 3 H W"], class_ids: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k h w"]:
        """`localize(images).score_maps(class_ids)`."""
        return self.localize(images).score_maps(class_ids)
