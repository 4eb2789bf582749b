"""First page of the leaderboard: one short table for each task of a data set, one row per method.

A row is a method with the settings of the plan's run that is named after it. Without such a run it is the
group with the most seeds, then with the most images seen. Methods that saw fewer training images than the
runs of the plan are left out. Floors come first and ceilings last, with all their settings. Values are means
over seeds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsolbench.datasets import dataset_info, list_datasets
from wsolbench.methods import list_methods, list_posts
from wsolbench.methods.registry import group_of
from wsolbench.metrics.catalog import metric_title
from wsolbench.records.budget import Budgets
from wsolbench.records.published import Paper
from wsolbench.report.board.board import Cell, Numbers, Table, is_official, official_images
from wsolbench.report.board.formats import markdown_rows
from wsolbench.report.board.method_rows import TIE, MethodRow, mark_cell, measured_rows
from wsolbench.report.board.repetitions import Run, grouped, one_of_each_seed, settings_of
from wsolbench.report.board.submitted import notes_on
from wsolbench.report.board.tables import describe_protocol, escape_markdown, place_of
from wsolbench.report.board.ties import TieTests

MOST_ROWS = 20
"""Most rows of a table of the first page."""
ORDER = ("cub", "ilsvrc", "openimages", "cars", "aircraft", "butterflies", "toybirds-v2")
"""Order of the data sets. Others follow by name."""
SHORT = 224
"""Trainings on smaller images than this are not comparable with published numbers."""
REPLACED = {"toybirds": "toybirds-v2"}
"""Data sets that another one replaces: their runs are on a page of their own only."""
NOT_COMPARABLE = "Not comparable with published numbers."
"""First sentence of a banner of data that are not the official ones, or of a short training."""
INTRODUCTION = "Every number was measured here with one program, except those under {submitted}."
"""First sentence of the page."""
SUBMITTED = "Submitted"
"""Heading of the rows of results from outside."""
TRANSFER = "GT-known, transferred"
"""Heading of the column whose threshold was chosen on another split."""
_ABOUT = ("runs", "backbone", "init", "paper", "code")
"""Columns after the numbers, which say where a row comes from."""
METHOD_PAGES = "../../docs/methods"
"""Folder of the methods' pages, from the folder of the leaderboard."""


@dataclass(frozen=True)
class _Task:
    """A table of the first page.

    `rank` orders its rows, `metrics` are its columns, and `takes` says whether it shows a method's group.
    """

    title: str
    rank: str
    metrics: tuple[str, ...]
    takes: Callable[[str], bool]


TASKS = (
    _Task(
        "Localization",
        "gt_known",
        ("gt_known", "top1_loc", "max_box_acc_v2", "pxap", "peak_iou", "top1_cls"),
        lambda group: group != "fine-grained",
    ),
    _Task(
        "Fine-grained classification",
        "top1_cls",
        ("top1_cls", "top5_cls", "gt_known"),
        lambda group: group == "fine-grained",
    ),
)
"""Tables of a data set."""


@dataclass(frozen=True, kw_only=True)
class DatasetSection:
    """A data set on the first page: its tables, and what its images and the training budget are.

    Attributes:
        dataset: name of the data set.
        title: its name as papers print it.
        banner: the images, the budget and the protocol, as plain text.
        is_comparable: whether published numbers may stand beside the measured ones.
        tables: one table per task.
        runs: number of measured runs on the data set, on all images and under all protocols.
    """

    dataset: str
    title: str
    banner: str
    is_comparable: bool
    tables: tuple[Table, ...]
    runs: int


def front_page(
    runs: Sequence[Run],
    published: Numbers,
    ties: TieTests,
    pages: Mapping[str, str],
    submitted: Sequence[Run] = (),
) -> list[str]:
    """Return the lines of the first page in Markdown, without its title.

    `pages` is name of a data set -> page with all of its runs. The other arguments are those of
    `front_sections`.
    """
    lines: list[str] = []
    for section in front_sections(runs, published, ties, submitted):
        banner = escape_markdown(section.banner)
        lines += ["", f"## {escape_markdown(section.title)}", ""]
        lines += [banner if section.is_comparable else f"> **{NOT_COMPARABLE}** {banner}"]
        for table in section.tables:
            heads, rule, *rows = markdown_rows(table)
            lines += ["", f"### {table.path[-1]}", "", heads, rule, *map(_unbroken, rows)]
            lines += [line for note in table.notes for line in ("", escape_markdown(note))]
        if section.runs and section.dataset in pages:
            all_runs = f"All {section.runs} runs of {escape_markdown(section.dataset)}"
            lines += ["", f"[{all_runs}]({pages[section.dataset]})"]
    return lines


