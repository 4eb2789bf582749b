"""Shared by all tests: shapes are checked at run time, real data comes from WSOLBENCH_DATA, nothing is
written at home."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import config, install_import_hook

# Must run before the packages are imported: in the tests, every module that annotates shapes is checked, but
# for these.
ROOT = Path(__file__).parents[1]
UNCHECKED = {
    "reference_models.recognition.coseq.shape_contexts": "compiled functions (numba) cannot be wrapped",
    "wsolbench.checks": "its messages for wrong arrays are what is tested",
    "wsolbench.datasets": "messages for files with wrong values are what is tested",
    "wsolbench.evaluation.compare": "calls are made with stand-ins for tables",
    "wsolbench.evaluation.predict": "its messages for wrong images are what is tested",
    "wsolbench.integrations": "its messages for wrong tensors are what is tested",
    "wsolbench.maps.sources": "calls are made with stand-ins for methods",
    "wsolbench.metrics.component_tree": "compiled functions (numba) cannot be wrapped",
    "wsolbench.metrics.histograms": "compiled functions (numba) cannot be wrapped",
    "wsolbench.metrics.largest_component": "compiled functions (numba) cannot be wrapped",
}
"""Modules and packages whose shapes are not checked, and why. A module that is moved or added is checked
without further ado."""


def checked_modules() -> list[str]:
    """Modules with annotated shapes, and all reference models. No packages: the hook takes their name for all
    that is in them."""
    files = [
        path
        for package in ("wsolbench", "reference_models")
        for path in sorted((ROOT / package).rglob("[!_]*.py"))
    ]
    annotated = [
        path
        for path in files
        if "jaxtyping" in path.read_text(encoding="utf-8") or path.is_relative_to(ROOT / "reference_models")
    ]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in annotated]
    return [
        name for name in names if not any(f"{name}.".startswith(f"{left_out}.") for left_out in UNCHECKED)
    ]


# While a checked module is imported, Python looks for compiled files under the name that the hook gives them. So
# a large package that such a module imports first would be compiled again, which takes longer than to import it.
for large in ("cv2", "matplotlib.pyplot", "numba", "scipy.stats", "timm", "torch", "torchvision"):
    with contextlib.suppress(ImportError):
        importlib.import_module(large)

install_import_hook(checked_modules(), "beartype.beartype")

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
    """Turns the run-time shape checks off, as for a user: bad arrays reach the checks and messages of the
    package itself."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
