"""Contracts between the commands and any method, post-process or detector.

They are protocols: a class fulfils one by its members. A class that inherits from one gets the defaults of
its optional members. `reference_models.base` has base classes that implement everything general.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from wsolbench.exceptions import UsageError
from wsolbench.methods.numerics import Numerics
from wsolbench.ranges import (
    BatchSize,
    Count,
    CountOrZero,
    Epochs,
    Gibibytes,
    ImageSide,
    LearningRate,
    Ranged,
    Seed,
    Workers,
)
from wsolbench.types import Dataset, Detections

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from wsolbench.datasets.coco import InstanceDataset

DEVICE = "auto|cpu|cuda(:[0-9]{1,3})?"
"""Pattern of the names of devices."""


class BoxProposals(Protocol):
    """Boxes that a method proposes in each image, best first."""

    @property
    def boxes(self) -> Tensor:
        """(B, M, 4) boxes as xyxy in pixels of the input."""

    @property
    def padded(self) -> Tensor | None:
        """(B, M) flags of boxes that only fill up the number, or None if there are none."""


@runtime_checkable
class Localization(Protocol):
    """The result of one forward pass. Only `logits` and `score_maps` have no default."""

    @property
    def logits(self) -> Tensor | None:
        """(B, C) class scores before softmax, or None for a method that does not classify."""

    def score_maps(self, class_ids: Tensor) -> Tensor:
        """(B, K) class indices -> (B, K, h, w) raw maps: no min-max, resize or threshold."""

    @property
    def propose(self) -> Callable[[], BoxProposals] | None:
        """Function that returns the proposed boxes, or None for a method that proposes none."""
        return None

    @property
    def extra_maps(self) -> Mapping[str, Tensor]:
        """Maps by name, (B, h, w), that belong to no class; `eval --map NAME` scores one of them."""
        return {}

    @property
    def stages(self) -> OrderedDict[str, Tensor]:
        """Feature stages by name, (B, D, h, w), the last one last. Post-processes use them."""
        return OrderedDict()

    @property
    def penultimate(self) -> Tensor | None:
        """(B, D, h, w) input of the last linear layer, or None if there is none."""
        return None

    @property
    def rerun(self) -> Callable[[Callable[[Tensor], Tensor]], Localization] | None:
        """Function that runs the method again, or None if it cannot be run again.

        `rerun(change)` is the result for `change(images)`, without a graph. `images` are those of this
        result.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Input that a network expects: squares of `size` pixels.

    Values are (x / 255 - mean) / std per channel (RGB).
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


_IN_RECIPE = ("epochs", "batch_size", "lr")
"""Options of a training that are fields of its recipe, too."""


