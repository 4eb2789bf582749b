"""Mask R-CNN with SCL: Mask R-CNN where SCL is off or the network is evaluated, and the paper's identities
where it is on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet50
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d, roi_align

from reference_models.detection.lio_mask_rcnn import networks as mask_rcnn
from reference_models.detection.lio_mask_rcnn.method import SCL, LioMaskRcnn
from reference_models.detection.lio_mask_rcnn.networks import BACKBONES, build, match_rows
from reference_models.training.checkpoint import save_checkpoint
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import list_detectors, load_detector, load_method

CLASSES = ("apple", "bottle", "cup")
TERMS = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def create(
    backbone: str = "tiny",
    weights: str = "none",
    seed: int = 0,
    names: tuple[str, ...] = CLASSES,
    **settings: object,
) -> LioMaskRcnn:
    """A model for images of 64 pixels that samples few regions."""
    torch.manual_seed(seed)
    values = {"min_size": 64, "max_size": 64, **settings}
    model = LioMaskRcnn.create(
        backbone=backbone,
        class_names=names,
        weights=weights,
        settings={name: str(value) for name, value in values.items()},
    )
    model.network.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    return model


def examples() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of 64 x 64 with one and two objects."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    targets = []
    for image, boxes in zip(images, ([[8.0, 10, 40, 50]], [[4.0, 4, 30, 30], [30, 20, 60, 60]]), strict=True):
        masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            masks[number, int(y0) : int(y1), int(x0) : int(x1)] = 1
            image[number, int(y0) : int(y1), int(x0) : int(x1)] += 1
        targets.append({"boxes": torch.tensor(boxes), "labels": torch.arange(len(boxes)) + 1, "masks": masks})
    return images, targets


def losses(model: LioMaskRcnn, seed: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.train().loss(*examples())


def picture() -> np.ndarray:
    return (examples()[0][1].clamp(max=1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)


# --- SCL in training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "reached"),
    [
        ("tiny", ["backbone.body.steps.stem.0.weight"]),
        ("resnet50_c4", ["roi_heads.box_head.layer4.2.conv3.weight", "backbone.layer3.0.conv1.weight"]),
        ("resnet50_fpn", ["backbone.fpn.layer_blocks.0.0.weight", "backbone.body.layer4.2.conv3.weight"]),
        (
            "resnext101_32x8d_fpn",
            ["backbone.fpn.layer_blocks.0.0.weight", "backbone.body.layer3.0.conv2.weight"],
        ),
    ],
)
def test_terms_are_finite_and_the_gradient_of_scl_reaches_the_backbone(
    backbone: str, reached: list[str]
) -> None:
    model = create(backbone)
    terms = losses(model)
    assert set(terms) == {*TERMS, "loss_scl"}
    assert all(torch.isfinite(term) for term in terms.values())
    asked = dict(model.network.named_parameters())
    gradients = torch.autograd.grad(
        terms["loss_scl"], [asked[name] for name in (*reached, f"{SCL}project.weight")]
    )
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def seen_by_scl(model: LioMaskRcnn) -> Tensor:
    """The features of the sampled regions."""
    seen: list[Tensor] = []
    with model.network.roi_heads.scl.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0].detach())
    ):
        losses(model)
    (features,) = seen
    return features


@pytest.mark.parametrize(("backbone", "channels"), [("tiny", 64), ("resnet50_c4", 2048)])
def test_scl_sees_the_7_by_7_features_of_all_sampled_regions_objects_and_background(
    backbone: str, channels: int
) -> None:
    assert seen_by_scl(create(backbone)).shape == (16, channels, 7, 7)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_scl_does_not_depend_on_the_order_of_regions(variant: str) -> None:
    model = create(variant=variant)
    features = seen_by_scl(model)
    scl = model.network.roi_heads.scl
    one, other = scl(features), scl(features[torch.randperm(len(features))])
    torch.testing.assert_close((one.distance + one.angle).mean(), (other.distance + other.angle).mean())


def test_the_official_form_is_the_mean_over_regions_and_cells_of_both_squares() -> None:
    model = create(scl_weight=0.25)
    features = seen_by_scl(model)
    with torch.no_grad():
        context = model.network.roi_heads.scl(features)
    total = 0.0
    for region in range(len(features)):
        h = (
            torch.relu(model.network.roi_heads.scl.project(features[region : region + 1]))[0]
            .mean(dim=0)
            .flatten()
        )
        row, column = divmod(int(h.argmax()), 7)
        gaps, distances = [], []
        for v in range(7):
            for u in range(7):
                here = (v, u) == (row, column)
                gamma, theta = (
                    float(value[region, v, u]) * (not here) for value in (context.gamma, context.theta)
                )
                angle = theta - (math.atan2(u - column, v - row) + math.pi) / (2 * math.pi)
                gaps.append(angle + (angle < 0))
                distances.append((gamma - math.hypot(u - column, v - row) / 7) ** 2)
        total += np.mean(distances) + np.var(gaps)
    assert float(losses(model)["loss_scl"].detach()) == pytest.approx(0.25 * total / len(features), rel=1e-4)


def region_features_of(model: LioMaskRcnn) -> Tensor:
    """The features of the sampled regions, as the box head gets them."""
    seen: list[Tensor] = []
    (tap,) = model.network.roi_heads.tap
    with tap.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach())):
        losses(model)
    return seen[0]


def released_scl(model: LioMaskRcnn, features: Tensor) -> float:
    """The released head on (R, C, 7, 7) features, region by region: a ReLU, the convolution, a ReLU, and the
    squares."""
    scl, total = model.network.roi_heads.scl, 0.0
    place = torch.tensor([(row, column) for row in range(7) for column in range(7)]).float()
    with torch.no_grad():
        for region in features:
            h = scl.project(region[None].relu()).relu()[0].flatten(1).T  # (49, D)
            reference = int(h.mean(dim=1).argmax())
            predicted = scl.predictor(torch.cat([h[reference].expand_as(h), h], dim=1)).relu()
            predicted[reference] = 0
            away = (place - place[reference]) / 7
            gap = predicted[:, 1] - (torch.atan2(away[:, 1], away[:, 0]) / math.pi + 1) / 2
            gap[gap < 0] += 1
            total += float(((predicted[:, 0] - away.norm(dim=1)) ** 2 + (gap - gap.mean()) ** 2).mean())
    return total / len(features)


@pytest.mark.parametrize(
    ("backbone", "negative"),
    [("resnet50_fpn", 0.533), ("resnext101_32x8d_fpn", 0.46), ("resnet50_c4", 0.0), ("tiny", 0.0)],
)
def test_the_official_head_has_a_relu_before_its_convolution_which_matters_on_feature_pyramids(
    backbone: str, negative: float
) -> None:
    model, without = create(backbone, scl_weight=1), create(backbone, scl_weight=1, head_relu=False)
    features = region_features_of(model)
    assert float((features < 0).float().mean()) == pytest.approx(negative, abs=0.1)
    found, plain = (float(losses(some)["loss_scl"].detach()) for some in (model, without))
    assert found == pytest.approx(released_scl(model, features), rel=1e-4)
    assert (plain == found) == (negative == 0)
    assert not create(variant="paper").config.head_relu


def test_the_weight_is_a_factor_and_the_paper_has_other_conventions() -> None:
    one, three, paper = (
        losses(create(**settings))["loss_scl"] for settings in ({}, {"scl_weight": 0.3}, {"variant": "paper"})
    )
    torch.testing.assert_close(3 * one, three)
    assert paper != one
    config = create(variant="paper").config
    assert (config.scl_form, config.gamma_norm, config.axis, config.ref_cell) == (
        "paper",
        "diagonal",
        "column",
        "excluded",
    )
    assert create().describe()["variant"] == "official"
    plain = create(scl_weight=0).describe()
    assert plain["variant"] == "plain"
    assert plain["parameters"] == create().describe()["parameters"]


# --- Mask R-CNN as it was -----------------------------------------------------------------------------------


def test_without_weight_it_is_torchvisions_mask_rcnn_to_the_bit() -> None:
    with_scl, without = create(), create(scl_weight=0)
    torch.manual_seed(0)
    reference = build("tiny", 1 + len(CLASSES), min_size=64, max_size=64)
    reference.roi_heads.fg_bg_sampler.batch_size_per_image = 8
    assert type(without.network.roi_heads) is type(reference.roi_heads) is RoIHeads
    state = reference.state_dict()
    for model in (with_scl, without):
        own = {
            name: tensor for name, tensor in model.network.state_dict().items() if not name.startswith(SCL)
        }
        assert own.keys() == state.keys()
        assert all(torch.equal(own[name], state[name]) for name in state)
    torch.manual_seed(5)
    expected = reference.train()(*examples())
    assert set(losses(without)) == set(expected) == TERMS
    for terms in (losses(without), losses(with_scl)):
        assert all(torch.equal(terms[name], expected[name]) for name in TERMS)


def test_evaluation_is_that_of_the_network_without_scl() -> None:
    model = create()
    plain = create(scl_weight=0, seed=9)
    plain.network.load_state_dict(
        {name: tensor for name, tensor in model.network.state_dict().items() if not name.startswith(SCL)}
    )
    one, other = model.eval().detect(picture()), plain.eval().detect(picture())
    assert len(one.boxes) > 0
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_detections_are_in_pixels_of_the_image_and_best_first() -> None:
    model = create()
    found = model.detect(np.ascontiguousarray(np.pad(picture(), ((0, 26), (0, 60), (0, 0)))))
    assert found.masks is not None
    assert found.masks.shape == (len(found.boxes), 90, 124)
    assert (np.diff(found.scores) <= 0).all()
    assert found.labels.min() >= 0
    assert found.labels.max() < len(CLASSES)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [124, 90, 124, 90]).all()
    with pytest.raises(RuntimeError, match=r"model\.eval"):
        model.train().detect(picture())


def test_without_masks_it_is_faster_rcnn_with_scl() -> None:
    model = create(masks=False)
    images, targets = examples()
    torch.manual_seed(5)
    terms = model.train().loss(
        images, [{name: target[name] for name in ("boxes", "labels")} for target in targets]
    )
    assert set(terms) == {*TERMS, "loss_scl"} - {"loss_mask"}
    assert model.eval().detect(picture()).masks is None
    assert not model.wants_masks


def test_layer4_of_the_c4_network_serves_boxes_and_masks_and_is_stored_once() -> None:
    network = create("resnet50_c4").network
    names = [name for name in network.state_dict() if "conv3.weight" in name and ".2." in name]
    assert [name for name in names if "layer4" in name] == ["roi_heads.box_head.layer4.2.conv3.weight"]
    images, targets = examples()
    torch.manual_seed(5)
    terms = network.train()(images, targets)
    weight = network.roi_heads.box_head.layer4[2].conv3.weight
    for name in ("loss_mask", "loss_classifier"):
        (gradient,) = torch.autograd.grad(terms[name], [weight], retain_graph=True)
        assert gradient.abs().sum() > 0


# --- weights ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_back_equal_and_other_classes_are_refused(tmp_path: Path) -> None:
    model = create()
    path = tmp_path / "last.safetensors"
    model.save(path, {"epoch": 1}, {})
    again = load_detector("lio-mask-rcnn").load(path, device="cpu")
    assert again.class_names == CLASSES
    assert again.describe()["training"]["epoch"] == 1
    np.testing.assert_array_equal(again.detect(picture()).boxes, model.detect(picture()).boxes)
    other = create(names=("apple", "cup"))
    with pytest.raises(DataError, match=r"other classes \(3\) than the data \(2\)"):
        other.start_from(str(path))


def test_a_run_starts_from_the_checkpoint_of_another_one_with_a_new_scl(tmp_path: Path) -> None:
    trained = create(scl_weight=0)
    trained.save(tmp_path / "plain.safetensors", {}, {})
    started = create(weights=str(tmp_path / "plain.safetensors"), seed=1)
    theirs = trained.network.state_dict()
    assert all(
        torch.equal(tensor, theirs[name])
        for name, tensor in started.network.state_dict().items()
        if not name.startswith(SCL)
    )
    assert started.describe()["weights"]["name"] == "plain.safetensors"
    started.save(tmp_path / "scl.safetensors", {}, {})
    boxes_only = create(weights=str(tmp_path / "scl.safetensors"), masks=False, scl_weight=0)
    assert torch.equal(
        boxes_only.network.state_dict()["rpn.head.cls_logits.weight"], theirs["rpn.head.cls_logits.weight"]
    )


def test_the_small_backbone_starts_from_a_trained_classifier(tmp_path: Path) -> None:
    classifier = load_method("cam").create(backbone="tiny", num_classes=5, weights="none", settings={})
    save_checkpoint(tmp_path / "cam.safetensors", classifier, {})
    model = create(weights=str(tmp_path / "cam.safetensors"), seed=1)
    body = model.network.state_dict()
    assert all(
        torch.equal(tensor, body[f"backbone.body.{name}"])
        for name, tensor in classifier.backbone.state_dict().items()
    )
    assert model.describe()["weights"]["name"] == "cam.safetensors"
    with pytest.raises(DataError, match="is of method 'cam', expected 'lio-mask-rcnn'"):
        create("resnet50_fpn", weights=str(tmp_path / "cam.safetensors"))


def test_imagenet_weights_fill_the_resnet_and_its_stem_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = resnet50(weights=None)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    monkeypatch.setattr(mask_rcnn, "torchvision_file", lambda *_: tmp_path / "resnet50.pth")
    for backbone, last in (
        ("resnet50_c4", "roi_heads.box_head.layer4"),
        ("resnet50_fpn", "backbone.body.layer4"),
    ):
        model = create(backbone, weights="imagenet", scl_weight=0)
        state = model.network.state_dict()
        assert torch.equal(state[f"{last}.2.conv3.weight"], net.layer4[2].conv3.weight)
        body = "backbone" if backbone == "resnet50_c4" else "backbone.body"
        assert torch.equal(state[f"{body}.layer1.0.conv1.weight"], net.layer1[0].conv1.weight)
        frozen = [
            name.removeprefix(f"{body}.")
            for name, parameter in model.network.named_parameters()
            if not parameter.requires_grad
        ]
        assert {name.split(".")[0] for name in frozen} == {"conv1", "layer1"}


def test_coco_weights_keep_the_outputs_of_classes_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = build("resnet50_fpn", 91).state_dict()
    torch.save(trained, tmp_path / "coco.pth")
    monkeypatch.setattr(mask_rcnn, "torchvision_file", lambda *_: tmp_path / "coco.pth")
    state = create(
        "resnet50_fpn", weights="coco", names=("toothbrush", "unheard-of", "person"), scl_weight=0
    ).network.state_dict()
    names = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    scores, boxes, masks = (f"roi_heads.{name}.weight" for name in names)
    for row, place in ((0, 0), (1, 90), (3, 1)):
        assert torch.equal(state[scores][row], trained[scores][place])
        assert torch.equal(state[boxes][4 * row : 4 * row + 4], trained[boxes][4 * place : 4 * place + 4])
        assert torch.equal(state[masks][row], trained[masks][place])
    assert not (state[scores][2] == trained[scores]).all(dim=1).any()
    assert torch.equal(
        state["backbone.fpn.inner_blocks.0.0.weight"], trained["backbone.fpn.inner_blocks.0.0.weight"]
    )


def test_rows_that_match_are_taken_and_others_kept() -> None:
    own, theirs = torch.zeros(6, 2), torch.arange(1.0, 17.0).view(8, 2)
    assert match_rows(own, theirs, [0, None, 3])[:, 0].tolist() == [1, 3, 0, 0, 13, 15]
    assert own.sum() == 0


def test_normalisation_trained_with_epsilon_0_gives_the_same_with_torchvisions() -> None:
    norm = FrozenBatchNorm2d(4, eps=0.0)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.uniform_(-1, 1)
    norm.running_var.copy_(torch.tensor([1.0, 1e-2, 1e-4, 1e-6]))
    x = torch.randn(2, 4, 3, 3)
    expected = norm(x)
    norm.eps = 1e-5
    mask_rcnn._with_epsilon(torch.nn.Sequential(norm))
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-4)


# --- names and settings -------------------------------------------------------------------------------------


def test_it_is_listed_among_the_detectors_and_the_other_commands_point_to_theirs() -> None:
    (row,) = [row for row in list_detectors() if row.name == "lio-mask-rcnn"]
    assert row.task == "detection"
    assert 20 <= len(row.summary) <= 70
    assert load_detector("lio-mask-rcnn") is LioMaskRcnn
    with pytest.raises(UsageError, match="train-detector"):
        load_method("lio-mask-rcnn")
    with pytest.raises(UsageError, match="unknown detector 'mask-rcnn'; did you mean 'lio-mask-rcnn'"):
        load_detector("mask-rcnn")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet50_fpm"}, "did you mean 'resnet50_fpn'"),
        ({"scl_weigth": 0.1}, "did you mean 'scl_weight'"),
        ({"scl_weight": -1}, "scl_weight of .* is -1.0"),
        ({"structure_dim": 0}, "structure_dim 0"),
        ({"scl_weight": math.nan}, "scl_weight of .* is nan; expected a number in"),
        ({"min_size": 0}, r"min_size of .* is 0; expected a whole number in \[1, 8192\]"),
        ({"max_size": 10}, "min_size is 64 and max_size 10"),
        ({"scl_form": "printed"}, "expected one of paper, official"),
        ({"weights": "imagenet"}, "no ImageNet weights of the backbone 'tiny'"),
        ({"weights": "coco"}, "COCO weights of the backbone 'resnet50_fpn' only"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [40, 64])
def test_regions_are_read_at_the_stride_of_the_features_whatever_the_first_image(side: int) -> None:
    network = build("tiny", 3, min_size=side, max_size=side).eval()
    network([torch.rand(3, side, side)])
    pools = (network.roi_heads.box_roi_pool, network.roi_heads.mask_roi_pool)
    assert [pool.scales for pool in pools] == [[1 / 8], [1 / 8]]
    features = torch.rand(1, network.backbone.out_channels, 8, 8)
    box = torch.tensor([[8.0, 16.0, 40.0, 48.0]])
    seen = pools[0]({"0": features}, [box], [(side, side)])
    torch.testing.assert_close(
        seen, roi_align(features, [box], output_size=7, spatial_scale=1 / 8, sampling_ratio=1)
    )


def test_every_backbone_has_a_recipe() -> None:
    for backbone in BACKBONES:
        recipe = LioMaskRcnn.recipe_for(backbone, {"recipe.lr": "0.5"})
        assert recipe.lr == 0.5
        assert recipe.lr_factor(0, 1000) < 0.5
    official = LioMaskRcnn.recipe_for("resnet50_c4", {})
    per_epoch = 14786
    rates = [
        official.lr * official.lr_factor(epoch * per_epoch + 600, 12 * per_epoch)
        for epoch in (0, 7, 8, 10, 11)
    ]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
