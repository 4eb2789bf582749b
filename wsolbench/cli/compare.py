"""`wsolbench compare`: the difference of two methods on the same images, with intervals and p-values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.scoring import resamples_option

if TYPE_CHECKING:
    from wsolbench.records import RunRecord
    from wsolbench.records.comparison import Comparison

RECORDS = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench compare results/measured/cub/cam_1.json results/measured/cub/spa_1.json\n\n"
    "All seeds of two methods:  wsolbench compare cam spa --records results/measured/cub\n\n"
    "A name with several groups of runs needs more:  wsolbench compare 'spa backbone=resnet50' 'spa "
    "backbone=vgg16' --records results/measured --allow-unequal-budget\n\n"
    "A folder stands for its records, which may differ only in their seed. --a and --b can be repeated "
    "instead, to group any runs. Each record needs its per-image scores, which `eval` and `score` store next "
    "to it.\n\n"
    "All claims of papers for which there are records:\n\n"
    "          wsolbench compare --claims wsolbench/literature/claims.csv --records results/measured "
    "--out results/compared\n\n"
    "Comparisons that exist in --out are kept, whatever their --resamples. Those with fewer seeds than there "
    "are now are replaced.",
)
@click.argument("sides", nargs=-1, metavar="[A B]")
@option("Data", "--a", "group_a", multiple=True, type=RECORDS, help="Record of group A; can be repeated.")
@option("Data", "--b", "group_b", multiple=True, type=RECORDS, help="Record of group B; can be repeated.")
@option(
    "Data",
    "--claims",
    type=RECORDS,
    help="File of claims; each is compared, in place of A and B.",
)
@option(
    "Data",
    "--records",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of records for --claims, and for A or B that is the name of a method.",
)
@option(
    "Data",
    "--metrics",
    default="",
    metavar="NAME,...",
    help="Compare only these metrics, which makes the family of tests smaller (see "
    "`wsolbench list metrics`). "
    "Not with --out, which stores all.",
)
@resamples_option()
@option(
    "Execution",
    "--allow-unequal-budget",
    is_flag=True,
    help="Compare A and B although training images seen, image size, backbone or init differ, and state "
    "it. Claims have a column for it.",
)
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the comparison as JSON, for instance results/compared.",
)
def command(
    sides: tuple[str, ...],
    group_a: tuple[Path, ...],
    group_b: tuple[Path, ...],
    claims: Path | None,
    records: Path | None,
    metrics: str,
    resamples: int,
    allow_unequal_budget: bool,
    out: Path | None,
) -> None:
    """Compare runs B with runs A, image by image: B minus A, for every metric.

    A and B are each a record, a folder of records, or the name of a method with records in --records. Runs
    that differ only in their seed are a group.
    """
    from rich.console import Console

    from wsolbench.evaluation.compare import compare_records
    from wsolbench.exceptions import UsageError
    from wsolbench.metrics.catalog import metric_info
    from wsolbench.records import find_records
    from wsolbench.records.budget import Budgets
    from wsolbench.report.board.comparisons import comparison_tables

    # Check the combination of options.
    given = [bool(sides), bool(group_a or group_b), claims is not None]
    complete = [len(sides) == 2, bool(group_a and group_b) and records is None, records is not None]
    if sum(given) != 1 or not complete[given.index(True)]:
        raise UsageError(
            "found another combination of options; expected A and B, or --a and --b, or --claims and "
            "--records"
        )
    if metrics and (claims is not None or out is not None):
        raise UsageError(
            "found --metrics with --out or --claims; expected it with A and B alone, because stored "
            "comparisons have all metrics"
        )
    only = metrics.split(",") if metrics else None
    for name in only or ():
        metric_info(name)
    if claims is not None and records is not None:
        if allow_unequal_budget:
            raise UsageError(
                "found --allow-unequal-budget with --claims; expected it with A and B. A claim that may "
                "have unequal budgets says yes in its column allow_unequal_budget"
            )
        _compare_claims(claims, records, resamples, out)
        return
    # Read both groups, and compare.
    groups = _read_groups(sides, records) if sides else _read_files(group_a, group_b)
    _refuse_shared_runs(*groups)
    # The records next to them name the checkpoints that older runs start from.
    folders = {path.parent: None for group in groups for path in group}
    budgets = Budgets(record for folder in folders for _, record in find_records(folder).records)
    comparison = compare_records(
        *groups, resamples=resamples, budgets=budgets, allow_unequal_budget=allow_unequal_budget, only=only
    )
    found = {difference.name for difference in comparison.differences}
    if lacking := [name for name in only or () if name not in found]:
        raise UsageError(f"not all of the runs have {', '.join(lacking)}; they share {_shared(groups)}")
    written = None if out is None else comparison.write(out)
    Console(soft_wrap=True).print(*comparison_tables([comparison]))
    if written is not None:
        click.echo(f"comparison  {written}")


def _shared(groups: Sequence[dict[Path, RunRecord]]) -> str:
    """List the metrics that all records have a value of."""
    records = [record for group in groups for record in group.values()]
    names = [{metric.name for metric in record.metrics if metric.value is not None} for record in records]
    return ", ".join(sorted(set.intersection(*names))) or "none"


def _read_groups(sides: Sequence[str], records: Path | None) -> list[dict[Path, RunRecord]]:
    """Read the runs that A and B name."""
    from wsolbench.cli._records import find_group

    return [find_group(side, records) for side in sides]


def _read_files(*groups: Sequence[Path]) -> list[dict[Path, RunRecord]]:
    """Read the records of --a and --b. Raises `UsageError` for a file that a group names twice."""
    from wsolbench.exceptions import UsageError
    from wsolbench.records import read_record

    for group in groups:
        for path, count in Counter(path.resolve() for path in group).items():
            if count > 1:
                raise UsageError(f"{path} is named {count} times; expected each run once in its group")
    return [{path: read_record(path) for path in group} for group in groups]


def _refuse_shared_runs(a: dict[Path, RunRecord], b: dict[Path, RunRecord]) -> None:
    """Raise `UsageError` for a run in both groups, and for a run of a detector."""
    from wsolbench.exceptions import UsageError

    for path, record in b.items():
        record.map_protocol  # noqa: B018 - raises for a detector, which is the more likely reason
        for other, same in a.items():
            if record.digest == same.digest:
                raise UsageError(
                    f"{path} of group B is the same run as {other} in group A; expected each run in one group"
                )


def _compare_claims(claims: Path, records: Path, resamples: int, out: Path | None) -> None:
    """Compare all pairs of the claims.

    Comparisons in `out` are kept, unless there are more seeds now or one of their records is gone.
    """
    from rich.console import Console

    from wsolbench.evaluation.compare import compare_records
    from wsolbench.evaluation.score_table import find_scores
    from wsolbench.exceptions import DataError, UsageError
    from wsolbench.records import find_records
    from wsolbench.records.budget import Budgets
    from wsolbench.records.claims import find_unpaired, pairs_of, read_claims
    from wsolbench.records.comparison import Comparison
    from wsolbench.report.board.comparisons import comparison_tables
    from wsolbench.system.progress import track

    # Find the pairs, and report what is skipped.
    found = find_records(records)
    scored = {path: record for path, record in found.records if find_scores(path).is_file()}
    wanted_claims = read_claims(claims)
    for message in (*found.problems, *found.copies):
        click.echo(f"left out: {message}", err=True)
    if without := len(found.records) - len(scored):
        click.echo(f"left out: {without} records without scores (--save-scores or --save-outcomes)", err=True)
    for missing in find_unpaired(wanted_claims, scored.items()):
        click.echo(f"no pair: {missing}", err=True)
    pairs = pairs_of(wanted_claims, scored.items())
    if not pairs:
        raise UsageError(
            f"no two records in {records} with scores (--save-scores or --save-outcomes) match a claim in "
            f"{claims}; expected a record of each side"
        )
    # Compare each pair that is not in `out` yet. The claims say which may have unequal budgets.
    budgets = Budgets(record for _, record in found.records)
    made, failed = 0, 0
    all_wanted, shown = [], []
    for a, b in track(pairs, "comparing", unit="pairs"):
        wanted = Comparison.make([scored[path] for path in a], [scored[path] for path in b], ())
        all_wanted.append(wanted)
        if out is not None and wanted.place(out).exists():
            continue
        try:
            comparison = compare_records(
                *({path: scored[path] for path in side} for side in (a, b)),
                resamples=resamples,
                budgets=budgets,
                allow_unequal_budget=True,
            )
        except DataError as error:  # the other pairs are still useful
            click.echo(f"left out: {error}", err=True)
            failed += 1
            continue
        made += 1
        if out is None:
            shown.append(comparison)
        else:
            comparison.write(out)
    # Print what is not stored. All its tests are one family.
    for table in comparison_tables(shown):
        Console(soft_wrap=True).print(table)
    # Remove outdated comparisons, and count.
    if out is not None:
        # A record that cannot be read is not gone.
        digests = None if found.problems else {record.digest for _, record in found.records}
        removed = _remove_outdated(out, all_wanted, digests)
        kept = len(pairs) - made - failed
        click.echo(f"comparisons  {made} new, {kept} kept, {removed} outdated removed, in {out}")
    if failed:
        raise DataError(f"{failed} of {len(pairs)} pairs could not be compared; they are named above")


def _remove_outdated(out: Path, wanted: Sequence[Comparison], digests: Collection[str] | None) -> int:
    """Remove outdated comparisons in `out`, and return their number.

    These are the ones that an existing wanted one includes, and those of a record whose digest is not in
    `digests`. None: the digests are not known. Broken comparisons are named and kept.
    """
    from wsolbench.exceptions import DataError
    from wsolbench.records.comparison import read_comparison
    from wsolbench.system.listing import find_files

    there = [comparison for comparison in wanted if comparison.place(out).exists()]
    removed = 0
    for path in find_files(out, ".json"):
        try:
            old = read_comparison(path)
        except DataError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        is_gone = digests is not None and not {*old.a["records"], *old.b["records"]} <= set(digests)
        if is_gone or any(old.is_part_of(comparison) for comparison in there):
            path.unlink()
            removed += 1
    return removed
