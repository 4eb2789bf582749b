"""The contracts between the commands and anything that is a method, a post-process or a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from wsolbench.ranges import BatchSize, Count, Epochs, ImageSide, LearningRate, Ranged, Seed, Workers
from wsolbench.types import Dataset, Detections

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from wsolbench.datasets.coco import InstanceDataset

DEVICE = "auto|cpu|cuda(:[0-9]{1,3})?"
"""Pattern of the names of devices."""


class Localization(Protocol):
    """One forward pass, from which maps of any class can be asked."""

    @property
    def logits(self) -> Tensor | None:
        """(B, C) class scores before softmax; None for a method that does not classify."""

    def score_maps(self, class_ids: Tensor) -> Tensor:
        """(B, K) class indices -> (B, K, h, w) raw maps: no min-max, resize or threshold."""


@runtime_checkable
class Localizer(Protocol):
    """A method that says where: the contract that `wsolbench.evaluate` relies on."""

    def localize(self, images: Tensor) -> Localization:
        """(B, 3, H, W) normalised images -> logits and maps from the same forward pass."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a network wants its images: squares of `size` pixels, values (x / 255 - mean) / std per channel
    (RGB).
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Ranged):
    """Everything a training run depends on. None means: the default of the method's recipe for this
    backbone.
    """

    train: Dataset
    out: Path
    """Run folder: `last.safetensors`, `best.safetensors`, their `.json`, `log.csv`, and the state to resume
    from.
    """
    val: Dataset | None = None
    backbone: str = "resnet50"
    weights: str = "imagenet"
    """`imagenet`, `none`, or the path of a checkpoint."""
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    image_size: ImageSide | None = None
    lr: LearningRate | None = None
    seed: Seed = 0
    device: str = "auto"
    workers: Workers = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    """Fields of the method's config as `--set name=value` gives them."""


class Method(Protocol):
    """What the class of a method offers to the commands. `reference_models.base.localizer` implements all of
    it but the method itself.
    """

    method_name: ClassVar[str]
    input_spec: InputSpec
    num_classes: int
    trainable: ClassVar[bool]
    """False for a method without parameters; it is evaluated without a checkpoint."""
    ready: bool
    """Whether a new model can be evaluated as it is: it has no parameters, or all of them are pretrained."""

    @classmethod
    def create(
        cls,
        *,
        backbone: str,
        num_classes: int,
        weights: str,
        settings: Mapping[str, str],
        image_size: int | None = None,
    ) -> Method:
        """A new model. Raises `UsageError` on an unknown backbone, setting or weights file."""

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, settings: Mapping[str, str]) -> Method:
        """A trained model in eval mode, with some settings changed that training does not depend on.

        Raises `DataError` on a file of another method, or one that is broken, and `UsageError` on settings
        that cannot be changed.
        """

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Train (or go on where a killed run stopped) and return the last checkpoint."""

    def localize(self, images: Tensor) -> Localization:
        """See `Localizer`."""

    def describe(self) -> dict[str, Any]:
        """For the record: backbone, variant, config, image size, weights' name and sha256, training facts.
        JSON values only.
        """


class PostProcess(Protocol):
    """What the class of a post-process offers: other maps from what a localizer's forward pass has found."""

    method_name: ClassVar[str]

    @classmethod
    def create(cls, settings: Mapping[str, str]) -> PostProcess:
        """A post-process. Raises `UsageError` on an unknown setting."""

    def maps(self, result: Any, class_ids: Tensor) -> Tensor:
        """A forward pass and (B, K) class indices -> (B, K, h, w) float32 maps in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """For the record: name, variant, config. JSON values only."""


@runtime_checkable
class PointCorrelator(PostProcess, Protocol):
    """A post-process that can also show how it compares pixels, which `wsolbench correlations` draws."""

    def correlations(
        self, result: Any, points: Tensor, *, orders: Sequence[int], stage: str | None = None
    ) -> tuple[str, Tensor]:
        """A forward pass and (B, 2) points -> the name of the feature stage, and (B, O, h, w): how all its
        pixels correlate with one.

        Points are fractions (x, y) of the view, in [0, 1). `stage`: by name; None: the last one. Values as
        they are defined, not stretched. Raises `UsageError` on a stage that the method has not, and on an
        order that is not defined.
        """


@dataclass(frozen=True, kw_only=True)
class DetectorRequest(Ranged):
    """Everything the training of a detector depends on. None means: the default of the detector's recipe for
    this backbone.
    """

    train: InstanceDataset
    out: Path
    """Run folder: `last.safetensors`, its `.json`, `log.csv`, and the state to resume from."""
    backbone: str
    weights: str
    """`imagenet`, `coco`, `none`, or the path of a checkpoint."""
    limit: Count | None = None
    """Train on that many images only, evenly spread."""
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    lr: LearningRate | None = None
    seed: Seed = 0
    device: str = "auto"
    workers: Workers = 2
    settings: Mapping[str, str] = field(default_factory=dict)


class Detector(Protocol):
    """What the class of a detector offers to the commands."""

    method_name: ClassVar[str]
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, checkpoint: Path, *, device: str) -> Detector:
        """A trained detector in eval mode. Raises `DataError` on a file of another method, or one that is
        broken.
        """

    @classmethod
    def fit(cls, request: DetectorRequest) -> Path:
        """Train (or go on where a killed run stopped) and return the last checkpoint."""

    def detect(self, image: np.ndarray) -> Detections:
        """(h, w, 3) uint8 -> what is found in it."""

    def describe(self) -> dict[str, Any]:
        """For the record, as `Method.describe`."""

    def provenance(self) -> dict[str, Any]:
        """`device` and `packages` for the record."""
