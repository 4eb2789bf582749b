"""`--config`: a file of options stands for a command line, and a run's own file makes the run again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from wsolbench.cli.config import _expand
from wsolbench.cli.eval import command
from wsolbench.exceptions import DataError, UsageError

BOX = """
method = "center-box"
dataset = "csvfolder"
data-root = {root}
resamples = 100
out = "records"
"""


def write(text: str, **values: object) -> Path:
    path = Path("run.toml")
    path.write_text(text.format(**values) if values else text)
    return path


def arguments(text: str, tmp_path: Path, given: tuple[str, ...] = ()) -> list[str]:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return list(_expand(path, command.params, given))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('method = "cam"\nepochs = 3\nlr = 1e-3', "--method cam --epochs 3 --lr 0.001"),
        ('method = ["cam", "has"]', "--method cam,has"),
        ("image_size = 32\nimage-size = 64", None),
        ("transfer = false\ntrain = true\ncarve-val = false", "--no-transfer --train"),
        ("no-transfer = true", "--no-transfer"),
        ("no-transfer = false", "--transfer"),
        ('set = {head = "fc", drop = true}', "--set head=fc --set drop=true"),
        ('set = ["head=fc", "a=1,2"]', "--set head=fc --set a=1,2"),
        ("protocol-set = {taus = [0.1, 0.2]}", "--protocol-set taus=0.1,0.2"),
    ],
)
def test_keys_are_the_names_of_options(text: str, expected: str | None, tmp_path: Path) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="image_size and image-size set the same option"):
            arguments(text, tmp_path)
    else:
        assert arguments(text, tmp_path) == shlex.split(expected)


def test_the_command_line_replaces_what_the_file_says(tmp_path: Path) -> None:
    text = 'method = "cam"\ntransfer = false\nset = {a = 1}'
    assert arguments(text, tmp_path, ("--method=has", "--set", "b=2")) == ["--no-transfer"]
    assert arguments(text, tmp_path, ("--transfer",)) == ["--method", "cam", "--set", "a=1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown option 'epoch' of .*; did you mean 'epochs'"),
        ("train = 1", "train = 1; expected true or false"),
        ("epochs = {a = 1}", "expected a text, a number or a list"),
        ('config = "other.toml"', "unknown option 'config'"),
    ],
)
def test_a_key_or_value_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        arguments(text, tmp_path)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config .*run\.toml is not TOML"):
        arguments("method: cam", tmp_path)


def test_a_record_of_a_config_file_states_the_whole_command(run, birds: Path) -> None:
    path = write(BOX, root=json.dumps(str(birds)))
    result = run("eval", "--config", path, "--split", "val", "--no-transfer")
    assert result.code == 0, result.err
    (record,) = Path("records").rglob("*.json")
    command_line = json.loads(record.read_text())["provenance"]["command"]
    assert command_line == (
        f"wsolbench eval --method center-box --dataset csvfolder --data-root {birds} --resamples 100 "
        "--out records --split val --no-transfer"
    )


def test_errors_in_a_file_leave_no_traceback(run) -> None:
    assert "no such file" in run("train", "--config", "nothing.toml").err
    write("epochs = 3.5\n")
    result = run("train", "--method", "cam", "--dataset", "toybirds", "--config=run.toml")
    assert result.code == 2
    assert "3.5 is not a whole number" in result.err
    assert "is given 2 times" in run("eval", "--config", "a.toml", "--config", "b.toml").err


def test_the_file_of_a_run_makes_it_again(run, birds: Path) -> None:
    result = run(
        *("train", "--method", "cam", "--dataset", "csvfolder", "--data-root", birds, "--backbone", "tiny"),
        *("--epochs", "1", "--image-size", "32", "--batch-size", "8", "--device", "cpu", "--workers", "0"),
        *("--set", "recipe.warmup=0.1"),
    )
    assert result.code == 0, result.err
    (path,) = Path("runs").rglob("config.toml")
    checkpoint = path.with_name("last.safetensors")
    before = checkpoint.read_bytes()
    text = path.read_text()
    assert 'method = "cam"' in text
    assert "image-size = 32" in text
    shutil.copy(path, "again.toml")
    shutil.rmtree(path.parent)
    again = run("train", "--config", "again.toml")
    assert again.code == 0, again.err
    assert checkpoint.read_bytes() == before
    assert path.read_text() == text
    # `eval` takes the same file.
    evaluated = run("eval", "--config", path, "--resamples", "100")
    assert evaluated.code == 0, evaluated.err