def _unbroken(line: str) -> str:
    """Return a row of a Markdown table with no-break spaces after its first cell, for narrow screens.

    >>> _unbroken("| [a b](c) | 1.0 ± 0.1 |  |").replace(chr(160), "_")
    '| [a b](c) | 1.0_±_0.1 |  |'
    """
    first, bar, others = line.partition(" | ")
    return first + bar + re.sub(r"(?<=[^|]) (?=[^|])", "\u00a0", others)


def front_sections(
    runs: Sequence[Run], published: Numbers, ties: TieTests, submitted: Sequence[Run] = ()
) -> list[DatasetSection]:
    """Return the data sets of the first page with their tables. A data set without a table is left out.

    Args:
        runs: all runs.
        published: papers of the methods.
        ties: tests against the best of a table.
        submitted: results from outside, which stand below the measured rows of the same images and protocol.
    """
    names = sorted(
        {str(run.record.dataset["name"]) for run in (*runs, *submitted)}.difference(REPLACED),
        key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name),
    )
    sections = []
    for name in names:
        of_data = [run for run in runs if run.record.dataset["name"] == name]
        from_outside = [run for run in submitted if run.record.dataset["name"] == name]
        shown = _largest_group(of_data or from_outside)
        same = [run for run in from_outside if _data_and_protocol(run) == _data_and_protocol(shown[0])]
        measured = [run for run in shown if run.submission is None]
        tables = [
            table for task in TASKS if (table := _table(task, measured, same, published, ties)) is not None
        ]
        if tables:
            banner, is_comparable = _banner(shown)
            section = DatasetSection(
                dataset=name,
                title=_title(name),
                banner=banner,
                is_comparable=is_comparable,
                tables=tuple(tables),
                runs=len(of_data),
            )
            sections.append(section)
    return sections


def _title(name: str) -> str:
    """Return a data set's name as papers print it: the beginning of its summary.

    >>> _title("cub"), _title("toybirds-v2"), _title("mine")
    ('CUB-200-2011', 'toybirds-v2', 'mine')
    """
    if name not in {info.name for info in list_datasets()} or dataset_info(name).generated:
        return name
    return dataset_info(name).summary.partition(":")[0].partition(",")[0]


def _largest_group(runs: Sequence[Run]) -> list[Run]:
    """Return the runs on the images and under the protocol that most runs share, untransformed ones first."""
    groups = grouped(one_of_each_seed(runs), _data_and_protocol)
    return max(groups, key=lambda group: (not group[0].record.dataset.get("transform"), len(group)))


def _data_and_protocol(run: Run) -> list[Any]:
    """Return what all runs of a table share, untransformed images first."""
    data = run.record.dataset
    fields = [data.get(key) or "" for key in ("split", "transform", "images", "fingerprint")]
    return [fields, run.record.protocol.to_json()]


def _banner(runs: Sequence[Run]) -> tuple[str, bool]:
    """Return what the images and the budget are, and whether published numbers may stand beside them."""
    record = runs[0].record
    name, split = str(record.dataset["name"]), str(record.dataset["split"])
    images, whole = record.dataset.get("images") or 0, official_images(name, split)
    known = name in {info.name for info in list_datasets()}
    # The images.
    count = f"{images:,} images" if whole in (None, images) else f"{images:,} of {whole:,} images"
    classes = {number for run in runs if (number := run.record.method.get("num_classes"))}
    every = dataset_info(name).classes if known else 0
    if len(classes) == 1 and every and (some := max(classes)) < every:
        count = f"{some:,} of {every:,} classes, {count}"
    # The budget of most runs.
    budgets = Counter(
        (
            run.record.training["recipe"].get("epochs") or 0,
            run.record.method.get("image_size") or 0,
            " from a checkpoint" if run.record.start == "checkpoint" else "",
        )
        for run in main_runs(runs)
        if run.record.training.get("recipe")
    )
    budget, is_short = "", False
    if budgets:
        (epochs, size, start), _ = max(sorted(budgets.items()), key=lambda item: item[1])
        budget = f"; {'most ' if len(budgets) > 1 else ''}trained for {epochs} epochs{start} at {size} pixels"
        is_short = int(size) < SHORT
    text = f"{count} of the split {split}{budget}. Protocol {describe_protocol(record.protocol)}."
    generated = known and dataset_info(name).generated
    text = f"Generated images. {text}" if generated else text
    return text, is_official(record) and not (is_short or generated)


