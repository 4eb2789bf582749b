"""Read a results folder for a command: records of the user, published numbers of the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from wsolbench.report.board.results import Results


def read_with_literature(results: Path) -> Results:
    """Read the folder of `--results`, and the published numbers that belong to it.

    Without `--results`, and without a folder of records at its default, only published numbers are read.
    Raises as `wsolbench.report.board.results.read_results`.
    """
    from wsolbench.records.published import literature_for
    from wsolbench.report.board.results import read_results

    source = click.get_current_context().get_parameter_source("results")
    return read_results(
        results,
        literature=literature_for(results),
        records_required=source is not ParameterSource.DEFAULT,
    )
