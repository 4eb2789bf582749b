"""Plug-in files: what they offer is found as that of installed packages, and records name them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome
from wsolbench.methods import load_method
from wsolbench.records import plugins

METHOD = '''"""Wide box: a centred box that is always wide."""

from reference_models.localization.center_box import CenterBox

GROUP = "floor"


class WideBox(CenterBox):
    method_name = "wide-box"
'''

METRIC = '''"""The share of images whose map is highest in its upper half."""

from wsolbench.evaluation.extra_metrics.base import ExtraMetric, mean_of
from wsolbench.metrics.catalog import ExtraMetricInfo, MetricInfo


class Upper(ExtraMetric):
    columns = ("upper",)

    def of_image(self, image):
        rows = image.map.max(axis=1)
        return [float(rows[: len(rows) // 2].max() >= rows.max())]

    def metrics(self, summary):
        yield mean_of("upper_half", summary, self, "upper", reason="no image")


def extra_metrics():
    info = MetricInfo(name="upper_half", title="Upper half", needs="labels", summary="highest in the upper half")
    return [ExtraMetricInfo(name="upper", implementation=f"{__name__}:Upper", infos=(info,))]
'''


@pytest.fixture(autouse=True)
def no_plugins() -> Iterator[None]:
    """Each test begins and ends without plug-in files."""
    before, modules = list(sys.meta_path), set(sys.modules)
    yield
    for plugin in plugins.loaded_plugins():
        if plugin.module not in modules:
            sys.modules.pop(plugin.module, None)
    sys.meta_path[:] = before
    plugins.forget_lists()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def record_of(result: Outcome, folder: str) -> dict[str, object]:
    assert result.code == 0, result.err
    (path,) = Path(folder).rglob("*.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_a_method_and_a_metric_of_files_are_evaluated_and_recorded_with_their_digests(
    run, birds: Path, tmp_path: Path
) -> None:
    method = write(tmp_path, "my-boxes.py", METHOD)
    metric = write(tmp_path, "upper.py", METRIC)
    result = run(
        *("eval", "--method", "wide-box", "--dataset", "csvfolder", "--data-root", birds, "--plugin", method),
        *("--plugin", metric, "--extra-metrics", "upper", "--resamples", "100", "--out", "records"),
    )
    record = record_of(result, "records")
    assert record["method"]["name"] == "wide-box"
    assert record["provenance"]["plugin_files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (method, metric)
    }
    values = {each["name"]: each["value"] for each in record["metrics"]}
    assert values["upper_half"] == 1.0  # a centred box reaches into the upper half


def test_files_are_listed_with_what_is_installed(run, tmp_path: Path) -> None:
    method = write(tmp_path, "boxes.py", METHOD)
    network = write(
        tmp_path, "small_net.py", '"""Small."""\nfrom reference_models.backbones.tiny import PROFILE, build\n'
    )
    metric = write(tmp_path, "upper.py", METRIC)
    for what, path, name in (
        ("methods", method, "wide-box"),
        ("backbones", network, "small_net"),
        ("metrics", metric, "upper_half"),
    ):
        listed = run("list", what, "--plugin", path)
        assert listed.code == 0, listed.err
        assert name in listed.out
    assert load_method("wide-box").__module__ == "boxes"
    row = next(line for line in run("list", "methods").out.splitlines() if "wide-box" in line)
    assert "a centred box that is always wide" in row


def test_the_settings_of_a_method_are_listed_with_range_default_and_source(run) -> None:
    listed = run("list", "settings", "--method", "spa")
    assert listed.code == 0, listed.err
    alpha = next(line for line in listed.out.splitlines() if line.split()[:1] == ["alpha"])
    assert "0.5" in alpha
    assert "a number in [0, 1000000]" in alpha
    assert "released scripts" in alpha
    post = run("list", "settings", "--post", "scg")
    assert post.code == 0, post.err


@pytest.mark.parametrize(
    "arguments",
    [("settings",), ("settings", "--method", "cam", "--post", "scg"), ("methods", "--method", "cam")],
)
def test_settings_are_those_of_one_method(run, arguments: tuple[str, ...]) -> None:
    assert run("list", *arguments).code == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.py", "x = 1\n", "offers nothing; expected a class with method_name"),
        ("broken.py", "x = 1\nx.y\n", "broken.py:2: AttributeError"),
        ("syntax.py", "def f(:\n", "SyntaxError"),
        ("numpy.py", METHOD, "there is a module 'numpy' already; rename the file"),
        ("1st.py", METHOD, "expected a file NAME.py"),
        ("group.py", METHOD.replace('"floor"', '"flor"'), "GROUP = 'flor'; expected one of floor"),
        ("task.py", METHOD + '\nTASK = "x"\n', "TASK = 'x'; expected one of localization"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(
    run, tmp_path: Path, name: str, text: str, message: str
) -> None:
    result = run("list", "methods", "--plugin", write(tmp_path, name, text))
    assert result.code == 2
    assert message in result.err
    assert plugins.loaded_plugins() == []


def test_two_files_of_one_name_are_refused_and_the_same_file_is_loaded_once(tmp_path: Path) -> None:
    first = write(tmp_path, "boxes.py", METHOD)
    assert plugins.load_plugin(first) is plugins.load_plugin(first)
    (tmp_path / "other").mkdir()
    with pytest.raises(plugins.UsageError, match="is loaded already"):
        plugins.load_plugin(write(tmp_path / "other", "boxes.py", METHOD))
