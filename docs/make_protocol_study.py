"""Make the study of protocols: score the same maps of several methods under every preset.

    wsolbench eval --method cam,spa,acol --dataset toybirds --save-maps maps/toybirds python
    docs/make_protocol_study.py --dataset toybirds --maps maps/toybirds/cam --maps maps/toybirds/spa --maps
    maps/toybirds/acol

Records and comparisons of the data set replace those of an earlier run. Then docs/protocol_study.md and its
charts are written for all data sets that have records. Without --dataset, only the page and the charts are
written.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from wsolbench.cli.options import DataOptions
from wsolbench.cli.values import available_cores
from wsolbench.datasets.subsets import limit_dataset
from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.result import Evaluation
from wsolbench.exceptions import UsageError, WsolbenchError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, read_records
from wsolbench.records.comparison import Comparison, MetricDifference, read_comparison
from wsolbench.report.board.tables import (
    UNDEFINED,
    escape_markdown,
    format_difference,
    format_number,
    format_value,
)
from wsolbench.report.pictures.figure_files import save_figure
from wsolbench.system.files import file_name, write_text
from wsolbench.types import Dataset

METRICS = ("gt_known", "top1_loc", "max_box_acc_v2")
INTRODUCTION = """# What a protocol does to a number

The same saved maps are scored under every preset of [protocols](protocols.md).
Only the conventions differ; no network runs again.
All numbers are percent at the oracle threshold of each metric and protocol, with 95 % intervals over images.
Each data set has a section that begins with a summary.

- A difference of two methods is paired: both are resampled with the same images, and each resample chooses its thresholds again.
- A difference is **bold** if its interval, before rounding, excludes 0.
- The order of two methods *changes* if bold differences of both signs occur.
- The order changes *within noise* if differences of both signs occur, but bold ones of at most one sign.
- Intervals are not corrected for multiple comparisons.
- The maps cover the whole image.
  Under a protocol with a centre crop ({cropped}), they are resized to the size before the crop.
  Then their centre is scored (`wsolbench score --crop-maps`).
  The original evaluators show the network only the crop.
- Predicted labels were saved with the maps and come from one view, under every protocol.
  This includes those that ask for ten crops ({ten_crop}) or another network ({external}).
- {by_class} average over classes, the other protocols over images.

Here `cub` is a subset of 50 classes, and `ilsvrc` a subset of 300 validation images, so their numbers are not those of papers.

| data set | network |
|---|---|
| `toybirds` | the small network, trained from scratch |
| `cub` | EfficientNet-Lite0 after three epochs |
| `ilsvrc` | EfficientNet-Lite0 with its ImageNet weights |

[Reproduction](reproduction.md) describes the training.
The first two of these commands load the trained runs and save their maps:

    wsolbench eval --method cam,spa,acol --dataset toybirds --save-maps maps/toybirds
    wsolbench eval --method cam,spa,acol --set width=256 --dataset cub --backbone efficientnet_lite0 --image-size 128 --epochs 3 \\
        --save-maps maps/cub
    wsolbench eval --method cam --post none,scg --dataset ilsvrc --metadata-root ilsvrc_mini/metadata --backbone efficientnet_lite0 \\
        --weights imagenet --set head=fc --save-maps maps/ilsvrc
    wsolbench eval --method backprop --dataset ilsvrc --metadata-root ilsvrc_mini/metadata --backbone efficientnet_lite0 \\
        --weights imagenet --set head=fc --save-maps maps/ilsvrc/backprop

Then score the maps of each data set (for `ilsvrc` again with `--metadata-root`):

    python docs/make_protocol_study.py --dataset toybirds --maps maps/toybirds/cam --maps maps/toybirds/spa --maps maps/toybirds/acol

