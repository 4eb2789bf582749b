"""`wsolbench score`: score maps from any program."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli._evaluation import evaluate_and_report, group_protocols
from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import (
    NOT_TRANSFERRED,
    DataOptions,
    plugin_option,
    say,
    split_options,
    workers_option,
)
from wsolbench.cli.scoring import ScoringOptions, scoring_options
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.maps import MapFolder
    from wsolbench.protocol import EvalProtocol


class _ScoreCommand(GroupedCommand):
    """Takes `--example` alone, or the options that name maps and data."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read no further option after `--example`. Raises `UsageError` if there are others."""
        from wsolbench.exceptions import UsageError

        if "--example" not in args or {"-h", "--help"} & set(args):
            return super().parse_args(ctx, args)
        if others := [word for word in args if word != "--example"]:
            raise UsageError(f"--example takes no other options, found {' '.join(others)}; leave them out")
        ctx.params["example"] = True
        return []

    def invoke(self, ctx: click.Context) -> Any:
        """Run the example, or the command."""
        if not ctx.params.get("example"):
            return super().invoke(ctx)
        from wsolbench.cli._example import score_example

        return score_example(Path("wsolbench-example"))


_LOOKED_AT = 20
"""Number of maps whose shape is compared with that of their image."""


@click.command(
    cls=_ScoreCommand,
    epilog="Maps that come with the package:  wsolbench score --example\n\n"
    "Example:  wsolbench score --maps my_maps/ --dataset cub --data-root CUB_200_2011 --name "
    "my-method\n\n"
    "All protocols, for maps of whole images:  wsolbench score --maps my_maps/ --dataset cub --protocol all "
    "--crop-maps\n\n"
    "The folder has one .npy, .npz or 8-/16-bit .png file per image, named by the image id, with or without "
    "the image suffix. "
    "Each contains one (height, width) map of the true class, of any size and range.",
)
@option("Data", "--maps", "maps_dir", required=True, type=click.Path(path_type=Path), help="Folder of maps.")
@option(
    "Data",
    "--example",
    is_flag=True,
    expose_value=False,
    help="Score 20 maps that come with the package, without other options. Writes ./wsolbench-example.",
)
@split_options
@plugin_option
@scoring_options
@option(
    "Model",
    "--name",
    help="Name of the method in the record.  [default: as the folder states, otherwise the folder's name]",
)
@option(
    "Model",
    "--predictions",
    type=click.Path(path_type=Path),
    help="CSV file of predicted labels: image,rank1,rank2,...  [default: predictions.csv in the folder of "
    "maps, if it exists]",
)
@option(
    "Protocol",
    "--crop-maps",
    is_flag=True,
    help="Cut maps of the whole image to their centre, for a protocol that evaluates on the centre crop.",
)
@option(
    "Data",
    "--allow-partial",
    is_flag=True,
    help="Score only images that have a map. The record states how many have no map or no file.",
)
@workers_option
def command(
    maps_dir: Path,
    data: DataOptions,
    scoring: ScoringOptions,
    name: str | None,
    predictions: Path | None,
    crop_maps: bool,
    allow_partial: bool,
    workers: int,
) -> None:
    """Score a folder of maps from any program, with the same outputs as `eval`."""
    from wsolbench.datasets.subsets import limit_dataset, transfer_part
    from wsolbench.evaluation.request import EvalRequest, RunOptions
    from wsolbench.exceptions import UsageError
    from wsolbench.maps import MapFolder, view
    from wsolbench.maps.folder_source import FolderSource
    from wsolbench.system.distributed import world

    if world().size > 1:
        raise UsageError(
            f"`wsolbench score` runs in one process, found {world().size} of torchrun; start one process "
            "per shard with --shard i/n instead"
        )
    # Open data and maps.
    if name is not None and not name.strip():
        raise UsageError(f"--name is {name!r}; expected the name of the method")
    protocols = scoring.protocols()
    _refuse_mixed_views(protocols, crop_maps=crop_maps)
    # Scoring needs the annotations. The image files are only needed to draw pictures.
    whole = _open(data, scoring.split, pictures=scoring.pictures is not None, allow_partial=allow_partial)
    folder = MapFolder(maps_dir)
    # This looks at all images, so that a map that two of them would share is always refused.
    without = folder.missing(whole.ids)
    scored = _with_maps(limit_dataset(whole, scoring.limit), folder, set(without), allow_partial)
    scoring.prepare(scored)
    made_by = dict(folder.manifest().get("method", {}))
    val = data.open_val("keep") if scoring.transfer and scoring.split != "val" else None
    if val is not None:
        val = transfer_part(made_by.get("training") or {}, val)
    ranked = read_labels(
        folder, predictions, len(scored.class_names), [*whole.ids, *(val.ids if val is not None else ())]
    )
    # Check that the maps belong to the data. Protocols that score the same maps share a source.
    groups = group_protocols(protocols, of_network=False, cropped=crop_maps)
    cut = [group for group in groups if group[0].frame == "center_crop"] or groups
    sources = [
        FolderSource(
            folder,
            name=name or str(made_by.get("name", maps_dir.resolve().name)),
            ranked=ranked,
            facts=made_by,
            crop=group[0] if crop_maps and group in cut else None,
        )
        for group in groups
    ]

    def check_maps(dataset: Dataset) -> None:
        for source, group in zip(sources, groups, strict=True):
            for protocol in group:
                source.check(dataset, protocol, allow_partial=allow_partial)

    check_maps(scored)
    _note_transposed(scored, folder)
    for protocol in (each for group in groups for each in group):
        if view(protocol) == "center_crop" and not crop_maps and "view" not in folder.manifest():
            side = protocol.frame_size
            say(
                f"maps     taken for maps of the centre crop, because protocol {protocol.name!r} compares on "
                f"the central {side} x {side} of {protocol.resize_size} x {protocol.resize_size} pixels. "
                "If they cover the whole image, add --crop-maps, or numbers are too low"
            )
    if val is not None:
        ids = limit_dataset(val, scoring.limit).ids
        if folder.missing(ids) or (ranked and not ranked.keys() >= set(ids)):
            say(f"val      {maps_dir} lacks maps or labels of {val.split}: {NOT_TRANSFERRED}")
            val = None
    if val is not None:
        folder.locate([*whole.ids, *val.ids])  # raises if images of both splits would share a map
        check_maps(limit_dataset(val, scoring.limit))
    # Score.
    left_out = {
        "without_map": len(limit_dataset(whole, scoring.limit)) - len(scored),
        "without_file": len(whole.left_out),
    }
    for source, group in zip(sources, groups, strict=True):
        requests = [
            EvalRequest(
                dataset=scored,
                source=source,
                protocol=protocol,
                limit=scoring.limit,
                fixed_tau=scoring.fixed_tau,
                extra_metrics=scoring.extra(),
                transfer_from=val,
                options=RunOptions(workers=workers, work=scoring.out / ".work", resamples=scoring.resamples),
                metadata={name: count for name, count in left_out.items() if count},
            )
            for protocol in group
        ]
        evaluate_and_report(requests, scoring.within_each(Path(), group, of=len(protocols)), whole=whole)


