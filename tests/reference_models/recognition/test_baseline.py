"""The baseline: a linear classifier on pooled features, its maps, the recipes it is compared with."""

from __future__ import annotations

import pytest
import torch

from reference_models.recognition.baseline import Baseline, BaselineConfig
from tests.reference_models.conftest import toy_backbone, toy_batch

CLASSES = 5


def baseline(**settings) -> Baseline:
    model = Baseline(toy_backbone(), CLASSES, BaselineConfig(**settings))
    torch.nn.init.normal_(model.head.classifier.weight)
    torch.nn.init.normal_(model.head.classifier.bias)
    return model.eval()


def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score():
    model, images = baseline(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(
        maps.mean(dim=(2, 3)) + model.head.classifier.bias, result.logits, atol=1e-4, rtol=0
    )


def test_scores_do_not_depend_on_where_the_cells_are():
    model, features = baseline(), torch.randn(2, 16, 4, 4)
    shuffled = features.flatten(2)[..., torch.randperm(16)].view_as(features)
    torch.testing.assert_close(model.head(shuffled).logits, model.head(features).logits)


def test_it_is_the_network_as_it_is_and_one_linear_layer():
    assert [
        Baseline.grid_for(name, BaselineConfig())
        for name in ("resnet50", "efficientnet_lite0", "timm:resnet18", "vgg16", "tiny")
    ] == [
        "stock",
        "stock",
        "stock",
        "default",
        "default",
    ]
    assert Baseline.grid_for("resnet50", BaselineConfig(grid="std14")) == "std14"
    model = baseline()
    assert {name for name in model.state_dict() if not name.startswith("backbone.")} == {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    vgg = Baseline.create(
        backbone="vgg16", num_classes=CLASSES, weights="none", settings={"width": "8"}, image_size=32
    )
    assert vgg.localize(torch.randn(1, 3, 32, 32)).penultimate.shape == (1, 8, 2, 2)


def test_it_has_the_recipe_of_each_method_that_it_is_compared_with():
    assert (Baseline.recipe_name("resnet50", 200), Baseline.recipe_name("tiny", 200)) == (
        "lio_upright",
        "tiny",
    )
    upright, lio = (Baseline.recipe_for("resnet50", 200, settings) for settings in ({}, {"recipe": "lio"}))
    assert (upright.rotation, lio.rotation) == (0, 15)
    assert (lio.epochs, lio.batch_size, lio.lr, lio.weight_decay, lio.new_factor, lio.bias_factor) == (
        240,
        16,
        1e-3,
        0,
        10,
        1,
    )
    assert [lio.lr_factor(epoch / 240) for epoch in (59, 60, 120, 180)] == pytest.approx(
        [1, 0.1, 0.01, 0.001]
    )
    assert round(448 * lio.resize) == 512
    nts, cub, cars, aircraft, fnd = (
        Baseline.recipe_for("resnet50", 200, {"recipe": name})
        for name in ("nts", "ssanet_cub", "ssanet_cars", "ssanet_aircraft", "fnd")
    )
    assert [round(448 * recipe.resize) for recipe in (nts, cub, cars, aircraft, fnd)] == [
        600,
        600,
        512,
        448,
        600,
    ]
    assert [recipe.weight_decay for recipe in (nts, cub, cars, aircraft, fnd)] == [
        1e-4,
        1e-4,
        1e-4,
        5e-4,
        5e-4,
    ]
    assert [recipe.batch_size for recipe in (nts, cub, cars, aircraft, fnd)] == [16, 16, 16, 24, 16]
    assert nts.lr_factor(59.5 / 110) == 1
    assert nts.lr_factor(60 / 110) == pytest.approx(0.1)
    assert cub.lr_factor(60.5 / 90) == pytest.approx(0.1)
    # The papers' rates: one for all, or (Focus-and-Discriminate) 0.01 and a tenth of it for what was
    # pretrained.
    assert [(recipe.lr, recipe.new_factor) for recipe in (nts, cub, fnd)] == [
        (1e-3, 1),
        (1e-3, 1),
        (1e-3, 10),
    ]


def test_it_learns_eight_images():
    model, given_batch = baseline().train(), toy_batch(8, classes=CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(sum(model.loss(given_batch).values()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("backbone", "classes", "size"), [("resnet50", 200, 448), ("resnet50", 1000, 224), ("tiny", 200, 128)]
)
def test_recognisers_see_448_pixels_on_the_papers_network_unless_another_size_is_asked_for(
    backbone: str, classes: int, size: int
) -> None:
    for asked, expected in ((None, size), (96, 96)):
        model = Baseline.create(
            backbone=backbone, num_classes=classes, weights="none", settings={}, image_size=asked
        )
        assert model.input_spec.size == expected
