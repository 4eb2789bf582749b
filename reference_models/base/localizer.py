"""`Localizer`, the base of every class in `localization/` and `recognition/`.

It is a model with what the commands call. A method file defines a config (a frozen dataclass) and a class
with three functions: `__init__` (the layers), `forward` (images -> `ForwardPass`) and `loss` (batch -> named
terms). Everything else has a default in `core/model.py` and can be overridden: the order of the images,
parameter groups, recipe, schedule, and what happens at the start of an epoch.
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
from reference_models.core.outputs import ForwardPass, LazyMaps
from reference_models.core.tokens import TokenBackbone
from reference_models.layers.regions import coverage, predicted_peaks, union
from reference_models.training.checkpoint import load_checkpoint
from reference_models.training.loop import fit
from reference_models.training.statistics import fit_statistics
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.methods.device import pick_device

L = TypeVar("L", bound="Localizer")


class Localizer(Model):
    """Base of all methods: loads, trains and localizes.

    See `Model` for the hooks that a method may override.
    """

    @classmethod
    def load(
        cls: type[L],
        checkpoint: Path,
        *,
        device: str = "auto",
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> L:
        """Load a trained model in eval mode; see `wsolbench.methods.contracts.Method.load`."""
        return load_checkpoint(cls, checkpoint, settings).to(pick_device(device)).eval()

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Train a model, or resume an interrupted run; see `wsolbench.methods.contracts.Method.fit`."""
        return fit_statistics(cls, request) if cls.learns_from == "statistics" else fit(cls, request)

    def localize(
        self,
        images: Float[Tensor, "b 3 H W"],
        *,
        gradients: bool = False,
        true_boxes: Float[Tensor, "b 4"] | None = None,
    ) -> ForwardPass:
        """Return logits and maps, without changing parameters or buffers. The model must be in eval mode.

        With `gradients` the logits and the stages keep their graph back to the images, for post-processes
        that differentiate. Such a pass is in float32, also under autocast: half precision has no room for the
        small slopes of a deep network. Without `gradients` there is no graph.

        A method that proposes boxes gets two more extra maps: `parts`, the weighted coverage of the boxes,
        and `union`, the smallest box around them. A method that classifies without proposing boxes gets
        proposals: the best regions of the predicted class's map.

        `true_boxes`, in pixels of the input, are for the `forward` of a method that reads them
        (`uses_true_boxes`). Raises `UsageError` if such a method does not get them.
        """
        if self.training:
            raise RuntimeError(
                "localize() needs the model in eval mode: batch norm and dropout would change the maps; "
                "call model.eval()"
            )
        if getattr(self, "uses_true_boxes", False) and true_boxes is None:
            raise UsageError(
                f"method {self.method_name!r} with these settings needs the ground-truth box of each image; "
                "evaluate it by `wsolbench eval`, without a post-process that needs gradients"
            )
        truth = {} if true_boxes is None else {"true_boxes": true_boxes}
        if gradients:
            with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
                result: ForwardPass = self(images.detach().float().requires_grad_(), **truth)
        else:
            with torch.no_grad():
                result = self(images, **truth)
        backbone = getattr(self, "backbone", None)  # missing in methods without a backbone
        if result.tokens is None and isinstance(backbone, TokenBackbone):
            result = replace(result, tokens=partial(torch.no_grad()(backbone.tokens), images))
        if result.rerun is None:
            result = replace(
                result, rerun=lambda change: self.localize(change(images), true_boxes=true_boxes)
            )
        return self._with_proposals(result, images.shape[-1])

    @torch.no_grad()
    def _with_proposals(self, result: ForwardPass, size: int) -> ForwardPass:
        if result.propose is not None:
            found = result.propose()
            if not found.boxes.shape[1]:  # the settings ask for no proposals
                return result
            covered = {"parts": partial(coverage, found, size), "union": partial(union, found, size)}
            return replace(result, extra_maps=LazyMaps(covered, result.extra_maps))
        if result.logits is None:
            return result
        return replace(result, propose=partial(predicted_peaks, result.logits, result.maps_of, size))

    def score_maps(
        self, images: Float[Tensor, "b 3 H W"], class_ids: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k h w"]:
        """Return `localize(images).score_maps(class_ids)`."""
        return self.localize(images).score_maps(class_ids)
