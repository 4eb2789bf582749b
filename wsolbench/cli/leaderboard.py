"""`wsolbench leaderboard`: tables of all records."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(epilog="Example:  wsolbench leaderboard --results results --check")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder that holds measured/, the records.",
)
@click.option("--check", is_flag=True, help="Write nothing; list the files that differ from the records and exit with 1.")
def command(results: Path, check: bool) -> None:
    """Make Markdown and CSV tables of all records, below RESULTS/leaderboard."""
    from wsolbench.report.leaderboard import check_leaderboard, write_leaderboard

    if not check:
        for path in write_leaderboard(results):
            click.echo(path)
        return
    differences = check_leaderboard(results)
    for difference in differences:
        click.echo(difference)
    if differences:
        click.echo(f"The board differs from the records: run `wsolbench leaderboard --results {results}`.", err=True)
        raise click.exceptions.Exit(1)
    click.echo("The board is up to date.")
