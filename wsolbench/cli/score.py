"""`wsolbench score`: score maps that any program has written."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsolbench.cli.options import dataset_options, open_dataset, open_val, read_protocol, report_evaluation, scoring_options
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.maps import MapFolder


@click.command(
    epilog="Example:  wsolbench score --maps my_maps/ --dataset cub --data-root CUB_200_2011 --name my-method\n\n"
    "DIR holds one .npy, .npz or 8-/16-bit .png per image, named by the image id (with or without the image suffix), "
    "with one (height, width) map of the true class of any size and range."
)
@click.option("--maps", "maps_dir", required=True, type=click.Path(path_type=Path), help="Folder of maps.")
@dataset_options
@scoring_options
@click.option("--name", help="What the method is called in the record; default: what the folder says, else its name.")
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="CSV image,rank1,rank2,...; default: DIR/predictions.csv where it exists."
)
@click.option("--allow-partial", is_flag=True, help="Score the images that have a map, and say in the record how many have none.")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Threads that load and score maps.")
def command(
    maps_dir: Path,
    dataset: str,
    data_root: Path | None,
    metadata_root: Path | None,
    split: str,
    protocol: str,
    protocol_set: tuple[str, ...],
    fixed_tau: float | None,
    transfer: bool,
    limit: int | None,
    resamples: int,
    out: Path,
    save_scores: bool,
    pictures: Path | None,
    name: str | None,
    predictions: Path | None,
    allow_partial: bool,
    workers: int,
) -> None:
    """Score a folder of maps: the same metrics, intervals, record and pictures as `eval`."""
    from wsolbench.evaluate import RunOptions, evaluate, limited
    from wsolbench.files import make_folder
    from wsolbench.maps import MapFolder
    from wsolbench.maps.store import PREDICTIONS, read_predictions
    from wsolbench.sources import FolderSource

    started = time.perf_counter()
    conventions = read_protocol(protocol, protocol_set)
    # Scoring needs the annotations; the pictures themselves only to be drawn.
    scored = limited(open_dataset(dataset, split, data_root, metadata_root, "error" if pictures else "keep"), limit)
    folder = MapFolder(maps_dir)
    scored, missing = _with_maps(scored, folder, allow_partial)
    for place in (out, pictures):
        if place is not None:
            make_folder(place)
    labels = predictions or (maps_dir / PREDICTIONS if (maps_dir / PREDICTIONS).is_file() else None)
    ranked = {} if labels is None else read_predictions(labels, len(scored.class_names))
    made_by = dict(folder.manifest().get("method", {}))
    source = FolderSource(folder, name=name or str(made_by.get("name", maps_dir.resolve().name)), ranked=ranked, facts=made_by)
    source.check(scored, conventions)
    options = RunOptions(batch_size=32, workers=workers, work=out / ".work", resamples=resamples)
    val = open_val(dataset, data_root, metadata_root) if transfer and split != "val" else None
    if val is not None and (folder.missing(limited(val, limit).ids) or (ranked and not ranked.keys() >= set(limited(val, limit).ids))):
        val = None  # the thresholds of val are known only where its maps are
    if val is not None:
        source.check(limited(val, limit), conventions)
    evaluation = evaluate(scored, source, conventions, limit=limit, fixed_tau=fixed_tau, transfer_from=val, options=options)
    if missing:
        record = replace(evaluation.record, dataset={**evaluation.record.dataset, "without_map": missing})
        evaluation = replace(evaluation, record=record)
    report_evaluation(evaluation, out=out, save_scores=save_scores, pictures=pictures, options=options, source=source, started=started)


def _with_maps(dataset: Dataset, folder: MapFolder, allow_partial: bool) -> tuple[Dataset, int]:
    """The images that have a map, and how many have none. Raises `DataError` for a partial folder that was not asked for."""
    from wsolbench.exceptions import DataError

    missing = set(folder.missing(dataset.ids))
    if not missing:
        return dataset, 0
    examples = ", ".join(sorted(missing)[:5])
    if len(missing) == len(dataset):
        raise DataError(
            f"none of the {len(dataset)} images of {dataset.name} {dataset.split} has a map in {folder.root}; looked for {examples}, ... "
            "each with .npy, .npz or .png behind it or in place of its image suffix"
        )
    if not allow_partial:
        raise DataError(
            f"{len(missing)} of {len(dataset)} images have no map in {folder.root}: {examples}{', ...' if len(missing) > 5 else ''}. "
            "A partial score is not comparable; write the missing maps, or add --allow-partial to score the others."
        )
    click.echo(f"{len(missing)} of {len(dataset)} images have no map and are left out: {examples}", err=True)
    kept = tuple(sample for sample in dataset.samples if sample.id not in missing)
    return replace(dataset, samples=kept), len(missing)
