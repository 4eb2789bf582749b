"""All checks that need a GPU, in one run of less than ten minutes: `make gpu-sprint`.

    python benchmarks/gpu_sprint.py [--minutes 9.5] [--wheels DIR] [--data DIR] [--out DIR]
    python benchmarks/gpu_sprint.py --device cpu --tiny

It needs a working tree, and no installed wsolbench. Each part is a process with a time limit and a log. A
part that fails, hangs or is killed does not stop the next one. The last part gets the time that is left.

Below `--out` are at most five files, which are replaced while the parts run: `summary.md` (six sentences and
all tables), `parts.json`, `tables.json`, `logs.tar.gz` and `records.tar.gz`. The exit code is 1 if a part
failed.

This file uses only the standard library, because the machine may have nothing else. The parts are in
`sprint_parts.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOG_BYTES = 2**20
"""The end of each log that is kept."""
FILE_BYTES = 15 * 2**20
"""Bytes of the files in one archive."""
PATIENCE_SECONDS = 5.0
"""Time between the request to stop and the force."""
REPORT_SECONDS = 15.0
"""Time between two lines of progress, and between two updates of the output."""


@dataclass(frozen=True)
class Part:
    """One process of the sprint.

    Attributes:
        name: name of the part, of its log and of its table.
        command: the process.
        limit: seconds after which it is killed.
    """

    name: str
    command: Sequence[str]
    limit: float


@dataclass(frozen=True)
class Result:
    """How a part ended.

    Attributes:
        outcome: `passed`, `failed` (with an exit code), `over its limit`, or `no time left`.
        last: last line of its log.
    """

    part: str
    outcome: str
    seconds: float
    last: str


@dataclass(frozen=True)
class Folders:
    """Places of the sprint: `out` is kept, `work` has logs, tables and records while it runs."""

    out: Path
    work: Path

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.work / "logs" / f"{part}.log"

    def records(self) -> list[Path]:
        """Return the records so far."""
        return sorted((self.work / "results").rglob("*.json"))

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of all tables so far. A last line that was not written whole is left out."""
        tables = {}
        for path in sorted((self.work / "tables").glob("*.jsonl")):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            tables[path.stem] = [json.loads(line) for line in lines]
        return tables


def run_parts(
    parts: Sequence[Part], folders: Folders, minutes: float, environment: Mapping[str, str]
) -> list[Result]:
    """Run the parts one after the other, whatever each of them does, and keep the output up to date.

    No part runs beyond `minutes` after the start.
    """
    end = time.monotonic() + 60 * minutes
    results: list[Result] = []
    for number, part in enumerate(parts, start=1):
        left = end - time.monotonic()
        limit = min(part.limit, left)
        say(f"[{number}/{len(parts)}] {part.name}: limit {max(0.0, limit):.0f} s, {left / 60:.1f} min left")
        if limit <= 0:
            results.append(Result(part.name, "no time left", 0.0, ""))
        else:
            results.append(run_part(part, limit, folders, results, environment))
        say(f"      {results[-1].outcome} after {results[-1].seconds:.1f} s  {results[-1].last}")
        write_output(folders, results)
    return results