def _refuse_mixed_views(protocols: Sequence[EvalProtocol], *, crop_maps: bool) -> None:
    """Raise `UsageError` for protocols that need maps of the image and maps of its centre crop."""
    from wsolbench.exceptions import UsageError

    cropped = [protocol.name for protocol in protocols if protocol.frame == "center_crop"]
    others = [protocol.name for protocol in protocols if protocol.frame != "center_crop"]
    if cropped and others and not crop_maps:
        raise UsageError(
            f"protocols {', '.join(cropped)} score maps of the centre crop, and {', '.join(others)} maps of "
            "the whole image; a folder has maps of one kind. Add --crop-maps if its maps cover the whole "
            "image, or name protocols of one kind with --protocol"
        )


def _open(data: DataOptions, split: str, *, pictures: bool, allow_partial: bool) -> Dataset:
    """Open the split.

    For a partial score, images without a file are skipped, unless their size is known and no picture is
    drawn.
    """
    from wsolbench.datasets.base import MissingFilesError

    if not allow_partial:
        try:
            return data.open(split, "error" if pictures else "keep")
        except MissingFilesError as error:
            raise MissingFilesError(
                f"{error} Or add --allow-partial to score the images that are there."
            ) from error
    whole = data.open(split, "skip" if pictures else "keep_or_skip")
    if whole.left_out:
        examples = ", ".join(whole.left_out[:5])
        click.echo(
            f"{len(whole.left_out)} images have a missing or broken file and are skipped: {examples}",
            err=True,
        )
    return whole


