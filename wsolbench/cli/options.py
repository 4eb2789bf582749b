"""Options that several commands share."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from wsolbench.cli.groups import option
from wsolbench.cli.values import Device, Number, available_cores
from wsolbench.exceptions import DataError
from wsolbench.methods import TrainRequest
from wsolbench.system.distributed import world
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.datasets import Missing

F = TypeVar("F", bound=Callable[..., Any])


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def together(name: str, kind: type[Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Bundle several options into one argument `name` of type `kind`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def collected(**values: Any) -> Any:
            own = {item.name: values.pop(item.name) for item in fields(kind) if item.name in values}
            return function(**values, **{name: kind(**own)})

        return cast("F", _all(*options)(collected))

    return decorate


WITHOUT_VAL = " To evaluate without val, add --no-transfer."
NOT_TRANSFERRED = "thresholds are not transferred, as with --no-transfer"


def say(line: str) -> None:
    """Print a line for the user on stderr, because it is not a result. Only the first process prints."""
    if world().is_first:
        click.echo(line, err=True)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of the data set: its name and its folders."""

    dataset: str
    data_root: Path | None
    metadata_root: Path | None
    annotations: tuple[str, ...] = ()
    split_seed: int | None = None
    split_fractions: str | None = None
    carve_val: bool = False
    """Whether a tenth of each class of `train` is used as `val` instead."""

    @property
    def extra(self) -> dict[str, Any]:
        """Options of the data set that were given."""
        names = ("metadata_root", "annotations", "split_seed", "split_fractions")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value not in (None, ())}

    def open(self, split: str, missing: Missing = "error") -> Dataset:
        """Load a split and print the number of findings. `missing` is what to do with images without file."""
        from wsolbench.datasets import load_dataset
        from wsolbench.datasets.base import MissingFilesError

        try:
            dataset = load_dataset(
                self.dataset,
                split,
                root=self.data_root,
                missing=missing,
                carve_val=self.carve_val,
                **self.extra,
            )
        except MissingFilesError as error:
            raise MissingFilesError(error.for_commands) from error
        self._count_findings(dataset)
        return dataset

    def open_val(
        self, missing: Missing = "error", *, without: str = NOT_TRANSFERRED, way_out: str = WITHOUT_VAL
    ) -> Dataset | None:
        """Load the `val` split, or return None if the data set has none on this disk.

        If `val` has annotations but no image file, one line says so, and `without` says what is skipped then.
        A broken `val` is an error, whose message ends with `way_out`.
        """
        from wsolbench.datasets import available_splits

        if not self.carve_val and "val" not in available_splits(self.dataset, self.data_root, **self.extra):
            return None
        try:
            return self.open("val", missing)
        except DataError as error:
            if not (absent := self._absent_files("val")):
                raise DataError(f"{error}{way_out}") from error
            say(f"val      none of the {absent:,} files of {self.dataset} val is on this disk: {without}")
            return None

    def _absent_files(self, split: str) -> int:
        """Return the number of missing files of a split, or 0 if some of its images can be used."""
        from wsolbench.datasets import load_dataset

        try:
            usable = load_dataset(self.dataset, split, root=self.data_root, missing="skip", **self.extra)
        except DataError:
            return 0
        return 0 if usable.samples else len(usable.missing)

    def _count_findings(self, dataset: Dataset) -> None:
        """Print one line with the number of the loader's errors and warnings, and how to list them."""
        counts = {
            severity: sum(finding.count for finding in dataset.findings if finding.severity == severity)
            for severity in ("error", "warning")
        }
        named = [f"{count:,} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count]
        if not named:
            return
        options = [
            ("--data-root", self.data_root),
            ("--metadata-root", self.metadata_root),
            *(("--annotations", text) for text in self.annotations),
            ("--split-seed", self.split_seed),
            ("--split-fractions", self.split_fractions),
            ("--split", dataset.split),
        ]
        where = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in options if value is not None)
        say(
            f"data     {dataset.name} {dataset.split}: {', '.join(named)}; to see them: wsolbench verify "
            f"--dataset {self.dataset} {where}"
        )


_DATA = (
    option("Data", "--dataset", required=True, help="Name of the data set (see `wsolbench list datasets`)."),
    option(
        "Data",
        "--data-root",
        type=click.Path(path_type=Path),
        help="Folder of the data set.  [default: $WSOLBENCH_<NAME>_ROOT or $WSOLBENCH_DATA/<name>]",
    ),
    option(
        "Data",
        "--metadata-root",
        type=click.Path(path_type=Path),
        help="Folder of wsolevaluation text files, for data sets that use them.",
    ),
    option(
        "Data",
        "--annotations",
        multiple=True,
        metavar="[SPLIT=]FILE",
        help="Annotation file of coco-json; can be repeated.  [default: annotations*.json in the data root]",
    ),
    option(
        "Data",
        "--split-seed",
        type=click.IntRange(0),
        help="Seed of the automatic split of imagefolder and coco-json.  [default: 0]",
    ),
    option(
        "Data",
        "--split-fractions",
        metavar="TRAIN,VAL,TEST",
        help="Shares of each class in the automatic split.  [default: 0.7,0.1,0.2]",
    ),
)

data_options = together("data", DataOptions, *_DATA)

split_options = together(
    "data",
    DataOptions,
    *_DATA,
    option(
        "Data",
        "--carve-val",
        is_flag=True,
        help="Use a tenth of each class of `train` as `val`, instead of the data set's own `val`.",
    ),
)
"""The data options of commands that train or score."""

workers_option = option(
    "Execution",
    "--workers",
    type=Number(TrainRequest, "workers"),
    default=available_cores,
    show_default="all cores",
    help="Threads that load and score images, and processes that load them if they are many.",
)

