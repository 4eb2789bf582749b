"""Records: one JSON file per run, written once and never edited, with the numbers and how they were measured.

    {"schema": 1,
     "method":     {"name", "backbone", "variant", "config", "weights", ...},        method and weights
     "dataset":    {"name", "split", "fingerprint", "images", "limit"},               images, annotations
     "protocol":   {...all fields of EvalProtocol, or of DetectionProtocol...},       conventions
     "metrics":    [{"name", "value", "low", "high", "n", "policy", "tau", ...}],     results
     "provenance": {"command", "date", "versions", "device", "seconds", ...}}         program, machine

Values are in the unit of the catalog: fractions in [0, 1], levels, pixels. A metric that is undefined has
value null and a reason.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods.supervision import Supervision
from wsolbench.protocol import DetectionProtocol, EvalProtocol, protocol_from_json
from wsolbench.records.checks import check_metric, check_parts, check_record
from wsolbench.system.files import canonical_json, file_name, sha256_of_json, write_json
from wsolbench.system.json_values import lists_to_tuples, tuples_to_lists
from wsolbench.system.listing import is_junk
from wsolbench.system.stored import check_plain, read_json

SCHEMA = 1

SHARDS = ".shards"
"""Suffix of the folders that hold the shards of a run until they are merged."""

_DIGEST_IN_NAME = re.compile(r"_([0-9a-f]{8})\.json\Z")
"""End of the name of a record that `RunRecord.write` wrote."""

LONGEST_NAME = 200
"""Most bytes that are kept of a file's name. File systems take 255, and a digest and a suffix follow."""


