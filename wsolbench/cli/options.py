"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.datasets import Missing
    from wsolbench.evaluate import Evaluation, RunOptions

F = TypeVar("F", bound=Callable[..., Any])


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


dataset_options = _all(
    click.option("--dataset", required=True, help="Name of the data set (wsolbench list datasets)."),
    click.option(
        "--data-root", type=click.Path(path_type=Path), help="Its folder; default: $WSOLBENCH_<NAME>_ROOT or $WSOLBENCH_DATA/<name>."
    ),
    click.option(
        "--metadata-root", type=click.Path(path_type=Path), help="Folder of wsolevaluation text files, where the data set uses them."
    ),
)

model_options = _all(
    click.option("--method", required=True, help="Name of the method (wsolbench list methods)."),
    click.option("--backbone", help="Name of the backbone, or timm:<name>; default: tiny for toybirds, else resnet50."),
    click.option("--weights", help="imagenet, none, or a checkpoint to start from; default: none for tiny, else imagenet."),
    click.option("--epochs", type=click.IntRange(min=1), help="Training epochs; default: the recipe's."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images in a step; default: the recipe's, and 32 when evaluating."),
    click.option("--image-size", type=click.IntRange(min=32), help="Side of the network's input; default: the backbone's."),
    click.option("--lr", type=float, help="Base learning rate; default: the recipe's."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of weights, order and augmentation."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A field of the method's config; may be repeated."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Threads that load and score images."),
)

scoring_options = _all(
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
    click.option("--pictures", type=click.Path(path_type=Path), help="Folder for overlays, curves and bars."),
)


def open_dataset(name: str, split: str, data_root: Path | None, metadata_root: Path | None, missing: Missing = "error") -> Dataset:
    """Load a split, passing on only the options that were given. `missing` is what to do with images that have no file."""
    from wsolbench.datasets import load_dataset

    extra: dict[str, Any] = {} if metadata_root is None else {"metadata_root": metadata_root}
    return load_dataset(name, split, root=data_root, missing=missing, **extra)


def open_val(name: str, data_root: Path | None, metadata_root: Path | None) -> Dataset | None:
    """The `val` split, or None where the data set has none on this disk. A `val` that is there but broken is an error."""
    from wsolbench.datasets import available_splits

    extra: dict[str, Any] = {} if metadata_root is None else {"metadata_root": metadata_root}
    return open_dataset(name, "val", data_root, metadata_root) if "val" in available_splits(name, data_root, **extra) else None


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


def report_evaluation(
    evaluation: Evaluation, *, out: Path, save_scores: bool, pictures: Path | None, options: RunOptions, source: Any, started: float
) -> None:
    """Write record, scores and pictures; print the table and where everything is."""
    import time

    from rich.console import Console

    from wsolbench.report.tables import metrics_table

    path = evaluation.record.write(out)
    if save_scores:
        evaluation.scores.write(path.with_suffix(".scores.npz"))
    console = Console(soft_wrap=True)
    console.print(metrics_table(evaluation.record))
    if pictures is not None:
        from wsolbench.report.plots import write_pictures

        def maps_of(indices: Sequence[int]) -> Sequence[Any]:
            samples = [evaluation.dataset[index] for index in indices]
            batches = [samples[start : start + options.batch_size] for start in range(0, len(samples), options.batch_size)]
            return [raw for batch in batches for raw in source.maps(batch, [source.load(sample) for sample in batch]).maps]

        for picture in write_pictures(pictures, evaluation.record, evaluation.scores, evaluation.dataset, maps_of):
            console.print(f"picture  {picture}")
    evaluation.finish()
    console.print(f"record   {path}")
    console.print(f"time     {time.perf_counter() - started:.1f} s")
