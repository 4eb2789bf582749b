"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# In a process of its own: here the functions are wrapped by the checks of shapes, and doctest passes over those.
PROGRAM = """
import contextlib, doctest, importlib, io, json, sys
outcomes = {}
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        said = io.StringIO()
        runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
        with contextlib.redirect_stdout(io.StringIO()):
            runner.run(example, out=said.write)
        if example.examples:
            outcomes[f"{name}:{example.name}"] = said.getvalue()
print(json.dumps(outcomes))
"""


def docstrings_with_examples(path: Path) -> int:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(">>>" in (ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.skipif(np.__version__ < "2", reason="NumPy 1 prints numbers in another form")
def test_examples_print_what_they_say() -> None:
    files = [path for package in ("wsolbench", "reference_models") for path in (ROOT / package).rglob("*.py")]
    counts = {path: count for path in sorted(files) if (count := docstrings_with_examples(path))}
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in counts
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    assert not "".join(outcomes.values())
    assert len(outcomes) == sum(counts.values()) > 60
