"""Runs on disk: the plan of a run, its chunks of scores, and how shards are merged.

    FOLDER/run.json               plan of the run (`RunPlan`); equal plans give equal numbers
    FOLDER/process-2-of-8.json    provenance of one process
                                  (`wsolbench.records.provenance.provenance`)
    FOLDER/test/00000064.scores   scores of the images from position 64 of split `test` on

Chunks have fixed places, whatever the number of processes and the batch size. So a killed run resumes, shards
may write into one folder or into several, and merging is finding every chunk once. A chunk names its run and
its place and has a digest of its bytes. A run that resumes re-scores chunks that are damaged or of another
run. `merge` reports them.
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
"""Number of images whose scores share a file. A kill loses at most one chunk. Memory holds one at a time."""


@dataclass(frozen=True)
class Shard:
    """Shard `index` (from 1) of `count` of a run: every `count`-th chunk.

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
                f"--shard is {shown!r}; expected i/n with 1 <= i <= n <= {MAX_SHARDS:,}, for instance "
                "2/8 for the second of eight shards"
            )
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def chunks(self, n_images: int) -> list[range]:
        """Return the image positions of each chunk of this shard, in a split of `n_images`."""
        step = CHUNK * self.count
        return [
            range(start, min(start + CHUNK, n_images))
            for start in range(CHUNK * (self.index - 1), n_images, step)
        ]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that the scores and the metrics of a run depend on."""

    method: dict[str, Any]
    dataset: dict[str, Any]
    """The `dataset` part of the record."""
    protocol: EvalProtocol
    splits: dict[str, dict[str, Any]]
    """Split -> number of images, digest of their ids, digest of their files.

    The scored split comes first, then the split for transferred thresholds.
    """
    fixed_tau: float | None
    resamples: int
    batch_size: int
    """Part of the plan because it can change the last bits of a network's output."""
    program: dict[str, Any]
    """Versions and digests of source (`wsolbench.records.program`)."""
    machine: dict[str, Any]
    """Device, a network's numerics, and the number of threads if it runs on the CPU.

    They can change the last bits, too.
    """
    source: str | None = None
    """Digest that distinguishes sources with the same description, for instance of stored maps, or None."""
    maps: str | None = None
    """Folder that raw maps are written to, or None. The digest of the plan does not cover it."""
    extra_metrics: dict[str, list[list[Any]]] = field(default_factory=dict)
    """Extra metric -> name and version of each metric that it adds to the record."""

    @classmethod
    def make(
        cls, *, splits: Sequence[Dataset], made_by: Mapping[str, Any], reads_images: bool, **fields: Any
    ) -> RunPlan:
        """Return the plan for these splits.

        `made_by` is the source's `provenance`. `reads_images` says whether the source reads the image files.
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
            machine={
                "device": device,
                "threads": threads if device == "cpu" else None,
                **(made_by.get("numerics") or {}),
            },
            **fields,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form, with a digest of itself."""
        values = self._values()
        return {**values, "sha256": sha256_of_json(values)}

    def _values(self) -> dict[str, Any]:
        values = {"schema": SCHEMA, **asdict(self), "protocol": self.protocol.to_json()}
        if not self.extra_metrics:  # as in plans of before there were any
            del values["extra_metrics"]
        return values

    @property
    def digest(self) -> str:
        """Digest that identifies the plan. It ignores the folder of maps."""
        return sha256_of_json({**self._values(), "maps": None})

    def describe_difference(self, other: RunPlan) -> str:
        """Describe how program or machine differ between two plans that are equal otherwise.

        Empty if the plans differ in more, or not at all.
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
        """Name of the run in messages and folder names."""
        parts = (
            self.method["name"],
            self.method.get("backbone"),
            self.dataset["name"],
            self.dataset["split"],
            self.protocol.name,
        )
        return "_".join(file_name(part) for part in parts if part)


def digest_of_files(dataset: Dataset, *, images: bool) -> str | None:
    """Return a digest of the bytes of all masks and, with `images`, of the sizes of all image files.

    None if there are no such files. Sizes reveal images that were written again, without reading gigabytes.
    Files that cannot be read are skipped here; scoring reports them.
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
    """Read a `run.json`. Raises `DataError` naming the file and its problem."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = values["schema"]
        if schema != SCHEMA:
            raise DataError(
                f"{path} has schema {schema!r}, written by another version; expected schema {SCHEMA}. "
                "Score the shards again, or merge them with that version"
            )
        if (
            sha256_of_json({name: value for name, value in values.items() if name != "sha256"})
            != values["sha256"]
        ):
            raise DataError(f"{path} is damaged: its SHA-256 differs. Run the shard again to write it again")
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
        """Write the plan and lock the folder for this shard.

        Raises `UsageError` while another process works on the same shard.
        """
        lock = self.root / f".lock-{shard.index}-of-{shard.count}"
        with locked(
            lock,
            f"another process is evaluating the same run and holds {lock}. Wait for it, or choose "
            "another --out",
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
        """Raise `UsageError` if another folder has chunks of this run from another program or machine."""
        for root in others:
            if root == self.root or next(root.glob("*/*.scores"), None) is None:
                continue
            try:
                difference = self.plan.describe_difference(read_plan(root / "run.json"))
            except DataError:
                continue
            if difference:
                raise UsageError(
                    f"{root} holds scores of this run that were computed differently: {difference}. "
                    "Such scores cannot be mixed. Resume with the program and machine that began the "
                    "run, or delete that folder to score all images again."
                )

    def chunk(self, split: str, start: int) -> Path:
        """Return the file of the scores of the images from position `start` on."""
        return self.root / file_name(split) / f"{start:08d}.scores"

    def has(self, ids: Sequence[str], split: str, start: int, maps: MapFolder | None = None) -> bool:
        """Whether a valid chunk has the scores of these images, and `maps`, if given, a map of each image."""
        try:
            scored = self.read_ids(split, start) == list(ids)
        except DataError:
            return False
        return scored and (maps is None or all(map(maps.find, ids)))

    def write_chunk(self, split: str, start: int, scores: ImageScores) -> None:
        """Store the scores of the images from position `start` on."""
        path = self.chunk(split, start)
        if path.exists() and not path.is_file():  # not a chunk, and writing would refuse to replace it
            path.unlink()
        scores.write(path, self._place(split, start))

    def read_ids(self, split: str, start: int) -> list[str]:
        """Return the ids in a chunk.

        Raises `DataError` if it is missing, damaged, or of another run or place.
        """
        return read_ids(self.chunk(split, start), self._place(split, start))

    def _place(self, split: str, start: int) -> str:
        return f"{self.plan.digest} {split} {start}"

    def write_provenance(self, shard: Shard, provenance: dict[str, Any]) -> None:
        """Write this process's provenance. An existing file is kept if the process scored nothing."""
        path = self.root / f"process-{shard.index}-of-{shard.count}.json"
        if provenance["seconds"] or _read_process(path) is None:
            write_json(path, provenance)

    def processes(self) -> list[dict[str, Any]]:
        """Return the provenance of every process that has finished. Damaged files are skipped."""
        return [
            process
            for path in sorted(self.root.glob("process-*.json"))
            if (process := _read_process(path)) is not None
        ]

    def remove(self) -> None:
        """Delete the folder with its content, unless another process works on the same run."""
        with contextlib.suppress(UsageError), self.opened(Shard()):
            shutil.rmtree(self.root, ignore_errors=True)


