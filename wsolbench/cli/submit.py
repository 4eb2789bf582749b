"""`wsolbench submit`: make a submission of a record, for the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.exceptions import DataError, UsageError

TEMPLATE = """\
# Metadata of a submission. Fill in, then: wsolbench submit RECORD.json --metadata THIS_FILE
authors = ["First Author", "Second Author"]
# Title of the paper, or "unpublished". Venue and addresses may stay empty.
paper = ""
venue = ""
url = ""
code = ""
backbone = ""
# Images and annotations of the training, and data besides the training split ("none" if there are none).
training_data = ""
extra_data = ""
# Licence of the record, the scores and the maps, for instance "CC BY 4.0".
licence = ""
# Address of an archive of the maps and predictions. Without it, nobody can score them again.
maps_url = ""
"""


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench submit results/measured/cub/mine_test_wsoleval_0a1b2c3d.json --metadata "
    "mine.toml --maps my_maps/\n\n"
    "The record needs its per-image scores: add --save-outcomes to `score` or `eval`.",
)
@click.argument("record", required=False, type=click.Path(path_type=Path))
@option(
    "Data",
    "--metadata",
    type=click.Path(path_type=Path),
    help="TOML file with the fields below. Options replace its fields.",
)
@option("Data", "--template", is_flag=True, help="Print an empty file for --metadata.")
@option("Data", "--authors", help="Names of the authors, separated by commas.")
@option("Data", "--paper", help='Title of the paper, or "unpublished".')
@option("Data", "--venue", help="Place and year of the publication.")
@option("Data", "--url", help="Address of the paper.")
@option("Data", "--code", help="Address of the code.")
@option("Data", "--maps-url", help="Address of an archive of the maps and predictions.")
@option("Data", "--licence", help="Licence of the record, the scores and the maps.")
@option("Model", "--backbone", help="Backbone of the localizer.  [default: as the record states]")
@option("Training", "--training-data", help="Images and annotations of the training.")
@option("Training", "--extra-data", help='Data besides the training split of the data set, or "none".')
@option(
    "Data",
    "--maps",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the maps that were scored. The submission states its SHA-256.",
)
@option(
    "Data",
    "--predictions",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File of predicted labels.  [default: predictions.csv in the folder of maps, if it exists]",
)
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/submitted"),
    show_default=True,
    help="Folder for submissions.",
)
def command(
    record: Path | None,
    metadata: Path | None,
    template: bool,
    maps: Path | None,
    predictions: Path | None,
    out: Path,
    **fields: str | None,
) -> None:
    """Make a submission of RECORD and its per-image scores, after the checks of `verify-submission`.

    An older submission of the same method and authors on the same data and protocol is replaced.
    """
    from wsolbench.evaluation.submissions import write_submission
    from wsolbench.maps.predictions import PREDICTIONS

    if template:
        click.echo(TEMPLATE, nl=False)
        return
    if record is None:
        raise UsageError("no record is named; expected the JSON file that `wsolbench score` or `eval` wrote")
    if predictions is None and maps is not None and (maps / PREDICTIONS).is_file():
        predictions = maps / PREDICTIONS
    values = _read_metadata(record, metadata, fields)
    written = write_submission(record, values, out, maps=maps, predictions=predictions)
    for old in written.replaced:
        click.echo(f"replaced {old}")
    click.echo(f"wrote    {written.path}")
    results = out.parent
    if out.name == "submitted":
        click.echo(
            f"next     wsolbench leaderboard --results {results}; then commit {results}, for a pull request"
        )
    if record.resolve().is_relative_to((results / "measured").resolve()):
        click.echo(
            f"note     {record} is where the leaderboard finds runs of this project; move it, with its "
            f"scores, out of {results}, and do not commit it",
            err=True,
        )
    if written.submission.digests["maps"] is None or values.maps_url is None:
        click.echo(
            "note     without --maps and --maps-url nobody can score the maps again, and the badge stays "
            "`reported`",
            err=True,
        )


def _read_metadata(record: Path, path: Path | None, fields: dict[str, str | None]) -> Any:
    """Return the metadata of file and options. Raises `UsageError` with every fault."""
    from wsolbench.records import read_record
    from wsolbench.records.submission import parse_metadata
    from wsolbench.system.stored import read_toml

    values: dict[str, Any] = {} if path is None else read_toml(path, "file of metadata")
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if "authors" in given:
        given["authors"] = [name.strip() for name in given["authors"].split(",")]
    values = {name: value for name, value in {**values, **given}.items() if value not in ("", [])}
    if "backbone" not in values:
        values["backbone"] = read_record(record).method.get("backbone")
    metadata, faults = parse_metadata(values)
    if metadata is None:
        options = [f"--{name.replace('_', '-')}" for name in given]
        where = "" if path is None else f" in {', '.join([str(path), *options])}"
        raise (UsageError if path is None else DataError)(
            f"invalid metadata{where}: {'; '.join(faults)}. `wsolbench submit --template` prints all fields"
        )
    return metadata
