"""A backbone is one file: with a made-up one every method can be created, trained and asked for maps."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
import torch

from reference_models.core.backbone import load_backbone, read_profile
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import TrainRequest, list_methods, load_method, registry, weights_of_backbone
from wsolbench.protocol import EvalProtocol
from wsolbench.testing.subject import MethodUnderTest, learns_by_loss

CLASSES = 3

OFFER = """
from wsolbench.methods import MethodInfo

def backbones():
    return [
        MethodInfo(name=name, summary="made up", task="backbone", module=f"made_up_backbones.{name}")
        for name in ("nano", "sealed")
    ]
"""

NANO = '''
"""Three convolutions, whose second variant has a smaller grid."""

from collections import OrderedDict

from torch import nn

from reference_models.core.backbone import Backbone, pick_grid
from reference_models.core.profile import Profile, Stage
from wsolbench.methods import InputSpec

PROFILE = Profile(
    grids=("large", "little"),
    grid_for={"fine-grained": "little"},
    recipe_family="tiny",
    fine_grained_recipes=True,
    fine_grained_size=80,
    default_weights="none",
    step_groups={"last-stage": ("three",)},
)


def build(*, weights="none", grid="default"):
    grid = pick_grid("nano", grid, PROFILE.grids)
    last = 4 if grid == "large" else 8
    steps = OrderedDict(
        one=_step(3, 8, 2), inside=_step(8, 8, 1), two=_step(8, 12, 2), three=_step(12, 16, last // 4)
    )
    layout = [Stage("one", 2, 8), Stage("two", 4, 12), Stage("three", last, 16)]
    return Backbone(
        "nano",
        steps,
        layout,
        grid=grid,
        input_spec=InputSpec(size=64),
        head_width=16,
        profile=PROFILE,
        roles={"drop": (Stage("inside", 2, 8), layout[1])},
    )


def _step(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )
'''

SEALED = '''
"""The same without any role, and without a profile."""

from made_up_backbones.nano import build as build_nano


def build(*, weights="none", grid="default"):
    backbone = build_nano(grid="large" if grid == "default" else grid)
    backbone.name, backbone.roles = "sealed", {}
    return backbone
'''

METHODS = [
    row.name
    for row in list_methods()
    if row.module.startswith("reference_models.")
    and load_method(row.name).trainable
    and learns_by_loss(load_method(row.name))
]
OF_TOKENS = [name for name in METHODS if load_method(name).needs_tokens]


@pytest.fixture(autouse=True)
def _offered(tmp_path, monkeypatch):
    """Another package that offers two backbones by an entry point."""
    folder = tmp_path / "made_up_backbones"
    folder.mkdir()
    for name, text in {"__init__": "", "offer": OFFER, "nano": NANO, "sealed": SEALED}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    real, group = importlib.metadata.entry_points, registry.BACKBONE_ENTRY_POINT_GROUP
    point = importlib.metadata.EntryPoint("made_up", "made_up_backbones.offer:backbones", group)
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [*real(group=group), *([point] if group == point.group else [])],
    )
    yield
    for name in [name for name in sys.modules if name.startswith("made_up_backbones")]:
        del sys.modules[name]


LARGE = {"grid": "large"}
"""Settings of methods that need two stages of one grid, which nano's variant for fine-grained classes lacks."""


def create(name: str, backbone: str = "nano"):
    settings = LARGE if backbone == "nano" and name in ("hbp", "hihca") else {}
    return load_method(name).create(
        backbone=backbone, num_classes=CLASSES, weights="none", settings=settings, image_size=64
    )


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_TOKENS])
def test_a_method_trains_a_step_on_a_new_backbone_and_localizes(name, train_set):
    model = create(name).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.before_training(train_set)
    model.on_epoch(0, 10)
    before = {key: value.clone() for key, value in model.named_parameters()}
    sum(model.loss(MethodUnderTest("cam", "tiny", {}).batch()).values()).backward()
    optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in model.named_parameters())
    result = model.eval().localize(torch.randn(2, 3, 64, 64))
    maps = result.score_maps(torch.tensor([[0, 2], [1, 1]]))
    assert maps.shape[:2] == (2, 2)
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("name", OF_TOKENS)
def test_a_method_of_tokens_refuses_a_new_backbone_without_any(name):
    with pytest.raises(UsageError, match=rf"method '{name}' needs the tokens .* nano"):
        create(name)


def test_a_run_on_a_new_backbone_goes_from_training_to_a_record(tmp_path, train_set, val_set):
    request = TrainRequest(
        train=train_set, out=tmp_path / "run", backbone="nano", weights="none", epochs=1, device="cpu"
    )
    adl = load_method("adl")
    trained = adl.load(adl.fit(request), device="cpu")
    assert trained.places == ("inside", "two", "head.trunk")
    assert trained.describe()["training"]["recipe"]["source"] == adl.recipe_for("tiny", 3, {}).source
    source = ModelSource(trained, EvalProtocol(), num_classes=CLASSES, device="cpu")
    found = evaluate(val_set, source, EvalProtocol(), options=RunOptions(batch_size=4, resamples=20))
    assert found.record.metric("gt_known") is not None
    assert found.record.method["backbone"] == "nano"


def test_what_the_file_states_is_what_methods_choose():
    assert weights_of_backbone("nano") == "none"
    assert [weights_of_backbone(name) for name in ("tiny", "vgg16", "timm:resnet18", "resnet50_fpn")] == [
        "none",
        "imagenet",
        "imagenet",
        "imagenet",
    ]
    baseline = load_method("baseline")
    assert baseline.recipe_name("nano", CLASSES) == "lio_upright"
    assert load_method("cam").recipe_name("nano", CLASSES) == "tiny"
    assert baseline.create(
        backbone="nano", num_classes=CLASSES, weights="none", settings={}
    ).backbone.grid == ("little")
    assert baseline.default_size("nano", CLASSES) == 80
    assert create("cam").backbone.grid == "large"
    assert create("cam").is_last_stage("backbone.steps.three.0.weight")
    assert read_profile("sealed").recipe_family == "finetune"


@pytest.mark.parametrize("name", ["adl", "eil", "hbp", "hihca", "nl-ccam", "spg"])
def test_a_backbone_without_the_role_is_refused_with_the_roles_that_it_has(name):
    with pytest.raises(UsageError, match=rf"method '{name}' needs the role .* sealed .* its roles are: none"):
        create(name, "sealed")
    assert create("cam", "sealed").backbone.roles == {}


def test_a_refusal_names_all_roles_of_the_backbone():
    with pytest.raises(
        UsageError, match=r"nano has no such role; its roles are: attend, .*, last-layers, patches, skips\."
    ):
        load_backbone("nano", weights="none").role("drop-after-pool", "a test")
