"""Shared by all tests: shapes are checked at run time, real data comes from WSOLBENCH_DATA, nothing is written at home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import config, install_import_hook

# Must run before the packages are imported: every annotated array shape is checked in the tests. The other modules hold no
# arrays; there the packages' own messages for wrong values are what is tested.
# Compiled functions (numba) cannot be wrapped.
ROOT = Path(__file__).parents[1]
COMPILED = {"component_tree", "histograms", "largest_component"}
METRICS = [path.stem for path in (ROOT / "wsolbench/metrics").glob("*.py") if path.stem not in COMPILED | {"__init__"}]
CHECKED = [
    "images",
    "maps",
    "report",
    "score_table",
    "scores",
    "split_scores",
    "summary",
    "types",
    *(f"metrics.{name}" for name in METRICS),
]
install_import_hook([*(f"wsolbench.{name}" for name in CHECKED), "reference_models"], "beartype.beartype")

# No test is timed: compiling and a busy machine would decide it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets; tests that need it are skipped where the variable is unset."""
    folder = os.environ.get("WSOLBENCH_DATA")
    if not folder:
        pytest.skip("WSOLBENCH_DATA is not set: it names a folder with cub50, butterflies and ilsvrc_mini")
    return Path(folder)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Turns the run-time shape checks off, as for a user: bad arrays reach the checks and messages of the package itself."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