def _table(
    task: _Task, runs: Sequence[Run], submitted: Sequence[Run], published: Numbers, ties: TieTests
) -> Table | None:
    """Return a task's table, or None if no run belongs to it."""
    candidates = main_runs([run for run in runs if task.takes(group_of(_base(run))) and _has(run, task.rank)])
    of_task = _with_full_budget(candidates)
    # Submitted results belong to the first task whose ranking they have.
    rank_of = {run.link: next((each.rank for each in TASKS if _has(run, each.rank)), "") for run in submitted}
    outside = measured_rows(
        [run for run in submitted if rank_of[run.link] == task.rank], task.metrics, "oracle", "none"
    )
    outside.sort(key=lambda row: (-row.means[task.rank], row.runs[0].link))
    if not of_task and not outside:
        return None
    short = len({run.record.method["name"] for run in candidates}) - len(
        {run.record.method["name"] for run in of_task}
    )
    rows = measured_rows(of_task, task.metrics, "oracle", "sd")
    moved = {
        row.runs[0].link: row.cells["gt_known"]
        for row in measured_rows(of_task, ["gt_known"], "transfer", "sd")
        if row.cells and any(metric.policy == "transfer" for metric in row.runs[0].record.metrics)
    }
    rows.sort(key=lambda row: (place_of(row.runs[0].record), -row.means[task.rank], row.runs[0].link))
    left_out = max(0, len(rows) - MOST_ROWS)
    # The lowest of the rows between floors and ceilings are left out.
    middle = [row for row in rows if row.can_be_best]
    hidden = {id(row) for row in middle[len(middle) - left_out :]} if left_out else set()
    rows = [row for row in rows if id(row) not in hidden]
    # The best of each column, and the rows that do not differ from the best of the ranking.
    for name in task.metrics:
        values = {row.means[name] for row in rows if row.can_be_best and name in row.means}
        best = {max(values)} if len(values) > 1 else set()
        for row in rows:
            if row.can_be_best and row.means.get(name) in best:
                row.cells[name] = mark_cell(row.cells[name], best=True)
    untested = ties.mark(rows, task.rank)
    columns = [name for name in task.metrics if any(name in row.cells for row in (*rows, *outside))]
    # Numbers come right after the method, where narrow screens show them.
    numbers = [metric_title(name) for name in columns]
    if moved and task.rank == "gt_known":
        numbers.insert(1, TRANSFER)
    table_rows = []
    for row in (*rows, *outside):
        cells = [row.cells.get(name, Cell("")) for name in columns]
        if moved and task.rank == "gt_known":
            cells.insert(1, moved.get(row.runs[0].link, Cell("")))
        about = _about(row, published) if row.runs[0].submission is None else _about_submitted(row.runs[0])
        method, *others = about
        table_rows.append((method, *cells, *others))
    return Table(
        path=(task.title,),
        sections=((len(rows), SUBMITTED),) if outside else (),
        columns=("method", *numbers, *_ABOUT),
        rows=tuple(table_rows),
        notes=(
            *_notes(
                task,
                rows,
                {
                    "have no test, because scores lack or the first checkpoint is another": untested,
                    "are lower and left out": len(hidden),
                    "saw fewer training images and are left out": short,
                },
                bool(moved) and task.rank == "gt_known",
            ),
            *notes_on([row.runs[0] for row in outside]),
        ),
    )


