"""What a method file can ask for, each shown by a small method from training to a record."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from reference_models.core.backbone import load_backbone
from reference_models.core.tokens import TokenBackbone, attend, require_tokens
from reference_models.localization.cam import Cam
from reference_models.training.run_folder import LAST, LOG, STATE
from tests.processes import Program
from tests.reference_models import small_methods
from tests.reference_models.conftest import squares
from tests.reference_models.small_methods import (
    Adversary,
    AttentionMaps,
    ClassMeans,
    GradCam,
    KeySimilarity,
    MeanBox,
)
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import InputSpec, Numerics, TrainRequest
from wsolbench.protocol import EvalProtocol
from wsolbench.testing import MethodUnderTest

CLASSES = 3
VIT = "timm:vit_tiny_patch16_224"


def request(out: Path, **changes) -> TrainRequest:
    values = {
        "train": squares(12),
        "backbone": "tiny",
        "weights": "none",
        "image_size": 32,
        "device": "cpu",
        "workers": 0,
    }
    return TrainRequest(out=out, **{**values, **changes})


def record_of(model, post=None):
    protocol = EvalProtocol()
    source = ModelSource(model, protocol, num_classes=CLASSES, device="cpu", batch_size=4, post=post)
    options = RunOptions(batch_size=4, resamples=20)
    return evaluate(squares(6, seed=1, split="test"), source, protocol, options=options).record


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from tests.reference_models import small_methods, test_contracts

torch.set_num_threads(1)
method = getattr(small_methods, sys.argv[1])
whole_loss = method.loss

def loss(self, batch):
    if batch.step == int(sys.argv[3]):
        while not (Path(sys.argv[2]) / "state.pt").exists():  # a thread writes it
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_loss(self, batch)

method.loss = loss
method.fit(test_contracts.RUNS[sys.argv[1]](Path(sys.argv[2])))
"""

RUNS = {
    "Adversary": lambda out: request(out, epochs=3, batch_size=4, settings={"width": "8"}),
    "AttentionMaps": lambda out: request(out, epochs=2, batch_size=4, backbone=VIT),
}


@pytest.mark.parametrize(("name", "step"), [("Adversary", 7), ("AttentionMaps", 4)])
def test_a_killed_run_goes_on_and_ends_with_the_bytes_of_an_unbroken_one(name, step, tmp_path):
    method, whole, killed = getattr(small_methods, name), tmp_path / "whole", tmp_path / "killed"
    done = Program(KILLED, name, killed, step).end()
    assert done.code == -signal.SIGKILL, done.err
    assert (killed / STATE).exists()
    method.fit(RUNS[name](killed))
    method.fit(RUNS[name](whole))
    assert (killed / LAST).read_bytes() == (whole / LAST).read_bytes()
    record = record_of(method.load(whole / LAST, device="cpu"))
    assert record.metric("gt_known") is not None


# --- several objectives -------------------------------------------------------------------------------------


def test_each_objective_has_its_optimiser_its_parameters_and_its_turn(tmp_path):
    made = []

    class Watched(Adversary):
        def second_loss(self, batch):
            made.append(batch.step)
            return super().second_loss(batch)

    Watched.fit(RUNS["Adversary"](tmp_path))
    assert made == [0, 2, 4, 6, 8]
    header = (tmp_path / LOG).read_text().splitlines()[0].split(",")
    assert header[2:5] == ["cross_entropy", "mislead", "second.cross_entropy"]


def test_an_objective_changes_no_parameter_of_another_one():
    from reference_models.training.loop import build_optimizer
    from reference_models.training.steps import scaler_for, take_step

    torch.manual_seed(0)
    model = Adversary.create(
        backbone="tiny", num_classes=CLASSES, weights="none", settings={"width": "8"}, image_size=64
    ).train()
    first, second = model.objectives(model.recipe_for("tiny", CLASSES, {}))
    assert [type(build_optimizer(one)).__name__ for one in (first, second)] == ["AdamW", "SGD"]
    for objective, changes in ((first, False), (second, True)):
        before = {name: value.clone() for name, value in model.named_parameters()}
        cpu = torch.device("cpu")
        take_step(
            lambda objective=objective: objective.loss(MethodUnderTest("cam", "tiny", {}).batch()),
            build_optimizer(objective),
            scaler_for(cpu, Numerics()),
            [one for group in objective.groups for one in group["params"]],
            autocast=nullcontext(),
            clip_norm=objective.recipe.clip_norm,
        )
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert moved
        assert {name.startswith("second.") for name in moved} == {changes}


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "prefix"),
    [
        ("vit_tiny_patch16_224", 224, 1),
        ("vit_tiny_patch16_224", 48, 1),
        ("deit_tiny_distilled_patch16_224", 64, 2),
        ("vit_small_patch14_reg4_dinov2", 56, 5),
    ],
)
def test_a_token_backbone_computes_what_timm_computes(name, size, prefix):
    backbone, images = (
        load_backbone(f"timm:{name}", weights="none", grid="tokens", image_size=size).eval(),
        torch.randn(2, 3, size, size),
    )
    torch.manual_seed(1)
    net = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        for value in net.parameters():  # biases, scales and positions, too
            value.add_(torch.randn_like(value) * 0.02)
    renamed = {}
    for key, value in net.state_dict().items():
        start, _, rest = key.partition(".")
        number, _, inner = rest.partition(".")
        where = {"blocks": f"block{number}.{inner}", "norm": key}.get(start, f"embed.net.{key}")
        renamed[f"steps.{where}"] = value
    backbone.load_state_dict(renamed, strict=True)
    with torch.no_grad():
        whole, tokens = net.forward_features(images), backbone.tokens(images)
        stages = backbone.stages(images)
        assert torch.equal(backbone.run(images, until="norm"), whole)
        assert torch.equal(backbone.run(images), stages["patches"])
    side = size // net.patch_embed.patch_size[0]
    grid = whole[:, prefix:].mT.reshape(2, -1, side, side)
    assert torch.equal(stages["patches"], grid)
    assert list(stages)[-2:] == [backbone.blocks[-1], "patches"]
    torch.testing.assert_close(tokens.patches, grid, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.prefix, whole[:, :prefix], atol=2e-5, rtol=1e-4)
    assert tokens.attention.shape == (2, len(backbone.blocks), side, side)


