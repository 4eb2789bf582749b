"""Runs on disk: what is scored, the chunks of scores that exist so far, and how the shards of a run come
together.

    FOLDER/run.json               what is scored (`RunPlan`); equal plans give equal numbers
    FOLDER/process-2-of-8.json    where one process's part came from
                                  (`wsolbench.records.provenance.provenance`)
    FOLDER/test/00000064.scores   scores of the images from position 64 of split `test` on

Chunks have fixed places, whatever the number of processes and the batch size. So a killed run goes on where
it was, shards may write into one folder or into several, and merging is finding every chunk once. A chunk
names its run and its place and has a digest of its bytes: what is damaged, doubled or of another run is
scored again by a run that goes on, and named by `merge`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores, read_ids
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, provenance
from wsolbench.records.program import program, unlike
from wsolbench.system.files import (
    canonical_json,
    file_name,
    locked,
    remove_leftovers,
    sha256_of_json,
    write_json,
)
from wsolbench.types import Dataset, Sample

SCHEMA = 2
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
                f"--shard {shown!r}; expected i/n with 1 <= i <= n <= {MAX_SHARDS:,}, for instance 2/8 for "
                "the second of eight parts"
            )
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def chunks(self, n_images: int) -> list[range]:
        """Positions of the images of each of its chunks, in a split of `n_images`."""
        step = CHUNK * self.count
        return [
            range(start, min(start + CHUNK, n_images))
            for start in range(CHUNK * (self.index - 1), n_images, step)
        ]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that the scores and the metrics of a run depend on."""

    method: dict[str, Any]
    dataset: dict[str, Any]
    """As it is recorded."""
    protocol: EvalProtocol
    splits: dict[str, dict[str, Any]]
    """Split -> number of images, digest of their ids, digest of their files: the scored split, then the one
    for transferred thresholds.
    """
    fixed_tau: float | None
    resamples: int
    batch_size: int
    """It can change a network's last bits."""
    program: dict[str, Any]
    """Versions and digests of source (`wsolbench.records.program`)."""
    machine: dict[str, Any]
    """Device, and for a network on the CPU the number of threads, which can change its last bits, too."""
    source: str | None = None
    """What else tells this source of maps from others, for instance a digest of stored maps."""
    maps: str | None = None
    """Folder that raw maps are written to; no part of the digest."""

    @classmethod
    def make(
        cls, *, splits: Sequence[Dataset], made_by: Mapping[str, Any], reads_images: bool, **facts: Any
    ) -> RunPlan:
        """A plan for these splits. `made_by` is the source's `provenance`, `reads_images` whether it reads
        the image files.
        """
        device, threads = made_by["device"], made_by.get("threads")
        return cls(
            splits={
                split.split: {
                    "images": len(split),
                    "ids": sha256_of_json(list(split.ids)),
                    "files": digest_of_files(split, images=reads_images),
                }
                for split in splits
            },
            program=program(made_by.get("packages", ())),
            machine={"device": device, "threads": threads if device == "cpu" else None},
            **facts,
        )

    def to_json(self) -> dict[str, Any]:
        """The stored form, with a digest of itself."""
        values = self._values()
        return {**values, "sha256": sha256_of_json(values)}

    def _values(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "protocol": self.protocol.to_json()}

    @property
    def digest(self) -> str:
        """Names the plan."""
        return sha256_of_json({**self._values(), "maps": None})

    def begun_elsewhere(self, other: RunPlan) -> str:
        """In words, how the program or the machine differs where all else is the same; empty for any other
        plan.
        """
        mine, theirs = (
            canonical_json({**plan._values(), "maps": None, "program": None, "machine": None})
            for plan in (self, other)
        )
        if mine != theirs:
            return ""
        parts = [
            f"{name} {other.machine.get(name)} there and {value} here" for name, value in self.machine.items()
        ]
        differing = [
            part
            for part, (name, value) in zip(parts, self.machine.items(), strict=True)
            if other.machine.get(name) != value
        ]
        return ", ".join(filter(None, [unlike(other.program, self.program), *differing]))

    @property
    def title(self) -> str:
        """For messages and folder names."""
        parts = (
            self.method["name"],
            self.method.get("backbone"),
            self.dataset["name"],
            self.dataset["split"],
            self.protocol.name,
        )
        return "_".join(file_name(part) for part in parts if part)


