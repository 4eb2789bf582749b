"""Make the pictures of photographs on the methods' pages: six birds under the maps of a method.

Those of CAM, or of the baseline for a recognition method, come first.

    python docs/make_photographs.py runs/cub/*/last.safetensors

The networks are those that the plan `cub50` trains; `--method spa` makes that picture alone. The photographs
show species that are not among the networks' classes. So a map is that of the class that the network finds
most probable. Thresholds are those of the runs' records. docs/photographs/README.md names the photographers
and licences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from make_pictures import STRENGTH, Cut, map_panel, records_option, truth_panel

from wsolbench.datasets import load_dataset
from wsolbench.exceptions import UsageError, WsolbenchError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import list_methods
from wsolbench.methods.checkpoints import load_checkpoint
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, read_records
from wsolbench.report.pictures.grid import MapScale, Panel, panel_grid
from wsolbench.system.files import sha256_of_file
from wsolbench.types import Dataset

REFERENCES = {"localization": "cam", "recognition": "baseline"}
"""The method whose maps come first in a picture, by task."""
PHOTOGRAPHS = Path(__file__).parent / "photographs"
MAX_BYTES = 80_000
SIDE = 1.5
"""Longer side of a panel, in inches of 100 pixels."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The photographs under the maps of one network."""

    method: str
    cut: Cut
    panels: Sequence[Panel]
    facts: str
    """Data, backbone and seed of the network."""


def record_of(checkpoint: Path, records: Sequence[RunRecord], protocol: EvalProtocol) -> RunRecord:
    """Return the record of a network's maps on the test images of the data set that it was trained on.

    Raises `UsageError` without one.
    """
    digest = sha256_of_file(checkpoint)
    for record in records:
        method = record.method
        weights = method.get("training", {}).get("checkpoint", {}).get("sha256")
        plain = not method.get("post") and not method.get("map")
        if weights == digest and plain and record.protocol == protocol and record.dataset["split"] == "test":
            return record
    raise UsageError(
        f"no record of {checkpoint}; expected one of its maps on test images, as `wsolbench eval "
        f"--checkpoint {checkpoint} ...` writes it"
    )


def make_row(checkpoint: Path, record: RunRecord, birds: Dataset, protocol: EvalProtocol) -> Row:
    """Draw the photographs under the maps of a network, with boxes at the threshold of its record."""
    found = record.metric("gt_known", "oracle")
    if found is None or not found.tau:
        raise UsageError(f"the record of {checkpoint} has no threshold; expected GT-known at the oracle's")
    cut = Cut(tau=found.tau[0])
    model = load_checkpoint(checkpoint, device="cpu")
    source = ModelSource(
        model, protocol, num_classes=model.num_classes, device="cpu", batch_size=len(birds.samples)
    )
    batch = source.collate([source.load(sample) for sample in birds.samples])
    maps, _ = source.predict(batch, len(birds.samples))
    seed = record.method["training"]["seed"]
    return Row(
        method=record.method["name"],
        cut=cut,
        panels=[
            map_panel(sample, raw_map, protocol, cut)
            for sample, raw_map in zip(birds.samples, maps, strict=True)
        ],
        facts=f"{record.dataset['name']}/train · {record.method['backbone']} · seed {seed}",
    )


def write(path: Path, rows: Sequence[Row], birds: Dataset, protocol: EvalProtocol) -> None:
    """Write a picture: the photographs, then their maps."""
    title = (
        f"{rows[-1].method}\ntrained on {rows[-1].facts}\nMaps of the most probable class, min-max "
        f"normalised; predicted at the best threshold of each run (oracle), protocol {protocol.name}."
    )
    panel_grid(
        [[truth_panel(sample, "", protocol) for sample in birds.samples], *(row.panels for row in rows)],
        path,
        title,
        row_names=["photograph", *(f"{row.method}\n{row.cut.text}" for row in rows)],
        column_names=[birds.class_names[sample.label] for sample in birds.samples],
        side=SIDE,
        scale=MapScale(strength=STRENGTH, note="thresholds: left of each row"),
        max_bytes=MAX_BYTES,
    )


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--method", "methods", multiple=True, help="Make its picture alone; may be repeated.")
@records_option
@click.option("--protocol", "preset", default="wsoleval", show_default=True, help="Preset of conventions.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/images/photographs"),
    show_default=True,
    help="Folder of the pictures, <method>.jpg.",
)
def main(
    checkpoints: tuple[Path, ...], methods: tuple[str, ...], records: Path, preset: str, out: Path
) -> None:
    """Write a picture of each method in CHECKPOINTS.

    Of several runs of a method, the one whose folder has the shortest name, so the fewest settings, is drawn.
    """
    try:
        protocol = EvalProtocol.preset(preset)
        birds = load_dataset("csvfolder", "test", PHOTOGRAPHS)
        known = [record for _, record in read_records(records)]
        of = {path: record_of(path, known, protocol) for path in checkpoints}
        reference_of = {row.name: REFERENCES.get(row.task, "cam") for row in list_methods()}
        wanted = methods or sorted({record.method["name"] for record in of.values()})
        needed = {*wanted, *(reference_of[name] for name in wanted)}
        rows: dict[str, Row] = {}
        for path, record in sorted(of.items(), key=lambda item: len(item[0].parent.name)):
            name = record.method["name"]
            if name in needed and name not in rows:
                rows[name] = make_row(path, record, birds, protocol)
        for name in wanted:
            if name not in rows:
                raise UsageError(f"no checkpoint of {name}; expected one of {', '.join(sorted(rows))}")
            first = reference_of[name]
            if first not in rows:
                click.echo(f"note     {name}: no row of {first}, which has no checkpoint here")
            shown = [rows[each] for each in dict.fromkeys((first, name)) if each in rows]
            write(out / f"{name}.jpg", shown, birds, protocol)
            click.echo(f"picture  {out / f'{name}.jpg'}")
    except WsolbenchError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
