"""`wsolbench score --example`: score maps that come with the package."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wsolbench.maps import MapFolder
    from wsolbench.types import Dataset, ScoreMap

EXAMPLE = Path(__file__).parents[1] / "maps" / "example"
"""Maps of 20 images of the test split of toybirds-v2. Its README.md says how they were made."""
NAME = "toybirds-v2-example"
"""Name of these images in the record. They are not the whole test split."""


def score_example(out: Path) -> None:
    """Score `EXAMPLE`, write a record and a picture into `out`, and print a short table.

    Raises `UsageError` if `out` cannot be written.
    """
    from wsolbench.evaluation.evaluate import evaluate
    from wsolbench.maps import MapFolder
    from wsolbench.maps.folder_source import FolderSource
    from wsolbench.protocol import EvalProtocol
    from wsolbench.report.pictures.sheets import write_sheets
    from wsolbench.system.files import make_folder

    started = time.perf_counter()
    make_folder(out)
    folder, protocol = MapFolder(EXAMPLE), EvalProtocol()
    with tempfile.TemporaryDirectory() as place:
        # Open images, maps and predicted labels.
        dataset, made_by = _render(Path(place)), folder.manifest()["method"]
        ranked = folder.predictions(len(dataset.class_names), dataset.ids)
        source = FolderSource(folder, name=str(made_by["name"]), ranked=ranked, facts=made_by)
        source.check(dataset, protocol)
        # Score them, and write everything before anything is printed.
        evaluation = evaluate(dataset, source, protocol)
        record = evaluation.save(out, scores=False)
        (picture,) = write_sheets(
            out,
            evaluation.record,
            evaluation.scores,
            dataset,
            _reader(folder, dataset),
            count=9,
            names=["sample"],
        )
    click.echo(evaluation)
    click.echo(f"record   {record}\npicture  {picture}\ntime     {time.perf_counter() - started:.1f} s")
    click.echo("next     wsolbench score --maps DIR --dataset NAME, for maps of your own")


def _render(place: Path) -> Dataset:
    """Render the images of the example into a folder and load them."""
    from wsolbench.datasets.csvfolder import load_csv_folder
    from wsolbench.datasets.toybirds.dataset import render_some
    from wsolbench.datasets.toybirds.versions import V2

    render_some(place, V2, "test", [int(path.name[:5]) for path in (EXAMPLE / "test").glob("*.npy")])
    return load_csv_folder(place, "test", name=NAME)


def _reader(folder: MapFolder, dataset: Dataset) -> Callable[[list[int]], Sequence[ScoreMap]]:
    """Return the function that reads the maps of images with given positions."""

    def maps_of(indices: Sequence[int]) -> list[ScoreMap]:
        return [folder.read(dataset[index].id) for index in indices]

    return maps_of