def _read_process(path: Path) -> dict[str, Any] | None:
    """Return the provenance of a finished process, or None if there is no such file, or a damaged one."""
    try:
        process = json.loads(path.read_text(encoding="utf-8"))
        return process if all(math.isfinite(seconds) for seconds in process["seconds"].values()) else None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run whose images all have scores; `conclude` computes its metrics."""

    plan: RunPlan
    tables: dict[str, ScoreTable]
    """Split -> scores, in the order of the plan."""
    provenance: dict[str, Any]
    """Provenance of the scores, with `seconds` for each stage."""
    folders: tuple[RunFolder, ...] = field(default=())
    """Folders with the chunks."""


def merge(roots: Sequence[Path]) -> list[ScoredRun]:
    """Return the complete runs whose shards lie in or below these folders, sorted by title.

    Raises `DataError` if there is none, if a file cannot be read, and if chunks of a run are missing.
    """
    # Find the folders of each run.
    found: dict[str, list[RunFolder]] = defaultdict(list)
    for root in roots:
        for path in sorted(root.resolve().rglob("run.json")):
            known = {folder.root for folders in found.values() for folder in folders}
            if path.parent.name.endswith(SHARDS) and path.parent not in known:
                plan = read_plan(path)
                found[plan.digest].append(RunFolder(path.parent, plan))
    if not found:
        raise DataError(
            f"no run.json in {', '.join(map(str, roots))}; expected folders with shards. Write them with "
            "`wsolbench eval --shard i/n --out DIR`"
        )
    # Join them, and explain why a run is incomplete.
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
    """Join the chunks in these folders to a run. Raises `DataError` if chunks are missing."""
    plan = folders[0].plan
    tables = {split: _table(folders, split, described) for split, described in plan.splits.items()}
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


def _table(folders: Sequence[RunFolder], split: str, described: Mapping[str, Any]) -> ScoreTable:
    """Find every chunk of a split once. `described` is the split's entry in the plan."""
    chunks: list[Path] = []
    ids: list[str] = []
    missing: list[int] = []
    problems: list[str] = []
    # Take each chunk from the first folder with a valid copy.
    for part in Shard().chunks(described["images"]):
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
    # Check that all chunks are there and hold the images of the plan.
    if missing:
        raise DataError(
            f"{folders[0].plan.title}: {len(missing)} of {len(missing) + len(chunks)} chunks of split "
            f"{split!r} are not in {', '.join(str(folder.root) for folder in folders)}. "
            f"{' '.join(f'{problem}.' for problem in problems[:3])}"
            f"{' ' if problems else ''}{_advise(folders, missing)}"
        )
    if sha256_of_json(ids) != described["ids"]:
        raise DataError(
            f"{folders[0].plan.title}: the images in the chunks of split {split!r} are not those of "
            "run.json. Score all images again"
        )
    return ScoreTable(tuple(chunks))


def _unlike(plan: RunPlan, others: Sequence[RunPlan]) -> str:
    """Return a hint for shards of the same name with other options: which fields differ."""
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
        f" Other shards of that name differ in {', '.join(fields)}; all shards need the same options."
        if fields
        else ""
    )


def _advise(folders: Sequence[RunFolder], missing: Sequence[int]) -> str:
    """Return the advice which shards to run. The number of shards is known once one of them has finished."""
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
