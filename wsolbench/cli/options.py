"""Options that several commands share, and what they mean."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.files import make_folder
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.datasets import Missing
    from wsolbench.distributed import World
    from wsolbench.evaluate import Evaluation, MapSource, RunOptions
    from wsolbench.runs import Shard

F = TypeVar("F", bound=Callable[..., Any])


def available_cores() -> int:
    """Cores for this process: those it may run on, shared with the other processes that torchrun started here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _together(name: str, kind: type[Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options whose values a command gets as one argument `name`, an object of the dataclass `kind`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def collected(**values: Any) -> Any:
            own = {item.name: values.pop(item.name) for item in fields(kind)}
            return function(**values, **{name: kind(**own)})

        return cast("F", _all(*options)(collected))

    return decorate


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data set, and where it is."""

    dataset: str
    data_root: Path | None
    metadata_root: Path | None

    @property
    def extra(self) -> dict[str, Any]:
        """Options of the data set that were given."""
        return {} if self.metadata_root is None else {"metadata_root": self.metadata_root}

    def open(self, split: str, missing: Missing = "error") -> Dataset:
        """Load a split. `missing` is what to do with images that have no file."""
        from wsolbench.datasets import load_dataset
        from wsolbench.datasets.base import MissingFilesError

        try:
            return load_dataset(self.dataset, split, root=self.data_root, missing=missing, **self.extra)
        except MissingFilesError as error:
            raise MissingFilesError(error.for_commands) from error

    def open_val(self, missing: Missing = "error") -> Dataset | None:
        """The `val` split, or None where the data set has none on this disk. A `val` that is there but broken is an error."""
        from wsolbench.datasets import available_splits

        return self.open("val", missing) if "val" in available_splits(self.dataset, self.data_root, **self.extra) else None


data_options = _together(
    "data",
    DataOptions,
    click.option("--dataset", required=True, help="Name of the data set (wsolbench list datasets)."),
    click.option(
        "--data-root", type=click.Path(path_type=Path), help="Its folder; default: $WSOLBENCH_<NAME>_ROOT or $WSOLBENCH_DATA/<name>."
    ),
    click.option(
        "--metadata-root", type=click.Path(path_type=Path), help="Folder of wsolevaluation text files, where the data set uses them."
    ),
)

workers_option = click.option(
    "--workers", type=click.IntRange(min=0), default=available_cores, show_default="all cores", help="Threads that load and score images."
)

training_options = _all(
    click.option("--epochs", type=click.IntRange(min=1), help="Training epochs; default: the recipe's."),
    click.option("--lr", type=float, help="Base learning rate; default: the recipe's."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, order and augmentation."),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="A field of the method's config; may be repeated. With --checkpoint: one that training does not depend on.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
)

network_options = _all(
    click.option("--method", required=True, help="Name of the method (wsolbench list methods); `eval` takes several: cam,has."),
    click.option("--backbone", help="Name of the backbone, or timm:<name>; default: tiny for toybirds, else resnet50."),
    click.option("--weights", help="imagenet, none, or a checkpoint to start from; default: none for tiny, else imagenet."),
    click.option("--image-size", type=click.IntRange(min=32), help="Side of the network's input; default: the backbone's."),
    training_options,
)

model_options = _all(
    network_options,
    click.option("--batch-size", type=click.IntRange(min=1), help="Images in a step; default: the recipe's, and 32 when evaluating."),
    workers_option,
)

detector_options = _all(
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder in COCO's layout; default: $WSOLBENCH_COCO_ROOT."),
    click.option("--method", default="lio-mask-rcnn", show_default=True, help="Name of the detector (wsolbench list detectors)."),
    click.option(
        "--backbone", help="tiny, resnet50_c4, resnet50_fpn or resnext101_32x8d_fpn; default: tiny for toybirds, else resnet50_fpn."
    ),
    click.option("--weights", help="imagenet, coco, none, or a checkpoint to start from; default: none for tiny, else imagenet."),
    training_options,
)

checkpoint_option = click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file that a training wrote.")

post_set_option = click.option(
    "--post-set", multiple=True, metavar="POST.NAME=VALUE", help="A field of a post-process's config; may be repeated."
)


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What is scored, how it is counted, and what is left of it."""

    split: str
    protocol: str
    protocol_set: tuple[str, ...]
    fixed_tau: float | None
    transfer: bool
    limit: int | None
    resamples: int
    out: Path
    save_scores: bool
    shard: Shard | None
    pictures: Path | None
    save_boxes: Path | None

    def conventions(self) -> EvalProtocol:
        """The protocol, with its changes."""
        return read_protocol(self.protocol, self.protocol_set)

    def within(self, folder: Path) -> ScoringOptions:
        """The same with pictures and boxes in a folder below theirs."""
        pictures = None if self.pictures is None else self.pictures / folder
        boxes = None if self.save_boxes is None else self.save_boxes.parent / folder / self.save_boxes.name
        return replace(self, pictures=pictures, save_boxes=boxes)

    def prepare(self, scored: Dataset, *more: Path | None) -> None:
        """Refuse what cannot be done with the data, and make the folders that are written to, before any work is done."""
        from wsolbench.metrics.thresholds import check_fixed_tau

        check_fixed_tau(self.fixed_tau, self.conventions().taus)
        if self.save_boxes is not None and not scored.has_boxes:
            raise UsageError(f"--save-boxes needs the best threshold of GT-known, but {scored.name}/{scored.split} has no true boxes")
        if self.shard is not None and (self.pictures or self.save_scores or self.save_boxes):
            raise UsageError(
                "--pictures, --save-boxes and --save-scores need all parts of a run: leave out --shard (`merge` takes --save-scores, too)"
            )
        for folder in (self.out, self.pictures, self.save_boxes and self.save_boxes.parent, *more):
            if folder is not None:
                make_folder(folder)


def _shard(text: str) -> Shard:
    from wsolbench.runs import Shard

    return Shard.parse(text)


scoring_options = _together(
    "scoring",
    ScoringOptions,
    click.option("--split", default="test", show_default=True, help="Split to score."),
    click.option("--protocol", default="wsoleval", show_default=True, help="Preset of conventions (wsolbench list protocols)."),
    click.option("--protocol-set", multiple=True, metavar="FIELD=VALUE", help="Change one convention of the preset; may be repeated."),
    click.option("--fixed-tau", type=float, help="Threshold of the policy 'fixed', beside the oracle."),
    click.option(
        "--transfer/--no-transfer",
        default=True,
        show_default=True,
        help="Also use the thresholds that are best on val, where there is one.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Score that many images only, spread evenly over the split."),
    click.option(
        "--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Bootstrap resamples of the intervals."
    ),
    click.option("--out", type=click.Path(path_type=Path), default=Path("results/measured"), show_default=True, help="Folder of records."),
    click.option("--save-scores", is_flag=True, help="Keep the per-image scores beside the record (.scores.npz)."),
    click.option(
        "--shard",
        metavar="I/N",
        callback=lambda _context, _option, text: None if text is None else _shard(text),
        help="Score only part I of N, into a folder below --out; `wsolbench merge` makes the record of all parts.",
    ),
    click.option("--pictures", type=click.Path(path_type=Path), help="Folder for overlays, curves and bars."),
    click.option(
        "--save-boxes",
        type=click.Path(path_type=Path, dir_okay=False),
        help="JSON file for one box an image at the oracle threshold of GT-known, in COCO's format of results; asks for the maps twice.",
    ),
)


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`name=value` strings -> dict. Raises `UsageError` on one without `=` and on a name given twice."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {pair!r}; expected NAME=VALUE")
        if name in settings:
            raise UsageError(f"{option} {name} is given twice: {settings[name]!r} and {value!r}")
        settings[name] = value
    return settings


def changes_of_trained(checkpoint: Path | None, model: Mapping[str, Any]) -> dict[str, str]:
    """What `--set` changes in the model of `--checkpoint`; nothing without one: there it chooses a run.

    Raises `UsageError` on other options that its training has decided.
    """
    if checkpoint is None:
        return {}
    for name in ("backbone", "weights", "image_size", "epochs", "lr"):
        if model.get(name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} says nothing beside --checkpoint, which has been trained: leave one of them out")
    return parse_settings(model["settings"])


def read_protocol(name: str, changes: Sequence[str]) -> EvalProtocol:
    """A preset with single fields changed; the variant's name lists the changes, so that boards keep it apart."""
    protocol = EvalProtocol.preset(name)
    if not changes:
        return protocol
    values: dict[str, Any] = {}
    known = {item.name: getattr(protocol, item.name) for item in fields(protocol) if item.name != "name"}
    for field_name, text in parse_settings(changes, "--protocol-set").items():
        if field_name not in known:
            raise unknown_name("protocol field", field_name, known)
        values[field_name] = _parse(field_name, text, known[field_name])
    suffix = ",".join(f"{field_name}={text}" for field_name, text in sorted(parse_settings(changes).items()))
    return replace(protocol, name=f"{name}+{suffix}", **values)


def _parse(name: str, text: str, current: Any) -> Any:
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[text.lower()]
        if name == "taus" and "," not in text:
            return tau_grid(float(text))
        if isinstance(current, tuple):
            return tuple(float(part) for part in text.split(","))
        if current is None:
            return float(text)
        return type(current)(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--protocol-set {name}={text}: expected a value like {current!r}") from error


def evaluate_and_report(
    scored: Dataset,
    source: MapSource,
    scoring: ScoringOptions,
    options: RunOptions,
    *,
    val: Dataset | None,
    whole: Dataset | None = None,
    facts: dict[str, Any] | None = None,
    world: World | None = None,
) -> None:
    """Score; then, unless this is one shard or another process does it, write what was asked for and say where it is.

    `whole` is the split that `scored` is a part of, if it is: images are numbered as they are there.
    """
    from wsolbench.distributed import World
    from wsolbench.evaluate import conclude, limited, score, score_shard

    started = time.perf_counter()
    world = world or World()
    what: dict[str, Any] = {
        "limit": scoring.limit,
        "fixed_tau": scoring.fixed_tau,
        "transfer_from": val,
        "options": options,
        "facts": facts,
    }
    if scoring.shard is not None:
        if world.size > 1:
            raise UsageError("--shard and torchrun exclude each other: torchrun makes a shard for each of its processes")
        folder = score_shard(scored, source, scoring.conventions(), scoring.shard, scoring.out, **what)
        click.echo(f"shard    {scoring.shard} in {folder.root}\ntime     {time.perf_counter() - started:.1f} s")
        click.echo(f"next     wsolbench merge {scoring.out} --out results/measured, when all {scoring.shard.count} are done")
        return
    run = score(scored, source, scoring.conventions(), **what, world=world)
    if not world.is_first:
        return
    evaluation = conclude(run)
    drawn = limited(scored, scoring.limit)

    def maps_of(indices: Sequence[int]) -> Sequence[Any]:
        samples = [drawn[index] for index in indices]
        batches = [samples[start : start + options.batch_size] for start in range(0, len(samples), options.batch_size)]
        return [raw for batch in batches for raw in source.maps(batch, source.collate([source.load(sample) for sample in batch])).maps]

    report_evaluation(evaluation, scoring.out, scoring.save_scores)
    if scoring.pictures is not None:
        from wsolbench.report.plots import write_pictures

        for picture in write_pictures(scoring.pictures, evaluation.record, evaluation.scores, drawn, maps_of):
            click.echo(f"picture  {picture}")
    if scoring.save_boxes is not None:
        from wsolbench.datasets.coco_export import image_numbers
        from wsolbench.report.coco_boxes import write_coco_boxes

        numbers = image_numbers(whole or scored)
        count = write_coco_boxes(scoring.save_boxes, evaluation.record, evaluation.scores, drawn, maps_of, numbers)
        click.echo(f"boxes    {scoring.save_boxes} ({count})")
    evaluation.finish()
    click.echo(f"time     {time.perf_counter() - started:.1f} s")


def report_evaluation(evaluation: Evaluation, out: Path, save_scores: bool) -> None:
    """Write the record and, if asked, the scores; print the table and where they are."""
    from rich.console import Console

    from wsolbench.report.tables import metrics_table
    from wsolbench.score_table import SCORES

    path = evaluation.record.write(out)
    Console(soft_wrap=True).print(metrics_table(evaluation.record))
    if save_scores:
        scores = path.with_suffix(SCORES)
        evaluation.scores.write(scores)
        click.echo(f"scores   {scores}")
    click.echo(f"record   {path}")