def test_attention_is_that_which_timm_computes_without_its_fused_kernel():
    from timm.utils import AttentionExtract

    backbone, images = load_backbone(VIT, weights="none", grid="tokens").eval(), torch.randn(2, 3, 224, 224)
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    net.blocks = nn.Sequential(*(backbone.steps[name] for name in backbone.blocks))
    embed = backbone.steps["embed"].net
    net.patch_embed.load_state_dict(embed.patch_embed.state_dict())
    net.cls_token, net.pos_embed = embed.cls_token, embed.pos_embed
    for block in net.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        expected = list(AttentionExtract(net, names=["blocks.*.attn.attn_drop"])(images).values())
        found = backbone.tokens(images).attention
        rows = torch.stack([maps[:, :, 0, 1:].mean(dim=1) for maps in expected], dim=1)
        torch.testing.assert_close(found.flatten(2), rows, atol=1e-5, rtol=1e-4)
        heads = backbone.attention(images, "block5")
    torch.testing.assert_close(heads, expected[5], atol=1e-5, rtol=1e-4)
    assert (found.flatten(2).sum(dim=2) < 1).all()  # the class token keeps the rest


def test_a_block_takes_any_weights_in_place_of_the_softmax():
    backbone = load_backbone(VIT, weights="none", grid="tokens").eval()
    block, x = backbone.steps["block0"], torch.randn(2, 5, 192)
    torch.testing.assert_close(attend(block, x).tokens, block(x), atol=1e-5, rtol=1e-4)
    alone = attend(block, x, torch.zeros_like).tokens  # nothing is attended to: each token by itself
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(attend(block, moved, torch.zeros_like).tokens[:, 1:], alone[:, 1:])


def test_post_processes_find_the_keys_of_any_method_on_a_token_backbone():
    model = Cam.create(
        backbone=VIT,
        num_classes=CLASSES,
        weights="none",
        settings={"grid": "tokens", "head": "conv1x1"},
        image_size=64,
    )
    images = torch.randn(2, 3, 64, 64)
    result = model.localize(images)
    keys = result.tokens().keys
    block, entered = model.backbone.steps["block11"], model.backbone.run(images, until="block10")
    expected = block.attn.qkv(block.norm1(entered))[:, 1:, 192:384].mT.reshape(2, 192, 4, 4)
    torch.testing.assert_close(keys, expected, atol=1e-5, rtol=1e-4)
    assert not keys.requires_grad
    maps = KeySimilarity.create({}).maps(result, torch.tensor([[0, 1], [2, 0]]))
    assert maps.shape == (2, 2, 4, 4)
    assert record_of(model, KeySimilarity.create({})).metric("gt_known") is not None


def test_a_method_of_tokens_refuses_other_backbones_and_images_that_patches_do_not_fill():
    with pytest.raises(UsageError, match=r"method 'attention-maps' needs the tokens .* tiny \(std16\)"):
        AttentionMaps.create(backbone="tiny", num_classes=CLASSES, weights="none", settings={})
    for name in ("resnet10t", "vit_small_patch16_dinov3"):
        with pytest.raises(UsageError, match=rf"timm:{name} (offers no tokens|has no plain attention)"):
            load_backbone(f"timm:{name}", weights="none", grid="tokens")
    backbone = load_backbone(VIT, weights="none", grid="tokens")
    assert isinstance(require_tokens(backbone, "a test"), TokenBackbone)
    with pytest.raises(UsageError, match=r"images of 70 pixels into patches of 16; expected a multiple.* 64"):
        backbone.run(torch.zeros(1, 3, 70, 70))
    with pytest.raises(UsageError, match="needs the role 'drop'"):
        backbone.role("drop", "method 'adl'")


