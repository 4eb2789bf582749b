"""The request of an evaluation: everything that its numbers depend on, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wsolbench.checks import check_unit
from wsolbench.datasets.subsets import limit_dataset, shares_images
from wsolbench.evaluation.extra_metrics.base import ExtraMetric
from wsolbench.evaluation.runs import RunPlan
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.sources import MapSource, ModelSource
from wsolbench.metrics.thresholds import check_fixed_tau
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.types import Dataset


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Execution options.

    They do not change any metric, except that the batch size can change the last bits of a network's output.
    """

    batch_size: int = 32
    workers: int = 2
    """Threads that load and score images."""
    work: Path | None = None
    """Folder for scored chunks. If None, they stay in memory, and a killed run starts again."""
    save_maps: MapFolder | None = None
    resamples: int = 1000


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """Everything an evaluation depends on. `wsolbench.evaluate` makes it from its arguments.

    Attributes:
        dataset: the split. Images without boxes or mask count only for metrics that need neither.
        source: the model or the folder of maps.
        protocol: how maps become boxes and are counted.
        limit: number of images to score, evenly spread, or None for all.
        fixed_tau: threshold of the policy `fixed`, or None for `protocol.fixed_tau`.
        transfer_from: split whose best thresholds the policy `transfer` applies.
        options: batch size, workers, work folder.
        metadata: further entries of the record's `dataset`.
        extra_metrics: metrics to compute besides those of every run.
    """

    dataset: Dataset
    source: MapSource
    protocol: EvalProtocol
    limit: int | None = None
    fixed_tau: float | None = None
    transfer_from: Dataset | None = None
    options: RunOptions = field(default_factory=RunOptions)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    extra_metrics: tuple[ExtraMetric, ...] = ()

    def __post_init__(self) -> None:
        self._prepare_measures()

    @cached_property
    def splits(self) -> tuple[Dataset, ...]:
        """The images to score: those of the split, then those of the split for transferred thresholds."""
        others = () if self._transferred is None else (self._transferred,)
        return tuple(limit_dataset(split, self.limit) for split in (self.dataset, *others))

    @property
    def _transferred(self) -> Dataset | None:
        return self.transfer_from if self.transfer_from is not None and self.transfer_from.has_boxes else None

    def writing_maps(self, folder: MapFolder | None) -> EvalRequest:
        """Return the same request with another folder for maps."""
        return replace(self, options=replace(self.options, save_maps=folder))

    def plan(self) -> RunPlan:
        """Describe the run completely. What cannot be scored or recorded is refused here, before the work.

        Raises `UsageError` for a threshold that is not on the protocol's grid. Raises `DataError` for a split
        without images or with invalid boxes.
        """
        # Refuse invalid requests.
        check_fixed_tau(self.fixed_tau, self.protocol.taus)
        if not len(self.splits[0]):
            raise DataError(
                f"data set {self.dataset.name!r} has no image in split {self.dataset.split!r}; expected at "
                "least one"
            )
        self._refuse_leaks()
        for split in self.splits:
            check_unit(
                (sample.id, sample.boxes, sample.size) for sample in split.samples if len(sample.boxes)
            )
        # Describe the run.
        maps_digest = self.source.identity([image_id for split in self.splits for image_id in split.ids])
        folder = self.options.save_maps
        plan = RunPlan.make(
            splits=self.splits,
            reads_images=maps_digest is None,  # only a model has no digest of maps
            method=self.source.describe(),
            dataset=self._described_dataset(),
            protocol=self.protocol,
            fixed_tau=self.fixed_tau,
            resamples=self.options.resamples,
            batch_size=self.options.batch_size,
            made_by=self.source.provenance(),
            source=maps_digest,
            maps=None if folder is None else str(folder.root.resolve()),
            extra_metrics={
                metric.name: [[info.name, info.version] for info in metric.infos]
                for metric in self.extra_metrics
            },
        )
        # Check that the description can be stored as a record.
        RunRecord(
            method=plan.method, dataset=plan.dataset, protocol=self.protocol, metrics=(), provenance={}
        ).check()
        return plan

    def _prepare_measures(self) -> None:
        """Let the source measure what needs the network. Raises `UsageError` for a source without one."""
        measures = {metric.name: metric.of_batch for metric in self.extra_metrics if metric.needs_network}
        if isinstance(self.source, ModelSource):
            self.source.measures = measures
        elif measures:
            raise UsageError(
                f"extra metrics {', '.join(measures)} need the network, and stored maps have none; expected "
                "others, or `wsolbench eval`"
            )

    def _refuse_leaks(self) -> None:
        """Raise `UsageError` if thresholds would be transferred from images that the method learned from."""
        training, val = self.source.describe().get("training") or {}, self._transferred
        if val is None:
            return
        for learned in (training.get("dataset") or {}, *(training.get("earlier_data") or [])):
            if shares_images(learned, val):
                raise UsageError(
                    f"thresholds would be transferred from {val.name} {val.split}, which the method was "
                    f"trained on ({learned.get('images')} images of {learned.get('split')}); expected images "
                    "that it has not seen. Evaluate without transfer (--no-transfer), or train on other "
                    "images: with --carve-val, or with another split in the method's settings"
                )

    def _described_dataset(self) -> dict[str, Any]:
        """Return the `dataset` part of the record."""
        val = self._transferred
        return {
            "name": self.dataset.name,
            "split": self.dataset.split,
            "fingerprint": self.dataset.fingerprint,
            "images": len(self.splits[0]),
            "limit": self.limit,
            "transfer_from": None if val is None else _described_transfer(val),
            **({"format": self.dataset.format} if self.dataset.format else {}),
            **self.dataset.details,
            **self.metadata,
        }


def _described_transfer(val: Dataset) -> dict[str, str]:
    """Return the split of transferred thresholds. A part of `val` also names the whole."""
    described = {"split": val.split, "fingerprint": val.fingerprint}
    return {**described, "part_of": val.within[0]} if val.within and "/" in val.split else described