def main_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the runs of one setting of each method and post-process, and all of floors and ceilings."""
    budgets, shown = Budgets(run.record for run in runs), []
    # With a setting that reads the ground truth of evaluated images, a method is also a ceiling.
    for same_method in grouped(runs, lambda run: [run.record.method["name"], place_of(run.record)]):
        if ":" in same_method[0].record.method["name"]:
            continue  # an extra map of a method
        groups = grouped(same_method, settings_of)
        if place_of(same_method[0].record) != 1:
            shown += [run for group in groups for run in group]
            continue
        shown += max(groups, key=lambda group: _precedence(list(group), budgets))
    return shown


def _with_full_budget(runs: Sequence[Run]) -> list[Run]:
    """Leave out runs of no plan that saw fewer or smaller training images than most runs of the plans."""
    budgets = Budgets(run.record for run in runs)
    # Unknown numbers of images count as 0.
    trained = {
        run.link: (budgets.images_seen(run.record) or 0, int(run.record.method.get("image_size") or 0))
        for run in runs
        if place_of(run.record) == 1 and run.record.training
    }
    of_plans = Counter(trained[run.link] for run in runs if run.planned and trained.get(run.link, (0, 0))[0])
    if not of_plans:
        return list(runs)
    usual = max(sorted(of_plans), key=lambda budget: of_plans[budget])
    return [
        run
        for run in runs
        if run.planned
        or run.link not in trained
        or all(own >= other for own, other in zip(trained[run.link], usual, strict=True))
    ]


def _precedence(group: Sequence[Run], budgets: Budgets) -> tuple[bool, bool, int, int, str]:
    run = group[0]
    seen = budgets.images_seen(run.record) or 0
    return run.plan_run == _base(run), run.planned, len(group), seen, run.link


def _base(run: Run) -> str:
    """Return the name of the method without its post-process and its map."""
    return re.split(r"[+:]", str(run.record.method["name"]))[0]


def _has(run: Run, name: str) -> bool:
    metric = run.metric(name, "oracle")
    return metric is not None and metric.value is not None


def _about(row: MethodRow, published: Numbers) -> list[Cell]:
    """Return the cells that say what a row is: method, then `_ABOUT`."""
    run = row.runs[0]
    name = str(run.record.method["name"])
    known = {each.name for each in (*list_methods(), *list_posts())}
    page = f"{METHOD_PAGES}/{_base(run)}.md" if _base(run) in known else run.link
    settings = row.labels["settings"] if place_of(run.record) != 1 else ""
    papers = list(published.papers_of(name).values())
    return [
        Cell(f"{name} ({settings})" if settings else name, page),
        Cell("1 run" if run.seed is None else f"{len(row.runs)} seed{'s' * (len(row.runs) > 1)}", run.link),
        Cell(row.labels["backbone"]),
        Cell(row.labels["init"]),
        _paper_cell(papers),
        Cell("code", papers[-1].code) if papers and papers[-1].code else Cell(""),
    ]


def _about_submitted(run: Run) -> list[Cell]:
    """Return the same cells of a result from outside. Its badge stands in place of the runs."""
    assert run.submission is not None
    metadata = run.submission.metadata
    return [
        Cell(str(run.record.method["name"]), run.link),
        Cell(run.badge),
        Cell(metadata.backbone),
        Cell(str(run.record.init or "")),
        Cell(metadata.venue or metadata.paper, metadata.url or ""),
        Cell("code", metadata.code) if metadata.code else Cell(""),
    ]


def _paper_cell(papers: Sequence[Paper]) -> Cell:
    """Return venue and year of the last paper: that of the post-process, if there is one."""
    return Cell(papers[-1].venue_and_year, papers[-1].address) if papers else Cell("")


def _notes(task: _Task, rows: Sequence[MethodRow], counts: Mapping[str, int], transferred: bool) -> list[str]:
    seeds = " ± standard deviation over seeds" if any(len(row.runs) > 1 for row in rows) else ""
    floors = "Floors ignore the image, ceilings read the ground truth; neither can be the best. "
    ends = any(not row.can_be_best for row in rows)
    is_once = any(row.can_be_best and len(row.runs) == 1 and row.runs[0].record.training for row in rows)
    once = " A test of one seed covers the images, not another training." if is_once else ""
    notes = [
        f"Percent{seeds}, ranked by {metric_title(task.rank)}; thresholds tuned on these images"
        + (f" (oracle), or on val ({TRANSFER.rpartition(' ')[2]})" if transferred else " (oracle)")
        + f". {floors if ends else ''}Bold: the best. {TIE} not significantly different from the best in "
        f"{metric_title(task.rank)} (paired test, Holm); other columns are not tested.{once}"
    ]
    notes += [f"Rows that {what}: {count}." for what, count in counts.items() if count]
    return [" ".join(notes)]