# --- gradients ----------------------------------------------------------------------------------------------


def test_a_gradient_map_of_a_linear_head_is_its_class_map():
    """With mean pooling the mean gradient of a score is the class's weight, divided by the number of cells."""
    model = Cam.create(
        backbone="tiny", num_classes=CLASSES, weights="none", settings={"head": "fc"}, image_size=64
    )
    images, asked = torch.randn(2, 3, 64, 64), torch.tensor([[0, 2], [1, 1]])
    result = model.localize(images, gradients=True)
    maps = GradCam.create({}).maps(result, asked)
    expected = model.score_maps(images, asked)
    torch.testing.assert_close(maps * expected[0, 0].numel(), expected.relu(), atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(result.logits, model.localize(images).logits)
    assert not model.localize(images).logits.requires_grad


@pytest.mark.parametrize("frozen", [False, True])
def test_a_post_that_needs_gradients_is_evaluated_also_where_no_gradients_are_wanted(frozen):
    model = Cam.create(
        backbone="tiny", num_classes=CLASSES, weights="none", settings={"head": "fc"}, image_size=64
    )
    model.requires_grad_(not frozen)
    with torch.no_grad():
        record = record_of(model, GradCam.create({}))
    assert (record.method["method"], record.method["post"]["name"]) == ("cam", "grad-cam")
    assert record.metric("gt_known") is not None


def test_a_post_that_needs_gradients_refuses_a_method_that_offers_none():
    class Elsewhere:
        method_name, num_classes, input_spec = "elsewhere", CLASSES, InputSpec(size=32)

        def localize(self, images):
            raise AssertionError("not asked")

    with pytest.raises(UsageError, match="needs gradients of the scores, and method 'elsewhere'"):
        record_of(Elsewhere(), GradCam.create({}))


# --- statistics ---------------------------------------------------------------------------------------------


def test_a_mean_of_boxes_is_a_method_without_a_backbone(tmp_path):
    val = squares(9, seed=1, split="val")
    path = MeanBox.fit(request(tmp_path, train=val, backbone="resnet50", weights="imagenet"))
    model = MeanBox.load(path, device="cpu")
    assert model.mean.max() <= 1
    share = sum(float((box[2] - box[0]) * (box[3] - box[1])) for one in val.samples for box in one.boxes)
    assert abs(float(model.mean.mean()) - share / (9 * 32 * 32)) < 0.02
    described = model.describe()
    assert described["backbone"] == "none"
    assert described["parameters"] == 0
    assert described["training"]["dataset"]["split"] == "val"
    assert described["training"]["recipe"]["source"] == "statistics of the training images"
    assert record_of(model).metric("gt_known") is not None


def test_a_pass_over_the_images_gives_the_same_bytes_whatever_its_threads(tmp_path):
    one, two = request(tmp_path / "one", batch_size=5), request(tmp_path / "two", batch_size=5, workers=2)
    first = ClassMeans.fit(one).read_bytes()
    assert first == ClassMeans.fit(two).read_bytes()
    model = ClassMeans.load(one.out / LAST, device="cpu")
    pooled = []
    for sample in one.train.samples:
        image = torch.from_numpy(sample.image()).permute(2, 0, 1)[None] / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (model.input_spec.mean, model.input_spec.std)
        )
        with torch.no_grad():
            pooled.append(model.backbone.run((image - mean) / std).mean(dim=(2, 3)))
    for label in range(CLASSES):
        torch.testing.assert_close(model.means[label], torch.cat(pooled)[label::CLASSES].mean(dim=0))
    assert record_of(model).metric("gt_known") is not None


def test_a_pass_that_was_killed_starts_again_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    whole, broken = request(tmp_path / "whole"), request(tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(ClassMeans, "measure", lambda self, train, passes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ClassMeans.fit(broken)
    assert not (broken.out / LAST).exists()
    assert ClassMeans.fit(broken).read_bytes() == ClassMeans.fit(whole).read_bytes()
    monkeypatch.setattr(ClassMeans, "measure", lambda self, train, passes: 1 / 0)
    assert ClassMeans.fit(whole) == whole.out / LAST  # finished: nothing is measured again
    beside = json.loads((whole.out / "last.json").read_text())
    assert beside["run"]["device"] == "cpu"


def test_options_of_gradients_are_refused_and_another_run_is_not_overwritten(tmp_path):
    with pytest.raises(
        UsageError, match="'class-means' is not trained by gradients and takes no --epochs and --lr"
    ):
        ClassMeans.fit(request(tmp_path, epochs=3, lr=0.1))
    ClassMeans.fit(request(tmp_path))
    with pytest.raises(UsageError, match="belongs to another run: seed is 0 there and 1 here"):
        ClassMeans.fit(request(tmp_path, seed=1))
