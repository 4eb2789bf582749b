"""Published numbers: what papers and repositories print, one cell a row, kept apart from what is measured
here.

    LITERATURE/papers.toml          papers: title, authors, venue, year, addresses, and the file of their
                                    numbers
    LITERATURE/published/<key>.csv  cells of a source's tables, in the order of the tables

They are part of the package (`LITERATURE`), so an installed wsolbench has them. A results folder that has a
`papers.toml` of its own is read in their place (`literature_for`).

A value stays as it is printed, a string with its trailing zeros; `PublishedNumber.as_recorded` puts it on the
scale of records. Sources that disagree are listed by `conflicts` and never averaged.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.metrics.catalog import MetricInfo, all_metrics
from wsolbench.records.csv_rows import read_rows
from wsolbench.system.json_values import lists_to_tuples
from wsolbench.system.listing import list_files
from wsolbench.system.stored import read_toml

LITERATURE = Path(__file__).parents[1] / "literature"
"""The folder of published numbers, claims and variants that comes with the package."""

EVIDENCE = ("own", "reproduced", "requoted")
"""Whose number it is, best first: the source's own method or ablation; somebody else's method, run by the
source's authors; copied from elsewhere.
"""

UNITS = {"percent": 100, "percent_error": 100, "ap": 100, "fraction": 1, "level_0_255": 255}
"""Unit -> its highest value; the lowest is 0. `percent_error`: lower is better. `ap`: COCO's average
precision in percent.
"""

UNSPECIFIED = "unspecified"
"""The backbone of a number whose source names none."""

PRINTED_ONLY: tuple[MetricInfo, ...] = (
    MetricInfo(name="p_iou", title="pIoU", needs="masks", summary="pixel IoU; its average is not stated"),
    MetricInfo(
        name="max_box_acc_v2_as_printed",
        title="MaxBoxAccV2 (as printed)",
        needs="boxes",
        summary="printed as MaxBoxAccV2, but baselines beside it have values of MaxBoxAcc",
    ),
)
"""Metrics that are published and not measured here."""

_AS_PRINTED = "_as_printed"
_DEFAULT_NORM = "[norm=minmax]"


def published_info(metric: str) -> MetricInfo:
    """The row of a metric of the catalog or of `PRINTED_ONLY`. Raises `UsageError` with the nearest name."""
    known = {info.name: info for info in (*all_metrics(), *PRINTED_ONLY)}
    if metric not in known:
        raise unknown_name("metric", metric, known)
    return known[metric]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper or another source: a section of papers.toml. What is not known for certain is empty.

    Attributes:
        key: name of the section.
        name: short name for tables.
        file: its numbers, next to papers.toml, or empty if it is no source of published numbers.
        arxiv: identifier, as `2001.07437`.
        url: its page or DOI, where it is not on arXiv.
        code: repository.
        note: how the numbers were read, where that leaves doubts.
    """

    key: str
    name: str
    title: str
    file: str = ""
    authors: tuple[str, ...] = ()
    venue: str = ""
    year: int | None = None
    arxiv: str = ""
    url: str = ""
    code: str = ""
    note: str = ""

    @property
    def venue_and_year(self) -> str:
        """`CVPR 2016`, with arXiv as the venue of a paper that has no other.

        >>> Paper(key="sem", name="SEM", title="...", year=2020, arxiv="2006.05220").venue_and_year
        'arXiv 2020'
        """
        venue = self.venue or ("arXiv" if self.arxiv else "")
        return f"{venue} {self.year or ''}".strip()

    @property
    def address(self) -> str:
        """Its page, on arXiv or elsewhere, or empty if none is known."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """A cell of a published table. All but `paper` are the columns of the files.

    Attributes:
        paper: key of the source that prints it, which need not be the one that measured it.
        table, row, label: where it stands: table or file, row below the head from 1 (None where the rows were
            not counted), and what the row is called there.
        dataset, split, backbone, metric: names of this project where it has one, else the source's.
        method: one spelling for each method; `A+B` is the post-process B on A, `A[x]` a variant of A.
        ours: the method (and post-process) of this project, `spa+scg`; empty where there is none. The variant
            is not in it.
        value: as printed.
        unit: a key of `UNITS`.
        evidence: one of `EVIDENCE`.
        protocol: how it was evaluated, as far as the source says so.
        note: doubts, and what else the source says.
    """

    paper: str
    table: str
    row: int | None
    label: str
    dataset: str
    split: str
    method: str
    ours: str
    backbone: str
    metric: str
    value: str
    unit: str
    evidence: str
    protocol: str
    note: str

    def __post_init__(self) -> None:
        """Raise `UsageError` for a name or a value that cannot be."""
        for name in ("table", "dataset", "split", "method", "backbone"):
            if not getattr(self, name):
                raise UsageError(f"{name} is empty")
        if self.row is not None and self.row < 1:
            raise UsageError(f"row {self.row} is not 1 or more")
        published_info(self.metric)
        for kind, value, known in (("unit", self.unit, UNITS), ("evidence", self.evidence, EVIDENCE)):
            if value not in known:
                raise unknown_name(kind, value, known)
        if (self.unit == "level_0_255") != (published_info(self.metric).unit == "level"):
            raise UsageError(
                f"unit {self.unit} does not go with metric {self.metric}; level_0_255 is the unit of "
                "peak_t alone"
            )
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", self.value):
            raise UsageError(f"value {self.value!r} is no number; expected digits, a point and digits")
        if Decimal(self.value) > UNITS[self.unit]:
            raise UsageError(
                f"value {self.value} is out of range; expected 0 to {UNITS[self.unit]} for unit {self.unit}"
            )

    @property
    def key(self) -> tuple[Any, ...]:
        """Different for different cells."""
        place = (self.paper, self.table, self.row, self.label)
        return (*place, self.dataset, self.split, self.method, self.backbone, self.metric, self.evidence)

    @property
    def better(self) -> Literal["higher", "lower", "neither"]:
        """Which values of `as_recorded` are better."""
        return published_info(self.metric).better

    @property
    def as_recorded(self) -> float:
        """The value as a record would hold it: a fraction in [0, 1]; Peak-T 0 to 255.

        A printed error of a metric that is an accuracy becomes the accuracy; a metric that is itself an error
        stays one.
        """
        return float(self._exact)

    @property
    def printed(self) -> str:
        """The value with its unit: `39.73 % error`, `33 of 255`; nothing follows a fraction and COCO's
        average precision.
        """
        unit = {
            "percent": " %",
            "percent_error": " % error",
            "ap": "",
            "fraction": "",
            "level_0_255": " of 255",
        }[self.unit]
        return self.value + unit

    @cached_property
    def _exact(self) -> Decimal:
        value = Decimal(self.value)
        if self.unit == "level_0_255":
            return value
        value /= UNITS[self.unit]
        return 1 - value if self.unit == "percent_error" and self.better == "higher" else value

    def agrees_with(self, other: PublishedNumber) -> bool:
        """Whether both can be one value, rounded to different numbers of decimals."""
        coarse = max(self._exponent, other._exponent)
        return abs(self._exact - other._exact) <= Decimal(5).scaleb(coarse - 1)

    @cached_property
    def _exponent(self) -> int:
        """Power of ten of the last printed decimal, as a fraction."""
        return int(Decimal(self.value).scaleb(-2 if UNITS[self.unit] == 100 else 0).as_tuple().exponent)


PAPERS = "papers.toml"
"""Name of the file of papers, in a folder of literature."""

COLUMNS = tuple(item.name for item in fields(PublishedNumber) if item.name != "paper")
"""The header of the files."""


def read_papers(path: Path | None = None) -> dict[str, Paper]:
    """Read the sections of a papers.toml by key, in their order; by default those of the package.

    Raises `DataError` naming the section that is invalid.
    """
    path = LITERATURE / PAPERS if path is None else path
    sections = read_toml(path, "file")
    papers = {}
    for key, values in sections.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", key):  # it names files of the board
            raise DataError(f"{path}: the section {key!r} has a name of other characters than a-z, 0-9 and -")
        try:
            papers[key] = Paper(key=key, **lists_to_tuples(values))
        except (AttributeError, TypeError) as error:
            raise DataError(f"{path}: section {key!r} lacks or misspells a field: {error}") from error
    return papers


def literature_for(results: Path) -> Path:
    """Return the folder to read published numbers from: `results` if it has a papers.toml, or else
    `LITERATURE`.
    """
    return results if (results / PAPERS).is_file() else LITERATURE


def read_published(folder: Path) -> list[PublishedNumber]:
    """Read all numbers of a folder of literature, in the order of papers.toml, tables and rows.

    Raises `DataError` naming file and line: other columns, an unknown metric, unit or evidence, a value that
    is no number or out of range, a cell that is there twice, a file that no paper names, a paper whose file
    is not there.
    """
    papers = {key: paper for key, paper in read_papers(folder / PAPERS).items() if paper.file}
    named: dict[Path, str] = {}
    for key, paper in papers.items():
        if (other := named.setdefault(folder / paper.file, key)) != key:
            raise DataError(
                f"{folder / PAPERS}: {other!r} and {key!r} name one file, {paper.file}; give each its own"
            )
    if stray := sorted(
        {folder / "published" / name for name in list_files(folder / "published", (".csv",))} - set(named)
    ):
        raise DataError(
            f"{stray[0]} is of no paper in {folder / PAPERS}; add a section with file = "
            f'"published/{stray[0].name}"'
        )
    return [number for path, key in named.items() for number in _read_file(path, key)]


def _read_file(path: Path, paper: str) -> list[PublishedNumber]:
    if not path.exists():
        raise DataError(f"no file {path}, which papers.toml names for {paper!r}")

    def make(row: dict[str, str]) -> PublishedNumber:
        values: dict[str, Any] = {**row, "row": int(row["row"]) if row["row"] else None}
        return PublishedNumber(paper=paper, **values)

    found: dict[tuple[Any, ...], tuple[int, PublishedNumber]] = {}
    for line, number in read_rows(path, COLUMNS, make, what="published number"):
        if number.key in found:
            raise DataError(
                f"{path}:{line} is a cell that is there already, line {found[number.key][0]}; "
                "a cell has one row"
            )
        found[number.key] = line, number
    return [number for _, number in found.values()]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Numbers that ought to be one and are not. None of them is right by itself: quote one with its source
    and table.
    """

    dataset: str
    split: str
    method: str
    backbone: str
    metric: str
    numbers: tuple[PublishedNumber, ...]


