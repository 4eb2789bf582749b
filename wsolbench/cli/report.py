"""`wsolbench report`: one page of all results, which any browser opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import DataOptions, results_option
from wsolbench.cli.scoring import resamples_option
from wsolbench.cli.settings import read_protocol

if TYPE_CHECKING:
    from wsolbench.report.page.gallery import Gallery

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench report --results results --out report\n\n"
    "With galleries of maps:  wsolbench report --maps maps/cam --maps maps/spa --dataset toybirds",
)
@results_option
@option(
    "Data",
    "--runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Run folder, or folder of them, whose training curves are shown; can be repeated.  "
    "[default: runs, if it exists]",
)
@option(
    "Output", "--out", type=FOLDER, default=Path("report"), show_default=True, help="Folder for index.html."
)
@option(
    "Protocol",
    "--methods",
    type=click.IntRange(0, 1000),
    default=5,
    show_default=True,
    help="Number of best methods per data set that are compared in pairs.",
)
@resamples_option()
@option(
    "Data",
    "--maps",
    "folders",
    multiple=True,
    type=FOLDER,
    help="Folder of maps for a gallery. Repeat it to show where methods disagree.",
)
@option("Data", "--dataset", help="Data set of the maps.")
@option(
    "Data",
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of the data set.  [default: as for `wsolbench eval`]",
)
@option(
    "Data",
    "--metadata-root",
    type=click.Path(path_type=Path),
    help="Folder of wsolevaluation text files.",
)
@option("Data", "--split", default="test", show_default=True, help="Split of the maps.")
@option(
    "Protocol",
    "--protocol",
    default="wsoleval",
    show_default=True,
    help="Protocol for the boxes in galleries (see `wsolbench list protocols`).",
)
@option(
    "Output",
    "--images",
    type=click.IntRange(1, 100),
    default=6,
    show_default=True,
    help="Images per gallery.",
)
def command(
    results: Path,
    runs: tuple[Path, ...],
    out: Path,
    methods: int,
    resamples: int,
    folders: tuple[Path, ...],
    dataset: str | None,
    data_root: Path | None,
    metadata_root: Path | None,
    split: str,
    protocol: str,
    images: int,
) -> None:
    """Write all results as one page, OUT/index.html.

    The page has the leaderboard, curves, training curves, paired comparisons and galleries. It needs no
    network.

    The published numbers come with wsolbench. A RESULTS folder with its own papers.toml replaces them.
    """
    from wsolbench.cli._results import read_with_literature
    from wsolbench.exceptions import UsageError
    from wsolbench.report.page.page import write_page
    from wsolbench.report.page.training import default_runs
    from wsolbench.system.files import check_writable

    # Check the options for galleries.
    if bool(folders) != (dataset is not None):
        raise UsageError("galleries need both --maps and --dataset; expected both, or neither")
    given = click.get_current_context().get_parameter_source
    for name in ("data_root", "metadata_root", "split", "protocol", "images"):
        if not folders and given(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"--{name.replace('_', '-')} is for galleries, which need --maps and --dataset; leave it "
                "out, or add both"
            )
    # Fail before galleries are drawn.
    read = read_with_literature(results)
    check_writable(out / "index.html")
    shown: Sequence[Gallery] = ()
    if dataset is not None:
        from wsolbench.report.page.gallery import galleries

        data = DataOptions(dataset=dataset, data_root=data_root, metadata_root=metadata_root)
        shown = galleries(folders, data.open(split), read_protocol(protocol, ()), count=images)
    path, problems = write_page(
        results,
        out,
        galleries=shown,
        methods=methods,
        resamples=resamples,
        read=read,
        run_folders=runs or default_runs(),
    )
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    click.echo(path)