def settings_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method settings of a record in a form that is equal across seeds.

    A setting that is a checkpoint path becomes `"checkpoint"`; its digest is dropped. Number formats other
    than the default are settings, too: those of the training, and those of the evaluation.

    >>> settings_of({"config": {"head": "fc", "part_net": "runs/a.safetensors", "part_net_sha256": "0a1b"}})
    {'head': 'fc', 'part_net': 'checkpoint'}
    >>> settings_of({"config": {}, "training": {"numerics": {"amp": "bf16"}}})
    {'train.amp': 'bf16'}
    """
    config = method.get("config") or {}
    digests = {name for name in config if name.endswith("_sha256")}
    training = method.get("training") or {}
    formats = {"train": training.get("numerics") or {}, "eval": method.get("numerics") or {}}
    return {
        **{
            name: "checkpoint" if value and f"{name}_sha256" in digests else value
            for name, value in config.items()
            if name not in digests
        },
        **{f"{when}.{name}": value for when, own in formats.items() for name, value in own.items()},
    }


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number with its uncertainty and its threshold policy.

    Attributes:
        name: a name of `wsolbench.metrics.catalog`.
        value: number in the metric's unit, mostly a fraction in [0, 1]. None if the metric is undefined;
            `reason` then says why.
        low: lower end of the 95 % percentile bootstrap interval over images, or None without an interval.
        high: upper end of it.
        corrected_low: lower end of the interval corrected for the choice of the best threshold
            (`wsolbench.metrics.best_threshold`). None for metrics that are not at their best threshold, and
            in records of older versions.
        corrected_high: upper end of it.
        n: number of images that it was computed on.
        policy: `oracle`, `fixed:T` or `transfer`, or None for a metric without a threshold.
        tau: the threshold, or one per delta.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None
    policy: str | None = None
    tau: tuple[float, ...] | None = None
    reason: str | None = None
    version: int = 1
    """Version of the metric's definition (`wsolbench.metrics.catalog`)."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as it is stored. `method` is `Method.describe()` plus its name."""

    method: dict[str, Any]
    dataset: dict[str, Any]
    protocol: EvalProtocol | DetectionProtocol
    metrics: tuple[MetricValue, ...]
    provenance: dict[str, Any]
    schema: int = SCHEMA

    def metric(self, name: str, policy: str | None = None) -> MetricValue | None:
        """Return the metric of that name (and policy), or None if the run has none."""
        for metric in self.metrics:
            if metric.name == name and (policy is None or metric.policy == policy):
                return metric
        return None

    @property
    def map_protocol(self) -> EvalProtocol:
        """The protocol of a run that scored maps. Raises `UsageError` for a run of a detector."""
        if not isinstance(self.protocol, EvalProtocol):
            raise UsageError(
                f"the record of {self.method['name']!r} is of a detector; expected a record of scored "
                "maps, because detectors have no maps, thresholds and per-image scores"
            )
        return self.protocol

    @property
    def training(self) -> dict[str, Any]:
        """Training metadata reported by the method, or an empty dict."""
        training = self.method.get("training")
        return training if isinstance(training, dict) else {}

    @property
    def start(self) -> str | None:
        """Weights before training: `none`, `imagenet` or `checkpoint`.

        None if the record does not state it.
        """
        weights = self.training.get("weights")
        return None if weights is None else weights if weights in ("none", "imagenet") else "checkpoint"

    @property
    def init(self) -> str | None:
        """Origin of the weights, for tables: `start`, or `pretrained` for a network evaluated as it came.

        None if the run has no network, or if the record does not state it.
        """
        return self.start or ("pretrained" if self.method.get("weights") else None)

    @property
    def supervision(self) -> Supervision | None:
        """Ground truth that the method reads besides labels of training images, or None."""
        return Supervision.parse(self.method.get("supervision"))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method, as `settings_of` returns them."""
        return settings_of(self.method)

    @property
    def key(self) -> dict[str, Any]:
        """Description of the run without results. Two records with equal keys repeat the same run."""
        return {"method": self.method, "dataset": self.dataset, "protocol": self.protocol.to_json()}

    @property
    def path(self) -> Path:
        """Path of the record below a results folder: readable, and different for different runs."""
        return self.path_of(self.digest)

    def path_of(self, digest: str) -> Path:
        """Return `path` for a digest that is known already."""
        data = (self.dataset["split"], self.dataset.get("transform"))
        parts = [self.method["name"], self.method.get("backbone"), *data, self.protocol.name]
        name = "_".join(file_name(part) for part in parts if part)
        return Path(_cut(file_name(self.dataset["name"]))) / f"{_cut(name)}_{digest[:8]}.json"

    @cached_property
    def digest(self) -> str:
        """Digest of key and results. It does not cover date, speed and machine."""
        return sha256_of_json({**self.key, "metrics": [_metric_to_json(metric) for metric in self.metrics]})

    @property
    def values_digest(self) -> str:
        """Digest of images, conventions and results, whatever the method. Per-image scores must match it."""
        data = {name: self.dataset.get(name) for name in ("name", "split", "fingerprint", "images")}
        return sha256_of_json(
            [data, self.protocol.to_json(), [_metric_to_json(metric) for metric in self.metrics]]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {
            "schema": self.schema,
            **self.key,
            "metrics": [_metric_to_json(metric) for metric in self.metrics],
            "provenance": self.provenance,
        }

    def check(self) -> None:
        """Raise `DataError` for a record that `read_record` would refuse."""
        what = (
            f"the record of method {self.method.get('name')!r} on data set {self.dataset.get('name')!r} "
            "cannot be written: it"
        )
        parse_record(json.loads(_text(self.to_json(), what)), what)

    def write(self, folder: Path) -> Path:
        """Write to `folder / self.path` and return the path. A valid record of the same run and result is
        kept.

        Raises `DataError`, and writes nothing, for a record that could not be read again.
        """
        self.check()
        path = folder / self.path
        if not _is_stored(self, path):
            write_json(path, self.to_json())
        return path


def _cut(name: str) -> str:
    """Return at most `LONGEST_NAME` bytes of a file's name."""
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def _text(values: Any, what: str) -> str:
    """Return plain values as JSON text. Raises `DataError` for values that cannot be read again."""
    try:
        check_plain(values)
    except ValueError as error:
        raise DataError(f"{what} has {error}") from error
    return canonical_json(values)


def _is_stored(record: RunRecord, path: Path) -> bool:
    """Whether `path` holds this record. False for a file that a full disk or a crash has cut short."""
    try:
        return read_record(path).digest == record.digest
    except DataError:
        return False


def _metric_to_json(metric: MetricValue) -> dict[str, Any]:
    return {
        key: value
        for key, value in tuples_to_lists(vars(metric)).items()
        if (value is not None or key == "value") and (key, value) != ("version", 1)
    }


def read_record(path: Path) -> RunRecord:
    """Read and validate a record. Raises `DataError` naming the file and its problem."""
    return parse_record(read_json(path, "record"), f"record {path}")


