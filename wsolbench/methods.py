"""What a method has to offer, and how methods are found.

A package offers methods through one entry point of the group `wsolbench.methods`: a function without arguments that
gives `MethodInfo` rows. `methods_in(package)` makes those rows from the files of a package (one method, one file) by
reading their text, so listing methods imports none of them and loads no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.listing import is_junk
from wsolbench.ranges import BatchSize, Count, Epochs, ImageSide, LearningRate, Ranged, Seed, Workers
from wsolbench.types import Dataset, Detections

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from wsolbench.datasets.coco import InstanceDataset

ENTRY_POINT_GROUP = "wsolbench.methods"
BACKBONE_ENTRY_POINT_GROUP = "wsolbench.backbones"
POST_ENTRY_POINT_GROUP = "wsolbench.postprocesses"
DETECTOR_ENTRY_POINT_GROUP = "wsolbench.detectors"

METHOD_FILE = "method.py"
"""In a method's folder, the file of the method itself."""
DEVICE = "auto|cpu|cuda(:[0-9]{1,3})?"
"""Pattern of the names of devices."""
TIMM = "timm:"
"""Begins the names of backbones that are timm's."""


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
    """How a network wants its images: squares of `size` pixels, values (x / 255 - mean) / std per channel (RGB)."""

    size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Ranged):
    """Everything a training run depends on. None means: the default of the method's recipe for this backbone."""

    train: Dataset
    out: Path
    """Run folder: `last.safetensors`, `best.safetensors`, their `.json`, `log.csv`, and the state to resume from."""
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
    """What the class of a method offers to the commands. `reference_models.base.localizer` implements all of it but the method itself."""

    method_name: ClassVar[str]
    input_spec: InputSpec
    num_classes: int
    trainable: ClassVar[bool]
    """False for a method without parameters; it is evaluated without a checkpoint."""
    ready: bool
    """Whether a new model can be evaluated as it is: it has no parameters, or all of them are pretrained."""

    @classmethod
    def create(cls, *, backbone: str, num_classes: int, weights: str, settings: Mapping[str, str], image_size: int | None = None) -> Method:
        """A new model. Raises `UsageError` on an unknown backbone, setting or weights file."""

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, settings: Mapping[str, str]) -> Method:
        """A trained model in eval mode, with some settings changed that training does not depend on.

        Raises `DataError` on a file of another method, or one that is broken, and `UsageError` on settings that cannot be changed.
        """

    @classmethod
    def fit(cls, request: TrainRequest) -> Path:
        """Train (or go on where a killed run stopped) and return the last checkpoint."""

    def localize(self, images: Tensor) -> Localization:
        """See `Localizer`."""

    def describe(self) -> dict[str, Any]:
        """For the record: backbone, variant, config, image size, weights' name and sha256, training facts. JSON values only."""


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

    def correlations(self, result: Any, points: Tensor, *, orders: Sequence[int], stage: str | None = None) -> tuple[str, Tensor]:
        """A forward pass and (B, 2) points -> the name of the feature stage, and (B, O, h, w): how all its pixels correlate with one.

        Points are fractions (x, y) of the view, in [0, 1). `stage`: by name; None: the last one. Values as they are defined,
        not stretched. Raises `UsageError` on a stage that the method has not, and on an order that is not defined.
        """


