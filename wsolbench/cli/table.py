"""`wsolbench table`: one table of methods and metrics from records, for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.scoring import resamples_option

if TYPE_CHECKING:
    from wsolbench.report.board.repetitions import Run


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench table results/measured/cub --method cam,spa --metrics "
    "top1_loc,gt_known,max_box_acc_v2 --format latex --out table.tex\n\n"
    "Next to published rows:  wsolbench table results/measured/cub --method cam,spa --metrics "
    "top1_loc,gt_known --published spa --spread sd\n\n"
    "Rows come in the order of --method, or else of RECORDS. CSV and JSON hold the numbers of each "
    "metric in the unit of records, mostly fractions: mean, ends of the interval, standard deviation, number "
    "of runs and of images, whether it is the best, and whether it ties with the best.",
)
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "Data",
    "--metrics",
    default="",
    metavar="NAME,...",
    help="Columns (see `wsolbench list metrics`).  [default: those of the leaderboard that the records have]",
)
@option("Data", "--method", "methods", default="", metavar="NAME,...", help="Only these methods.")
@option("Data", "--dataset", help="Only records of this data set.")
@option("Data", "--split", help="Only records of this split.")
@option("Protocol", "--protocol", help="Only records of this protocol.")
@option(
    "Protocol",
    "--policy",
    help="Threshold policy: oracle, transfer or fixed:T.  [default: oracle, or the only one that all records "
    "have]",
)
@resamples_option(help="Bootstrap resamples of the paired tests. The intervals are those of the records.")
@option(
    "Output",
    "--format",
    "kind",
    type=click.Choice(["markdown", "csv", "latex", "json"]),
    default="markdown",
    show_default=True,
    help="Format of the table. LaTeX needs the package booktabs.",
)
@option(
    "Output",
    "--spread",
    type=click.Choice(["interval", "sd", "none"]),
    default="interval",
    show_default=True,
    help="What follows a mean: its interval over images, the standard deviation over seeds, or nothing.",
)
@option(
    "Output",
    "--published",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Add the rows that this paper prints, in a section of their own; can be repeated.",
)
@option(
    "Output",
    "--ties/--no-ties",
    default=True,
    show_default=True,
    help="Test each row against the best one where both have per-image scores, and mark ties.",
)
@option("Output", "--out", type=click.Path(path_type=Path, dir_okay=False), help="File for the table.")
def command(
    records: tuple[Path, ...],
    metrics: str,
    kind: str,
    sources: tuple[str, ...],
    out: Path | None,
    policy: str | None,
    spread: Any,
    ties: bool,
    resamples: int,
    methods: str,
    **filters: str | None,
) -> None:
    """Print one table of methods and metrics from RECORDS, which are files and folders.

    A row is a method with the settings that set it apart from the others. Seeds are pooled to their mean. The
    best value of a column is bold. Records of different data, protocols or threshold policies are refused.
    """
    from wsolbench.cli._records import read_runs
    from wsolbench.records.published import LITERATURE, PAPERS, read_papers, read_published
    from wsolbench.report.board.board import Numbers
    from wsolbench.report.board.formats import render
    from wsolbench.report.board.method_table import method_table
    from wsolbench.system.files import write_text

    runs = _select(read_runs(records), methods.split(",") if methods else [], **filters)
    published = None
    if sources:
        published = Numbers(numbers=read_published(LITERATURE), papers=read_papers(LITERATURE / PAPERS))
    made = method_table(
        runs,
        metrics=metrics.split(",") if metrics else (),
        policy=policy,
        spread=spread,
        published=published,
        sources=sources,
        ties=ties,
        resamples=resamples,
    )
    for message in made.messages:
        click.echo(message, err=True)
    text = render([made.table], kind)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text(out, text)
        click.echo(out)


def _select(runs: Sequence[Run], methods: Sequence[str], **filters: str | None) -> list[Run]:
    """Return the runs that pass the filters, in the order of `methods` if it names any.

    Raises `UsageError` for a filter that no run passes.
    """
    from wsolbench.exceptions import unknown_name

    found = list(runs)
    wanted = {name: [value] for name, value in filters.items() if value is not None}
    for what, names in {**wanted, "method": list(methods)}.items():
        there = {_READ[what](run) for run in found}
        for name in names:
            if name not in there:
                raise unknown_name(f"{what} of these records", name, there)
        found = [run for run in found if not names or _READ[what](run) in names]
    return sorted(found, key=lambda run: methods.index(_READ["method"](run))) if methods else found


_READ: dict[str, Callable[[Run], str]] = {
    "dataset": lambda run: str(run.record.dataset["name"]),
    "split": lambda run: str(run.record.dataset["split"]),
    "protocol": lambda run: run.record.protocol.name,
    "method": lambda run: str(run.record.method["name"]),
}
"""What the filters look at."""
