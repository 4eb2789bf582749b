"""`wsolbench verify`: check whether the data set on this disk is complete and valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import DataOptions, data_options
from wsolbench.exceptions import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from wsolbench.datasets.verify import DatasetReport, SplitReport

SHOWN = 10
SHOWN_FOLDERS = 20


@click.command(
    cls=GroupedCommand, epilog="Example:  wsolbench verify --dataset cub --data-root /data/CUB_200_2011"
)
@data_options
@option(
    "Data", "--split", "splits", multiple=True, help="Split to check; can be repeated.  [default: all splits]"
)
@option("Execution", "--deep", is_flag=True, help="Also decode every image and mask.")
@option(
    "Output",
    "--list-missing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File for the names of all missing and unreadable files, one per line.",
)
@option(
    "Output",
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for one contact sheet per split: images with their boxes and masks.",
)
def command(
    *,
    data: DataOptions,
    splits: tuple[str, ...],
    deep: bool,
    list_missing: Path | None,
    pictures: Path | None,
) -> int:
    """Count and check the files of a data set.

    The exit code is 1 if something is missing or broken, otherwise 0. A known subset counts as complete.
    """
    from rich.console import Console

    from wsolbench.datasets.verify import verify_dataset
    from wsolbench.system.files import check_writable, make_folder, write_text
    from wsolbench.system.progress import track

    if list_missing is not None:
        check_writable(list_missing)
    if pictures is not None:
        make_folder(pictures)
    report = verify_dataset(
        data.dataset,
        data.data_root,
        splits=splits or None,
        deep=deep,
        around=lambda images, split, count: track(images, f"reading {split}", total=count),
        **data.extra,
    )
    if not report.splits:
        raise UsageError(
            f"{report.root or data.data_root} has no split of {data.dataset!r} that can be checked; expected "
            f"{report.info.root_holds}. Give the right folder with --data-root, and a folder of "
            "wsolevaluation text files with --metadata-root"
        )
    console = Console(soft_wrap=True, highlight=False)
    _print_counts(console, report)
    _print_findings(console, report)
    _print_missing(console, report, list_missing)
    if list_missing is not None:
        write_text(
            list_missing,
            "".join(f"{name}\n" for name in (*report.missing_names(), *report.unreadable_names())),
        )
    for path in [] if pictures is None else _draw(pictures, data, report):
        console.print(f"picture  {path}", markup=False)
    console.print(_verdict(report), markup=False)
    return 0 if report.sound else 1


def _draw(folder: Path, data: DataOptions, report: DatasetReport) -> Iterator[Path]:
    """Write a contact sheet for each split that can be loaded and has images."""
    from wsolbench.datasets.verify import load_split
    from wsolbench.report.pictures.data_sheet import write_data_sheet

    for split in report.splits:
        if split.failure is None and split.usable:
            yield write_data_sheet(folder, load_split(data.dataset, split.split, data.data_root, data.extra))


def _print_counts(console: Console, report: DatasetReport) -> None:
    from rich import box
    from rich.table import Table

    console.print(
        f"{report.info.name}: {report.info.summary}\nroot: {report.root or 'none'}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for split in report.splits:
        table.add_column(split.split, justify="right", no_wrap=True)
    rows: dict[str, Callable[[SplitReport], str]] = {
        "images": lambda split: f"{split.images:,}",
        "usable": lambda split: f"{split.usable:,}",
        "classes": lambda split: f"{split.classes_used:,} of {split.classes:,}",
        "boxes": lambda split: f"{split.boxes:,}",
        "masks": lambda split: f"{split.masks:,}",
        "visible key points": lambda split: f"{split.key_points:,}",
        "fingerprint": lambda split: split.fingerprint,
    }
    for name, cell in rows.items():
        table.add_row(name, *("-" if split.failure else cell(split) for split in report.splits))
    console.print(table)


def _print_findings(console: Console, report: DatasetReport) -> None:
    for split in report.splits:
        if split.failure:
            console.print(f"error    {split.split}: {split.failure}", markup=False)
        for finding in split.findings:
            console.print(
                f"{finding.severity:8} {split.split}: {finding.count:,} {finding.what}; for instance "
                f"{finding.example}",
                markup=False,
            )
    for finding in report.findings:
        console.print(
            f"{finding.severity:8} {finding.count:,} {finding.what}; for instance {finding.example}",
            markup=False,
        )


def _print_missing(console: Console, report: DatasetReport, listed: Path | None) -> None:
    names = report.missing_names()
    if names:
        console.print(f"missing  {len(names):,} files:", markup=False)
        folders = list(report.missing_by_folder().items())
        for folder, count in folders[:SHOWN_FOLDERS]:
            console.print(f"         {count:>6,} in {folder}", markup=False)
        if len(folders) > SHOWN_FOLDERS:
            console.print(f"         and in {len(folders) - SHOWN_FOLDERS:,} more folders", markup=False)
        _print_names(console, names, listed)
    unreadable = report.unreadable_names()
    if unreadable:
        console.print(f"broken   {len(unreadable):,} files that cannot be read:", markup=False)
        _print_names(console, unreadable, listed)


def _print_names(console: Console, names: list[str], listed: Path | None) -> None:
    for name in names[:SHOWN]:
        console.print(f"         {name}", markup=False)
    if len(names) > SHOWN:
        rest = f"all are in {listed}" if listed else "--list-missing FILE writes them all"
        console.print(f"         and {len(names) - SHOWN:,} more; {rest}", markup=False)


def _verdict(report: DatasetReport) -> str:
    sound = "sound" if report.sound else "not sound: see the errors and missing files above"
    usable = sum(split.usable for split in report.splits)
    lacking = f"; {report.images - usable:,} of them cannot be used" if usable < report.images else ""
    if report.expected is None:
        return f"{report.images:,} images{lacking}; {sound}"
    if report.images < report.expected:
        return f"this is a subset: {report.images:,} of {report.expected:,} images{lacking}; {sound}"
    if report.images > report.expected:
        return f"{report.images:,} images, where the data set has {report.expected:,}{lacking}; {sound}"
    return f"all {report.expected:,} images are annotated{lacking}; {sound}"
