"""`wsolbench compare`: the difference of two methods on the same images, with intervals."""

from __future__ import annotations

from pathlib import Path

import click

RECORDS = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    epilog="Example:  wsolbench compare --a results/measured/cub/cam_1.json --b results/measured/cub/spa_1.json\n\n"
    "Runs with other seeds are added to a group by repeating --a and --b. Each record needs its per-image scores beside it "
    "(`eval --save-scores`, `score --save-scores`)."
)
@click.option("--a", "group_a", multiple=True, required=True, type=RECORDS, help="Record of group A; may be repeated.")
@click.option("--b", "group_b", multiple=True, required=True, type=RECORDS, help="Record of group B; may be repeated.")
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Bootstrap resamples of the intervals.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the comparison as JSON, for instance results/compared.")
def command(group_a: tuple[Path, ...], group_b: tuple[Path, ...], resamples: int, out: Path | None) -> None:
    """Compare two runs, or two groups of runs with different seeds, image by image: B minus A, for every metric."""
    from rich.console import Console

    from wsolbench.compare import compare
    from wsolbench.exceptions import DataError
    from wsolbench.records import read_record
    from wsolbench.report.comparisons import Comparison, comparison_table
    from wsolbench.score_table import ScoreTable

    records = [[read_record(path) for path in group] for group in (group_a, group_b)]
    first = records[0][0]
    for path, record in zip((*group_a, *group_b), (*records[0], *records[1]), strict=True):
        for what in ("dataset", "protocol"):
            if record.key[what] != first.key[what]:
                raise DataError(
                    f"{path} has another {what} than {group_a[0]}; only runs on the same images, counted alike, can be compared"
                )
    a, b = ([ScoreTable.read(path.with_suffix(".scores.npz")) for path in group] for group in (group_a, group_b))
    differences = compare(a, b, first.protocol, resamples=resamples)
    comparison = Comparison.make(records[0], records[1], differences)
    Console(soft_wrap=True).print(comparison_table(comparison))
    if out is not None:
        click.echo(f"comparison  {comparison.write(out)}")
