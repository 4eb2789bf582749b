"""Make docs/methods/: one page per method and post-process.

    python docs/make_methods.py [--check]

A page has the idea of the method, its pictures, formula and command, the measured numbers with links to their
records, the numbers of papers, and the settings. Symbols and departures come last. Texts are those of the
docstring of the method's file (`method_texts.py`). Its pictures, if they exist, are
docs/images/photographs/<name>.jpg (or .png) of docs/make_photographs.py, and docs/images/methods/<name>.jpg
of docs/make_pictures.py.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
from method_texts import method_text, prose

from wsolbench.methods import MethodInfo, list_methods, list_posts, load_method, load_post
from wsolbench.methods.settings import attribute_docs
from wsolbench.metrics.catalog import metric_title
from wsolbench.records import RunRecord, read_records
from wsolbench.records.published import (
    EVIDENCE,
    LITERATURE,
    Paper,
    PublishedNumber,
    conflicts,
    published_info,
    read_papers,
    read_published,
)
from wsolbench.report.board.repetitions import Run, different_settings
from wsolbench.report.board.tables import UNDEFINED, escape_markdown, markdown_cell
from wsolbench.system.files import write_text

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
FACTS = ("method", "settings", "backbone", "init", "epochs", "data", "seed")
"""First columns of the table of records. Those of the metrics follow."""
METRICS = ("top1_cls", "gt_known", "top1_loc", "max_box_acc_v2", "pxap", "peak_iou")
PUBLISHED_ROWS = 25
PHOTOGRAPHS = (
    "Birds of species that the network was not trained on; their photographers and licences are "
    "[here](../photographs/README.md)."
)
"""Text under the picture of photographs."""
PICTURES_OF = {
    "recognition": "toybirds-v2 --options weights=baseline-tiny-seed0-epochs=12",
    "localization": "toybirds --options weights=cam-tiny-seed0 --post scg,sem",
}
"""Data set and options of the pictures of each task."""
WITH_REGIONS = ("baseline", "focus-discriminate", "lio", "nts-net", "ssanet")
"""Classifiers whose pictures show regions next to key points."""
REGIONS = "toybirds --regions --seed 1 --options weights=baseline-tiny-seed1-epochs=8"
PICTURES = (
    "draws the generated images, with trained models in `runs/` and the thresholds of their records.",
    "The same on your own copy of CUB:",
    "",
    "    python docs/make_pictures.py --dataset cub --data-root /data/CUB_200_2011 --post scg,sem --out "
    "pictures",
)


def choices(hint: Any) -> list[str]:
    """Return the values that the `Literal`s of a type allow."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [choice for inner in get_args(hint) for choice in choices(inner)]


def settings(kind: type[Any]) -> Iterator[str]:
    """Yield the rows of the table of settings.

    A description ends with the allowed values, if they are listed.
    """
    docs, hints = attribute_docs(kind), get_type_hints(kind)
    for item in fields(kind):
        default = (
            ""
            if item.default is MISSING
            else ",".join(map(str, item.default))
            if isinstance(item.default, tuple)
            else str(item.default)
        )
        *others, last = [f"`{choice}`" for choice in choices(hints[item.name])] or [""]
        allowed = f"{', '.join(others)} or {last}." if others else last
        what = " ".join(filter(None, (docs.get(item.name), allowed)))
        yield f"| `{item.name}` | `{default}` | {what.replace('|', chr(92) + '|')} |"


def is_about(name: str, run: str, post: bool) -> bool:
    """Whether `run` belongs on a page: any run of a method, or any run with a post-process."""
    return run.endswith(f"+{name}") if post else re.split(r"[+:]", run)[0] == name