def refuse_given_twice(options: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Raise `UsageError` if an option of the training and a setting of its recipe change the same field.

    >>> refuse_given_twice({"lr": 0.1, "epochs": None}, {"recipe.epochs": "12"})
    """
    for name in _IN_RECIPE:
        setting = f"recipe.{name}"
        if options.get(name) is not None and setting in settings:
            raise UsageError(
                f"--{name.replace('_', '-')} {options[name]} and --set {setting}={settings[setting]} change "
                "the same field of the recipe; leave one of them out"
            )


@runtime_checkable
class TrainingLog(Protocol):
    """A copy of the training log for another program. It does not affect the training."""

    def start(self, folder: Path, settings: Mapping[str, Any], done: int) -> None:
        """Begin, before the first epoch of this process.

        `folder` is the run folder. `settings` is what the weights depend on, JSON values only. `done` is the
        number of epochs that an interrupted run has finished.
        """

    def write(self, row: Mapping[str, Any]) -> None:
        """Add an epoch: the columns of `log.csv` by name. A number that the epoch does not have is None."""

    def finish(self) -> None:
        """End, also if the training failed."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Ranged):
    """Everything a training run depends on, and how it is watched.

    None means the default of the method's recipe for this backbone.
    """

    train: Dataset
    out: Path
    """Run folder: `last.safetensors`, `best.safetensors`, their `.json`, `log.csv`, and the resume state."""
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
    cache: Gibibytes | None = None
    """Memory for resized images in GiB; 0: none. None: half of what is available, at least 2."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Fields of the method's config as `--set name=value` gives them."""
    numerics: Numerics = field(default_factory=Numerics)
    """Number formats and kernels. A method with its own training loop applies them there."""
    val_loc_every: CountOrZero = 0
    """Epochs between two measurements of GT-known on `val`; 0: never. The weights do not depend on it."""
    logs: tuple[TrainingLog, ...] = ()
    """Copies of `log.csv` for other programs. The weights do not depend on them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_given_twice(vars(self), self.settings)
        if self.val_loc_every and (self.val is None or not self.val.has_boxes):
            found = "no val split" if self.val is None else f"{self.val.name} val without boxes"
            raise UsageError(
                f"--val-loc-every {self.val_loc_every} measures GT-known on val, found {found}; expected a "
                "val split with boxes. Leave it out, or take val from train with --carve-val"
            )


@runtime_checkable
class Method(Protocol):
    """A method: what its class offers to `wsolbench.evaluate` and to the commands."""

    method_name: ClassVar[str]
    input_spec: InputSpec
    num_classes: int
    class_names: tuple[str, ...]
    """Names of the classes that it was trained on, or empty if it was not trained."""
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
        """Return a new model. Raises `UsageError` for an unknown backbone, setting or weights file."""

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, settings: Mapping[str, str]) -> Method:
        """Return a trained model in eval mode. Settings that training does not depend on may be changed.

        Raises `DataError` for a broken file or one of another method, and `UsageError` for settings that
        cannot be changed.
        """

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Train, or resume a killed run, and return the last checkpoint."""

    @classmethod
    def recipe_for(cls, backbone: str, num_classes: int, settings: Mapping[str, str]) -> Any:
        """Return the training recipe that these settings ask for. Raises `UsageError` on invalid settings."""

    @classmethod
    def train_split(cls, settings: Mapping[str, str]) -> str:  # noqa: ARG003 - for methods whose settings choose
        """Return the split that the method learns from with these settings."""
        return "train"

    def to(self, device: torch.device) -> Any:
        """Move the parameters to a device. A method without parameters does nothing."""

    def eval(self) -> Any:
        """Switch to evaluation mode. A method without such a mode does nothing."""

    def localize(self, images: Tensor) -> Localization:
        """Run one forward pass on (B, 3, H, W) normalised images, without a graph, and return its results.

        A control or an upper bound that reads the ground truth has the attribute `uses_true_boxes = True` or
        `uses_true_masks = True`. It then gets the keyword `true_boxes`, (B, 4) in pixels of the input, or
        `true_masks`, (B, H, W) of 0 and 1, and its records say so (`supervision`).
        """

    # Optional: `resize_input(size)` lets a trained model be evaluated at another input size.

    def describe(self) -> dict[str, Any]:
        """Return the method's part of the record, JSON values only.

        It has backbone, variant, config, image size, name and SHA-256 of the weights, and the metadata of the
        training in `training`.
        """


class PostProcessor(Protocol):
    """A post-process: its class computes other maps from the result of a method's forward pass."""

    method_name: ClassVar[str]
    needs_gradients: ClassVar[bool] = False
    """Whether it needs the result of `localize(images, gradients=True)`, which keeps its graph."""
    needs_reruns: ClassVar[bool] = False
    """Whether it calls `Localization.rerun`, and so costs many forward passes."""

    @classmethod
    def create(cls, settings: Mapping[str, str]) -> PostProcessor:
        """Return a new post-process. Raises `UsageError` for an unknown setting."""

    def maps(self, result: Localization, class_ids: Tensor) -> Tensor:
        """Compute (B, K, h, w) float32 maps of any range from a forward pass and (B, K) class indices.

        They are raw, as those of a method: the protocol of the evaluation normalises them.
        """

    def describe(self) -> dict[str, Any]:
        """Return name, variant and config for the record, JSON values only."""


@runtime_checkable
class PointCorrelator(PostProcessor, Protocol):
    """A post-process that can also return its similarity of pixels, which `wsolbench correlations` plots."""

    def correlations(
        self, result: Localization, points: Tensor, *, orders: Sequence[int], stage: str | None = None
    ) -> tuple[str, Tensor]:
        """Return the name of the feature stage, and (B, O, h, w) correlations of its pixels with one point
        each.

        `points` are (B, 2) fractions (x, y) of the view, in [0, 1). `stage` is a name, or None for the last
        stage. Values are as defined, not normalised. Raises `UsageError` for a stage that the method lacks,
        and for an order that is not defined.
        """


@dataclass(frozen=True, kw_only=True)
class DetectorRequest(Ranged):
    """Everything the training of a detector depends on.

    None means the default of the detector's recipe for this backbone.
    """

    train: InstanceDataset
    out: Path
    """Run folder: `last.safetensors`, its `.json`, `log.csv`, and the state to resume from."""
    backbone: str
    weights: str
    """`imagenet`, `coco`, `none`, or the path of a checkpoint."""
    limit: Count | None = None
    """Number of images to train on, evenly spread, or None for all."""
    epochs: Epochs | None = None
    batch_size: BatchSize | None = None
    lr: LearningRate | None = None
    seed: Seed = 0
    device: str = "auto"
    workers: Workers = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    numerics: Numerics = field(default_factory=Numerics)
    """As of `TrainRequest`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_given_twice(vars(self), self.settings)


class ObjectDetector(Protocol):
    """A detector: what its class offers to the commands."""

    method_name: ClassVar[str]
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, checkpoint: Path, *, device: str) -> ObjectDetector:
        """Return a trained detector in eval mode.

        Raises `DataError` for a broken file or one of another method.
        """

    @classmethod
    def fit(cls, request: DetectorRequest) -> Path:
        """Train, or resume a killed run, and return the last checkpoint."""

    @classmethod
    def recipe_for(cls, backbone: str, settings: Mapping[str, str]) -> Any:
        """Return the training recipe that these settings ask for.

        Raises `UsageError` for an unknown backbone and on invalid settings.
        """

    def detect(self, image: np.ndarray) -> Detections:
        """Detect objects in one image, (h, w, 3) uint8."""

    def describe(self) -> dict[str, Any]:
        """Return the detector's part of the record, as `Method.describe`."""

    def provenance(self) -> dict[str, Any]:
        """Return `device` and `packages` for the record."""