The script writes this page from the records and comparisons in `results/protocols`.
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One data set: records by protocol and method, differences by protocol and pair of methods."""

    dataset: dict[str, Any]
    records: Mapping[tuple[str, str], RunRecord]
    comparisons: Mapping[tuple[str, str, str], Comparison]

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols, in the order of the presets."""
        return [name for name in EvalProtocol.presets() if name in {protocol for protocol, _ in self.records}]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, sorted."""
        return sorted({method for _, method in self.records})

    @property
    def metrics(self) -> list[str]:
        """The metrics of which every record has a value."""
        return [
            name
            for name in METRICS
            if all(_value(record, name) is not None for record in self.records.values())
        ]

    @property
    def picture(self) -> str:
        """File name of the chart."""
        return f"protocols_{file_name(self.dataset['name'])}.png"

    def values(self, metric: str, method: str) -> list[float]:
        """The metric under each protocol."""
        found = [_value(self.records[protocol, method], metric) for protocol in self.protocols]
        return [value for value in found if value is not None]

    def differences(self, metric: str, a: str, b: str) -> dict[str, MetricDifference | None]:
        """B minus A under each protocol, or None if it has no interval."""
        return {protocol: self.comparisons[protocol, a, b].find(metric) for protocol in self.protocols}


def _value(record: RunRecord, metric: str) -> float | None:
    found = record.metric(metric, "oracle")
    return None if found is None else found.value


def order(differences: Sequence[MetricDifference]) -> str:
    """Return whether the sign of a difference stays, changes within noise, or changes between protocols."""
    signs = {np.sign(difference.difference) for difference in differences} - {0.0}
    if len(signs) < 2:
        return "stays"
    up, down = (
        any(difference.low > 0 for difference in differences),
        any(difference.high < 0 for difference in differences),
    )
    return "**changes**" if up and down else "changes within noise"


# --- scoring ------------------------------------------------------------------------------------------------


def source_of(folder: MapFolder, protocol: EvalProtocol, dataset: Dataset) -> FolderSource:
    """Open stored maps for a protocol, cropped if it has a centre crop. Raises as `FolderSource.check`."""
    made_by = folder.manifest().get("method", {})
    source = FolderSource(
        folder,
        name=str(made_by.get("name", folder.root.resolve().name)),
        ranked=folder.predictions(len(dataset.class_names), dataset.ids),
        facts=made_by,
        crop=protocol if protocol.frame == "center_crop" else None,
    )
    source.check(dataset, protocol)
    return source


def score_maps(
    dataset: Dataset, folders: Sequence[Path], results: Path, options: RunOptions, limit: int | None
) -> None:
    """Score every folder under every preset, compare all pairs, and write the records and comparisons.

    Raises `UsageError` for fewer than two methods and for two folders of one name, and `DataError` for maps
    that are missing or do not fit.
    """
    scored = limit_dataset(dataset, limit)
    presets = [EvalProtocol.preset(name) for name in EvalProtocol.presets()]
    sources = {
        protocol.name: [source_of(MapFolder(folder), protocol, scored) for folder in folders]
        for protocol in presets
    }
    names = [source.name for source in sources[presets[0].name]]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(
            f"--maps of {', '.join(names) or 'nothing'}; expected folders of two methods or more, each of "
            "another name"
        )
    if not scored.has_boxes:
        raise UsageError(
            f"{dataset.name}/{dataset.split} has no ground-truth boxes; the study needs box metrics"
        )
    found: list[Evaluation] = []
    comparisons: list[Comparison] = []
    for protocol in presets:
        runs = [
            evaluate(dataset, source, protocol, limit=limit, options=options)
            for source in sources[protocol.name]
        ]
        found += runs
        for a, b in itertools.combinations(sorted(runs, key=lambda run: str(run.record.method["name"])), 2):
            differences = compare([a.scores], [b.scores], protocol, resamples=options.resamples)
            kept = [difference for difference in differences if difference.name in METRICS]
            comparisons.append(Comparison.make([a.record], [b.record], kept))
        click.echo(f"scored   {protocol.name}")
    for kind in ("measured", "compared"):
        shutil.rmtree(results / kind / file_name(dataset.name), ignore_errors=True)
    for run in found:
        run.record.write(results / "measured")
    for comparison in comparisons:
        comparison.write(results / "compared")


def read_studies(results: Path) -> list[Study]:
    """Read the data sets that have records, sorted by name.

    Raises `UsageError` if there is none, and `DataError` for an invalid file.
    """
    records = [record for _, record in read_records(results / "measured")]
    if not records:
        raise UsageError(
            f"no records in {results / 'records'}; name a data set and maps: --dataset NAME --maps DIR "
            "--maps DIR"
        )
    comparisons = [read_comparison(path) for path in sorted((results / "compared").rglob("*.json"))]
    studies = []
    for name in sorted({str(record.dataset["name"]) for record in records}):
        own = [record for record in records if record.dataset["name"] == name]
        studies.append(
            Study(
                dataset=own[0].dataset,
                records={(record.protocol.name, str(record.method["name"])): record for record in own},
                comparisons={
                    (item.protocol, str(item.a["name"]), str(item.b["name"])): item
                    for item in comparisons
                    if item.dataset["name"] == name
                },
            )
        )
    return studies


# --- the page -----------------------------------------------------------------------------------------------


def page(studies: Sequence[Study]) -> str:
    """Return the Markdown page of all data sets."""
    presets = [EvalProtocol.preset(name) for name in EvalProtocol.presets()]
    names = {
        "cropped": [preset.name for preset in presets if preset.frame == "center_crop"],
        "ten_crop": [preset.name for preset in presets if preset.classifier == "ten_crop"],
        "external": [preset.name for preset in presets if preset.classifier == "external"],
        "by_class": [preset.name for preset in presets if preset.averaging == "class"],
    }
    text = {key: " and ".join(f"`{name}`" for name in found) for key, found in names.items()}
    return "\n".join([INTRODUCTION.format(**text), *(line for study in studies for line in section(study))])


def section(study: Study) -> list[str]:
    """Return the Markdown lines of one data set."""
    data, methods = study.dataset, study.methods
    pairs = list(itertools.combinations(methods, 2))
    backbones = sorted(
        {str(record.method["backbone"]) for record in study.records.values() if record.method.get("backbone")}
    )
    where = f" on {', '.join(backbones)}" if backbones else ""
    lines = [
        f"## {data['name']}",
        "",
        f"{data['images']:,} images of `{data['split']}`; {', '.join(map(escape_markdown, methods))}{where}.",
        "",
        *summary(study),
        "",
        f"![{' and '.join(metric_title(name) for name in study.metrics)} of each method under each "
        f"protocol](images/{study.picture})",
        "",
    ]
    for metric in study.metrics:
        lines += [f"### {metric_title(metric)} on {data['name']}", "", *value_table(study, metric), ""]
        lines += [*difference_table(study, metric, pairs), ""]
    return lines


def summary(study: Study) -> list[str]:
    """Summarise how far each metric moves and how many orders change."""
    lines = []
    for metric in study.metrics:
        verdicts = [verdict(study, metric, a, b) for a, b in itertools.combinations(study.methods, 2)]
        moved = {
            method: max(values) - min(values)
            for method in study.methods
            if (values := study.values(metric, method))
        }
        far, near = max(moved, key=lambda method: moved[method]), min(moved, key=lambda method: moved[method])
        changed, noise = verdicts.count("**changes**"), verdicts.count("changes within noise")
        lines.append(
            f"- {metric_title(metric)} moves by {format_number(metric, moved[near])} "
            f"({escape_markdown(near)}) to {format_number(metric, moved[far])} ({escape_markdown(far)}) points "
            f"between protocols. Of {len(verdicts)} {'pair' if len(verdicts) == 1 else 'pairs'} of methods, "
            f"the order changes for {changed}, and within noise for {noise}."
        )
    return lines


def verdict(study: Study, metric: str, a: str, b: str) -> str:
    """Return `order` for a pair of methods."""
    return order(
        [difference for difference in study.differences(metric, a, b).values() if difference is not None]
    )


def value_table(study: Study, metric: str) -> list[str]:
    """Return a table with a row per protocol and a column per method, and how far each method moves."""
    lines = [
        _row(["protocol", *map(escape_markdown, study.methods)]),
        _row(["---", *["--:"] * len(study.methods)]),
    ]
    for protocol in study.protocols:
        cells = [study.records[protocol, method].metric(metric, "oracle") for method in study.methods]
        lines.append(
            _row([f"`{protocol}`", *(UNDEFINED if cell is None else format_value(cell) for cell in cells)])
        )
    moved = [
        format_number(metric, max(values) - min(values))
        for values in (study.values(metric, method) for method in study.methods)
    ]
    return [*lines, _row(["largest - smallest", *moved])]


def difference_table(study: Study, metric: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table with a row per pair of methods and a column per protocol, and whether the order changes."""
    heading = ["difference", *(f"`{protocol}`" for protocol in study.protocols), "order"]
    lines = [_row(heading), _row(["---", *["--:"] * len(study.protocols), "---"])]
    for a, b in pairs:
        cells = []
        for difference in study.differences(metric, a, b).values():
            if difference is None:
                cells.append(UNDEFINED)
                continue
            numbers = (difference.difference, difference.low, difference.high)
            text = "{} [{}, {}]".format(*(format_difference(metric, number) for number in numbers))
            cells.append(f"**{text}**" if difference.low > 0 or difference.high < 0 else text)
        lines.append(
            _row([f"{escape_markdown(b)} - {escape_markdown(a)}", *cells, verdict(study, metric, a, b)])
        )
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def chart(study: Study, path: Path) -> None:
    """Write a PNG: a panel per metric, a group of bars per protocol, and a bar with interval per method."""
    import matplotlib
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9.0, 0.6 + 2.5 * len(study.metrics)), dpi=100)
    panels = figure.subplots(len(study.metrics), 1, sharex=True, squeeze=False)[:, 0]
    colors = matplotlib.colormaps["viridis"](
        np.linspace(0.1, 0.9, len(study.methods))
    )  # distinguishable by lightness alone
    width = 0.8 / len(study.methods)
    for axes, metric in zip(panels, study.metrics, strict=True):
        scale = metric_info(metric).scale
        for number, method in enumerate(study.methods):
            cells = [study.records[protocol, method].metric(metric, "oracle") for protocol in study.protocols]
            spans = (
                np.array(
                    [[cell.value, cell.low, cell.high] for cell in cells if cell is not None],
                    dtype=np.float64,
                ).T
                * scale
            )
            places = np.arange(len(cells)) + width * (number - (len(study.methods) - 1) / 2)
            axes.bar(
                places,
                spans[0],
                0.92 * width,
                color=colors[number],
                edgecolor="black",
                linewidth=0.6,
                label=method,
            )
            errors = np.nan_to_num(np.maximum(np.abs(spans[1:] - spans[0]), 0))
            axes.errorbar(places, spans[0], errors, fmt="none", ecolor="black", elinewidth=1.0, capsize=2)
        axes.set_ylabel(f"{metric_title(metric)} (%)")
        axes.set_ylim(0, min(100, 1.05 * axes.get_ylim()[1]))
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
    panels[-1].set_xticks(range(len(study.protocols)), study.protocols)
    figure.suptitle(
        f"The same maps under every protocol: {study.dataset['name']}/{study.dataset['split']}, oracle "
        "thresholds",
        fontsize=11,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 6), fontsize=9, frameon=False)
    save_figure(figure, path, colors=64)