def digest_of_files(dataset: Dataset, *, images: bool) -> str | None:
    """A digest of the bytes of all masks and, with `images`, of the sizes of all image files; None if there
    is nothing to look at.

    Sizes notice images that are written again, without reading gigabytes. Files that cannot be read are an
    error of the scoring.
    """

    def look_at(sample: Sample) -> list[str | int]:
        found: list[str | int] = []
        with contextlib.suppress(OSError):
            if images and sample.path is not None:
                found.append(sample.path.stat().st_size)
            for path in (*sample.mask_paths, *([sample.ignore_path] if sample.ignore_path else [])):
                found.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look_at, dataset.samples, chunksize=64))
    return sha256_of_json(found) if any(found) else None


def read_plan(path: Path) -> RunPlan:
    """Read a `run.json`. Raises `DataError` naming the file and what is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values["schema"]
        if schema != SCHEMA:
            raise DataError(
                f"{path} has schema {schema!r}, this version reads schema {SCHEMA}: another version has "
                "scored these shards. "
                "Score them again, or merge them with that version"
            )
        if (
            sha256_of_json({name: value for name, value in values.items() if name != "sha256"})
            != values["sha256"]
        ):
            raise DataError(f"{path} is damaged: its SHA-256 differs. Run the shard again, which writes it")
        del values["schema"], values["sha256"]
        return RunPlan(**{**values, "protocol": EvalProtocol.from_json(values["protocol"])})
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise DataError(f"{path} is not the plan of a run: {error}") from error


@dataclass(frozen=True)
class RunFolder:
    """A folder with chunks of one run."""

    root: Path
    plan: RunPlan

    @contextlib.contextmanager
    def opened(self, shard: Shard) -> Iterator[RunFolder]:
        """The folder with its plan written, locked for this shard. Raises `UsageError` while another process
        works on the same.
        """
        lock = self.root / f".lock-{shard.index}-of-{shard.count}"
        with locked(
            lock,
            f"another process is evaluating the same run (it holds {lock}); wait for it, or choose another "
            "--out",
        ):
            remove_leftovers(self.root)
            if not self._has_plan():
                write_json(self.root / "run.json", self.plan.to_json())
            yield self

    def _has_plan(self) -> bool:
        try:
            return read_plan(self.root / "run.json").digest == self.plan.digest
        except DataError:
            return False

    def refuse_mixing(self, others: Iterable[Path]) -> None:
        """Raises `UsageError` where another of these folders holds chunks of the same run, by another program
        or of another machine.
        """
        for root in others:
            if root == self.root or next(root.glob("*/*.scores"), None) is None:
                continue
            try:
                difference = self.plan.begun_elsewhere(read_plan(root / "run.json"))
            except DataError:
                continue
            if difference:
                raise UsageError(
                    f"{root} holds a part of this run that was scored otherwise: {difference}. Such scores "
                    "do not mix. "
                    "Go on as it was begun, or delete that folder to score all images again."
                )

    def chunk(self, split: str, start: int) -> Path:
        """Where the scores of the images from position `start` on belong."""
        return self.root / file_name(split) / f"{start:08d}.scores"

    def has(self, ids: Sequence[str], split: str, start: int, maps: MapFolder | None = None) -> bool:
        """Whether a chunk has the scores of these images, as they were written, and `maps`, if given, a map
        of each.
        """
        try:
            scored = self.read_ids(split, start) == list(ids)
        except DataError:
            return False
        return scored and (maps is None or all(map(maps.find, ids)))

    def write_chunk(self, split: str, start: int, scores: ImageScores) -> None:
        """Store the scores of the images from position `start` on."""
        path = self.chunk(split, start)
        if (
            path.exists() and not path.is_file()
        ):  # what lies there is no chunk, and writing would refuse to replace it
            path.unlink()
        scores.write(path, self._place(split, start))

    def read_ids(self, split: str, start: int) -> list[str]:
        """The ids in a chunk. Raises `DataError` when it is missing, damaged, or of another run or place."""
        return read_ids(self.chunk(split, start), self._place(split, start))

    def _place(self, split: str, start: int) -> str:
        return f"{self.plan.digest} {split} {start}"

    def describe(self, shard: Shard, facts: dict[str, Any]) -> None:
        """Say where a process's part came from; what is said already stays where nothing was done."""
        path = self.root / f"process-{shard.index}-of-{shard.count}.json"
        if facts["seconds"] or _read_process(path) is None:
            write_json(path, facts)

    def processes(self) -> list[dict[str, Any]]:
        """What the processes said, as far as it can be read."""
        return [
            facts
            for path in sorted(self.root.glob("process-*.json"))
            if (facts := _read_process(path)) is not None
        ]

    def remove(self) -> None:
        """Delete the folder with all it holds, unless another process has begun to work on the same run."""
        with contextlib.suppress(UsageError), self.opened(Shard()):
            shutil.rmtree(self.root, ignore_errors=True)


