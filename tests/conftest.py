"""Shared by all tests: shapes are checked at run time, real data comes from WSOLBENCH_DATA, nothing is written at home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config, install_import_hook

# Must run before the packages are imported: every annotated array shape is checked in the tests. The other modules hold no
# arrays; there the packages' own messages for wrong values are what is tested.
CHECKED = ["images", "maps", "metrics", "report", "scores", "summary", "types"]
install_import_hook([*(f"wsolbench.{name}" for name in CHECKED), "reference_models"], "beartype.beartype")

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
