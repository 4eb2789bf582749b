"""Options of commands that score maps: `eval` and `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from wsolbench.cli.groups import option
from wsolbench.cli.options import (
    full_option,
    records_option,
    save_outcomes_option,
    save_scores_option,
    together,
)
from wsolbench.cli.settings import read_protocols
from wsolbench.cli.values import Number
from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.ranges import Count, Range, Ranged, Share
from wsolbench.system.files import file_name, make_folder
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.evaluation.extra_metrics.base import ExtraMetric
    from wsolbench.evaluation.runs import Shard


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Ranged):
    """Options of a score: what is scored, how it is counted, and what is written."""

    split: str
    protocol: str
    protocol_set: tuple[str, ...]
    fixed_tau: Share | None
    transfer: bool
    limit: Count | None
    resamples: Annotated[int, Range(100, 100_000)]
    out: Path
    save_scores: bool
    save_outcomes: bool | None
    """None: yes, unless all scores are saved or this is a shard."""
    shard: Shard | None
    choose_percentile: tuple[float, ...] | None
    extra_metrics: str
    pictures: Path | None
    picture_format: tuple[str, ...]
    save_boxes: Path | None
    full: bool

    @property
    def prints_all(self) -> bool:
        """Whether the table of all metrics is printed: on request, and with metrics on request."""
        return self.full or bool(self.extra_metrics)

    @property
    def with_outcomes(self) -> bool:
        """Whether outcomes are saved."""
        return (
            not self.save_scores and self.shard is None if self.save_outcomes is None else self.save_outcomes
        )

    def protocols(self) -> tuple[EvalProtocol, ...]:
        """Return the protocols, with their changes."""
        return read_protocols(self.protocol, self.protocol_set)

    def extra(self) -> tuple[ExtraMetric, ...]:
        """Return the extra metrics. Raises `UsageError` for an unknown name."""
        from wsolbench.evaluation.extra_metrics.base import find_extra_metrics

        return find_extra_metrics(self.extra_metrics.split(",") if self.extra_metrics else [])

    def within(self, folder: Path) -> ScoringOptions:
        """Return the same options with boxes in a folder below theirs.

        Pictures of each record have a folder of their own anyway.
        """
        if self.save_boxes is None:
            return self
        return replace(self, save_boxes=self.save_boxes.parent / folder / self.save_boxes.name)

    def within_each(
        self, folder: Path, protocols: Sequence[EvalProtocol], *, of: int
    ) -> list[ScoringOptions]:
        """Return the options for each of these protocols, with a folder of its own if there are several.

        `of` is the number of all protocols of the command.
        """
        return [
            self.within(folder / file_name(protocol.name) if of > 1 else folder) for protocol in protocols
        ]

    def prepare(self, scored: Dataset, *more: Path | None) -> None:
        """Refuse what the data do not allow, and create the output folders, before any work is done."""
        from wsolbench.metrics.thresholds import check_fixed_tau

        for protocol in self.protocols():
            check_fixed_tau(self.fixed_tau, protocol.taus)
        self.extra()
        if self.choose_percentile is not None and self.shard is not None:
            raise UsageError(
                "--choose-percentile scores the whole split val first; leave out --shard, or set "
                "--protocol-set percentile=... for each shard"
            )
        if self.save_boxes is not None and not scored.has_boxes:
            raise UsageError(
                f"--save-boxes needs the oracle threshold of GT-known, but {scored.name}/{scored.split} has "
                "no ground-truth boxes; use a split with boxes"
            )
        needs_all = self.pictures, self.save_scores, self.save_outcomes, self.save_boxes
        if self.shard is not None and any(needs_all):
            raise UsageError(
                "--pictures, --save-boxes, --save-scores and --save-outcomes need all shards of a run; leave "
                "out --shard (`merge` also takes --save-scores and --save-outcomes)"
            )
        for folder in (self.out, self.pictures, self.save_boxes and self.save_boxes.parent, *more):
            if folder is not None:
                make_folder(folder)


def _shard(text: str) -> Shard:
    from wsolbench.evaluation.runs import Shard

    return Shard.parse(text)


def _percentiles(text: str) -> tuple[float, ...]:
    from wsolbench.evaluation.percentile import read_percentiles

    return read_percentiles(text)


def _formats(text: str) -> tuple[str, ...]:
    from wsolbench.report.pictures.figure_files import read_formats

    return read_formats(text)


resamples_option = partial(
    option,
    "Protocol",
    "--resamples",
    type=Number(ScoringOptions, "resamples"),
    default=1000,
    show_default=True,
    help="Bootstrap resamples for the confidence intervals.",
)
"""The option `--resamples`. A command whose resamples are for something else gives another `help`."""

scoring_options = together(
    "scoring",
    ScoringOptions,
    option("Data", "--split", default="test", show_default=True, help="Split to score."),
    option(
        "Protocol",
        "--protocol",
        default="wsoleval",
        show_default=True,
        help="Evaluation protocol (see `wsolbench list protocols`), or several, each with its own record: "
        "wsoleval,spa. Or all.",
    ),
    option(
        "Protocol",
        "--protocol-set",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Change one field of each protocol; can be repeated.",
    ),
    option(
        "Protocol",
        "--fixed-tau",
        type=Number(ScoringOptions, "fixed_tau"),
        help="Threshold of the policy `fixed`, reported next to the oracle.",
    ),
    option(
        "Protocol",
        "--transfer/--no-transfer",
        default=True,
        show_default=True,
        help="Also report results at the thresholds that are best on the val split, if there is one.",
    ),
    option(
        "Protocol",
        "--choose-percentile",
        metavar="PERCENT,...",
        callback=lambda _context, _option, text: None if text is None else _percentiles(text),
        help="Candidates for the percentile of normalize=ivr or pas. The one with the best MaxBoxAccV2 on "
        "the val split is applied, and the record lists all: 0,5,10,15,20,25,30,35,40,45,50.",
    ),
    option(
        "Data",
        "--limit",
        type=Number(ScoringOptions, "limit"),
        help="Score only this many images, spread evenly over the split.",
    ),
    option(
        "Protocol",
        "--extra-metrics",
        default="",
        metavar="NAME,...",
        help="Metrics to compute besides those of every run (see `wsolbench list metrics`): "
        "pointing-game,size-strata.",
    ),
    resamples_option(),
    records_option,
    save_scores_option,
    save_outcomes_option,
    full_option,
    option(
        "Execution",
        "--shard",
        metavar="I/N",
        callback=lambda _context, _option, text: None if text is None else _shard(text),
        help=(
            "Score only shard I of N, into a folder below --out. `wsolbench merge` makes the record from all "
            "shards."
        ),
    ),
    option(
        "Output",
        "--pictures",
        type=click.Path(path_type=Path),
        help="Folder for overlays, curves and bar charts. Each run has a subfolder, named as its record.",
    ),
    option(
        "Output",
        "--picture-format",
        default="png",
        show_default=True,
        metavar="FORMAT,...",
        callback=lambda _context, _option, text: _formats(text),
        help="Formats of the pictures: png, pdf (vectors and embedded fonts), or both: png,pdf.",
    ),
    option(
        "Output",
        "--save-boxes",
        type=click.Path(path_type=Path, dir_okay=False),
        help=(
            "JSON file for one box per image at the oracle threshold of GT-known, in COCO's results format. "
            "Computes all maps a second time."
        ),
    ),
)
