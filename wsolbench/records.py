"""Records: one JSON file per run, written once and never edited, that says what was measured and how.

    {"schema": 1,
     "method":     {"name", "backbone", "variant", "config", "weights", ...},        what was run
     "dataset":    {"name", "split", "fingerprint", "images", "limit"},               on what
     "protocol":   {...all fields of EvalProtocol, or of DetectionProtocol...},       counted how
     "metrics":    [{"name", "value", "low", "high", "n", "policy", "tau", ...}],     with what result
     "provenance": {"command", "date", "versions", "device", "seconds", ...}}         where it came from

Values are in the unit of the catalog: fractions in [0, 1], levels, pixels. A metric that is undefined has value null and a reason.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import file_name, sha256_of_json, write_json
from wsolbench.listing import find_files
from wsolbench.metrics.catalog import metric_info
from wsolbench.protocol import DetectionProtocol, EvalProtocol, protocol_from_json

SCHEMA = 1

SHARDS = ".shards"
"""Ends the names of folders that parts of a run are in until they are merged."""


def settings_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record's method, comparable between seeds: one that names a checkpoint, which has its digest beside it, is
    `checkpoint`, and the digest is left out.

    >>> settings_of({"config": {"head": "fc", "classifier": "runs/a.safetensors", "classifier_sha256": "0a1b"}})
    {'head': 'fc', 'classifier': 'checkpoint'}
    """
    config = method.get("config") or {}
    digests = {name for name in config if name.endswith("_sha256")}
    return {name: "checkpoint" if value and f"{name}_sha256" in digests else value for name, value in config.items() if name not in digests}


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number with its uncertainty and its threshold policy.

    Attributes:
        name: a name of `wsolbench.metrics.catalog`.
        value: in the metric's unit, mostly a fraction in [0, 1]; None where the metric is undefined, and then `reason` says why.
        low, high: 95 % bootstrap interval over images; None where there is none.
        n: images it was computed on.
        policy: `oracle`, `fixed:T` or `transfer`; None for a metric without a threshold.
        tau: the threshold, or one per delta.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    policy: str | None = None
    tau: tuple[float, ...] | None = None
    reason: str | None = None
    version: int = 1
    """Of the metric's definition (`wsolbench.metrics.catalog`)."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as it is stored. `method` is `Method.describe()` plus its name."""

    method: dict[str, Any]
    dataset: dict[str, Any]
    protocol: EvalProtocol | DetectionProtocol
    metrics: tuple[MetricValue, ...]
    provenance: dict[str, Any]
    schema: int = SCHEMA

    def metric(self, name: str, policy: str | None = None) -> MetricValue | None:
        """The metric of that name (and policy), or None where the run has none."""
        for metric in self.metrics:
            if metric.name == name and (policy is None or metric.policy == policy):
                return metric
        return None

    @property
    def map_protocol(self) -> EvalProtocol:
        """The protocol of a run that scored maps. Raises `UsageError` for one that counted detections."""
        if not isinstance(self.protocol, EvalProtocol):
            raise UsageError(f"the record of {self.method['name']!r} is a detector's, without maps, thresholds and scores of images")
        return self.protocol

    @property
    def training(self) -> dict[str, Any]:
        """How the weights came about, as the method says it; empty for one that says nothing."""
        training = self.method.get("training")
        return training if isinstance(training, dict) else {}

    @property
    def start(self) -> str | None:
        """What the weights were before training: `none`, `imagenet` or `checkpoint`; None where nobody says so."""
        weights = self.training.get("weights")
        return None if weights is None else weights if weights in ("none", "imagenet") else "checkpoint"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method, as `settings_of` gives them."""
        return settings_of(self.method)

    @property
    def key(self) -> dict[str, Any]:
        """What was measured, without the results: two records with one key are two runs of the same thing."""
        return {"method": self.method, "dataset": self.dataset, "protocol": self.protocol.to_json()}

    @property
    def path(self) -> Path:
        """Where the record belongs below a results folder: readable, and different for different runs."""
        data = (self.dataset["split"], self.dataset.get("transform"))
        parts = [self.method["name"], self.method.get("backbone"), *data, self.protocol.name, self.digest[:8]]
        name = "_".join(file_name(part) for part in parts if part)
        return Path(file_name(self.dataset["name"])) / f"{name}.json"

    @property
    def digest(self) -> str:
        """Digest of key and results; date, speed and machine do not enter."""
        return sha256_of_json({**self.key, "metrics": [_metric_to_json(metric) for metric in self.metrics]})

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {
            "schema": self.schema,
            **self.key,
            "metrics": [_metric_to_json(metric) for metric in self.metrics],
            "provenance": self.provenance,
        }

    def write(self, folder: Path) -> Path:
        """Write to `folder / self.path`; a record that is there already (same run, same result) is left as it is."""
        path = folder / self.path
        if not path.exists():
            write_json(path, self.to_json())
        return path


def _metric_to_json(metric: MetricValue) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(metric).items()
        if (value is not None or key == "value") and (key, value) != ("version", 1)
    }


def read_record(path: Path) -> RunRecord:
    """Read and validate a record. Raises `DataError` naming the file and what is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no record {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"record {path} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise DataError(f"record {path} has schema {found!r}; this version reads schema {SCHEMA}")
    try:
        record = RunRecord(
            method=dict(values["method"]),
            dataset=dict(values["dataset"]),
            protocol=protocol_from_json(values["protocol"]),
            metrics=tuple(_metric_from_json(item) for item in values["metrics"]),
            provenance=dict(values["provenance"]),
        )
        _check_fields(record)
        _ = record.path
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise DataError(f"record {path} lacks or misspells a field: {error}") from error
    return record


def _metric_from_json(values: dict[str, Any]) -> MetricValue:
    arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    metric = MetricValue(**arguments)
    top = metric_info(metric.name).top
    for field in ("value", "low", "high", "n", "version"):
        if not _is_number(number := getattr(metric, field), optional=field in ("value", "low", "high")):
            raise ValueError(f"metric {metric.name} has {field} {number!r}; expected a number")
    if metric.tau is not None and not (isinstance(metric.tau, tuple) and all(map(_is_number, metric.tau))):
        raise ValueError(f"metric {metric.name} has tau {metric.tau!r}; expected a list of thresholds")
    for field in ("policy", "reason"):
        if not isinstance(text := getattr(metric, field), str | None):
            raise ValueError(f"metric {metric.name} has {field} {text!r}; expected a text")
    if metric.value is not None and not 0.0 <= metric.value <= (math.inf if top is None else top):
        raise ValueError(f"metric {metric.name} has value {metric.value}; expected 0 {'or more' if top is None else f'to {top:g}'}")
    if metric.value is None and not metric.reason:
        raise ValueError(f"metric {metric.name} has neither a value nor a reason")
    return metric


def _is_number(value: object, *, optional: bool = False) -> bool:
    return (optional and value is None) or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def _check_fields(record: RunRecord) -> None:
    """Raise `ValueError` for a part of a record that tables read and that is of another kind."""
    method, data = record.method, record.dataset
    for field in ("config", "post", "training"):
        if not isinstance(method.get(field), dict | None):
            raise ValueError(f"method has {field} {method[field]!r}; expected names and values")
    for where, parts, field in (("training", record.training, "recipe"), ("post", method.get("post") or {}, "config")):
        if not isinstance(parts.get(field), dict | None):
            raise ValueError(f"method.{where} has {field} {parts[field]!r}; expected names and values")
    seed = record.training.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise ValueError(f"method.training has seed {seed!r}; expected a whole number")
    for where, parts, required, optional in (
        ("method", method, ("name",), ("backbone", "variant")),
        ("dataset", data, ("name", "split", "fingerprint"), ("transform",)),
    ):
        for field in (*required, *optional):
            if not isinstance(parts.get(field), str if field in required else str | None):
                raise ValueError(f"{where}.{field} is {parts.get(field)!r}; expected a text")


def read_records(folder: Path) -> list[tuple[Path, RunRecord]]:
    """Every record below `folder`, sorted by path; what runs leave while they are under way is left out."""

    def under_way(path: Path) -> bool:
        return any(part.startswith(".") or part.endswith(SHARDS) for part in path.relative_to(folder).parts)

    return [(path, read_record(path)) for path in find_files(folder, ".json") if not under_way(path)]


def provenance(*, seconds: dict[str, float], device: str, packages: tuple[str, ...] = (), threads: int | None = None) -> dict[str, Any]:
    """Where a number came from: command, date, versions, machine, a network's threads, source revision, seconds per stage."""
    return {
        **({} if threads is None else {"threads": threads}),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "revision": _git_revision(),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": {name: _version(name) for name in ("wsolbench", "numpy", "opencv-python-headless", *packages)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Commit of the source tree this module lies in, with `+changes` when it differs; None for an installed wheel."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", ".", "../reference_models"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed.stdout.strip() else "")
