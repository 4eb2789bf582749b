"""`wsolbench.evaluate` in one call: functions, classifiers with a layer, and pytorch-grad-cam objects."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import MadeUpSource, box_map, dataset
from pytorch_grad_cam import GradCAM
from torch import nn
from torch.nn import functional

from wsolbench import DataError, EvalProtocol, UsageError, evaluate, read_record
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.split_scores import SplitScores
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import to_input
from wsolbench.methods.own_networks import CamObject, TorchClassifier
from wsolbench.types import Dataset

SPEC = InputSpec(size=32)


def bright(image: Any, label: int) -> np.ndarray:
    """The rectangle of the made-up images is brighter than everything around it."""
    assert image.mode == "RGB"
    assert isinstance(label, int)
    return np.asarray(np.asarray(image).sum(axis=2))


class Net(nn.Module):
    """A classifier whose layer `features` is followed by an in-place ReLU, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 8, 5, stride=4)
        self.activation: nn.Module = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.activation(self.features(images)).mean(dim=(2, 3)))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_function_gives_the_numbers_of_the_same_maps_from_elsewhere() -> None:
    by_pixels = {sample.image().tobytes(): sample for sample in dataset().samples}

    def known(image: Any, label: int) -> torch.Tensor:
        return torch.from_numpy(box_map(by_pixels[np.asarray(image).tobytes()]))

    result = evaluate(dataset(), known, progress=False)
    other = evaluate(dataset(), MadeUpSource())
    assert result.metrics["gt_known"] == other.metrics["gt_known"]
    assert result.metrics["top1_cls"].reason == "no predicted labels"
    assert result.record.method == {"name": "known", "maps": "computed by a Python function"}


def test_a_pair_of_map_and_scores_gives_labels() -> None:
    def confused(image: Any, label: int) -> tuple[np.ndarray, list[float]]:
        scores = [0.0, 0.0, 0.0]
        scores[(label + (label == 2)) % 3] = 1  # class 2 is taken for 0
        return bright(image, label), scores

    metrics = evaluate(dataset(12), confused).metrics
    assert metrics["top1_cls"].value == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="expected 3 finite numbers, one per class"):
        evaluate(dataset(12), lambda image, label: (bright(image, label), [1.0]))


def test_axes_of_one_image_and_one_channel_are_dropped() -> None:
    scores = np.array([0.0, 2.0, 1.0])
    plain = evaluate(dataset(6), lambda image, label: (bright(image, label), scores))
    batch = evaluate(dataset(6), lambda image, label: (bright(image, label)[None, None], scores[None]))
    assert plain.record.metrics == batch.record.metrics


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "returns None for"),
        (np.zeros((5, 4, 3)), r"returns an array of shape \(5, 4, 3\) and type float64 for"),
        (np.zeros((2, 1, 4, 3)), r"shape \(2, 1, 4, 3\)"),
        (np.zeros(5), r"shape \(5,\)"),
        ("map", "returns 'map' for"),
    ],
)
def test_a_function_that_returns_no_map_is_told_what_is_expected(result: Any, found: str) -> None:
    with pytest.raises(DataError, match=f"{found}.*; expected one map, a two-dimensional array or tensor"):
        evaluate(dataset(3), lambda image, label: result)