training_options = _all(
    option(
        "Training",
        "--epochs",
        type=Number(TrainRequest, "epochs"),
        help="Training epochs.  [default: as in the recipe]",
    ),
    option(
        "Training",
        "--lr",
        type=Number(TrainRequest, "lr"),
        help="Base learning rate.  [default: as in the recipe]",
    ),
    option(
        "Training",
        "--seed",
        type=Number(TrainRequest, "seed"),
        default=0,
        show_default=True,
        help="Seed of the initial weights, the image order and the augmentation.",
    ),
    option(
        "Model",
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help=(
            "Change one setting of the method; can be repeated. A trained --checkpoint accepts only settings "
            "that training does not depend on."
        ),
    ),
    option(
        "Execution",
        "--device",
        type=Device(),
        default="auto",
        show_default=True,
        help="Device to use: auto, cpu, cuda or cuda:N.",
    ),
)

_model_options = _all(
    option(
        "Model",
        "--backbone",
        help="Name of the backbone, or timm:<name>.  [default: tiny for generated data, otherwise resnet50]",
    ),
    option(
        "Model",
        "--weights",
        help=(
            "Initial weights: imagenet, none, or a checkpoint.  [default: none for tiny, otherwise imagenet]"
        ),
    ),
    option(
        "Model",
        "--image-size",
        type=Number(TrainRequest, "image_size"),
        help="Side of the network's input in pixels; with --checkpoint, that of the evaluation.  "
        "[default: as the backbone states, or as trained]",
    ),
    training_options,
)

_METHOD = "Name of the method (see `wsolbench list methods`)."
network_options = _all(option("Model", "--method", required=True, help=_METHOD), _model_options)

_watch_options = _all(
    option(
        "Training",
        "--log",
        metavar="NAME,...",
        help="Copy the training log to tensorboard, wandb or both, each an extra of the package. log.csv is "
        "always written.",
    ),
    option(
        "Training",
        "--val-loc-every",
        type=Number(TrainRequest, "val_loc_every"),
        default=0,
        show_default=True,
        help="Measure GT-known on val every N epochs and after the last one, for the log; 0 for never.",
    ),
)

_execution_options = _all(
    option(
        "Execution",
        "--batch-size",
        type=Number(TrainRequest, "batch_size"),
        help="Images per batch.  [default: as in the recipe for training, 32 for evaluation]",
    ),
    workers_option,
    option(
        "Execution",
        "--cache",
        type=Number(TrainRequest, "cache"),
        help="GiB of memory for resized training images; 0 for none.  [default: half of what is available]",
    ),
)

model_options = _all(network_options, _execution_options, _watch_options)
"""Options of a command for one method."""

models_options = _all(
    option(
        "Model",
        "--method",
        required=True,
        help=f"{_METHOD[:-1]}, or several, separated by commas: cam,has.",
    ),
    _model_options,
    _execution_options,
    _watch_options,
)
"""The same for a command that takes several methods."""

detector_options = _all(
    option(
        "Data",
        "--data-root",
        type=click.Path(path_type=Path),
        help="Folder in COCO's layout.  [default: $WSOLBENCH_COCO_ROOT]",
    ),
    option(
        "Model",
        "--method",
        default="lio-mask-rcnn",
        show_default=True,
        help="Name of the detector (see `wsolbench list detectors`).",
    ),
    option(
        "Model",
        "--backbone",
        help=(
            "Backbone: tiny, resnet50_c4, resnet50_fpn or resnext101_32x8d_fpn.  [default: tiny for "
            "generated data, otherwise resnet50_fpn]"
        ),
    ),
    option(
        "Model",
        "--weights",
        help=(
            "Initial weights: imagenet, coco, none, or a checkpoint.  [default: none for tiny, otherwise "
            "imagenet]"
        ),
    ),
    training_options,
)


def plugin_option(function: F) -> F:
    """Add `--plugin` to a command, which loads the files before it runs."""

    @functools.wraps(function)
    def loaded(*, plugin: tuple[Path, ...], **values: Any) -> Any:
        from wsolbench.records.plugins import load_plugin

        for path in plugin:
            load_plugin(path)
        return function(**values)

    add = option(
        "Model",
        "--plugin",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Python file that defines a method, post-process, backbone or metric; can be repeated.",
    )
    return cast("F", add(loaded))


checkpoint_option = option(
    "Model",
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Trained model to load, a .safetensors file written by a training run.",
)

post_set_option = option(
    "Model",
    "--post-set",
    multiple=True,
    metavar="POST.NAME=VALUE",
    help="Change one setting of a post-process; can be repeated.",
)

records_option = option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/measured"),
    show_default=True,
    help="Folder for the records.",
)

save_scores_option = option(
    "Output",
    "--save-scores",
    is_flag=True,
    help="Store per-image scores next to the record (.scores.npz).",
)

save_outcomes_option = option(
    "Output",
    "--save-outcomes/--no-outcomes",
    default=None,
    show_default="--save-outcomes, without --save-scores",
    help="Store what comparisons need of each image next to the record, in a file small enough to be "
    "committed (.outcomes.npz): less than 1 MB for CUB.",
)

full_option = option(
    "Output",
    "--full",
    is_flag=True,
    help="Print the table of all metrics, as --extra-metrics does, and not only the most important ones.",
)

run_folder_option = option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder.  [default: runs/<data set>/<method>-<backbone>-seed<seed>-<other options>; <data set> "
    "of your own data is <folder>-<fingerprint>]",
)

results_option = option(
    "Data",
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Results folder; its subfolder measured/ contains the records.",
)