def settings_that_differ(runs: Sequence[Run]) -> Iterator[str]:
    """Yield for each run the settings in which it differs from others of its method, whatever map they score.

    Settings of the recipe are compared only on the same data set and backbone. Epochs have their own column.
    """
    methods = [
        {**run.record.method, "name": re.sub(r":[^+]*", "", run.record.method["name"])} for run in runs
    ]
    runs = [
        Run(replace(run.record, method=method), run.link) for run, method in zip(runs, methods, strict=True)
    ]

    def kind(run: Run) -> tuple[Any, Any]:
        return run.record.dataset["name"], run.record.method.get("backbone")

    for run in runs:
        of_kind = [other for other in runs if kind(other) == kind(run)]
        own, recipe = (
            re.split(r", (?=[\w.]+=)", different_settings(run, others)) for others in (runs, of_kind)
        )
        hidden = [
            part
            for part in own
            if part.startswith("recipe.") and (part not in recipe or part.startswith("recipe.epochs="))
        ]
        yield ", ".join(part for part in own if part not in hidden)


def measured(name: str, records: list[tuple[Path, RunRecord]], post: bool) -> list[str]:
    """Return the rows of the records of a method, or of all methods with a post-process.

    They are sorted by data, then by the settings that differ.
    """
    runs = [
        Run(record, f"../../{path.as_posix()}")
        for path, record in records
        if is_about(name, record.method["name"], post)
    ]
    rows = []
    for run, different in zip(runs, settings_that_differ(runs), strict=True):
        method, data, training = run.record.method, run.record.dataset, run.record.training
        where = ", ".join(filter(None, (f"{data['name']}/{data['split']}", data.get("transform"))))
        facts = (
            method["name"],
            different,
            method.get("backbone"),
            run.record.start,
            training.get("epoch"),
            where,
            training.get("seed"),
        )
        numbers = [run.record.metric(metric, "oracle") or run.record.metric(metric) for metric in METRICS]
        cells = [escape_markdown(UNDEFINED if fact is None else fact) for fact in facts]
        cells += [UNDEFINED if n is None or n.value is None else markdown_cell(n) for n in numbers]
        rows.append(([where, *map(str, facts), run.link], f"| {' | '.join(cells)} | [record]({run.link}) |"))
    return [row for _, row in sorted(rows)]


def published(
    name: str, numbers: Sequence[PublishedNumber], papers: dict[str, Paper], post: bool
) -> Iterator[str]:
    """Yield the lines on published numbers: one per row of a paper's table, own and reproduced ones first."""
    disputed = {number.key for conflict in conflicts(numbers) for number in conflict.numbers}
    rows: dict[tuple[str, ...], list[PublishedNumber]] = {}
    for number in numbers:
        if is_about(name, number.ours, post):
            place = ", ".join(
                filter(None, (number.table, f"row {number.row}" if number.row else number.label))
            )
            data = f"{number.dataset}/{number.split}"
            rows.setdefault(
                (number.paper, place, number.method, number.backbone, data, number.evidence), []
            ).append(number)
    if not rows:
        return
    # Variants come last. The sort is stable, so the rest keeps the order of papers.toml and of the tables.
    ordered = sorted(rows, key=lambda row: (EVIDENCE.index(row[-1]), "[" in rows[row][0].method))
    yield from (
        "## Published",
        "",
        "As printed; [what the columns mean](../published.md). † Other tables print another value.",
        "",
    )
    yield from ("| source | where | method | backbone | data | printed | evidence |", f"|{'---|' * 7}")
    for row in ordered[:PUBLISHED_ROWS]:
        paper, *cells, evidence = row
        values = [
            f"{published_info(each.metric).title} {each.printed}{'†' * (each.key in disputed)}"
            for each in rows[row]
        ]
        texts = map(escape_markdown, (papers[paper].name, *cells, ", ".join(values), evidence))
        yield f"| {' | '.join(texts)} |"
    yield ""
    # What the rows say about their conditions, once each. † says the rest.
    notes: dict[str, dict[str, None]] = {}
    for row in ordered[:PUBLISHED_ROWS]:
        for note in [part for number in rows[row] for part in number.note.split("; ") if part]:
            if "print another value" not in note:
                notes.setdefault(note, {})[f"{papers[row[0]].name}, {row[1]}"] = None
    for note, where in notes.items():
        yield f"- {escape_markdown('; '.join(where))}: {escape_markdown(note.rstrip('.'))}."
    if notes:
        yield ""
    if more := Counter(papers[row[0]].file for row in ordered[PUBLISHED_ROWS:]):
        files = ", ".join(
            f"[{Path(file).name}](../../wsolbench/literature/{file}) ({count})"
            for file, count in more.items()
        )
        yield from (f"{more.total()} more rows: {files}.", "")


