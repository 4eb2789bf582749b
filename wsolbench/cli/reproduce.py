"""`wsolbench reproduce`: run a plan, and update the tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import results_option, say
from wsolbench.cli.values import Device

if TYPE_CHECKING:
    from wsolbench.evaluation.jobs import Outcome
    from wsolbench.evaluation.runs import Shard
    from wsolbench.records import RunRecord
    from wsolbench.records.plans import Job, Plan

TABLES_SECONDS = 3600.0
"""How long to wait for another process that updates the tables of the same results."""


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench reproduce results/plans/cub50.toml --dry-run\n\n"
    "Two jobs at a time, for three hours:  wsolbench reproduce results/plans/cub50.toml --parallel 2 "
    "--max-hours 3\n\n"
    "A shard on each machine of a cluster:  wsolbench reproduce results/plans/cub50.toml --shard 1/8\n\n"
    "Data sets are found by WSOLBENCH_<NAME>_ROOT or WSOLBENCH_DATA.",
)
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@option(
    "Data",
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Run only jobs whose name matches (`spa*`, `*/0` for seed 0), and the jobs they start from. "
    "May be repeated.",
)
@option(
    "Execution",
    "--shard",
    metavar="I/N",
    help="Run only shard I of N. Jobs that start from each other stay together.  [default: the task of a "
    "SLURM array, else all jobs]",
)
@option("Execution", "--dry-run", is_flag=True, help="Print a table of the jobs, without running them.")
@option(
    "Execution",
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after this many hours. The next call resumes.",
)
@option(
    "Execution",
    "--parallel",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Jobs at a time. They share the cores.",
)
@option(
    "Execution",
    "--workers",
    type=click.IntRange(0, 256),
    default=2,
    show_default=True,
    help="Threads per job that read images.",
)
@option(
    "Execution",
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    help="Device to use: auto, cpu, cuda or cuda:N.",
)
@option(
    "Execution",
    "--compile",
    is_flag=True,
    help="Compile the networks of jobs that train with torch.compile. Pays off in longer trainings; changes "
    "the last bits of the results.",
)
@results_option
@option(
    "Output",
    "--tables/--no-tables",
    default=True,
    show_default=True,
    help="Update comparisons of claims, leaderboard and report page afterwards.",
)
def command(
    plan: Path, only: tuple[str, ...], shard: str | None, dry_run: bool, results: Path, **how: Any
) -> None:
    """Run what PLAN lists and has no record yet.

    An interrupted job resumes where it was. A job that fails does not stop the others; the last line of its
    log is printed at the end. Several processes can run one plan: each job is run once.
    """
    from wsolbench.cli._jobs import check_jobs, checkpoint_of
    from wsolbench.evaluation.jobs import run_jobs
    from wsolbench.evaluation.runs import Shard
    from wsolbench.records.plans import read_plan

    # Read the plan, and check its commands before the first hour is spent.
    part = _slurm_shard() if shard is None else Shard.parse(shard)
    read = read_plan(plan, checkpoint_of)
    jobs = read.choose(only, (part.index, part.count))
    check_jobs(read, jobs)
    records_of = _finder(jobs, results / "measured")
    found = records_of()
    if dry_run:
        _print_jobs(read, jobs, found)
        return

    # Run the jobs, and update the tables.
    def find_done() -> set[str]:
        found = records_of()
        return {job.name for job in jobs if found[job.name] >= job.records}

    tables = how.pop("tables")
    outcome = run_jobs(jobs, find_done, out=results / "measured", logs=Path("runs/plans") / plan.stem, **how)
    if tables and any(records_of().values()):
        _update_tables(results)
    _print_outcome(outcome)
    if outcome.failed:
        raise click.exceptions.Exit(2)


def _slurm_shard() -> Shard:
    """The shard of this task of a SLURM array, or the whole plan outside of an array."""
    from wsolbench.evaluation.runs import Shard
    from wsolbench.exceptions import UsageError

    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
    if names[0] not in os.environ:
        return Shard()
    try:
        task, first, step, count = (int(os.environ[name]) for name in names)
        part = Shard.parse(f"{(task - first) // step + 1}/{count}")
    except (KeyError, ValueError, ZeroDivisionError, UsageError) as error:
        raise UsageError(
            f"cannot read the task of a SLURM array from {', '.join(names)} ({error}); name the shard with "
            "--shard I/N, or --shard 1/1 for all jobs"
        ) from error
    say(f"shard    {part.index}/{part.count} of the plan, task {task} of the SLURM array")
    return part


def _finder(jobs: Sequence[Job], folder: Path) -> Callable[[], dict[str, int]]:
    """Return a function that counts the records of each job by its name. It reads each file once."""
    from wsolbench.exceptions import DataError
    from wsolbench.records import read_record
    from wsolbench.records.plans import find_done
    from wsolbench.system.listing import find_files

    known: dict[Path, RunRecord | None] = {}

    def count() -> dict[str, int]:
        for path in find_files(folder, ".json") if folder.is_dir() else ():
            if path not in known:
                try:
                    known[path] = read_record(path)
                except DataError:  # `leaderboard` names broken records
                    known[path] = None
        records = [(path, record) for path, record in known.items() if record is not None and path.is_file()]
        return {name: len(paths) for name, paths in find_done(jobs, records).items()}

    return count


def _print_jobs(plan: Plan, jobs: Sequence[Job], found: Mapping[str, int]) -> None:
    """Print one row per job, and the sum of what is left."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    hours, gpu_hours = any(job.hours for job in jobs), any(job.gpu_hours for job in jobs)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("job", "after", "state", *["hours"] * hours, *["GPU hours"] * gpu_hours, "published"):
        table.add_column(name, no_wrap=name == "job", justify="right" if "hours" in name else "left")
    for job in jobs:
        table.add_row(
            job.name,
            ", ".join(job.needs),
            _state(job, found[job.name]),
            *[f"{job.hours:g}" if job.hours else ""] * hours,
            *[f"{job.gpu_hours:g}" if job.gpu_hours else ""] * gpu_hours,
            job.published,
        )
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, 160)  # for files and pipes
    console.print(table)
    left = [job for job in jobs if found[job.name] < job.records]
    click.echo(f"{plan.title}: {len(left)} of {len(jobs)} jobs to run, {len(jobs) - len(left)} done")
    sums = [
        *([f"{sum(job.hours for job in left):.1f} hours of two cores"] if hours else []),
        *([f"{sum(job.gpu_hours for job in left):.1f} hours of one GPU"] if gpu_hours else []),
    ]
    if sums:
        click.echo(f"expected: {', or '.join(sums)}")