def _read_process(path: Path) -> dict[str, Any] | None:
    """What a process said; None where there is no such file, or a damaged one."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts if all(math.isfinite(seconds) for seconds in facts["seconds"].values()) else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


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

    Raises `DataError` when there is none, when a file cannot be read, and when a run has not all of its
    chunks.
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
            f"no shards in {', '.join(map(str, roots))}: no run.json there. Write them with `wsolbench "
            "eval --shard i/n --out DIR`"
        )
    runs = []
    for folders in found.values():
        try:
            runs.append(gather(folders))
        except DataError as error:
            others = [
                other[0].plan
                for other in found.values()
                if other is not folders and other[0].plan.title == folders[0].plan.title
            ]
            raise DataError(f"{error}{_unlike(folders[0].plan, others)}") from error
    return sorted(runs, key=lambda run: run.plan.title)


def gather(folders: Sequence[RunFolder]) -> ScoredRun:
    """The run that these folders hold together. Raises `DataError` when chunks are missing."""
    plan = folders[0].plan
    tables = {split: _table(folders, split, facts) for split, facts in plan.splits.items()}
    processes = [process for folder in folders for process in folder.processes()]
    known = dict(processes[0]) if processes else provenance(seconds={}, device="unknown")
    known |= (
        {"seconds": _sums([process["seconds"] for process in processes]), "processes": len(processes)}
        if processes
        else {}
    )
    return ScoredRun(plan=plan, tables=tables, provenance=known, folders=tuple(folders))


def _sums(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        stage: sum(part.get(stage, 0.0) for part in parts)
        for stage in dict.fromkeys(stage for part in parts for stage in part)
    }


def _table(folders: Sequence[RunFolder], split: str, facts: Mapping[str, Any]) -> ScoreTable:
    chunks: list[Path] = []
    ids: list[str] = []
    missing: list[int] = []
    problems: list[str] = []
    for part in Shard().chunks(facts["images"]):
        for folder in [folder for folder in folders if folder.chunk(split, part.start).exists()]:
            try:
                ids += folder.read_ids(split, part.start)
            except DataError as error:
                problems.append(str(error))
            else:
                chunks.append(folder.chunk(split, part.start))
                break
        else:
            missing.append(part.start // CHUNK)
    if missing:
        raise DataError(
            f"{folders[0].plan.title}: {len(missing)} of {len(missing) + len(chunks)} parts of split "
            f"{split!r} are not in "
            f"{', '.join(str(folder.root) for folder in folders)}. "
            f"{' '.join(f'{problem}.' for problem in problems[:3])}"
            f"{' ' if problems else ''}{_what_to_run(folders, missing)}"
        )
    if sha256_of_json(ids) != facts["ids"]:
        raise DataError(
            f"{folders[0].plan.title}: the images in the parts of split {split!r} are not those of "
            "run.json; score all again"
        )
    return ScoreTable(tuple(chunks))


def _unlike(plan: RunPlan, others: Sequence[RunPlan]) -> str:
    """In what runs of the same name differ, when shards were made with different options."""
    mine = plan.to_json()
    fields = sorted(
        {
            name
            for other in others
            for name, value in other.to_json().items()
            if value != mine[name] and name not in ("maps", "sha256")
        }
    )
    return (
        f" Other shards of that name there differ in {', '.join(fields)}: all shards need the same options."
        if fields
        else ""
    )


def _what_to_run(folders: Sequence[RunFolder], missing: Sequence[int]) -> str:
    """The shards that have not finished, as far as those that have tell how many there are."""
    counts = {
        int(path.stem.rpartition("-")[2]) for folder in folders for path in folder.root.glob("process-*.json")
    }
    if len(counts) != 1:
        return "Run the other shards, and name all their folders."
    count = counts.pop()
    shards = sorted({chunk % count + 1 for chunk in missing})
    return (
        f"Run {', '.join(f'--shard {index}/{count}' for index in shards)}, or name the folders that hold "
        "them."
    )