def picture_of(name: str, folder: str) -> str | None:
    """Return the path of a method's picture in a folder of docs/images, from the method's page, or None."""
    paths = [DOCS / "images" / folder / f"{name}{suffix}" for suffix in (".jpg", ".png")]
    return next((f"../images/{folder}/{path.name}" for path in paths if path.is_file()), None)


def pictured(name: str) -> Iterator[str]:
    """Yield the lines with the pictures of a method."""
    if path := picture_of(name, "photographs"):
        yield from (f"![Maps of {name} on photographs]({path})", "", PHOTOGRAPHS, "")
    if path := picture_of(name, "methods"):
        yield from (f"![Maps of {name}]({path})", "", "On generated images.", "")


def picture_commands(name: str, task: str) -> Iterator[str]:
    """Yield the lines with the commands that make the pictures."""
    if picture_of(name, "photographs"):
        yield from (f"    python docs/make_photographs.py --method {name} runs/cub/*/last.safetensors", "")
        yield from ("draws the photographs, with networks of the plan `cub50` in `runs/`.", "")
    if picture_of(name, "methods"):
        options = PICTURES_OF.get(task, PICTURES_OF["localization"])
        options = REGIONS if name in WITH_REGIONS else options
        yield from (f"    python docs/make_pictures.py --dataset {options} --out docs/images/methods", "")
        yield from PICTURES
        yield ""


def usage(row: MethodInfo, kind: type[Any], records: list[tuple[Path, RunRecord]], text: str) -> list[str]:
    """Return the lines with one command that evaluates the method, or a method with the post-process."""
    words = ["wsolbench eval --method", row.name]
    if row.task == "post-process":
        names = [record.method["name"] for _, record in records]
        bases = [name.partition("+")[0] for name in names if is_about(row.name, name, post=True)]
        method = "cam" if "cam" in bases or not bases else Counter(bases).most_common(1)[0][0]
        words[1:] = [method, "--post", row.name]
        kind = load_method(method)
    if getattr(kind, "needs_tokens", False):
        named = re.search(r"names in timm: `(\w+)`", " ".join(text.split()))
        words += ["--backbone", f"timm:{named[1] if named else 'deit_small_patch16_224'}"]
    words += ["--dataset cub", *(["--train"] if kind.trainable else [])]
    return ["## Use", "", f"    {' '.join(words)}", ""]


def source(row: MethodInfo, papers: dict[str, Paper]) -> list[str]:
    """Return the line that names the paper of a method, with links to the paper and to its released code."""
    if row.paper not in papers:
        return []
    paper = papers[row.paper]
    title = f"[{paper.title}]({paper.address})" if paper.address else paper.title
    code = f" [Released code]({paper.code})." if paper.code else ""
    return [f"Paper: {title}, {paper.venue_and_year}.{code}", ""]


