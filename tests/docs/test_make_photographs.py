"""docs/make_photographs.py: rows, thresholds and files, on untrained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from reference_models.training.checkpoint import save_checkpoint
from wsolbench.datasets import load_dataset
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import load_method
from wsolbench.methods.device import normalized
from wsolbench.protocol import EvalProtocol
from wsolbench.records import read_records

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ("runs/birds/cam/last.safetensors", "runs/birds/has/last.safetensors")


@pytest.fixture
def evaluated(run, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models of CAM and HaS with three classes, and the records of their maps."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for path in CHECKPOINTS:
        method = Path(path).parent.name
        model = load_method(method).create(
            backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32
        )
        save_checkpoint(Path(path), model, {"seed": 0})
        data = ("--dataset", "csvfolder", "--data-root", birds, "--device", "cpu", "--resamples", "100")
        result = run(
            "eval", "--method", method, "--checkpoint", path, *data, "--no-transfer", "--post", "none,scg"
        )
        assert result.code == 0, result.err


def call(*arguments: object) -> Result:
    from make_photographs import main

    return CliRunner().invoke(main, [*map(str, arguments), "--out", "pictures"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, evaluated: None) -> dict[str, dict[str, Any]]:
    """What is put into each grid, instead of drawing it."""
    import make_photographs

    found: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        make_photographs,
        "panel_grid",
        lambda rows, path, title, **more: found.update({path.stem: {"rows": rows, "title": title, **more}}),
    )
    return found


def test_a_picture_has_the_photographs_the_maps_of_cam_and_those_of_the_method(drawn) -> None:
    result = call(*CHECKPOINTS)
    assert result.exit_code == 0, result.output
    taus = {
        record.method["name"]: record.metric("gt_known", "oracle").tau[0]
        for _, record in read_records(Path("results/measured"))
    }
    assert sorted(drawn) == ["cam", "has"]
    assert drawn["cam"]["row_names"] == ["photograph", f"cam\ntau {taus['cam']:g}"]
    assert drawn["has"]["row_names"] == [
        "photograph",
        f"cam\ntau {taus['cam']:g}",
        f"has\ntau {taus['has']:g}",
    ]
    assert drawn["has"]["column_names"][:2] == ["northern harrier", "kingfisher"]
    assert [len(row) for row in drawn["has"]["rows"]] == [6, 6, 6]
    assert "trained on birds/train · tiny · seed 0" in drawn["has"]["title"]


def test_of_several_runs_that_with_the_fewest_settings_is_drawn(drawn, monkeypatch) -> None:
    import make_photographs

    seen = []
    row = make_photographs.make_row
    monkeypatch.setattr(
        make_photographs, "make_row", lambda path, *more: seen.append(path) or row(path, *more)
    )
    other = Path("runs/birds/a-name-with-settings/last.safetensors")
    other.parent.mkdir()
    other.write_bytes(Path(CHECKPOINTS[0]).read_bytes())
    assert call(other, *CHECKPOINTS).exit_code == 0
    assert seen == [Path(path) for path in CHECKPOINTS]


def test_a_map_is_that_of_the_most_probable_class(drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    import make_photographs

    seen: list[np.ndarray] = []
    draw = make_photographs.map_panel
    monkeypatch.setattr(
        make_photographs,
        "map_panel",
        lambda sample, raw_map, *more: seen.append(raw_map) or draw(sample, raw_map, *more),
    )
    assert call(CHECKPOINTS[0]).exit_code == 0
    # The maps of all classes, one by one, and the class with the largest logit.
    dataset = load_dataset("csvfolder", "test", ROOT / "docs/photographs")
    model = load_method("cam").load(Path(CHECKPOINTS[0]), device="cpu")
    source = ModelSource(model, EvalProtocol(), num_classes=3, device="cpu", batch_size=6)
    images = torch.from_numpy(np.stack([source.load(sample)["image"] for sample in dataset.samples]))
    result = model.localize(normalized(images, model.input_spec, "cpu"))
    best = result.logits.argmax(dim=1)
    for place, label in enumerate(best):
        wanted = result.score_maps(label.expand(6, 1))[place, 0].detach().numpy()
        np.testing.assert_allclose(seen[place], wanted, atol=1e-5)


def test_a_network_without_a_record_is_refused_and_nothing_is_written(evaluated: None) -> None:
    path = Path("runs/birds/other/last.safetensors")
    model = load_method("cam").create(
        backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32
    )
    save_checkpoint(path, model, {"seed": 1})
    result = call(CHECKPOINTS[0], path)
    assert result.exit_code == 1
    assert f"no record of {path}; expected one of its maps" in result.output
    assert not Path("pictures").exists()


def test_one_method_is_drawn_alone_and_the_picture_is_small_and_the_same_twice(evaluated: None) -> None:
    bytes_of = []
    for _ in range(2):
        result = call(*CHECKPOINTS, "--method", "has")
        assert result.exit_code == 0, result.output
        assert [path.name for path in Path("pictures").iterdir()] == ["has.jpg"]
        bytes_of.append(Path("pictures/has.jpg").read_bytes())
    assert bytes_of[0] == bytes_of[1]
    assert len(bytes_of[0]) <= 80_000
    assert Image.open("pictures/has.jpg").width > 900
