"""A results folder as reports read it: records, comparisons, published numbers, and what was skipped.

RESULTS/measured/**/*.json    records, as `wsolbench eval` and `wsolbench score` write them
RESULTS/compared/**/*.json    comparisons, as `wsolbench compare` writes them
RESULTS/submitted/**/*.json   results from outside, as `wsolbench submit` writes them

Published numbers, claims and variants come from a folder of literature: that of the package, or RESULTS
itself where it has a papers.toml (`wsolbench.records.published.literature_for`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.catalog import metric_info
from wsolbench.records import find_records
from wsolbench.records.claims import Claim, read_claims, read_variants
from wsolbench.records.comparison import Comparison, read_comparison
from wsolbench.records.planned import find_planned
from wsolbench.records.published import read_papers, read_published
from wsolbench.records.submission import find_submissions
from wsolbench.report.board.board import Numbers
from wsolbench.report.board.repetitions import Run, superseded
from wsolbench.system.listing import find_files


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of a results folder.

    Attributes:
        runs: valid records, each run and result once.
        published: published numbers and their sources.
        claims: claims of papers, or None without a file of claims.
        variants: (paper, published name of a method) -> method and settings here.
        comparisons: comparisons of existing records.
        problems: one message per file that was skipped because it is broken, outdated, or of missing
            records.
        submitted: valid results from outside, which no other report reads.
        notes: one message per valid record that is not shown: copies, and runs that another run of the same
            seed supersedes.
    """

    runs: Sequence[Run]
    published: Numbers
    claims: Sequence[Claim] | None
    variants: Mapping[tuple[str, str], tuple[str, str]]
    comparisons: Sequence[Comparison]
    problems: Sequence[str]
    notes: Sequence[str]
    submitted: Sequence[Run] = ()


def folder_of_records(results: Path) -> Path:
    """Return `results / "measured"`.

    Raises `UsageError` if it does not exist, and there are no submissions either.
    """
    measured = results / "measured"
    if not measured.is_dir() and not (results / "submitted").is_dir():
        raise UsageError(
            f"no folder of records {measured}; expected the folder that `wsolbench eval` makes. Name the "
            "folder above it with --results"
        )
    return measured


def read_results(results: Path, *, literature: Path | None = None, records_required: bool = True) -> Results:
    """Read a results folder. A broken record or comparison is skipped and named.

    Args:
        results: the folder, see above.
        literature: folder of published numbers, claims and variants, or None for `results`.
        records_required: whether a results folder without records and submissions is an error.

    Raises `UsageError` for a folder without them if they are required, and `DataError` for an invalid
    published number.
    """
    literature = literature or results
    measured = folder_of_records(results) if records_required else results / "measured"
    found = find_records(measured)
    planned, bad_plans = find_planned(results / "plans", [record for _, record in found.records])
    every = [
        Run(record, _link(path, results / "leaderboard"), path, plan_run=planned.get(record.digest, ""))
        for path, record in found.records
    ]
    runs, outdated = current_versions(every)
    submitted, refused = _submissions(results / "submitted", results / "leaderboard")
    comparisons, unusable = _comparisons(results / "compared", {run.record.digest for run in runs})
    claims, variants = literature / "claims.csv", literature / "variants.csv"
    replaced = [
        f"record {run.path} is not shown: {shown.path} repeats or replaces it"
        for run, shown in superseded(runs)
    ]
    return Results(
        runs=runs,
        published=_read_numbers(literature),
        claims=read_claims(claims) if claims.is_file() else None,
        variants=read_variants(variants) if variants.is_file() else {},
        comparisons=comparisons,
        problems=(*found.problems, *bad_plans, *outdated, *refused, *unusable),
        notes=(*found.copies, *replaced),
        submitted=submitted,
    )


def _read_numbers(literature: Path) -> Numbers:
    papers = literature / "papers.toml"
    if not papers.is_file():
        return Numbers(numbers=[], papers={})
    return Numbers(numbers=read_published(literature), papers=read_papers(papers))


def _link(path: Path, start: Path) -> str:
    return quote(Path(os.path.relpath(path, start)).as_posix(), errors="surrogateescape")


def current_versions(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Drop runs with an outdated version of a metric, and return a message for each.

    A version is outdated if another run of the data set has a newer one. Numbers of one column would
    otherwise be incomparable although they look alike.
    """
    # The newest version of each metric of a data set.
    newest: dict[tuple[str, str], int] = defaultdict(int)
    for run in runs:
        for metric in run.record.metrics:
            key = str(run.record.dataset["name"]), metric.name
            newest[key] = max(newest[key], metric.version)
    kept, messages = [], []
    for run in runs:
        dataset = str(run.record.dataset["name"])
        old = [metric for metric in run.record.metrics if metric.version < newest[dataset, metric.name]]
        if not old:
            kept.append(run)
            continue
        name, version = old[0].name, old[0].version
        messages.append(
            f"record {run.path} has version {version} of {name}; expected version "
            f"{newest[dataset, name]}, which other records of {dataset} have. Evaluate the older run again"
        )
    return kept, messages


def _submissions(folder: Path, start: Path) -> tuple[list[Run], list[str]]:
    """Return the submissions below a folder as runs, and messages for those that cannot be shown."""
    found = find_submissions(folder)
    runs, messages = [], list(found.problems)
    for path, submission, badge in found.found:
        old = [m for m in submission.record.metrics if m.version < metric_info(m.name).version]
        if old:
            messages.append(
                f"submission {path} has version {old[0].version} of {old[0].name}; expected version "
                f"{metric_info(old[0].name).version}. Score and submit again"
            )
        else:
            run = Run(submission.record, _link(path, start), path, submission=submission, badge=badge)
            runs.append(run)
    return runs, messages


def _comparisons(folder: Path, digests: set[str]) -> tuple[list[Comparison], list[str]]:
    """Read the comparisons whose records all have one of the digests, and return messages for the others."""
    found, messages = [], []
    for path in find_files(folder, ".json"):
        try:
            comparison = read_comparison(path)
        except DataError as error:
            messages.append(str(error))
            continue
        if gone := {*comparison.a["records"], *comparison.b["records"]} - digests:
            messages.append(
                f"comparison {path} names {len(gone)} record{'s' if len(gone) > 1 else ''} that no file has; "
                "remove it, and run `wsolbench compare --claims` again"
            )
        else:
            found.append(comparison)
    return found, messages
