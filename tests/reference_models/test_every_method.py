"""What every method must do, whatever it does: one table of all methods that this package offers, and the
checks of `wsolbench.testing`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import reference_models
from reference_models.catalog import backbones, methods
from reference_models.core.backbone import load_backbone
from wsolbench.methods import list_backbones, list_methods, load_method
from wsolbench.testing import checks_of, run_check
from wsolbench.testing.subject import learns_by_loss

OURS = [row.name for row in list_methods() if row.module.startswith("reference_models.")]
TRAINABLE = [name for name in OURS if load_method(name).trainable]


def test_every_method_file_is_offered_and_the_baselines_are_there():
    folder = Path(next(iter(reference_models.__path__)))
    found = [
        path
        for task in ("localization", "recognition")
        for path in (folder / task).glob("[!_]*")
        if path.name != "__pycache__"
    ]
    files = {path.stem.replace("_", "-") for path in found}
    assert all((path / "method.py").is_file() for path in found if path.is_dir())
    assert files == {row.name for row in methods()} == set(OURS)
    assert {"cam", "center-box"} <= files


def test_every_backbone_file_is_offered():
    assert {row.name for row in backbones()} <= {row.name for row in list_backbones()}
    assert {"vgg16", "resnet50", "inception_v3", "efficientnet_lite0", "timm", "tiny"} <= {
        row.name for row in backbones()
    }


@pytest.mark.parametrize("name", OURS)
def test_a_method_file_is_short_and_begins_with_one_line_that_sums_it_up(name):
    row = next(row for row in list_methods() if row.name == name)
    text = Path(str(importlib.import_module(row.module).__file__)).read_text()
    assert len(text.splitlines()) <= 380
    assert 20 <= len(row.summary) <= 70


@pytest.mark.parametrize(("name", "check"), [(name, check) for name in OURS for check in checks_of(name)])
def test_a_method_does_what_every_method_must(name, check):
    run_check(name, check)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_gpu_could_run_a_method_on_a_real_backbone(name):
    settings = {
        "focus-discriminate": {"proposals": "4"},  # images of 64 pixels have 4 cells
        "hbp": {"width": "64"},
        "hihca": {"width": "64"},
    }
    real = "timm:deit_tiny_patch16_224" if load_method(name).needs_tokens else "efficientnet_lite0"
    run_check(name, "fake_gpu", backbone=real, settings=settings.get(name))


def test_a_method_that_is_trained_has_all_checks():
    by_loss = [name for name in TRAINABLE if learns_by_loss(load_method(name))]
    assert all(len(checks_of(name)) == 14 for name in by_loss)
    assert set(TRAINABLE) - set(by_loss) == {"ddt", "prior"}
    assert 7 < len(checks_of("prior")) < 14  # it has no loss
    assert len(checks_of("center-box")) == 7


def test_backbones_do_not_need_a_method():
    assert load_backbone("tiny", weights="none").channels[-1] == 64