@click.command()
@click.option(
    "--dataset",
    help="Data set of the maps. Default: rewrite the page and charts from existing records.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of the data set. Default: from the environment, as for `wsolbench score`.",
)
@click.option(
    "--metadata-root",
    type=click.Path(path_type=Path),
    help="Folder of wsolevaluation text files, if the data set uses them.",
)
@click.option("--split", default="test", show_default=True, help="Split of the maps.")
@click.option(
    "--maps", multiple=True, type=click.Path(path_type=Path), help="Folder of maps of one method. Repeatable."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Score only this many images, selected as by `wsolbench eval --limit`.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=100),
    default=1000,
    show_default=True,
    help="Bootstrap resamples of the intervals.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=available_cores,
    show_default="all cores",
    help="Number of scoring threads.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("results/protocols"),
    show_default=True,
    help="Folder of records.",
)
@click.option(
    "--docs",
    type=click.Path(path_type=Path),
    default=Path("docs"),
    show_default=True,
    help="Folder of the page.",
)
def main(
    dataset: str | None,
    data_root: Path | None,
    metadata_root: Path | None,
    split: str,
    maps: tuple[Path, ...],
    limit: int | None,
    resamples: int,
    workers: int,
    results: Path,
    docs: Path,
) -> None:
    """Score maps under every protocol, and write the page of the study."""
    try:
        if (dataset is None) != (not maps):
            raise UsageError("expected --dataset and --maps, or neither")
        if dataset is not None:
            data = DataOptions(dataset=dataset, data_root=data_root, metadata_root=metadata_root).open(
                split, "keep"
            )
            score_maps(data, maps, results, RunOptions(workers=workers, resamples=resamples), limit)
        studies = read_studies(results)
        for study in studies:
            chart(study, docs / "images" / study.picture)
        write_text(docs / "protocol_study.md", page(studies))
        click.echo(f"page     {docs / 'protocol_study.md'}")
    except WsolbenchError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
