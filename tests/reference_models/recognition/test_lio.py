"""LIO: what images of one class share, where cells lie, and that nothing of it is left at test."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.profile import Stage
from reference_models.recognition.baseline import Baseline, BaselineConfig
from reference_models.recognition.lio.class_groups import find_positives
from reference_models.recognition.lio.method import Lio, LioConfig, Structure, pseudo_mask
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

CLASSES = 5
OFFICIAL = parse_settings(LioConfig, {"variant": "official"}, what="lio")


def lio(**settings) -> Lio:
    return Lio(toy_backbone(), CLASSES, LioConfig(**settings)).train()


def batch(*labels: int, images: torch.Tensor | None = None, masks: torch.Tensor | None = None) -> Batch:
    """Two groups of four of one class each where no labels are given."""
    labels = labels or (2, 2, 2, 2, 4, 4, 4, 4)
    made_up = toy_batch(len(labels), classes=CLASSES)
    return replace(
        made_up, labels=torch.tensor(labels), images=made_up.images if images is None else images, masks=masks
    )


def strided_backbone(*, linear: bool = False) -> Backbone:
    """Strides 2, 4, 8 of 64 pixels, so that all three kinds of stages are there; `linear` stages can be
    negative."""

    def step(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.Identity() if linear else nn.ReLU()
        )

    steps = OrderedDict(one=step(3, 4), two=step(4, 6), three=step(6, 8))
    layout = [Stage("one", 2, 4), Stage("two", 4, 6), Stage("three", 8, 8)]
    return Backbone("strided", steps, layout, grid="std", input_spec=InputSpec(size=64))


def mask_of(features: torch.Tensor, size: int) -> torch.Tensor:
    """M of images that are in groups of one class."""
    labels = torch.arange(len(features)) // size
    return pseudo_mask(features, features, *find_positives(labels, size, "correct"))


# --- the loss -----------------------------------------------------------------------------------------------


def parts_of(model: Lio, given_batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """f, m' and M of the last stage."""
    f = model.pool_stages(model.backbone.stages(given_batch.images))["7"]
    m = model.structure["7"].extent_map(f)
    return f, m, mask_of(f, model.config.num_positives + 1)


def test_the_terms_are_those_of_the_equations():
    model, given_batch = lio(alpha=0.7, beta=0.3), batch()
    terms = model.loss(given_batch)
    f, m, target = parts_of(model, given_batch)
    logits = model(given_batch.images).logits
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, given_batch.labels))
    torch.testing.assert_close(terms["oel_7"], 0.7 * (m - target).square().mean())
    reference = m.flatten(1).argmax(dim=1)
    context = model.structure["7"].context(f, m.clamp(min=0), reference)
    torch.testing.assert_close(terms["distance_7"], 0.3 * context.distance.mean())
    torch.testing.assert_close(terms["angle_7"], 0.3 * context.angle.mean())
    assert set(terms) == {"cross_entropy", "oel_7", "distance_7", "angle_7"}


def test_the_target_is_a_label_and_the_weights_of_the_context_get_no_gradient():
    def oel_gradient(**settings) -> torch.Tensor:
        torch.manual_seed(3)
        model = lio(alpha=1.0, **settings).eval()
        torch.nn.init.zeros_(
            model.structure["7"].extent.weight
        )  # m' does not depend on f: gradients come from M alone
        gradients = torch.autograd.grad(
            model.loss(batch())["oel_7"], model.backbone.parameters(), allow_unused=True
        )
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    assert not oel_gradient().any()
    assert oel_gradient(detach_target=False).any()
    model = lio()
    (model.loss(batch())["distance_7"] + model.loss(batch())["angle_7"]).backward()
    assert model.structure["7"].extent.weight.grad is None


def test_an_image_without_another_of_its_class_counts_in_the_classification_alone():
    model = lio(alpha=1.0).eval()
    images = batch().images
    alone = model.loss(batch(0, 1, 2, 3, images=images[:4]))
    assert alone["oel_7"] == 0
    pair = model.loss(batch(2, 2, images=images[:2]))["oel_7"]
    torch.testing.assert_close(model.loss(batch(2, 2, 0, 1, images=images[:4]))["oel_7"], pair / 2)


