"""What importing and asking for help may load, and that the metrics core works where torch is not
installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "cv2", "scipy", "numba", "pandas")


def run(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(code: str, *arguments: str) -> set[str]:
    return set(
        run(f"{code}\nimport sys; print('LOADED', *sys.modules)", *arguments).rpartition("LOADED")[2].split()
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import wsolbench").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("eval", "--help"),
        ("train", "--help"),
        ("score", "--help"),
        ("correlations", "--help"),
        ("list", "methods"),
        ("list", "datasets"),
        ("list", "metrics"),
        ("list", "protocols"),
        ("list", "backbones"),
    ],
)
def test_help_and_lists_load_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = "import wsolbench.cli\ntry:\n    wsolbench.cli.main()\nexcept SystemExit as status:\n    assert status.code == 0"
    assert loaded_after(code, *arguments).isdisjoint(HEAVY)


WITHOUT_TORCH = (
    "import sys\nfor name in ('torch', 'torchvision', 'timm', 'safetensors'):\n    sys.modules[name] = None\n"
)


def test_the_metrics_core_works_without_torch() -> None:
    code = """
import numpy as np
from wsolbench.metrics import EvalProtocol, MaxBoxAcc, PxAP, best_iou_per_tau, bootstrap_interval, localization_error
import wsolbench.metrics as metrics
for name in metrics.__all__:
    getattr(metrics, name)
protocol = EvalProtocol.preset("wsoleval")
accuracy = MaxBoxAcc(protocol)
accuracy.update(best_iou_per_tau(np.eye(8), np.array([[0.0, 0.0, 7.0, 7.0]]), protocol))
print(accuracy.compute().value)
"""
    assert run(WITHOUT_TORCH + code).strip() == "1.0"


def test_every_public_name_exists_without_torch() -> None:
    assert (
        run(
            WITHOUT_TORCH
            + "import wsolbench\nfor name in wsolbench.__all__: getattr(wsolbench, name)\nprint(len(wsolbench.__all__) <= 20)"
        ).strip()
        == "True"
    )


def test_a_method_without_torch_says_what_to_install() -> None:
    arguments = ["wsolbench", "eval", "--method", "cam", "--dataset", "toybirds"]
    code = f"import sys\nsys.argv = {arguments}\nimport wsolbench.cli\nwsolbench.cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "pip install 'wsolbench[models]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "import wsolbench.evaluation.evaluate",
        "from wsolbench import evaluate",
        "import wsolbench.cli.eval, wsolbench.maps.sources, wsolbench.evaluation",
        "import wsolbench; wsolbench.evaluate; wsolbench.evaluate",
    ],
)
def test_evaluate_is_the_function_whatever_was_imported_before(first: str) -> None:
    code = (
        f"{first}\nfrom wsolbench import evaluate\nimport inspect, sys, wsolbench\nassert "
        "inspect.isfunction(evaluate), evaluate\n"
        "from wsolbench.evaluation.evaluate import score\nimport wsolbench.evaluation.evaluate\n"
        "assert wsolbench.evaluate is evaluate is sys.modules['wsolbench.evaluation.evaluate'].evaluate"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_packages_is_what_its_module_defines_under_it() -> None:
    code = (
        "import wsolbench, wsolbench.metrics, importlib\n"
        "for package in (wsolbench, wsolbench.metrics):\n"
        "    for _ in range(2):\n"
        "        for name, home in package._HOME.items():\n"
        "            module = importlib.import_module(f'{package.__name__}.{home}')\n"
        "            assert getattr(package, name) is getattr(module, name), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WITHOUT_POSIX = (
    "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n    sys.modules[name] = None\n"
)


def test_every_module_can_be_imported_where_the_system_is_not_posix() -> None:
    code = """
import importlib, pkgutil, wsolbench
names = [each.name for each in pkgutil.walk_packages(wsolbench.__path__, "wsolbench.") if "__main__" not in each.name]
for name in names:
    importlib.import_module(name)
print(len(names) > 60)
"""
    assert run(WITHOUT_POSIX + code).strip() == "True"


def test_score_list_and_verify_run_where_the_system_is_not_posix(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "maps").mkdir()
    (tmp_path / "data/classes.csv").write_text("label,name\n0,crow\n1,gull\n")
    rows = [f"{number}.png,{number % 2},test,40,20,8,4,24,16" for number in range(4)]
    header = "image,label,split,width,height,x0,y0,x1,y1"
    (tmp_path / "data/annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    for number in range(4):
        raw_map = np.zeros((10, 20), dtype=np.float32)
        raw_map[2:8, 4:12] = 1
        np.save(tmp_path / f"maps/{number}.png.npy", raw_map)
    data = ["--dataset", "csvfolder", "--data-root", str(tmp_path / "data")]
    score = [
        "score",
        "--maps",
        str(tmp_path / "maps"),
        *data,
        "--name",
        "mine",
        "--out",
        str(tmp_path / "out"),
    ]
    for arguments in (score, ["list", "protocols"], ["verify", *data]):
        command = "import wsolbench.cli\nsys.argv[0] = 'wsolbench'\nwsolbench.cli.main()"
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_POSIX + command, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (1 if arguments[0] == "verify" else 0), done.stderr
        assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1
