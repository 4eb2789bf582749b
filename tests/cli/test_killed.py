"""A run that is killed at any rename or removal of a file, and started again, leaves the files of an unbroken
run and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "what", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in ("eval", "score", "shards"))]
)
def test_a_kill_at_any_file_operation_leaves_no_trace(tmp_path: Path, what: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), what, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= 10