def test_true_masks_take_the_place_of_the_correlation():
    model, masks = lio(target="mask", alpha=1.0), torch.rand(8, 32, 32)
    assert model.mask_source == "mask"
    assert lio().mask_source is None
    assert Baseline(toy_backbone(), CLASSES, BaselineConfig()).mask_source is None
    assert lio(target="mask", oel=False).mask_source is None
    given_batch = batch(masks=masks)
    _, m, _ = parts_of(model, given_batch)
    torch.testing.assert_close(
        model.loss(given_batch)["oel_7"], (m - F.adaptive_avg_pool2d(masks[:, None], 7)[:, 0]).square().mean()
    )
    with pytest.raises(UsageError, match="target=mask of method 'lio' needs ground-truth masks"):
        model.loss(batch())


def test_each_task_can_be_left_out():
    def names(**settings) -> tuple[set[str], set[str]]:
        model = lio(**settings)
        layers = {name.split(".")[2] for name in model.state_dict() if name.startswith("structure.")}
        return set(model.loss(batch())), layers

    assert names(oel=False) == ({"cross_entropy", "distance_7", "angle_7"}, {"context"})
    assert names(scl=False) == ({"cross_entropy", "oel_7"}, {"extent"})
    assert names(oel=False, scl=False) == ({"cross_entropy"}, set())


def test_without_both_tasks_it_is_the_baseline_on_groups_of_one_class():
    """The control of the ablations: LIO's batches, without what LIO adds to the loss."""
    config = parse_settings(LioConfig, {"oel": "false", "scl": "false"}, what="lio")
    model, plain = Lio(toy_backbone(), CLASSES, config), Baseline(toy_backbone(), CLASSES, BaselineConfig())
    plain.load_state_dict(model.state_dict(), strict=True)
    given_batch = batch(2, 2, 2, 2, 4, 4, 4, 4)
    losses = []
    for each in (model, plain):
        terms = each.train().loss(given_batch)
        sum(terms.values()).backward()
        losses.append(terms)
    assert losses[0].keys() == {"cross_entropy"}
    logits = plain(given_batch.images).logits
    torch.testing.assert_close(
        losses[0]["cross_entropy"], F.cross_entropy(logits, torch.tensor([2, 2, 2, 2, 4, 4, 4, 4]))
    )
    assert torch.equal(losses[0]["cross_entropy"], sum(losses[1].values()))
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    labels = np.repeat(np.arange(5), 6)
    for indices in model.batches(labels, 2, np.random.default_rng(0)):
        groups = labels[indices].reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        assert all(len(set(group)) == 4 for group in indices.reshape(-1, 4))


def test_without_a_mask_all_cells_count_and_the_strongest_cell_is_the_reference():
    model, given_batch = lio(oel=False, beta=1.0), batch()
    f = model.pool_stages(model.backbone.stages(given_batch.images))["7"]
    context = model.structure["7"].context(f)
    assert torch.equal(
        context.reference, model.structure["7"].context.structure(f).mean(dim=1).flatten(1).argmax(dim=1)
    )
    torch.testing.assert_close(model.loss(given_batch)["angle_7"], context.angle.mean())


def test_only_leaders_are_trained_on_where_the_others_give_features_alone():
    model, given_batch = lio(positives="anchor", alpha=1.0, beta=1.0).eval(), batch()
    whole = Lio(toy_backbone(), CLASSES, LioConfig(alpha=1.0, beta=1.0)).eval()
    whole.load_state_dict(model.state_dict())
    terms = model.loss(given_batch)
    _, m, target = parts_of(whole, given_batch)
    torch.testing.assert_close(terms["oel_7"], (m - target)[[0, 4]].square().mean())
    leaders = replace(given_batch, images=given_batch.images[[0, 4]], labels=given_batch.labels[[0, 4]])
    expected = whole.loss(leaders)  # not in one class: only the other terms
    for name in ("cross_entropy", "distance_7", "angle_7"):
        torch.testing.assert_close(terms[name], expected[name])
    changed = given_batch.images.clone()
    changed[[1, 2, 3]] += 1.0
    other = model.loss(replace(given_batch, images=changed))
    assert other["oel_7"] != terms["oel_7"]
    assert other["cross_entropy"] == terms["cross_entropy"]