def page(
    row: MethodInfo,
    kind: type[Any],
    records: list[tuple[Path, RunRecord]],
    numbers: Sequence[PublishedNumber],
    papers: dict[str, Paper],
) -> str:
    """Return the page of a method or post-process."""
    post = row.task == "post-process"
    docstring = inspect.getdoc(importlib.import_module(row.module)) or ""
    text, picture = method_text(docstring), list(pictured(row.name))
    lines = [f"# {row.name}", "", *prose(text.summary), "", *source(row, papers)]
    lines += [f"File: `{Path(row.module.replace('.', '/')).as_posix()}.py`", ""]
    lines += section("Idea", text.idea) + section("Pictures", picture) + section("Formula", text.formula)
    lines += usage(row, kind, records, docstring)
    if found := measured(row.name, records, post):
        titles = " | ".join((*FACTS, *map(metric_title, METRICS)))
        lines += ["## Measured", "", "Percent with 95 % intervals over images; oracle thresholds."]
        lines += ["Settings are those in which these runs differ; `init`: the weights before training.", ""]
        lines += [f"| {titles} | |", f"|{'---|' * (len(FACTS) + len(METRICS) + 1)}", *found, ""]
    lines += published(row.name, numbers, papers, post)
    lines += ["## Settings", "", f"`{'--post-set ' + row.name + '.' if post else '--set '}NAME=VALUE`", ""]
    lines += ["| name | default | what |", "|---|---|---|", *settings(kind.Config), ""]
    if names := sorted(getattr(kind.Config, "at_test", ())):
        lines += [
            f"Of a trained model (`--checkpoint`) {', '.join(f'`{name}`' for name in names)} can still be "
            "changed.",
            "",
        ]
    lines += section("Symbols", text.symbols) + section("Departures and notes", text.notes)
    lines += section("Source", text.source)
    lines += section("How the pictures are made", list(picture_commands(row.name, row.task)))
    return "\n".join(lines)


def section(title: str, lines: list[str]) -> list[str]:
    """Return a section, or nothing if it has no text."""
    return [f"## {title}", "", *lines] if lines else []


def pages(*, new: bool = True) -> dict[Path, str]:
    """Return the text of all pages and their index by path. Without `new`, only of existing pages."""
    records = [(path.relative_to(DOCS.parent), record) for path, record in read_records(RESULTS / "measured")]
    numbers, papers = read_published(LITERATURE), read_papers(LITERATURE / "papers.toml")
    rows = [
        (row, load_method(row.name)) for row in list_methods() if row.module.startswith("reference_models.")
    ]
    rows += [(row, load_post(row.name)) for row in list_posts() if row.module.startswith("reference_models.")]
    paths = {row.name: DOCS / "methods" / f"{row.name}.md" for row, _ in rows}
    rows = [(row, kind) for row, kind in rows if new or paths[row.name].is_file()]
    made = {paths[row.name]: page(row, kind, records, numbers, papers) for row, kind in rows}
    index = [
        "# Methods",
        "",
        "Generated by `python docs/make_methods.py` from the methods' files and the records.",
        "",
        "| name | task | paper | summary |",
        "|---|---|---|---|",
    ]
    index += [
        f"| [{row.name}]({row.name}.md) | {row.task} | {venue} | {escape_markdown(row.summary)} |"
        for row, _ in rows
        for venue in (papers[row.paper].venue_and_year if row.paper in papers else row.paper,)
    ]
    index += ["", "```{toctree}", ":hidden:", "", *(row.name for row, _ in rows), "```", ""]
    return {DOCS / "methods" / "index.md": "\n".join(index), **made}


@click.command()
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; exit with 1 when a page that is there is not what it should be.",
)
def main(check: bool) -> None:
    """Make one page per method and post-process."""
    made = pages(new=not check)
    stale = [
        path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    others = [path for path in (DOCS / "methods").glob("*.md") if path not in made]
    if check:
        for path in (*stale, *others):
            click.echo(f"not up to date: {path.relative_to(DOCS.parent)}; run python docs/make_methods.py")
        raise click.exceptions.Exit(bool(stale or others))
    for path in stale:
        write_text(path, made[path])
    for path in others:
        path.unlink()


if __name__ == "__main__":
    main()