@dataclass(frozen=True, kw_only=True)
class DetectorRequest(Ranged):
    """Everything the training of a detector depends on. None means: the default of the detector's recipe for this backbone."""

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
        """A trained detector in eval mode. Raises `DataError` on a file of another method, or one that is broken."""

    @classmethod
    def fit(cls, request: DetectorRequest) -> Path:
        """Train (or go on where a killed run stopped) and return the last checkpoint."""

    def detect(self, image: np.ndarray) -> Detections:
        """(h, w, 3) uint8 -> what is found in it."""

    def describe(self) -> dict[str, Any]:
        """For the record, as `Method.describe`."""

    def provenance(self) -> dict[str, Any]:
        """`device` and `packages` for the record."""


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A row of `wsolbench list methods`, `list posts` or `list backbones`."""

    name: str
    summary: str
    task: str
    """"localization", "recognition", "post-process", "backbone" or "detection"."""
    module: str
    """Import path of the file; it defines one class with the attribute `method_name` equal to `name`."""


def methods_in(package: str, task: str) -> list[MethodInfo]:
    """One row for each file of `package`, an import path; the summary is the first line of the file's docstring.

    A file `center_box.py` is the method `center-box`, and so is `method.py` in a folder `center_box`, beside layers that only this method
    has. Names that start with `_` are not methods.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"no package {package!r} to look for methods in")
    rows = []
    for folder in spec.submodule_search_locations:
        own_files = {path.stem: path for path in Path(folder).glob("[!_]*.py") if not is_junk(path.name)}
        own_folders = {path.parent.name: path for path in Path(folder).glob(f"[!_]*/{METHOD_FILE}") if not is_junk(path.parent.name)}
        for stem, path in sorted({**own_files, **own_folders}.items()):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summary = doc.partition("\n")[0].rstrip(".")
            module = f"{package}.{stem}" if stem in own_files else f"{package}.{stem}.{path.stem}"
            rows.append(MethodInfo(name=stem.replace("_", "-"), summary=summary, task=task, module=module))
    return rows


def list_methods() -> list[MethodInfo]:
    """Every method of every installed package that offers some, sorted by name. Raises `UsageError` on two with one name."""
    return _offered(ENTRY_POINT_GROUP)


def list_backbones() -> list[MethodInfo]:
    """Every named backbone (any `timm:<name>` works besides), sorted by name."""
    return _offered(BACKBONE_ENTRY_POINT_GROUP)


def check_backbone(name: str) -> None:
    """Raise `UsageError` with the nearest name unless a backbone is called so, or it is one of timm's."""
    rows = {row.name: row for row in list_backbones()}
    if name.startswith(TIMM) and "timm" in rows:
        importlib.import_module(rows["timm"].module).check_name(name)
    elif name not in rows:
        raise unknown_name("backbone", name, rows)


def list_posts() -> list[MethodInfo]:
    """Every post-process, sorted by name."""
    return _offered(POST_ENTRY_POINT_GROUP)


def list_detectors() -> list[MethodInfo]:
    """Every detector, sorted by name."""
    return _offered(DETECTOR_ENTRY_POINT_GROUP)


def _offered(group: str) -> list[MethodInfo]:
    rows: dict[str, MethodInfo] = {}
    for point in entry_points(group=group):
        offered: Iterable[MethodInfo] = point.load()()
        for row in offered:
            if row.name in rows:
                raise UsageError(f"two {row.task} entries are called {row.name!r}: {rows[row.name].module} and {row.module}; uninstall one")
            rows[row.name] = row
    return [rows[name] for name in sorted(rows)]


def load_method(name: str) -> type[Any]:
    """The class of a method. Raises `UsageError` with the nearest name, or when the `models` extra is not installed."""
    if name in {row.name for row in list_detectors()}:
        raise UsageError(f"{name!r} is a detector: use `wsolbench train-detector` and `wsolbench eval-detector`")
    return _class(name, list_methods(), "method")


def load_detector(name: str) -> type[Any]:
    """The class of a detector. Raises as `load_method`."""
    return _class(name, list_detectors(), "detector")


def load_post(name: str) -> type[Any]:
    """The class of a post-process. Raises as `load_method`."""
    return _class(name, list_posts(), "post-process")


def _class(name: str, offered: Iterable[MethodInfo], kind: str) -> type[Any]:
    rows = {row.name: row for row in offered}
    if name not in rows:
        raise unknown_name(kind, name, rows)
    try:
        module = importlib.import_module(rows[name].module)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "torchvision", "timm", "safetensors"}:
            raise UsageError(f"{kind} {name!r} needs {error.name}, which is not installed: pip install 'wsolbench[models]'") from error
        raise
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and getattr(value, "method_name", None) == name:
            return value
    raise UsageError(f"{module.__file__} defines no class with method_name = {name!r}")