def test_the_released_reduction_counts_a_leader_as_much_as_three_others():
    model, given_batch = lio(ce_reduction="split", beta=1.0).eval(), batch()
    losses = F.cross_entropy(model(given_batch.images).logits, given_batch.labels, reduction="none")
    leaders = torch.tensor([1, 0, 0, 0] * 2).bool()
    torch.testing.assert_close(
        model.loss(given_batch)["cross_entropy"], losses[leaders].mean() + losses[~leaders].mean()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "official"},
        {"positives": "anchor"},
        {"positives": "anchor", "variant": "official"},
        {"num_positives": "1"},
        {"num_positives": "5"},
        {"angle_stat": "circular"},
        {"coord_act": "sigmoid"},
        {"stages": "7,14"},
        {"scl_weight": "binary", "reference": "structure"},
    ],
)
def test_every_way_to_train_reaches_every_parameter(settings):
    model = Lio(toy_backbone(), CLASSES, parse_settings(LioConfig, settings, what="lio")).train()
    given_batch = batch(*[2] * 6, *[4] * 6)
    terms = model.loss(given_batch)
    assert all(term.isfinite() and term.ndim == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(given_batch)
    for name, term in mixed.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, terms[name], atol=0.05, rtol=0.1)


def test_the_variant_sets_what_the_released_code_does_otherwise():
    changed = {name for name in vars(OFFICIAL) if getattr(OFFICIAL, name) != getattr(LioConfig(), name)}
    assert changed == {
        "variant",
        "group_order",
        "detach_target",
        "scl_weight",
        "reference",
        "head_relu",
        "gamma_norm",
        "scl_form",
        "ce_reduction",
        "ref_cell",
        "axis",
        "warmup",
    }


def test_the_released_relu_is_before_the_heads_and_not_before_the_correlation():
    backbone = strided_backbone(linear=True)
    model = Lio(backbone, CLASSES, LioConfig(head_relu=True, alpha=1.0)).eval()
    given_batch = batch(images=torch.randn(8, 3, 64, 64))
    f, _, target = parts_of(model, given_batch)
    assert (f < 0).any()
    m = model.structure["7"].extent(f.clamp(min=0))[:, 0]
    torch.testing.assert_close(model.loss(given_batch)["oel_7"], (m - target).square().mean())


# --- stages and test ----------------------------------------------------------------------------------------


def test_the_tasks_are_attached_to_the_last_stage_and_to_those_of_half_and_a_quarter_of_its_stride():
    model = Lio(strided_backbone(), CLASSES, LioConfig(stages=(7, 14, 28))).eval()
    assert {cells: stage.name for cells, stage in model.places.items()} == {7: "three", 14: "two", 28: "one"}
    images = torch.randn(8, 3, 128, 128)
    terms = model.loss(batch(images=images))
    assert set(terms) == {
        "cross_entropy",
        *(f"{kind}_{cells}" for kind in ("oel", "distance", "angle") for cells in (7, 14, 28)),
    }
    maps = model.localize(images).extra_maps
    assert {name: m.shape[1:] for name, m in maps.items()} == {
        "oel_7": (7, 7),
        "oel_14": (14, 14),
        "oel_28": (28, 28),
        "oel_mean": (28, 28),
    }
    assert maps["oel_mean"].amin() >= 0
    assert maps["oel_mean"].amax() <= 1
    constant = Lio(strided_backbone(), CLASSES, LioConfig(stages=(7, 14))).eval()
    for head in constant.structure.values():
        torch.nn.init.zeros_(head.extent.weight)
    assert not constant.localize(images).extra_maps["oel_mean"].any()


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [("resnet50", [2048, 1024, 512]), ("efficientnet_lite0", [1280, 112, 40]), ("tiny", [64, 48, 24])],
)
def test_stages_of_the_networks(backbone, channels):
    model = Lio.create(
        backbone=backbone,
        num_classes=CLASSES,
        weights="none",
        settings={"stages": "7,14,28", "c1": "4"},
        image_size=64,
    )
    assert [stage.channels for stage in model.places.values()] == channels


def test_maps_are_averaged_to_n_by_n_and_smaller_ones_keep_their_size():
    model = Lio(strided_backbone(), CLASSES, LioConfig())
    stages = {"three": torch.randn(2, 8, 14, 14)}
    torch.testing.assert_close(model.pool_stages(stages)["7"], F.avg_pool2d(stages["three"], 2))
    assert model.pool_stages({"three": torch.randn(2, 8, 4, 4)})["7"].shape[2:] == (4, 4)
    assert [stage.name for stage in lio(stages=(7, 14)).places.values()] == ["three", "one"]
    with pytest.raises(
        UsageError, match=r"stages of method 'lio': 28 needs a stage of stride 1, and toy \(std\) has 2, 4"
    ):
        lio(stages=(28,))


@pytest.mark.parametrize(("channels", "count"), [(2048, 2_104_323), (1024, 527_875), (512, 132_867)])
def test_the_parameters_that_training_adds_are_those_of_the_released_code(channels, count):
    assert sum(parameter.numel() for parameter in Structure(channels, LioConfig()).parameters()) == count


