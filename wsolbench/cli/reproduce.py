"""`wsolbench reproduce`: run a plan, and update the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import results_option
from wsolbench.cli.values import Device

if TYPE_CHECKING:
    from wsolbench.evaluation.jobs import Outcome
    from wsolbench.records.plans import Job, Plan


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench reproduce results/plans/cub50.toml --dry-run\n\n"
    "Two jobs at a time, for three hours:  wsolbench reproduce results/plans/cub50.toml --parallel 2 "
    "--max-hours 3\n\n"
    "A part on each machine of a cluster:  wsolbench reproduce results/plans/cub.toml --shard "
    "$SLURM_ARRAY_TASK_ID/8\n\n"
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
    default="1/1",
    show_default=True,
    metavar="I/N",
    help="Run only every N-th chain of jobs.",
)
@option("Execution", "--dry-run", is_flag=True, help="Print the jobs that are left, without running them.")
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
@results_option
@option(
    "Output",
    "--tables/--no-tables",
    default=True,
    show_default=True,
    help="Update comparisons, leaderboard and report page afterwards.",
)
def command(plan: Path, only: tuple[str, ...], shard: str, dry_run: bool, results: Path, **how: Any) -> None:
    """Run what PLAN lists and has no record yet.

    An interrupted job resumes where it was. A job that fails does not stop the others; its log is named at
    the end.
    """
    from wsolbench.cli._models import default_backbone, default_run
    from wsolbench.evaluation.jobs import run_jobs
    from wsolbench.evaluation.runs import Shard
    from wsolbench.records import find_records
    from wsolbench.records.plans import find_done, read_plan

    def checkpoint_of(options: Mapping[str, Any]) -> Path:
        settings = tuple(f"{name}={value}" for name, value in options.get("set", {}).items())
        model = {
            name: options.get(name.replace("_", "-")) for name in ("weights", "epochs", "image_size", "lr")
        }
        model |= {"method": options["method"], "seed": options["seed"], "settings": settings}
        backbone = default_backbone(options["dataset"], options.get("backbone"))
        return default_run(options["dataset"], backbone, model) / "last.safetensors"

    part = Shard.parse(shard)
    read = read_plan(plan, checkpoint_of)
    jobs = read.choose(only, (part.index, part.count))
    measured = results / "measured"
    found = find_done(jobs, find_records(measured).records) if measured.is_dir() else {}
    done = {job.name for job in jobs if len(found.get(job.name, ())) >= job.records}
    if dry_run:
        _print_jobs(read, jobs, done)
        return
    outcome = run_jobs(jobs, done, out=measured, logs=Path("runs/plans") / plan.stem, **_options_of(how))
    _print_outcome(outcome)
    if outcome.finished and how["tables"]:
        _update_tables(results)
    if outcome.failed:
        raise click.exceptions.Exit(1)


def _options_of(how: Mapping[str, Any]) -> dict[str, Any]:
    return {name: how[name] for name in ("max_hours", "parallel", "workers", "device")}


def _print_jobs(plan: Plan, jobs: Sequence[Job], done: set[str]) -> None:
    """Print one line per job that is left, and the sum."""
    left = [job for job in jobs if job.name not in done]
    for job in left:
        about = f"{job.hours:5.2f} h  " if job.hours else ""
        goal = f"  # published: {job.published}" if job.published else ""
        click.echo(f"{about}{job.command}{goal}")
    hours = sum(job.hours for job in left)
    gpu_hours = sum(job.gpu_hours for job in left)
    click.echo(f"{plan.title}: {len(left)} of {len(jobs)} jobs to run, {len(done)} done")
    if hours or gpu_hours:
        click.echo(f"expected: {hours:.1f} hours of two cores, {gpu_hours:.1f} hours of one GPU")


def _print_outcome(outcome: Outcome) -> None:
    click.echo(f"done     {len(outcome.finished)} jobs, {len(outcome.left)} left")
    for name, log in outcome.failed.items():
        click.echo(f"failed   {name}: see {log}", err=True)
    for name, reason in outcome.skipped.items():
        click.echo(f"skipped  {name}: {reason}", err=True)


def _update_tables(results: Path) -> None:
    """Update comparisons of claims, leaderboard and report page with the commands that make them."""
    from wsolbench.cli import compare, leaderboard
    from wsolbench.exceptions import WsolbenchError
    from wsolbench.report.page.page import write_page

    context = click.get_current_context()
    claims, measured = results / "claims.csv", results / "measured"
    if claims.is_file():
        try:
            context.invoke(compare.command, claims=claims, records=measured, out=results / "compared")
        except WsolbenchError as error:  # for instance no pair yet; the tables are still useful
            click.echo(f"claims   not compared: {error}", err=True)
    context.invoke(leaderboard.command, results=results)
    page, _ = write_page(results, Path("report"))  # the leaderboard has named the skipped files
    click.echo(page)
