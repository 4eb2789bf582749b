"""HBP: products of pairs of layers, their parts, and maps."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.profile import Stage
from reference_models.layers.second_order import signed_sqrt, unit
from reference_models.recognition.hbp import Hbp, HbpConfig
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

CLASSES = 4


def three_layers() -> Backbone:
    """Three steps of 8 channels on one grid, the last of which are the layers of HBP."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(3):
        inputs, stride = (8, 1) if number else (3, 4)
        steps[f"step{number}"] = nn.Sequential(
            nn.Conv2d(inputs, 8, 3, stride=stride, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        )
    layout = [Stage(name, 4, 8) for name in steps]
    return Backbone(
        "three", steps, layout, grid="std", input_spec=InputSpec(size=32), roles={"last-layers": layout}
    )


def model(**settings) -> Hbp:
    return Hbp(three_layers(), CLASSES, HbpConfig(**{"width": 20, **settings})).eval()


def layers() -> tuple[torch.Tensor, ...]:
    return tuple(torch.rand(2, 8, 3, 4) for _ in range(3))


def test_a_pair_is_the_mean_product_of_its_projections():
    net, given = model(), layers()
    for projection in net.projections:
        nn.init.normal_(projection.bias)
    parts = net.represent(given).vector.unflatten(1, (3, 20))
    projected = [
        torch.einsum("dc,bchw->bdhw", p.weight, x) + p.bias[:, None, None]
        for p, x in zip(net.projections, given, strict=True)
    ]
    for part, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        expected = unit(signed_sqrt((projected[i] * projected[j]).mean(dim=(2, 3))))
        torch.testing.assert_close(parts[:, part], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts.norm(dim=2), torch.ones(2, 3))  # so |z| is the root of 3


def test_equal_layers_and_projections_give_equal_parts_that_are_not_negative():
    net, (x, _, _) = model(), layers()
    for projection in net.projections:
        projection.load_state_dict(net.projections[0].state_dict())
    parts = net.represent((x, x, x)).vector.unflatten(1, (3, 20))
    torch.testing.assert_close(parts[:, 0], parts[:, 1])
    torch.testing.assert_close(parts[:, 0], parts[:, 2])
    assert parts.min() >= 0


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score(variant):
    net, images = model(variant=variant), torch.randn(3, 3, 32, 32)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + net.classifier.bias, result.logits, atol=1e-5, rtol=0)
    best = result.logits.argmax(dim=1, keepdim=True)
    pairs = [result.extra_maps[name] for name in ("pair_12", "pair_13", "pair_23")]
    torch.testing.assert_close(sum(pairs), result.score_maps(best)[:, 0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(pairs[0], pairs[1])


def test_the_released_variant_sums_and_has_the_exact_root():
    net, given = model(variant="official"), layers()
    first = net.represent(given).vector[:, :20]
    one, two = (
        torch.einsum("dc,bchw->bdhw", p.weight, x)
        for p, x in zip(net.projections[:2], given[:2], strict=True)
    )
    sums = (one * two).sum(dim=(2, 3))
    y = sums.sign() * sums.abs().sqrt()
    torch.testing.assert_close(first, y / (y.square().sum(dim=1, keepdim=True) + 1e-7).sqrt())


def test_the_layers_start_from_the_released_distribution():
    net = model(width=4000)
    for layer in (*net.projections, net.classifier):
        bound = (3 / layer.in_features) ** 0.5  # of the inputs alone
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert not layer.bias.any()


def test_two_layers_give_one_pair_and_networks_without_layers_are_refused():
    net = Hbp(toy_backbone(), CLASSES, HbpConfig(width=20))
    assert net.pairs == ((0, 1),)
    with pytest.raises(UsageError, match=r"method 'hbp' needs the role 'last-layers' .* timm:resnet18"):
        Hbp.create(backbone="timm:resnet18", num_classes=2, weights="none", settings={}, image_size=64)


def test_the_layers_of_the_paper_are_those_of_vgg16():
    with torch.device("meta"):
        net = Hbp.create(backbone="vgg16", num_classes=2, weights="none", settings={}, image_size=32)
    assert [layer.name for layer in net.layers] == ["relu5_1", "relu5_2", "relu5_3"]
    assert net.classifier.in_features == 24_576
