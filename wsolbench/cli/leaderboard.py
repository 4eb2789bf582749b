"""`wsolbench leaderboard`: tables of all records, next to published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import results_option

if TYPE_CHECKING:
    from wsolbench.report.board.results import Results


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench leaderboard --results results --check\n\n"
    "A table for a paper:  wsolbench leaderboard --dataset cub --metric top1_loc --format latex --out "
    "cub.tex",
)
@results_option
@option(
    "Output",
    "--check",
    is_flag=True,
    help="Write nothing. List broken records and files that are out of date; exit with 1 if there are any.",
)
@option(
    "Output",
    "--format",
    "kind",
    type=click.Choice(["markdown", "csv", "latex", "json"]),
    help="Print the tables in this format instead of writing them.",
)
@option("Data", "--dataset", help="Only tables of this data set.")
@option("Data", "--metric", help="Only this metric (see `wsolbench list metrics`).")
@option("Data", "--method", help="Only this method.")
@option("Data", "--backbone", help="Only this backbone.")
@option("Data", "--since", type=int, metavar="YEAR", help="Only papers and runs since this year.")
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the tables that --format or a filter selects.",
)
def command(results: Path, check: bool, kind: str | None, out: Path | None, **filters: Any) -> None:
    """Write tables of all records and published numbers to RESULTS/leaderboard.

    With --format or a filter, print the selected tables instead.

    The published numbers come with wsolbench. A RESULTS folder with its own papers.toml replaces them.
    """
    from wsolbench.exceptions import UsageError
    from wsolbench.report.board.leaderboard import check_leaderboard, write_leaderboard

    if kind is not None or out is not None or any(value is not None for value in filters.values()):
        if check:
            raise UsageError("--check checks the whole leaderboard; leave out --format, --out and filters")
        _print(results, kind or "markdown", out, filters)
        return
    read = _read(results)
    if not check:
        for path in write_leaderboard(results, read):
            click.echo(path)
        return
    differences = check_leaderboard(results, read)
    for difference in differences:
        click.echo(difference)
    if differences:
        click.echo(
            f"The leaderboard differs from the records: run `wsolbench leaderboard --results {results}`.",
            err=True,
        )
    if read.problems:
        count = len(read.problems)
        click.echo(
            f"The leaderboard lacks {count} broken file{'s' if count > 1 else ''} of {results}; expected "
            "none. Repair or remove:",
            err=True,
        )
        for problem in read.problems:
            click.echo(f"  {problem}", err=True)
    if differences or read.problems:
        raise click.exceptions.Exit(1)
    click.echo("The leaderboard is up to date.")


def _read(results: Path) -> Results:
    """Read records and published numbers, and name the skipped files on standard error."""
    from wsolbench.cli._results import read_with_literature

    read = read_with_literature(results)
    for message in (*read.problems, *read.notes):
        click.echo(f"left out: {message}", err=True)
    return read


def _print(results: Path, kind: str, out: Path | None, filters: dict[str, Any]) -> None:
    from wsolbench.exceptions import UsageError
    from wsolbench.metrics.catalog import metric_info
    from wsolbench.report.board.board import Filters
    from wsolbench.report.board.formats import render
    from wsolbench.report.board.leaderboard import board_tables
    from wsolbench.system.files import write_text

    if filters["metric"] is not None:
        metric_info(filters["metric"])
    read = _read(results)
    tables = board_tables(results, Filters(**filters), read)
    if not tables:
        selected = ", ".join(f"--{name} {value}" for name, value in filters.items() if value is not None)
        raise UsageError(
            f"no table of the leaderboard matches {selected or 'no filter'}; `wsolbench leaderboard` writes "
            "all of them"
        )
    text = render(tables, kind)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text(out, text)
        click.echo(out)