def test_the_paper_s_count_of_parameters_would_need_twice_the_channels():
    assert sum(parameter.numel() for parameter in Structure(512, LioConfig(c1=512)).parameters()) == 265_219


def test_at_test_it_is_the_baseline_with_its_weights():
    model, images = lio(stages=(7, 14)), torch.randn(3, 3, 32, 32)
    model.loss(batch())  # moves the statistics of batch norm
    model.eval()
    plain = Baseline(toy_backbone(), CLASSES, BaselineConfig())
    plain.load_state_dict(model.plain(), strict=True)
    plain.eval()
    assert torch.equal(plain.localize(images).logits, model.localize(images).logits)
    asked = torch.tensor([[0, 2], [1, 3], [4, 0]])
    assert torch.equal(plain.score_maps(images, asked), model.score_maps(images, asked))
    own = sum(
        parameter.numel() for name, parameter in model.named_parameters() if not name.startswith("structure.")
    )
    assert own == sum(parameter.numel() for parameter in plain.parameters())
    assert model.plain().keys() == plain.state_dict().keys()


def test_the_map_of_the_extent_is_its_convolution_on_the_averaged_features():
    model = lio().eval()
    result = model.localize(torch.randn(2, 3, 32, 32))
    f = F.adaptive_avg_pool2d(result.stages["three"], 7)
    torch.testing.assert_close(result.extra_maps["oel_7"], model.structure["7"].extent(f)[:, 0])
    assert not lio(oel=False).eval().localize(torch.randn(2, 3, 32, 32)).extra_maps
    with torch.autocast("cpu", torch.bfloat16):
        assert model.localize(torch.randn(2, 3, 32, 32)).extra_maps["oel_7"].dtype == torch.float32


# --- training -----------------------------------------------------------------------------------------------


def test_batches_are_groups_of_one_class_as_many_as_the_batch_size_says():
    labels = np.arange(24) % 3
    batches = lio(num_positives=2).batches(labels, 8, np.random.default_rng(0))
    assert [len(part) for part in batches] == [24, 24, 24]
    for part in batches:
        assert (labels[part].reshape(-1, 3) == labels[part][::3, None]).all()
    assert sorted(np.concatenate(batches)[::3].tolist()) == list(range(24))


def test_the_recipes_are_the_published_ones():
    assert (
        Lio.recipe_name("resnet50", 200),
        Lio.recipe_name("resnet50", 1000),
        Lio.recipe_name("tiny", 200),
    ) == (
        "lio",
        "lio_ilsvrc",
        "tiny",
    )
    assert Lio.grid_for("resnet50", LioConfig()) == "stock"
    paper, official = (
        Lio.recipe_for("resnet50", 200, settings) for settings in ({}, {"variant": "official"})
    )
    assert (paper.epochs, paper.rotation, official.epochs, official.rotation) == (240, 15, 359, 15)
    assert (paper.rotation_filter, official.rotation_filter) == ("bilinear", "nearest")
    assert Lio.recipe_for("resnet50", 200, {"variant": "official", "recipe": "lio"}).epochs == 240
    assert Lio.recipe_for("tiny", 200, {"variant": "official"}) == Lio.recipe_for("tiny", 200, {})
    model = Lio(toy_backbone(), CLASSES, OFFICIAL)
    rates = [
        model.lr_factor(official, (epoch + 0.5) / 359) for epoch in (0, 1, 2, 61, 62, 122, 182, 242, 302)
    ]
    assert rates == pytest.approx([0.1, 0.1, 1, 1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5])
    imagenet = Lio.recipe_for("resnet50", 1000, {})
    assert (imagenet.batch_size * 4, imagenet.lr, imagenet.epochs) == (256, 0.1, 90)


def test_it_learns_eight_images():
    model, given_batch = lio(stages=(7, 14)), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(sum(model.loss(given_batch).values()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ()}, "stages of method 'lio' is ''"),
        ({"stages": (7, 7)}, "is '7,7'; expected one or several of 7, 14 and 28, each once"),
        ({"stages": (56,)}, "is '56'"),
        ({"num_positives": 0}, "num_positives of method 'lio' is 0; expected at least 1"),
        ({"alpha": -0.1}, "alpha of method"),
        ({"beta": float("nan")}, "beta of method"),
        ({"c1": -1}, "c1 of method"),
        ({"angle_stat": "circular", "scl_form": "official"}, "angle_stat=circular needs scl_form=paper"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        lio(**settings)