def _state(job: Job, found: int) -> str:
    if found >= job.records:
        return "done"
    return f"{found} of {job.records} records" if found else "left"


def _print_outcome(outcome: Outcome) -> None:
    left: Collection[str] = (*outcome.left, *outcome.elsewhere)
    click.echo(f"done     {len(outcome.finished)} jobs, {len(left)} left")
    if outcome.elsewhere:
        click.echo(f"running  in another process, or after such a job: {', '.join(outcome.elsewhere)}")
    for name, failure in outcome.failed.items():
        click.echo(f"failed   {name}: {failure.reason}\n         log: {failure.log}", err=True)
    for name, reason in outcome.skipped.items():
        click.echo(f"skipped  {name}: {reason}", err=True)


def _update_tables(results: Path) -> None:
    """Update comparisons of claims, leaderboard and report page as the commands for them do.

    One process at a time; the last one has all records.
    """
    from wsolbench.cli import compare
    from wsolbench.cli._results import read_with_literature
    from wsolbench.exceptions import UsageError, WsolbenchError
    from wsolbench.records.published import literature_for
    from wsolbench.report.board.leaderboard import write_leaderboard
    from wsolbench.report.page.page import write_page
    from wsolbench.report.page.training import default_runs
    from wsolbench.system.files import hold_lock

    lock = hold_lock(results / ".lock-tables", patience=TABLES_SECONDS)
    if lock is None:
        raise UsageError(
            f"another process has been updating the tables of {results} for an hour; run `wsolbench "
            f"leaderboard --results {results}` and `wsolbench report --results {results}` later"
        )
    try:
        claims = literature_for(results) / "claims.csv"
        if claims.is_file():
            try:
                click.get_current_context().invoke(
                    compare.command, claims=claims, records=results / "measured", out=results / "compared"
                )
            except WsolbenchError as error:  # for instance no pair yet; the tables are still useful
                say(f"claims   not compared: {error}")
        read = read_with_literature(results)
        for message in (*read.problems, *read.notes):
            say(f"left out: {message}")
        files = write_leaderboard(results, read)
        page, _ = write_page(results, Path("report"), read=read, run_folders=default_runs())
        click.echo(f"tables   {len(files)} files in {results / 'leaderboard'}\npage     {page}")
    finally:
        lock.release()
