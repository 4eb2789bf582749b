"""DANet: its cosine loss, its levels, and the sum of their maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.config import from_json, parse_settings, to_json
from reference_models.core.outputs import Batch
from reference_models.localization.cam import Cam
from reference_models.localization.danet.method import (
    Danet,
    DanetConfig,
    cosine_loss,
    find_by_rank,
    gather_class_maps,
    upsample,
)
from reference_models.training.checkpoint import save_checkpoint
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import DataError, UsageError

CLASSES = 6
PARENTS = (0, 0, 1, 1, 2, 2)
ROOTS = (0, 0, 0, 0, 1, 1)


def model(**changes) -> Danet:
    """A model on a tree of 6 classes, 3 families and 2 orders; with scores that are not small."""
    network = Danet(
        toy_backbone(),
        CLASSES,
        DanetConfig(**{"parents": PARENTS, "roots": ROOTS, "maps_per_class": 4, **changes}),
    ).eval()
    for parameter in network.levels.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def batch(count: int = 5, seed: int = 0) -> Batch:
    return Batch(
        images=torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),
        labels=torch.arange(count) % CLASSES,
        indices=torch.arange(count),
        epoch=0,
        epochs=1,
        step=0,
        generator=torch.Generator().manual_seed(seed),
    )


def every_class(count: int) -> torch.Tensor:
    return torch.arange(CLASSES).expand(count, CLASSES)


# --- (1) ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", ["sum", "pairs"])
def test_the_cosine_loss_of_three_known_maps(absolute):
    maps = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 1], [0, 0]]])[None]
    torch.testing.assert_close(cosine_loss(maps, absolute), torch.tensor(1 / 3))


@pytest.mark.parametrize("absolute", ["sum", "pairs"])
def test_maps_without_common_support_have_no_cosine_loss_and_equal_ones_have_1(absolute):
    apart = torch.eye(4).reshape(1, 4, 2, 2) * torch.tensor([1.0, 5, -2, 0.1])[None, :, None, None]
    assert cosine_loss(apart, absolute) == 0
    one = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(cosine_loss(one.expand(-1, 5, -1, -1), absolute), torch.tensor(1.0))


def test_the_absolute_value_of_the_sum_lets_cosines_cancel():
    maps = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, 1]]).reshape(
        1, 4, 1, 2
    )  # cosines -1 and 1, four of 0
    assert cosine_loss(maps, "sum") == 0
    torch.testing.assert_close(cosine_loss(maps, "pairs"), torch.tensor(2 / 6))


@settings(max_examples=20)
@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=4), st.integers(0, 99))
def test_the_cosine_loss_does_not_depend_on_the_size_of_a_map(scales, seed):
    maps = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    scaled = maps * torch.tensor(scales)[None, :, None, None]
    torch.testing.assert_close(cosine_loss(scaled, "sum"), cosine_loss(maps, "sum"), atol=1e-5, rtol=1e-4)


def test_the_mean_over_images_is_that_of_each_alone():
    maps = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(
        cosine_loss(maps, "sum"), torch.stack([cosine_loss(one[None], "sum") for one in maps]).mean()
    )


def test_a_map_of_zeros_has_no_gradient_and_one_map_has_no_loss():
    maps = torch.randn(1, 3, 4, 4)
    maps[0, 1] = 0
    maps.requires_grad_()
    cosine_loss(maps, "pairs").backward()
    assert maps.grad.isfinite().all()
    assert not maps.grad[0, 1].any()
    assert maps.grad[0, 0].any()
    assert cosine_loss(maps[:, :1], "sum") == 0


# --- levels and maps ----------------------------------------------------------------------------------------


def test_channels_of_a_class_are_its_maps_and_their_mean_over_maps_and_pixels_is_its_logit():
    network, images = model(), torch.randn(2, 3, 32, 32)
    result = network(images)
    head = network.levels[-1](list(result.stages.values())[-1])
    maps = gather_class_maps(head, every_class(2), 4)
    assert maps.shape == (2, CLASSES, 4, 8, 8)
    raw = head.maps_of(torch.arange(CLASSES * 4).expand(2, -1))
    torch.testing.assert_close(maps[:, 2, 3], raw[:, 2 * 4 + 3])
    torch.testing.assert_close(maps.mean(dim=(2, 3, 4)), result.logits)


def test_levels_read_the_last_three_stages_and_have_their_numbers_of_classes():
    network = model()
    assert network.places == ["one", "two", "three"]
    assert [level.classifier.out_channels for level in network.levels] == [2 * 4, 3 * 4, 6 * 4]
    assert network.score_maps(torch.randn(1, 3, 32, 32), torch.tensor([[0]])).shape == (1, 1, 16, 16)


def test_the_map_is_the_sum_of_the_positive_maps_of_the_class_and_its_ancestors():
    network, images = model(), torch.randn(2, 3, 32, 32)
    result = network.localize(images)
    maps = result.score_maps(every_class(2))
    for label in range(CLASSES):
        expected = torch.zeros(2, 16, 16)
        for level, stage, index in zip(
            network.levels, result.stages.values(), (ROOTS[label], PARENTS[label], label), strict=True
        ):
            raw = level.classifier(level.trunk(stage))[:, index * 4 : index * 4 + 4].clamp(min=0).mean(dim=1)
            expected += F.interpolate(raw[:, None], size=(16, 16), mode="bilinear", align_corners=True)[
                :, 0
            ].detach()
        torch.testing.assert_close(maps[:, label], expected)
    assert maps.min() >= 0


def test_a_batch_of_classes_gives_what_each_gives_alone():
    for ancestors in ("tree", "best", "rank"):
        network, images = model(ancestors=ancestors), torch.randn(3, 3, 32, 32)
        asked = torch.tensor([[4, 0], [1, 1], [2, 3]])
        together = network.score_maps(images, asked)
        for number in range(3):
            alone = network.score_maps(images[number : number + 1], asked[number : number + 1, 1:])
            torch.testing.assert_close(alone[0, 0], together[number, 1], atol=1e-5, rtol=1e-5)


def test_enlarged_maps_have_their_corners_in_the_corners():
    maps = torch.randn(1, 2, 4, 4)
    large = upsample(maps, (9, 9))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(large[..., row, column], maps[..., row, column])


def test_a_class_has_the_parent_of_its_own_rank_and_the_last_one_where_there_are_fewer():
    child = torch.tensor([[0.1, 0.9, 0.5, 0.2, 0.3, 0.0]])  # best first: 1, 2, 4, 3, 0, 5
    level = torch.tensor([[0.0, 7.0, 3.0]])  # best first: 1, 2, 0
    asked = torch.tensor([[1, 2, 4, 3, 5]])
    assert find_by_rank(child, level, asked).tolist() == [[1, 2, 0, 0, 0]]


def test_in_the_official_variant_the_family_and_order_of_every_class_are_the_best_ones():
    tree = model()
    released, own = model(variant="official", ancestors="best"), model(ancestors="rank")
    for other in (released, own):
        other.load_state_dict(tree.state_dict())
    images = torch.randn(3, 3, 32, 32)
    result = released.localize(images)
    scores = [
        level(stage).logits.reshape(3, -1, 4).mean(2)
        for level, stage in zip(tree.levels, result.stages.values(), strict=True)
    ]
    maps = result.score_maps(every_class(3))
    for image in range(3):
        root, parent = int(scores[0][image].argmax()), int(scores[1][image].argmax())
        for label in range(CLASSES):
            expected = torch.zeros(16, 16)
            for level, stage, index in zip(
                tree.levels, result.stages.values(), (root, parent, label), strict=True
            ):
                raw = (
                    level.classifier(level.trunk(stage[image : image + 1]))[:, index * 4 : index * 4 + 4]
                    .clamp(min=0)
                    .mean(dim=1)
                )
                expected += F.interpolate(raw[:, None], size=(16, 16), mode="bilinear", align_corners=True)[
                    0, 0
                ].detach()
            torch.testing.assert_close(maps[image, label], expected, atol=1e-5, rtol=1e-5)
    best = result.logits.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(own.score_maps(images, best), released.score_maps(images, best))
    assert (own.score_maps(images, every_class(3)) - maps).abs().max() > 1e-3


def test_the_map_by_rank_is_that_of_the_tree_with_other_ancestors():
    tree, rank = model(), model(variant="official", ancestors="rank")
    rank.load_state_dict(tree.state_dict())
    images = torch.randn(4, 3, 32, 32)
    result = rank.localize(images)
    best = result.logits.argmax(dim=1, keepdim=True)
    scores = [
        level(stage).logits.reshape(4, -1, 4).mean(2)
        for level, stage in zip(rank.levels, result.stages.values(), strict=True)
    ]
    by_hand = sum(
        upsample(gather_class_maps(level(stage), score.argmax(1, keepdim=True), 4).relu().mean(2), (16, 16))
        for level, stage, score in zip(rank.levels, result.stages.values(), scores, strict=True)
    )
    torch.testing.assert_close(result.score_maps(best), by_hand.detach())


def test_one_level_with_one_map_is_cam():
    one = Danet(
        toy_backbone(), CLASSES, DanetConfig(hierarchy="none", maps_per_class=1, cosine_weight=0.0)
    ).eval()
    cam = Cam(toy_backbone(), CLASSES, HeadConfig()).eval()
    for parameter in cam.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    one.backbone.load_state_dict(cam.backbone.state_dict())
    one.levels[0].load_state_dict(cam.head.state_dict())
    given_batch = batch()
    mine, theirs = one.localize(given_batch.images), cam.localize(given_batch.images)
    assert torch.equal(mine.logits, theirs.logits)
    assert torch.equal(mine.score_maps(every_class(5)), theirs.score_maps(every_class(5)).relu())
    terms = one.loss(given_batch)
    torch.testing.assert_close(sum(terms.values()), 0.5 * cam.loss(given_batch)["cross_entropy"])


# --- (2) ----------------------------------------------------------------------------------------------------


def test_the_loss_has_half_the_cross_entropy_of_each_level_on_its_own_labels():
    network, given_batch = model(), batch()
    stages = network(given_batch.images).stages
    terms = network.loss(given_batch)
    for name, level, stage, truth in zip(
        ("root", "parent", "cross_entropy"),
        network.levels,
        stages.values(),
        (ROOTS, PARENTS, range(6)),
        strict=True,
    ):
        logits = level(stage).logits.reshape(5, -1, 4).mean(dim=2)
        expected = 0.5 * F.cross_entropy(logits, torch.tensor([truth[label] for label in given_batch.labels]))
        torch.testing.assert_close(terms[name], expected)


def test_the_cosine_term_is_that_of_all_own_maps_when_all_are_drawn():
    network, given_batch = model(sample=3.0, cosine_weight=0.2), batch()
    assert network.samples == 12
    result = network(given_batch.images)
    rows = []
    for level, stage, truth in zip(
        network.levels, result.stages.values(), (ROOTS, PARENTS, range(6)), strict=True
    ):
        own = torch.tensor([[truth[label]] for label in given_batch.labels])
        rows.append(upsample(gather_class_maps(level(stage), own, 4)[:, 0], (16, 16)))
    torch.testing.assert_close(
        network.loss(given_batch)["cosine"], 0.2 * cosine_loss(torch.cat(rows, dim=1), "sum")
    )


def test_the_number_of_drawn_maps_is_as_published_and_the_generator_draws_them():
    assert model(maps_per_class=8).samples == 12
    assert model(maps_per_class=4).samples == 6
    assert model(maps_per_class=3).samples == 4  # 4.5 rounded down
    assert model(hierarchy="none", maps_per_class=4).samples == 4
    network = model()
    assert network.loss(batch())["cosine"] == network.loss(batch())["cosine"]
    fresh = Batch(**{**vars(batch()), "generator": torch.Generator().manual_seed(9)})
    assert network.loss(batch())["cosine"] != network.loss(fresh)["cosine"]


def test_one_draw_of_maps_is_for_all_images_of_a_batch():
    network, given_batch = model(cosine_weight=1.0), batch()
    for each in (
        "images",
        "labels",
    ):  # equal images have equal cosine losses, whichever maps are drawn for the batch
        object.__setattr__(given_batch, each, getattr(given_batch, each)[:1].repeat_interleave(5, dim=0))
    seen = []
    for seed in range(6):
        five = Batch(**{**vars(given_batch), "generator": torch.Generator().manual_seed(seed)})
        one = Batch(
            **{
                **vars(five),
                "images": five.images[:1],
                "labels": five.labels[:1],
                "generator": torch.Generator().manual_seed(seed),
            }
        )
        seen.append(network.loss(five)["cosine"].item())
        assert seen[-1] == pytest.approx(network.loss(one)["cosine"].item(), rel=1e-5)
    assert len({round(value, 5) for value in seen}) > 1


def test_mixed_precision_keeps_the_losses_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = model().loss(batch())
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


# --- the tree and the settings ------------------------------------------------------------------------------


def test_a_tree_from_a_file_is_in_the_settings_and_in_the_checkpoint(tmp_path):
    path = tmp_path / "tree.csv"
    path.write_text(
        "label,parent,root\n"
        + "".join(f"{label},p{PARENTS[label]},r{ROOTS[label]}\n" for label in range(CLASSES))
    )
    network = Danet.create(
        backbone="tiny", num_classes=CLASSES, weights="none", settings={"hierarchy": str(path)}, image_size=32
    )
    assert (network.config.parents, network.config.roots) == (PARENTS, ROOTS)
    assert network.lookup.tolist() == [list(ROOTS), list(PARENTS), list(range(CLASSES))]
    save_checkpoint(tmp_path / "x.safetensors", network, {})
    path.unlink()
    assert from_json(DanetConfig, to_json(network.config)) == network.config
    loaded = Danet.load(tmp_path / "x.safetensors", device="cpu")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.score_maps(images, every_class(1)), network.score_maps(images, every_class(1)))


def test_the_ancestor_of_an_ancestor_is_the_ancestor():
    for network in (model(), model(parents=(), roots=()), model(parents=(), roots=(), group=2)):
        root, parent, own = network.lookup.tolist()
        assert own == list(range(CLASSES))
        assert all(
            len({root[label] for label in own if parent[label] == family}) == 1 for family in set(parent)
        )


def test_the_published_widths_and_numbers_of_maps_are_the_defaults():
    vgg = Danet.create(backbone="vgg16", num_classes=CLASSES, weights="none", settings={}, image_size=32)
    assert vgg.places == ["pool3", "pool4", "relu5_3"]
    assert [(level.trunk[1].in_channels, level.trunk[1].out_channels) for level in vgg.levels] == [
        (256, 512),
        (512, 1024),
        (512, 1024),
    ]
    assert vgg.per_class == 8
    assert Danet.grid_for("inception_v3", DanetConfig(grid="stock")) == "stock"
    inception = Danet.create(
        backbone="inception_v3", num_classes=CLASSES, weights="none", settings={}, image_size=224
    )
    assert inception.places == ["pool2", "Mixed_5d", "Mixed_6e"]
    assert (inception.backbone.grid, inception.backbone.steps["Conv2d_1a_3x3"].conv.padding) == (
        "padded",
        (1, 1),
    )
    assert {
        tuple(step.conv.padding)
        for name, step in inception.backbone.steps.items()
        if name in ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
    } == {(0, 0)}
    assert [(level.trunk[1].in_channels, level.trunk[1].out_channels) for level in inception.levels] == [
        (192, 256),
        (288, 384),
        (768, 1024),
    ]
    assert (inception.per_class, inception.samples) == (4, 6)
    assert (DanetConfig().ce_weight, DanetConfig().cosine_weight) == (0.5, 0.01)


def test_the_official_variant_adds_the_best_ones():
    assert parse_settings(DanetConfig, {"variant": "official"}, what="danet").ancestors == "best"


@pytest.mark.parametrize("ancestors", ["best", "rank"])
def test_a_trained_model_can_have_other_ancestors(tmp_path, ancestors):
    network, images = (
        Danet.create(backbone="tiny", num_classes=12, weights="none", settings={}, image_size=32),
        torch.randn(2, 3, 32, 32),
    )
    for parameter in network.levels.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, network, {})
    tree, other = (
        Danet.load(path, device="cpu", settings=settings) for settings in ({}, {"ancestors": ancestors})
    )
    assert (tree.config.ancestors, other.config.ancestors) == ("tree", ancestors)
    asked = torch.arange(12).expand(2, 12)
    assert not torch.equal(tree.score_maps(images, asked), other.score_maps(images, asked))
    with pytest.raises(UsageError, match="group"):
        Danet.load(path, device="cpu", settings={"group": "3"})


@pytest.mark.parametrize(
    "changes",
    [
        {"maps_per_class": -1},
        {"widths": (3, 4)},
        {"widths": (0, 4, 4)},
        {"sample": 0.0},
        {"group": 0, "parents": (), "roots": ()},
    ],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        model(**changes)


def test_a_hierarchy_that_is_no_file_is_refused():
    with pytest.raises(UsageError, match="expected groups, none or a CSV file"):
        DanetConfig(hierarchy="group")


def test_a_tree_of_another_number_of_classes_is_refused():
    with pytest.raises(DataError, match="5 classes, the data set has 6"):
        model(parents=PARENTS[:5], roots=ROOTS[:5])


def test_a_backbone_with_too_few_stages_is_refused_unless_there_is_one_level():
    short = toy_backbone()
    short.layout = short.layout[1:]
    with pytest.raises(UsageError, match="needs 3 stages"):
        Danet(short, CLASSES, DanetConfig())
    assert Danet(short, CLASSES, DanetConfig(hierarchy="none")).places == ["three"]