def parse_record(values: Any, what: str) -> RunRecord:
    """Validate the stored form of a record. `what` begins messages: "record FILE".

    Raises `DataError` for values that are not a valid record.
    """
    schema = values.get("schema") if isinstance(values, dict) else type(values).__name__
    if schema != SCHEMA or type(schema) is not int:
        raise DataError(
            f"{what} has schema {schema!r}; expected schema {SCHEMA}, the one that this version reads"
        )
    # Build it, then check what no part can check alone.
    try:
        check_parts(values)
        record = RunRecord(
            method=dict(values["method"]),
            dataset=dict(values["dataset"]),
            protocol=protocol_from_json(values["protocol"]),
            metrics=tuple(_metric_from_json(item) for item in values["metrics"]),
            provenance=dict(values["provenance"]),
        )
        check_record(record)
    except KeyError as error:
        raise DataError(f"{what} lacks or misspells a field: {error}") from error
    except (AttributeError, TypeError, ValueError, ArithmeticError, MemoryError, UsageError) as error:
        raise DataError(f"{what} lacks or misspells a field: {str(error) or type(error).__name__}") from error
    return record


def _metric_from_json(values: dict[str, Any]) -> MetricValue:
    metric = MetricValue(**lists_to_tuples(values))
    if not isinstance(metric.name, str):
        raise ValueError(f"a metric has name {metric.name!r}; expected a text")
    check_metric(metric)
    return metric


@dataclass(frozen=True, kw_only=True)
class FoundRecords:
    """The records of a folder, sorted by path, and the files that were skipped.

    Attributes:
        records: each run and result once.
        problems: one message per file that is not a valid record, naming it.
        copies: one message per file that repeats the run and result of another one, naming both.
    """

    records: list[tuple[Path, RunRecord]]
    problems: list[str]
    copies: list[str]


def find_records(folder: Path) -> FoundRecords:
    """Read every record below `folder`. Unfinished runs are skipped.

    A file whose name ends in another digest than its record's (`RunRecord.path`) is a problem. Of several
    files with one run and result, the one at its own path (`RunRecord.path`) counts, or else the first by
    path.
    """
    # Read all files, and compare their digest with their name.
    found, problems, copies = [], [], []
    paths, unreadable = _json_files(folder)
    problems += unreadable
    for path in paths:
        try:
            record = read_record(path)
        except DataError as error:
            problems.append(str(error))
            continue
        digest = record.digest
        named = _DIGEST_IN_NAME.search(path.name)
        if named is None or digest.startswith(named[1]):
            found.append((path, record, digest))
        else:
            problems.append(
                f"record {path} was changed or renamed after it was written: its name ends in "
                f"{named[1]}, its content gives {digest[:8]}. Run it again"
            )
    # Keep each run and result once.
    first: dict[str, Path] = {}
    kept = []
    for path, record, digest in sorted(
        found, key=lambda item: (item[0].relative_to(folder) != item[1].path_of(item[2]), item[0])
    ):
        original = first.setdefault(digest, path)
        if original == path:
            kept.append((path, record))
        else:
            copies.append(f"record {path} is a copy of {original}; it counts once")
    return FoundRecords(records=sorted(kept, key=lambda item: item[0]), problems=problems, copies=copies)


def _json_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return every `*.json` below `folder`, and messages for folders that cannot be listed."""
    paths: list[Path] = []
    unreadable: list[str] = []
    if not folder.exists():
        return paths, unreadable

    def name_error(error: OSError) -> None:
        unreadable.append(f"the folder {error.filename} cannot be listed: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=name_error):
        folders[:] = [name for name in folders if not is_junk(name) and not name.endswith(SHARDS)]
        names = [name for name in (*files, *folders) if name.endswith(".json") and not is_junk(name)]
        paths += [Path(root) / name for name in names]
    return sorted(paths), sorted(unreadable)


def read_records(folder: Path) -> list[tuple[Path, RunRecord]]:
    """Return every record below `folder`, sorted by path, each run and result once.

    Raises `DataError` naming all files that are not a valid record.
    """
    found = find_records(folder)
    if found.problems:
        raise DataError("; ".join(found.problems))
    return found.records


def precedence(record: RunRecord) -> tuple[tuple[int, ...], str]:
    """Return the sort key of records of one run and seed. The greatest one is shown.

    A higher version of wsolbench comes later. Equal versions are sorted by the digest. Dates do not count,
    because clocks can be wrong.
    """
    versions = record.provenance.get("versions")
    text = str(versions.get("wsolbench")) if isinstance(versions, dict) else ""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", text)), record.digest
