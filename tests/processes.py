"""Several processes at once, as torchrun starts them, with what each has printed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds after which a process hangs. A busy machine takes ten times as long as an idle one to import torch."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def together(code: str, *arguments: object, size: int = 2) -> list[Ended]:
    """Run `code` in `size` processes that find each other; by rank. All must end within `PATIENCE`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        printed = [process.communicate(timeout=PATIENCE) for process in running]
    finally:
        for process in running:
            process.kill()
    return [Ended(process.returncode, out, err) for process, (out, err) in zip(running, printed, strict=True)]
