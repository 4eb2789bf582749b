"""`wsolbench score --example`: score maps that come with the package."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wsolbench.maps import MapFolder
    from wsolbench.types import Dataset, ScoreMap

EXAMPLE = Path(__file__).parents[1] / "maps" / "example"
"""Maps of CAM for 20 images of the test split of toybirds-v2. Its README.md says how they were made."""
IMAGES = 20


def score_example(out: Path) -> None:
    """Score `EXAMPLE`, write a record and a picture into `out`, and print a short table.

    Raises `UsageError` if `out` cannot be written.
    """
    from wsolbench.datasets import load_dataset
    from wsolbench.datasets.subsets import limit_dataset
    from wsolbench.evaluation.evaluate import evaluate
    from wsolbench.maps import MapFolder
    from wsolbench.maps.folder_source import FolderSource
    from wsolbench.protocol import EvalProtocol
    from wsolbench.report.pictures.sheets import write_sheets
    from wsolbench.system.files import make_folder

    started = time.perf_counter()
    make_folder(out)
    # Open images and maps. The images are generated.
    dataset, protocol, folder = load_dataset("toybirds-v2", "test"), EvalProtocol(), MapFolder(EXAMPLE)
    scored, made_by = limit_dataset(dataset, IMAGES), folder.manifest()["method"]
    ranked = folder.predictions(len(dataset.class_names), dataset.ids)
    source = FolderSource(folder, name=str(made_by["name"]), ranked=ranked, facts=made_by)
    source.check(scored, protocol)
    # Score them.
    evaluation = evaluate(dataset, source, protocol, limit=IMAGES, progress=False)
    # Write everything before anything is printed.
    record = evaluation.save(out)
    (picture,) = write_sheets(
        out,
        evaluation.record,
        evaluation.scores,
        scored,
        _reader(folder, scored),
        count=9,
        names=["sample.png"],
    )
    click.echo(evaluation)
    click.echo(f"record   {record}\npicture  {picture}\ntime     {time.perf_counter() - started:.1f} s")
    click.echo("next     wsolbench score --maps DIR --dataset NAME, for maps of your own")


def _reader(folder: MapFolder, dataset: Dataset) -> Callable[[list[int]], Sequence[ScoreMap]]:
    """Return the function that reads the maps of images with given positions."""

    def maps_of(indices: Sequence[int]) -> list[ScoreMap]:
        return [folder.read(dataset[index].id) for index in indices]

    return maps_of
