"""Bases of methods that are not trained: there is no checkpoint to load and nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from reference_models.base.localizer import Localizer
from reference_models.core.config import MethodConfig, parse_settings, to_json
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec, TrainRequest

U = TypeVar("U", bound="TrainingFree")
V = TypeVar("V", bound="Untrained")


class TrainingFree(Localizer):
    """Base of methods that use a backbone as it is. A method file defines `forward`."""

    trainable: ClassVar[bool] = False

    @classmethod
    def load(cls: type[U], checkpoint: Path, *, device: str = "auto", settings: Any = None) -> U:
        """Raise `UsageError`: there is no checkpoint to load."""
        raise UsageError(
            f"method {cls.method_name!r} has no parameters of its own and no checkpoints; leave --checkpoint "
            "out"
        )

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Raise `UsageError`: there is nothing to train."""
        raise UsageError(
            f"method {cls.method_name!r} has no parameters of its own; evaluate it without training"
        )


class Untrained(TrainingFree):
    """Base of methods that predict without a network. A method file defines `forward`."""

    map_kind = "unit"

    def __init__(self, num_classes: int, config: MethodConfig, input_spec: InputSpec) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.config, self.input_spec, self.facts = num_classes, config, input_spec, {}
        self.class_names, self.ready = (), True

    @classmethod
    def create(
        cls: type[V],
        *,
        num_classes: int,
        settings: Mapping[str, str],
        image_size: int | None = None,
        **_unused: str,
    ) -> V:
        """Create an instance. It has no backbone: `backbone` and `weights` are ignored."""
        config = parse_settings(cls.Config, settings, what=f"method {cls.method_name!r}")
        return cls(
            num_classes, config, InputSpec() if image_size is None else InputSpec(size=image_size)
        ).eval()

    def describe(self) -> dict[str, Any]:
        """Describe the method for the record."""
        return {
            "method": self.method_name,
            "variant": "default",
            "config": to_json(self.config),
            "image_size": self.input_spec.size,
            "map_kind": self.map_kind,
        }