def conflicts(numbers: Iterable[PublishedNumber]) -> list[Conflict]:
    """Where two tables have different values for one data set, split, method, backbone and metric, sorted by
    these.

    Differences that rounding explains are none, nor are those within a table (runs, re-runs). A number
    without a backbone is compared with those of each backbone unless it agrees with one of them; a metric "as
    printed" with the metric it is printed as; `[norm=minmax]`, the normalisation of wsolevaluation, with the
    plain method.
    """
    groups: dict[tuple[str, ...], list[PublishedNumber]] = defaultdict(list)
    for number in numbers:
        method, metric = number.method.removesuffix(_DEFAULT_NORM), number.metric.removesuffix(_AS_PRINTED)
        groups[number.dataset, number.split, method, metric].append(number)
    found = []
    for (dataset, split, method, metric), group in sorted(groups.items()):
        known = [number for number in group if number.backbone != UNSPECIFIED]
        loose = [
            number
            for number in group
            if number.backbone == UNSPECIFIED and not any(number.agrees_with(other) for other in known)
        ]
        for backbone in sorted({number.backbone for number in known}) or [UNSPECIFIED]:
            members = [*(number for number in known if number.backbone == backbone), *loose]
            if _disagree(members):
                found.append(
                    Conflict(
                        dataset=dataset,
                        split=split,
                        method=method,
                        backbone=backbone,
                        metric=metric,
                        numbers=tuple(members),
                    )
                )
    return found


def _disagree(numbers: Sequence[PublishedNumber]) -> bool:
    return any(
        (a.paper, a.table) != (b.paper, b.table) and not a.agrees_with(b)
        for a, b in itertools.combinations(numbers, 2)
    )