def run_part(
    part: Part, limit: float, folders: Folders, before: Sequence[Result], environment: Mapping[str, str]
) -> Result:
    """Run one part. At its limit, the part and all processes that it started are killed."""
    log = folders.log(part.name)
    start = time.monotonic()
    with log.open("wb") as stream:
        try:
            process = subprocess.Popen(
                part.command,
                cwd=folders.work,
                env={**environment, "SPRINT_SECONDS": f"{limit:.0f}"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Result(part.name, "failed", 0.0, str(error))
        outcome, report = "over its limit", REPORT_SECONDS
        try:
            while (passed := time.monotonic() - start) < limit:
                try:
                    status = process.wait(max(0.0, min(report, limit) - passed))
                except subprocess.TimeoutExpired:
                    say(f"      {time.monotonic() - start:.0f} of {limit:.0f} s  {last_line(log)}")
                    write_output(folders, before)
                    report += REPORT_SECONDS
                else:
                    outcome = "passed" if status == 0 else f"failed with exit code {status}"
                    break
        finally:  # also when the sprint itself is stopped
            stop(process)
    return Result(part.name, outcome, time.monotonic() - start, last_line(log))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and the processes that it started, at first by a request, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(PATIENCE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, at most 100 characters of it."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = stream.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "")


def write_output(folders: Folders, results: Sequence[Result]) -> None:
    """Write all files of the output. Each one replaces its earlier version at once."""
    tables = folders.tables()
    records = folders.records()
    text = "\n".join([*summary(results, tables, len(records)), "", *markdown(tables)]) + "\n"
    replace(folders.out / "summary.md", text)
    replace(folders.out / "parts.json", json.dumps([asdict(result) for result in results], indent=1))
    replace(folders.out / "tables.json", json.dumps(tables, indent=1))
    logs = [*sorted((folders.work / "logs").glob("*.log")), *sorted((folders.work / "runs").rglob("*.log"))]
    pack(folders.out / "logs.tar.gz", logs, folders.work, LOG_BYTES)
    scores = [path for path in sorted((folders.work / "results").rglob("*.npz")) if path.is_file()]
    pack(folders.out / "records.tar.gz", [*records, *scores], folders.work)


def replace(path: Path, text: str) -> None:
    """Write a file under another name and rename it."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def pack(path: Path, files: Sequence[Path], root: Path, keep: int = FILE_BYTES) -> None:
    """Pack the last `keep` bytes of each file into an archive, in the order of the files, while they fit."""
    new, total = path.with_name(f".{path.name}.new"), 0
    with tarfile.open(new, "w:gz", compresslevel=3) as archive:
        for file in files:
            data = file.read_bytes()[-keep:]
            total += len(data)
            if total > FILE_BYTES:
                break
            entry = tarfile.TarInfo(str(file.relative_to(root)))
            entry.size, entry.mtime = len(data), int(file.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(data))
    new.replace(path)


def summary(
    results: Sequence[Result], tables: Mapping[str, Sequence[Mapping[str, Any]]], records: int
) -> list[str]:
    """Return six sentences: how the parts ended, and what they found."""
    bad = [f"{result.part} ({result.outcome})" for result in results if result.outcome != "passed"]
    minutes = sum(result.seconds for result in results) / 60
    machine = {row["what"]: row["value"] for row in tables.get("environment", ())}
    where = f"on {machine.get('device', 'an unknown device')} with torch {machine.get('torch', 'unknown')}"
    ended = (
        f"{len(bad)} of {len(results)} parts did not pass: {', '.join(bad)}" if bad else "All parts passed"
    )
    ends = {result.part: result.last for result in results}
    lines = [
        f"{ended}, in {minutes:.1f} minutes {where}.",
        f"GPU tests: {ends.get('tests') or 'not run'}.",
        parity_sentence(tables.get("parity", ())),
        throughput_sentence(tables.get("throughput", ()), ends.get("throughput", "")),
        speed_sentence(tables),
        f"Kill and resume: {ends.get('resume') or 'not run'}. "
        f"Plan: {ends.get('plan') or 'not run'}, {records} records.",
    ]
    return [f"{number}. {line}" for number, line in enumerate(lines, start=1)]


def parity_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the method with the largest difference in each precision."""
    found = []
    for precision in ("float32", "bfloat16"):
        worst = max(
            (row for row in rows if row["precision"] == precision and "worst" in row),
            key=lambda row: float(row["worst"]),
            default=None,
        )
        if worst is not None:
            found.append(f"{precision} {worst['worst']:.1g} ({worst['method']}, {worst['worst in']})")
    count = len({row["method"] for row in rows})
    return (
        f"Largest relative difference to the CPU, of {count} methods: {', '.join(found) or 'not measured'}."
    )


def throughput_sentence(rows: Sequence[Mapping[str, Any]], end: str) -> str:
    """Return the range of the methods' training speed relative to the bare backbone."""
    shares = [(row["training of bare"], row["method"]) for row in rows if row.get("training of bare")]
    if not shares:
        return f"Training speed: not measured. {end}".strip()
    (low, slow), (high, fast) = min(shares), max(shares)
    return (
        f"Training runs at {low:.0%} ({slow}) to {high:.0%} ({fast}) of the bare backbone's speed, "
        f"in {len(shares)} measurements; {end}."
    )


def speed_sentence(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the speed of post-processes, of an evaluation and of the feed."""
    named = [
        f"{row['post-process']} takes {row['wsolbench ms']:.2g} ms per image"
        for row in tables.get("posts", ())
        if row.get("classes") == 1
    ]
    whole = [
        f"`evaluate` runs at {row['evaluate, images/s']:.0f} images/s" for row in tables.get("evaluate", ())
    ]
    return f"{', '.join([*named, *whole]) or 'Post-processes and evaluation: not measured'}."


def markdown(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return all tables; a column that a row lacks is empty."""
    lines = []
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"## {name}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        for row in rows:
            values = (row.get(column, "") for column in columns)
            cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines.append("")
    return lines


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text.rstrip() + "\n")
    sys.stdout.flush()


MINUTES = 9.5
"""Time for all parts, unless another is given."""

LIMITS = {
    "environment": 60,
    "tests": 90,
    "parity": 100,
    "throughput": 130,
    "posts": 20,
    "feed": 30,
    "evaluate": 45,
    "resume": 45,
    "plan": 3600,
}
"""Seconds of each part, in the order of the run. The plan gets what is left."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run all checks that need a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument(
        "--tiny", action="store_true", help="small network, images and plan: a test of the sprint itself"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"time for all parts (default: {MINUTES:g}); more of it also raises the limits of the parts",
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install missing packages from")
    parser.add_argument(
        "--data", type=Path, help="folder of CUB-200-2011, for the plan (default: $WSOLBENCH_CUB_ROOT)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: $OUT, otherwise sprint)")
    parser.add_argument(
        "--only",
        action="append",
        choices=LIMITS,
        help="run this part after the first; may be repeated",
    )
    given = parser.parse_args()
    if not given.minutes > 0:
        parser.error(f"--minutes is {given.minutes}; expected more than 0")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given.device):
        parser.error(f"--device is {given.device}; expected cpu, cuda or cuda:N")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        parser.error(f"--out: {given.out} is a file; expected a folder")
    for name in ("wheels", "data"):
        folder = getattr(given, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: there is no folder {folder}")
    return given


def main() -> int:
    """Run the sprint and return its exit code."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = (given.out or Path(os.environ.get("OUT") or "sprint")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sprint-") as work:
        folders = Folders(out, Path(work))
        for name in ("logs", "tables", "results", "packages"):
            (folders.work / name).mkdir()
        path = [str(ROOT), str(folders.work / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            **({"WSOLBENCH_CUB_ROOT": str(given.data.resolve())} if given.data else {}),
        }
        common = [str(ROOT / "benchmarks" / "sprint_parts.py"), "--device", given.device]
        common += ["--tiny"] if given.tiny else []
        common += ["--wheels", str(given.wheels.resolve())] if given.wheels else []
        parts = [
            Part(name, [sys.executable, *common, name], limit * max(1.0, given.minutes / MINUTES))
            for name, limit in LIMITS.items()
            if not given.only or name in {"environment", *given.only}
        ]
        results = run_parts(parts, folders, given.minutes, environment)
        say(
            "\n".join(
                [
                    "",
                    *summary(
                        results, folders.tables(), len(list((folders.work / "results").rglob("*.json")))
                    ),
                ]
            )
        )
    say(f"Tables, logs and records are in {out}.")
    return 0 if all(result.outcome == "passed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