def test_maps_of_captum_are_those_of_grad_cam(net: Net) -> None:
    attribution = pytest.importorskip("captum.attr")
    grad_cam = attribution.LayerGradCam(net, net.features)
    spec = InputSpec(size=224)

    def captum(image: Any, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(to_input(image, spec))[None]
        return grad_cam.attribute(pixels, target=label, relu_attributions=True), net(pixels)

    result = evaluate(dataset(6), captum)
    own = evaluate(dataset(6), net, layer="features", post="grad-cam")
    for name in ("gt_known", "max_box_acc_v2", "top1_cls", "top1_loc"):
        assert result.metrics[name].value == own.metrics[name].value


def test_under_a_centre_crop_the_function_sees_the_crop() -> None:
    sizes = set()

    def seen(image: Any, label: int) -> np.ndarray:
        sizes.add(image.size)
        return bright(image, label)

    evaluate(dataset(3), seen, "bas")
    assert sizes == {(224, 224)}


def test_the_result_prints_a_short_table_and_saves_what_was_computed(tmp_path: Path) -> None:
    result = evaluate(dataset(12), MadeUpSource(), policy="fixed:0.5")
    lines = str(result).splitlines()
    assert len(lines) == 5
    assert lines[0] == "made-up on made-up test: 12 images, protocol wsoleval"
    metric = result.metrics["gt_known"]
    assert (metric.policy, metric.tau) == ("fixed:0.5", (0.5,))
    assert metric.value is not None
    assert metric.low is not None
    assert metric.high is not None
    assert lines[2].split()[:6] == [
        "GT-known",
        "fixed:0.5",
        f"{100 * metric.value:.1f}",
        "%",
        f"[{100 * metric.low:.1f},",
        f"{100 * metric.high:.1f}]",
    ]
    path = result.save(tmp_path)
    record = read_record(path)
    assert record.metrics == result.record.metrics
    (scores,) = tmp_path.rglob("*.scores.npz")
    assert SplitScores(ScoreTable.read(scores)).count == SplitScores(result.scores).count
    assert [
        file.suffix
        for file in evaluate(dataset(3), bright).save(tmp_path / "b", scores=False).parent.iterdir()
    ] == [".json"]


def test_policies() -> None:
    val = dataset(6, "val", 1)
    result = evaluate(dataset(), bright, policy="transfer", transfer_from=val)
    assert result.metrics["gt_known"].policy == "transfer"
    for policy, message in (
        ("transfer", r"policy='transfer' needs another split of made-up with boxes"),
        ("best", "policy='best'; expected 'oracle'"),
        ("fixed:x", "expected a threshold, such as 'fixed:0.3'"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(dataset(), bright, policy=policy)
    with pytest.raises(UsageError, match="differ"):
        evaluate(dataset(), bright, policy="fixed:0.2", fixed_tau=0.3)


def test_a_data_set_by_name_loads_val_for_transferred_thresholds() -> None:
    found = evaluate("toybirds-v2", bright, "spa", limit=4, policy="transfer", progress=False)
    assert found.record.dataset["transfer_from"]["split"] == "val"
    assert found.record.protocol.name == "spa"
    assert len(found.scores) == 4


def test_progress_can_be_switched_off(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("wsolbench.system.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("wsolbench.system.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("wsolbench.system.progress._Lines.interval", 0.0)
    evaluate(dataset(3), bright, progress=False)
    assert capsys.readouterr().err == ""
    evaluate(dataset(3), bright)
    assert "made-up test: 3/3" in capsys.readouterr().err


def test_functions_need_no_torch() -> None:
    code = (
        "import sys\nfor name in ('torch', 'torchvision', 'timm'):\n    sys.modules[name] = None\n"
        "sys.path.insert(0, 'tests')\n"
        "import wsolbench.evaluation.evaluate, wsolbench.cli.eval, wsolbench.evaluation\n"
        "from made_up import dataset\nfrom wsolbench import evaluate\nimport numpy as np\n"
        "print(evaluate(dataset(6), lambda image, label: np.asarray(image)[..., 0]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert found.stdout.startswith("function on made-up test: 6 images")


def test_the_map_of_a_classifier_is_cam(images: torch.Tensor) -> None:
    """With mean pooling and a linear layer on the features, the gradients are the weights of the layer."""
    net = Net()
    net.activation = nn.Identity()
    model = TorchClassifier(net, "features", num_classes=3, input_spec=SPEC)
    classes = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 1]])
    maps = model.localize(images).score_maps(classes)
    expected = torch.einsum("bdhw,bkd->bkhw", net.features(images), net.head.weight[classes])
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_features_are_those_before_an_in_place_relu(net: Net, images: torch.Tensor) -> None:
    for layer in ("features", net.features):
        result = TorchClassifier(net, layer, num_classes=3, input_spec=SPEC).localize(images)
        torch.testing.assert_close(result.stages["features"], net.features(images))
        torch.testing.assert_close(result.logits, net(images))
    assert not net.features._forward_hooks


def test_a_classifier_gives_localization_and_accuracy(net: Net) -> None:
    """Its logits, from pixels normalised as given, are ranked for Top-1."""
    data = dataset(9)
    result = evaluate(
        data,
        net,
        layer="features",
        post="grad-cam",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        image_size=64,
        name="mine",
    )
    pixels = np.stack([sample.image() for sample in data.samples])
    with torch.no_grad():
        best = net(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(dim=1)
    labels = np.array([sample.label for sample in data.samples])
    assert result.metrics["top1_cls"].value == pytest.approx((best.numpy() == labels).mean())
    assert result.metrics["top1_loc"].value is not None
    method = result.record.method
    assert (method["name"], method["backbone"], method["image_size"]) == ("mine+grad-cam", "Net", 64)
    assert method["config"] == {"layer": "features", "mean": [0.0] * 3, "std": [1.0] * 3}
    assert len(method["weights"]["sha256"]) == 64


def test_pytorch_grad_cam_gives_what_its_object_gives(net: Net, images: torch.Tensor) -> None:
    with GradCAM(model=net, target_layers=[net.features]) as cam:
        model = CamObject(cam, num_classes=3, input_spec=SPEC)
        result = model.localize(images)
        maps = result.score_maps(torch.tensor([[0], [1], [2], [0]]))
        expected = cam(input_tensor=images, targets=[_Target(label) for label in (0, 1, 2, 0)])
        np.testing.assert_allclose(maps[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.logits, net(images).detach())
        evaluated = evaluate(dataset(6), cam, image_size=64, progress=False)
    assert evaluated.record.method["name"] == "GradCAM"
    assert evaluated.record.method["config"]["layers"] == ["features"]
    assert evaluated.metrics["top1_cls"].value is not None


def test_the_positive_part_of_cam_is_grad_cam(net: Net, images: torch.Tensor) -> None:
    """pytorch-grad-cam weights with mean gradients; min-max normalised, both are one map.

    It reads the features after an in-place ReLU has changed them, so this network has another ReLU.
    """
    net.activation = nn.ReLU()
    classes = torch.tensor([[0], [1], [2], [0]])
    own = (
        TorchClassifier(net, "features", num_classes=3, input_spec=SPEC).localize(images).score_maps(classes)
    )
    with GradCAM(model=net, target_layers=[net.features]) as cam:
        theirs = CamObject(cam, num_classes=3, input_spec=SPEC).localize(images).score_maps(classes)
    own = functional.interpolate(own.relu(), theirs.shape[-2:], mode="bilinear")
    for mine, other in zip(own[:, 0], theirs[:, 0], strict=True):
        assert np.corrcoef(mine.flatten().numpy(), other.flatten().numpy())[0, 1] > 0.99


class _Target:
    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return output[self.label]


class Tokens(nn.Module):
    """A classifier without a grid of features."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.unused = nn.Linear(3, 3), nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.flat(images.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (3, {}, "the source of maps is int; expected a function"),
        (Net(), {}, "Net is a torch module without a layer; expected layer="),
        (Net(), {"layer": "feature"}, "unknown layer 'feature' of Net; did you mean 'features'"),
        (Net(), {"layer": nn.ReLU()}, "layer ReLU is not a part of Net"),
        (Net(), {"layer": "features", "std": (1, 0, 1)}, r"std=\(1, 0, 1\); expected three numbers"),
        (Tokens(), {"layer": "flat"}, r"layer 'flat' of Tokens gives shape \(32, 3\); expected features"),
        (Tokens(), {"layer": "unused"}, "do not depend on layer 'unused'"),
        (bright, {"layer": "features"}, "layer=features has no effect on a function"),
        (MadeUpSource(), {"name": "x"}, "name=x has no effect on a source of maps"),
        (bright, {"options": RunOptions(work=Path("never"))}, "leave out options.work"),
    ],
)
def test_what_cannot_be_evaluated_says_what_is_expected(source: Any, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(dataset(3), source, **arguments)


def test_a_classifier_of_other_classes_is_refused(net: Net) -> None:
    data = dataset(3)
    more: Dataset = replace(data, class_names=(*data.class_names, "tern"))
    with pytest.raises(DataError, match=r"shape \(32, 3\); expected class scores \(B, 4\)"):
        evaluate(more, net, layer="features")


def test_the_network_keeps_its_parameters_and_gradients(net: Net) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with contextlib.suppress(UsageError):
        evaluate(dataset(3), net, EvalProtocol.preset("bas"), layer="features")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
