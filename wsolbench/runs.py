"""Runs on disk: what is scored, the chunks of scores that exist so far, and how the shards of a run come together.

    FOLDER/run.json               what is scored (`RunPlan`); equal plans give equal numbers
    FOLDER/process-2-of-8.json    where one process's part came from (`wsolbench.records.provenance`)
    FOLDER/test/00000064.scores   scores of the images from position 64 of split `test` on

Chunks have fixed places, whatever the number of processes and the batch size. So a killed run goes on where it was, shards
may write into one folder or into several, and merging is finding every chunk once.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import file_name, make_folder, sha256_of_json, write_json
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, provenance
from wsolbench.score_table import ScoreTable
from wsolbench.types import Dataset

SCHEMA = 1
MAX_SHARDS = 1_000_000
CHUNK = 64
"""Images whose scores share a file: what a kill can lose, and what is in memory at a time."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` of a run: every `count`-th chunk.

    >>> str(Shard.parse("2/8"))
    '2/8'
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`. Raises `UsageError` unless 1 <= i <= n <= 1,000,000."""
        found = re.fullmatch("([0-9]{1,7})/([0-9]{1,7})", text)
        index, count = (int(number) for number in found.groups()) if found else (0, 0)
        if not 1 <= index <= count <= MAX_SHARDS:
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            raise UsageError(
                f"--shard {shown!r}; expected i/n with 1 <= i <= n <= {MAX_SHARDS:,}, for instance 2/8 for the second of eight parts"
            )
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def chunks(self, n_images: int) -> list[range]:
        """Positions of the images of each of its chunks, in a split of `n_images`."""
        step = CHUNK * self.count
        return [range(start, min(start + CHUNK, n_images)) for start in range(CHUNK * (self.index - 1), n_images, step)]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that the scores and the metrics of a run depend on."""

    method: dict[str, Any]
    dataset: dict[str, Any]
    """As it is recorded."""
    protocol: EvalProtocol
    splits: dict[str, dict[str, Any]]
    """Split -> number of images and digest of their ids: the scored split, then the one whose thresholds are transferred."""
    fixed_tau: float | None
    resamples: int
    batch_size: int
    """It can change a network's last bits."""
    source: str | None = None
    """What else tells this source of maps from others, for instance a digest of stored maps."""
    maps: str | None = None
    """Folder that raw maps are written to; no part of the digest."""

    @classmethod
    def make(cls, *, splits: Sequence[Dataset], **facts: Any) -> RunPlan:
        """A plan for these splits."""
        return cls(splits={split.split: {"images": len(split), "ids": sha256_of_json(list(split.ids))} for split in splits}, **facts)

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {"schema": SCHEMA, **asdict(self), "protocol": self.protocol.to_json()}

    @property
    def digest(self) -> str:
        """Names the plan."""
        return sha256_of_json({**self.to_json(), "maps": None})

    @property
    def title(self) -> str:
        """For messages and folder names."""
        parts = (self.method["name"], self.method.get("backbone"), self.dataset["name"], self.dataset["split"], self.protocol.name)
        return "_".join(file_name(part) for part in parts if part)


def read_plan(path: Path) -> RunPlan:
    """Read a `run.json`. Raises `DataError` naming the file and what is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values.pop("schema")
        if schema != SCHEMA:
            raise DataError(f"{path} has schema {schema!r}; this version reads schema {SCHEMA}")
        return RunPlan(**{**values, "protocol": EvalProtocol.from_json(values["protocol"])})
    except (OSError, AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise DataError(f"{path} is not the plan of a run: {error}") from error


@dataclass(frozen=True)
class RunFolder:
    """A folder with chunks of one run."""

    root: Path
    plan: RunPlan

    @contextlib.contextmanager
    def opened(self, shard: Shard) -> Iterator[RunFolder]:
        """The folder with its plan written, locked for this shard. Raises `UsageError` while another process works on the same."""
        import fcntl

        make_folder(self.root)
        if not (self.root / "run.json").exists():
            write_json(self.root / "run.json", self.plan.to_json())
        lock_path = self.root / f".lock-{shard.index}-of-{shard.count}"
        with lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is evaluating the same run (it holds {lock_path}); wait for it, or choose another --out"
                ) from error
            yield self

    def chunk(self, split: str, start: int) -> Path:
        """Where the scores of the images from position `start` on belong."""
        return self.root / file_name(split) / f"{start:08d}.scores"

    def describe(self, shard: Shard, facts: dict[str, Any]) -> None:
        """Say where a process's part came from; what is said already stays where nothing was done."""
        path = self.root / f"process-{shard.index}-of-{shard.count}.json"
        if facts["seconds"] or not path.exists():
            write_json(path, facts)

    def processes(self) -> list[dict[str, Any]]:
        """What the processes said."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.root.glob("process-*.json"))]

    def remove(self) -> None:
        """Delete the folder with all it holds, unless another process has begun to work on the same run."""
        with contextlib.suppress(UsageError), self.opened(Shard()):
            shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run whose images all have scores: what is left is to summarise."""

    plan: RunPlan
    tables: dict[str, ScoreTable]
    """Split -> scores, in the order of the plan."""
    provenance: dict[str, Any]
    """Where the scores came from, with `seconds` for each stage."""
    folders: tuple[RunFolder, ...] = field(default=())
    """Where the chunks are."""


def merge(roots: Sequence[Path]) -> list[ScoredRun]:
    """The complete runs whose shards lie in or below these folders, sorted by title.

    Raises `DataError` when there is none, when a file cannot be read, and when a run has not all of its chunks.
    """
    found: dict[str, list[RunFolder]] = defaultdict(list)
    for root in roots:
        for path in sorted(root.resolve().rglob("run.json")):
            known = {folder.root for folders in found.values() for folder in folders}
            if path.parent.name.endswith(SHARDS) and path.parent not in known:
                plan = read_plan(path)
                found[plan.digest].append(RunFolder(path.parent, plan))
    if not found:
        raise DataError(
            f"no shards in {', '.join(map(str, roots))}: no run.json there. Write them with `wsolbench eval --shard i/n --out DIR`"
        )
    runs = []
    for folders in found.values():
        try:
            runs.append(gather(folders))
        except DataError as error:
            others = [other[0].plan for other in found.values() if other is not folders and other[0].plan.title == folders[0].plan.title]
            raise DataError(f"{error}{_unlike(folders[0].plan, others)}") from error
    return sorted(runs, key=lambda run: run.plan.title)


def gather(folders: Sequence[RunFolder]) -> ScoredRun:
    """The run that these folders hold together. Raises `DataError` when chunks are missing."""
    plan = folders[0].plan
    tables = {split: _table(folders, split, facts["images"]) for split, facts in plan.splits.items()}
    processes = [process for folder in folders for process in folder.processes()]
    known = dict(processes[0]) if processes else provenance(seconds={}, device="unknown")
    known |= {"seconds": _sums([process["seconds"] for process in processes]), "processes": len(processes)} if processes else {}
    return ScoredRun(plan=plan, tables=tables, provenance=known, folders=tuple(folders))


def _sums(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: sum(part.get(stage, 0.0) for part in parts) for stage in dict.fromkeys(stage for part in parts for stage in part)}


def _table(folders: Sequence[RunFolder], split: str, n_images: int) -> ScoreTable:
    chunks: list[Path] = []
    missing: list[int] = []
    for part in Shard().chunks(n_images):
        path = next((path for folder in folders if (path := folder.chunk(split, part.start)).exists()), None)
        if path is None:
            missing.append(part.start // CHUNK)
        else:
            chunks.append(path)
    if missing:
        raise DataError(
            f"{folders[0].plan.title}: {len(missing)} of {len(missing) + len(chunks)} parts of split {split!r} are not in "
            f"{', '.join(str(folder.root) for folder in folders)}. {_what_to_run(folders, missing)}"
        )
    return ScoreTable(tuple(chunks))


def _unlike(plan: RunPlan, others: Sequence[RunPlan]) -> str:
    """In what runs of the same name differ, when shards were made with different options."""
    mine = plan.to_json()
    fields = sorted({name for other in others for name, value in other.to_json().items() if value != mine[name] and name != "maps"})
    return f" Other shards of that name there differ in {', '.join(fields)}: all shards need the same options." if fields else ""


def _what_to_run(folders: Sequence[RunFolder], missing: Sequence[int]) -> str:
    """The shards that have not finished, as far as those that have tell how many there are."""
    counts = {int(path.stem.rpartition("-")[2]) for folder in folders for path in folder.root.glob("process-*.json")}
    if len(counts) != 1:
        return "Run the other shards, and name all their folders."
    count = counts.pop()
    shards = sorted({chunk % count + 1 for chunk in missing})
    return f"Run {', '.join(f'--shard {index}/{count}' for index in shards)}, or name the folders that hold them."
