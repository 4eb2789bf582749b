"""`wsolbench verify-submission`: check results from outside before they enter the leaderboard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import DataOptions, workers_option
from wsolbench.exceptions import UsageError, WsolbenchError

if TYPE_CHECKING:
    from wsolbench.evaluation.submissions import Checked
    from wsolbench.records.submission import Submission

INVALID = 2
"""Exit code if a submission has a fault."""


@dataclass
class _Found:
    """Files to check, and faults of what is no submission."""

    paths: list[Path] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@click.command(
    cls=GroupedCommand,
    epilog="Examples:  wsolbench verify-submission results/submitted\n\n"
    "Score the maps again:  wsolbench verify-submission results/submitted/cub/mine-0a1b.json --maps my_maps/ "
    "--data-root /data/CUB_200_2011 --rescore",
)
@click.argument("submissions", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "Data",
    "--badges",
    type=click.Path(path_type=Path),
    help="File of badges of the maintainers.  [default: badges.json above the folder of the data set]",
)
@option(
    "Data",
    "--maps",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of maps to score again and to compare; only for one submission.",
)
@option(
    "Data",
    "--predictions",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of predicted labels.  [default: predictions.csv in the folder of maps, if it exists]",
)
@option("Data", "--data-root", type=click.Path(path_type=Path), help="Folder of the data set, for --maps.")
@option(
    "Data",
    "--metadata-root",
    type=click.Path(path_type=Path),
    help="Folder of wsolevaluation text files, for data sets that use them.",
)
@option(
    "Protocol", "--crop-maps", is_flag=True, help="Cut maps of the whole image to their centre, as `score`."
)
@option(
    "Output",
    "--rescore",
    is_flag=True,
    help="Give the badge `re-scored here` if the maps give the same numbers. For maintainers.",
)
@workers_option
def command(
    submissions: tuple[Path, ...],
    badges: Path | None,
    maps: Path | None,
    predictions: Path | None,
    data_root: Path | None,
    metadata_root: Path | None,
    crop_maps: bool,
    rescore: bool,
    workers: int,
) -> None:
    """Check submissions: files, or folders of them. Prints one line for each.

    The exit code is 0 if all are valid, and 2 otherwise, with every fault. A path that ends in .outcomes.npz
    stands for its submission.
    """
    from wsolbench.evaluation.submissions import check_submission, set_badge
    from wsolbench.records.submission import BADGES, REPORTED, RESCORED, read_badges

    found = _find(submissions)
    if rescore and maps is None:
        raise UsageError("--rescore needs the maps; name their folder with --maps")
    if maps is not None and len(found.paths) != 1:
        raise UsageError(f"--maps belongs to one submission, found {len(found.paths)}; name its file")
    count = len(found.faults)
    for fault in found.faults:
        click.echo(f"invalid  {_plain(fault)}", err=True)
    for path in found.paths:
        badges_path = badges or path.absolute().parent.parent / BADGES
        given = read_badges(badges_path)
        checked = check_submission(path, given)
        faults = list(checked.faults)
        if maps is not None and checked.submission is not None and not faults:
            data = DataOptions(
                dataset=str(checked.submission.record.dataset["name"]),
                data_root=data_root,
                metadata_root=metadata_root,
            )
            faults += _rescore(checked, checked.submission, data, maps, predictions, crop_maps, workers)
        for fault in faults:
            click.echo(f"invalid  {_plain(f'{path}: {fault}')}", err=True)
        count += len(faults)
        if faults or checked.submission is None:
            continue
        if rescore:
            set_badge(path, checked.submission, badges_path, RESCORED)
            given = {checked.submission.id: RESCORED}
        _print_valid(
            checked.submission, given.get(checked.submission.id, REPORTED), compared=maps is not None
        )
    if count:
        raise click.exceptions.Exit(INVALID)


def _plain(text: str) -> str:
    """Return text in one line without control characters, which a file's name may have."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _print_valid(submission: Submission, badge: str, *, compared: bool) -> None:
    from wsolbench.datasets.official import official_split

    record = submission.record
    data = f"{record.dataset['name']}/{record.dataset['split']}"
    official = official_split(str(record.dataset["name"]), str(record.dataset["split"]))
    known = compared or (official is not None and bool(official.fingerprint))
    note = "" if known else "; the annotations were not compared, because no official fingerprint is known"
    click.echo(f"valid    {submission.id}  {data}  {record.protocol.name}  {badge}{note}")


def _find(given: Sequence[Path]) -> _Found:
    """Return the submissions that paths name. Other files in a folder are faults."""
    found = _Found()
    for path in given:
        if path.is_dir() and not path.is_symlink():
            _find_below(path, found)
        else:
            _add(path, found)
    found.paths = sorted(set(found.paths))
    if not found.paths and not found.faults:
        click.echo("There is no submission.")
    return found


def _find_below(folder: Path, found: _Found) -> None:
    for top, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            path = Path(top, name)
            if path.is_symlink():
                found.faults.append(f"{path} is a symbolic link; expected a plain file or folder")
            elif name in names:
                _add(path, found)


def _add(path: Path, found: _Found) -> None:
    from wsolbench.datasets import list_datasets
    from wsolbench.records.submission import BADGES, OUTCOMES, README

    # The maintainers' files are above the folders of data sets.
    if path.name in (BADGES, README) and path.absolute().parent.name not in {i.name for i in list_datasets()}:
        return
    if path.name.endswith(OUTCOMES):
        path = path.with_name(f"{path.name.removesuffix(OUTCOMES)}.json")
        if not path.exists() and not path.is_symlink():
            found.faults.append(f"{path} does not exist, but its per-image scores do; expected both files")
            return
    if path.suffix != ".json":
        found.faults.append(f"{path} is no file of a submission; expected .json and {OUTCOMES}")
    else:
        found.paths.append(path)


def _rescore(
    checked: Checked,
    submission: Submission,
    data: DataOptions,
    maps: Path,
    predictions: Path | None,
    crop_maps: bool,
    workers: int,
) -> list[str]:
    """Score the maps again, and return how they, and what they give, differ from a submission."""
    from wsolbench.cli.score import read_labels
    from wsolbench.evaluation.rescoring import rescore
    from wsolbench.maps import MapFolder
    from wsolbench.maps.predictions import PREDICTIONS

    record = submission.record
    try:
        dataset = data.open(str(record.dataset["split"]), "keep")
        val = None if record.dataset.get("transfer_from") is None else data.open_val("keep")
        ids = [*dataset.ids, *(() if val is None else val.ids)]
        ranked = read_labels(MapFolder(maps), predictions, len(dataset.class_names), ids)
        file = predictions or maps / PREDICTIONS
        return rescore(
            checked.path,
            submission,
            dataset,
            maps,
            predictions=file if file.is_file() else None,
            ranked=ranked,
            val=val,
            crop=crop_maps,
            workers=workers,
        )
    except WsolbenchError as error:
        return [str(error)]