def read_labels(
    folder: MapFolder, predictions: Path | None, classes: int, known: Sequence[str]
) -> dict[str, list[int]]:
    """Return the labels of the file of `--predictions`, else those in the folder of maps.

    `known` are the ids that the file may name.
    """
    from wsolbench.exceptions import DataError
    from wsolbench.maps.predictions import PREDICTIONS, read_predictions

    if predictions is None or predictions.resolve() == (folder.root / PREDICTIONS).resolve():
        ranked = folder.predictions(classes, known)
        if ranked or predictions is None:
            return ranked
    ranked = read_predictions(predictions, classes, known)
    if not ranked:
        raise DataError(
            f"{predictions} has a header and no predictions; expected one line per image. Or leave out "
            "--predictions"
        )
    return ranked


def _describe_files(folder: Path) -> str:
    """Describe the files in a folder and its subfolders, for a message."""
    from wsolbench.system.listing import is_junk

    names = (path for path in folder.rglob("*") if path.is_file() and not is_junk(path.name))
    some = sorted(path.relative_to(folder).as_posix() for path in itertools.islice(names, 1000))
    if not some:
        return "no files"
    return f"{', '.join(some[:2])}{' and more' if len(some) > 2 else ''}"


def _note_transposed(dataset: Dataset, folder: MapFolder) -> None:
    """Say if the maps of wide images are tall, and those of tall images wide: (width, height) was stored."""
    wide = [sample for sample in dataset.samples if max(sample.size) > 1.1 * min(sample.size)]
    turned = []
    for sample in wide[:: max(1, len(wide) // _LOOKED_AT)][:_LOOKED_AT]:
        (width, height), (rows, columns) = sample.size, folder.read(sample.id).shape
        if rows != columns:
            turned.append((rows > columns) != (height > width))
    if len(turned) > 2 and all(turned):
        say(
            f"maps     are tall for wide images, and wide for tall ones, {sample.id} for instance: "
            f"({rows}, {columns}) for {width} x {height} pixels. If they were stored as (width, height), "
            "transpose them: expected is (height, width)"
        )


def _with_maps(dataset: Dataset, folder: MapFolder, without: set[str], allow_partial: bool) -> Dataset:
    """Return the images that have a map. Raises `DataError` for a partial folder without `allow_partial`."""
    from wsolbench.exceptions import DataError

    missing = [image_id for image_id in dataset.ids if image_id in without]
    if not missing:
        return dataset
    examples = ", ".join(missing[:5])
    if len(missing) == len(dataset):
        raise DataError(
            f"none of the {len(dataset)} images of {dataset.name} {dataset.split} has a map in "
            f"{folder.root}; found {_describe_files(folder.root)}; expected {missing[0]}.npy and so on, with "
            "or without the image's suffix, as .npy, .npz or .png. A map has the path of its image in the "
            "data set"
        )
    if not allow_partial:
        raise DataError(
            f"{len(missing)} of {len(dataset)} images have no map in {folder.root}: "
            f"{examples}{', ...' if len(missing) > 5 else ''}. "
            "A partial score is not comparable. Write the missing maps, or add --allow-partial to score the "
            "others."
        )
    click.echo(f"{len(missing)} of {len(dataset)} images have no map and are skipped: {examples}", err=True)
    kept = tuple(sample for sample in dataset.samples if sample.id not in without)
    return replace(dataset, samples=kept)
