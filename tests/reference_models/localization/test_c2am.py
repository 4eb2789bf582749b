"""C2AM: the contrastive loss that cannot tell its sides apart, and the border that can."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.recipes import Recipe
from reference_models.localization.c2am import (
    HIGH,
    LOW,
    C2am,
    C2amConfig,
    attraction,
    border_cells,
    join_stages,
    rank_rows,
    repulsion,
    similarity,
    split_features,
)
from reference_models.training.loop import build_optimizer
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method


def c2am(**settings) -> C2am:
    return C2am(toy_backbone(), 3, C2amConfig(**settings)).train()


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.clip(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)), LOW, HIGH))


def swap_sides(model: C2am) -> None:
    """Turn P into 1 - P."""
    with torch.no_grad():
        model.activation[0].weight.neg_()
        model.activation[1].bias.neg_()


def request(train, out, **options) -> TrainRequest:
    usual = {
        "backbone": "tiny",
        "weights": "none",
        "epochs": 2,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
    }
    return TrainRequest(train=train, out=out, **{**usual, **options})


# --- the loss -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([0.0, 0.05, 0.75]))
def test_terms_are_those_of_loops_over_pairs(seed, count, alpha):
    rng = np.random.default_rng(seed)
    one, two = (np.abs(rng.normal(size=(count, 7))) for _ in range(2))
    neg = np.mean([-np.log(1 - cosine(u, v)) for u in two for v in one])
    pos = 0.0
    for i, u in enumerate(one):
        others = sorted((j for j in range(count) if j != i), key=lambda j: -cosine(u, one[j]))
        for rank, j in enumerate([i, *others], start=-1):
            pos += -np.log(cosine(u, one[j])) * np.exp(-alpha * rank) / count**2
    inside, outside = torch.tensor(one), torch.tensor(two)
    assert float(repulsion(inside, outside)) == pytest.approx(neg, rel=1e-6)
    assert float(attraction(inside, alpha)) == pytest.approx(pos, rel=1e-6)
    assert float(attraction(inside, alpha, "clipped")) == pytest.approx(pos, rel=1e-6)  # none is clipped


def test_the_loss_is_the_same_for_both_polarities():
    model, batch = c2am(), toy_batch(6, classes=3)
    terms = model.loss(batch)
    swap_sides(model)
    swapped = model.loss(batch)
    torch.testing.assert_close(swapped["inside"], terms["outside"])
    torch.testing.assert_close(swapped["outside"], terms["inside"])
    torch.testing.assert_close(swapped["apart"], terms["apart"])
    assert not torch.isclose(terms["inside"], terms["outside"], rtol=1e-4)


def test_both_sides_add_up_to_the_mean_of_the_features():
    features, activation = torch.randn(3, 5, 4, 6), torch.rand(3, 4, 6)
    inside, outside = split_features(features, activation)
    torch.testing.assert_close(inside + outside, features.mean(dim=(2, 3)))
    torch.testing.assert_close(inside, (activation[:, None] * features).mean(dim=(2, 3)))


@given(st.integers(0, 2**31), st.integers(1, 7), st.booleans())
def test_ranks_of_a_row_are_minus_1_to_the_number_of_others(seed, count, tied):
    vectors = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    if tied:
        vectors = vectors[:1].expand(count, -1)
    cosines = similarity(vectors, vectors)
    ranks = rank_rows(cosines)
    assert torch.equal(ranks.sort(dim=1).values, torch.arange(-1, count - 1).expand(count, -1))
    assert bool((ranks.diagonal() == -1).all())
    for row, order in zip(cosines, ranks.argsort(dim=1)[:, 1:], strict=True):
        assert bool((row[order].diff() <= 0).all())


def test_with_an_even_split_the_sides_are_equal_and_repel_at_the_clip():
    features = torch.rand(4, 5, 3, 3)
    inside, outside = split_features(features, torch.full((4, 3, 3), 0.5))
    torch.testing.assert_close(inside, outside)
    alone = repulsion(inside[:1], outside[:1])
    assert float(alone) == pytest.approx(-np.log(1 - HIGH), rel=1e-4)  # 7.6


def test_orthogonal_sides_cost_nearly_nothing():
    sides = torch.eye(2).repeat_interleave(3, dim=0)
    assert repulsion(sides[:3], sides[3:]) < 1e-3
    assert attraction(sides[:3], 0.05) < 1e-3
    assert attraction(sides[[0, 3]], 0.0) > 3  # two kinds on one side


def test_a_large_alpha_leaves_the_nearest_neighbours():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    cosines = similarity(vectors, vectors).clamp(LOW, HIGH)
    nearest = -torch.stack([cosines[0, 1], cosines[1, 0], cosines[2, 1]]).log().sum()
    itself = -3 * np.log(HIGH) * np.exp(20)
    torch.testing.assert_close(9 * attraction(vectors, 20.0) - itself, nearest, rtol=1e-4, atol=0)


def test_labels_do_not_enter(train_set, tmp_path):
    model, batch = c2am(), toy_batch(6, classes=3)
    other = copy.deepcopy(model)
    shuffled = replace(batch, labels=batch.labels.flip(0))
    assert model.loss(batch) == other.loss(shuffled)
    # Nor does training: the same images with other labels give the same weights.
    method, found = load_method("c2am"), []
    mixed = [replace(sample, label=(sample.label + 1) % 3) for sample in train_set.samples]
    for name, data in {"own": train_set, "mixed": replace(train_set, samples=mixed)}.items():
        path = method.fit(request(data, tmp_path / name, epochs=1))
        found.append(method.load(path, device="cpu", settings={}).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_features_of_zeros_have_a_finite_loss():
    model, batch = c2am(), toy_batch(3, classes=3)
    for parameter in model.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    terms = model.loss(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# --- maps and polarity --------------------------------------------------------------------------------------


def test_an_image_has_one_map_for_every_class_and_no_logits():
    model = c2am().eval()
    images = toy_batch(2, classes=3).images
    result = model.localize(images)
    maps = result.score_maps(torch.tensor([[2, 0, 1]] * 2))
    assert result.logits is None
    assert maps.shape == (2, 3, 8, 8)
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert torch.equal(maps[:, 0], maps[:, 2])
    assert maps.min() >= 0
    assert maps.max() <= 1
    model.flipped.fill_(True)
    torch.testing.assert_close(model.localize(images).score_maps(torch.tensor([[0]] * 2)), 1 - maps[:, :1])


def test_the_border_has_four_sides():
    values = torch.zeros(1, 4, 5)
    values[:, 1:-1, 1:-1] = 1
    assert border_cells(values).shape == (1, 2 * (4 + 5))
    assert not border_cells(values).any()
    assert border_cells(1 - values).all()


def shaped(model: C2am, border: float, inside: float) -> None:
    """Let the model note a map with one value on its border and another one inside."""
    values = torch.full((3, 6, 6), inside)
    values[:, [0, -1]] = border
    values[:, :, [0, -1]] = border
    model._note_border(values)


@pytest.mark.parametrize("polarity", ["first", "each", "official"])
def test_a_map_that_is_high_on_the_border_is_flipped(polarity):
    for border, inside in ((0.9, 0.2), (0.2, 0.9)):
        model = c2am(polarity=polarity)
        model.on_epoch(0, 3)
        shaped(model, border, inside)
        model.after_epoch(0, 3)
        assert bool(model.flipped) == (border > inside)


def test_later_epochs_decide_only_if_they_are_asked():
    found = {}
    for polarity in ("first", "each", "official"):
        model = c2am(polarity=polarity)
        for epoch, (border, inside) in enumerate([(0.6, 0.4), (0.4, 0.6)]):
            model.on_epoch(epoch, 2)
            shaped(model, border, inside)
            model.after_epoch(epoch, 2)
        found[polarity] = bool(model.flipped)
    assert found == {"first": True, "each": False, "official": True}


def test_the_mean_is_over_the_epoch_and_the_released_rule_reads_one_image_of_the_last_batch():
    mean, released = c2am(), c2am(polarity="official")
    for model in (mean, released):
        model.on_epoch(0, 1)
        for border, inside in [(0.2, 0.8), (0.2, 0.8), (0.55, 0.7)]:
            shaped(model, border, inside)
        model.after_epoch(0, 1)
    assert not mean.flipped
    assert released.flipped  # its border is above 1/2, although the inside is higher


def test_training_notes_the_border_of_its_own_maps():
    model, batch = c2am(), toy_batch(6, classes=3)
    twin = copy.deepcopy(model)
    swap_sides(twin)
    model.loss(batch)
    twin.loss(batch)
    assert model.border_excess != 0
    torch.testing.assert_close(twin.border_excess, -model.border_excess)
    model.on_epoch(1, 2)
    assert model.border_excess == 0
    assert "border_excess" not in model.state_dict()


def test_a_resumed_run_keeps_the_polarity(train_set, tmp_path, monkeypatch):
    method, decide = load_method("c2am"), C2am.after_epoch

    def with_high_border(model, epoch, epochs):
        model.border_excess.fill_(1.0 if epoch == 0 else -1.0)
        decide(model, epoch, epochs)
        if epoch == 1 and stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(C2am, "after_epoch", with_high_border)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        method.fit(request(train_set, tmp_path / "cut", epochs=3))
    assert not (tmp_path / "cut" / "last.safetensors").exists()
    stop = False
    resumed, whole = (
        method.load(method.fit(request(train_set, tmp_path / name, epochs=3)), device="cpu")
        for name in ("cut", "whole")
    )
    assert resumed.flipped
    assert all(
        torch.equal(one, two)
        for one, two in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


# --- networks, recipes, training ----------------------------------------------------------------------------


def test_features_of_resnet_are_those_of_the_paper():
    method = load_method("c2am")
    with torch.device("meta"):
        model = method.create(backbone="resnet50", num_classes=3, weights="none", settings={})
        stages = model.backbone.stages(torch.zeros(1, 3, 448, 448))
        features, activation = model.split(list(stages.values()))
    assert features.shape == (1, 3072, 28, 28)
    assert activation.shape == (1, 28, 28)
    assert model.activation[0].bias is None


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_networks_of_timm_have_two_stages_to_join(name):
    settings = {"grid": "tokens"} if "vit" in name else {}
    model = load_method("c2am").create(backbone=name, num_classes=3, weights="none", settings=settings)
    terms = model.train().loss(replace(toy_batch(2, classes=3), images=torch.randn(2, 3, 64, 64)))
    assert all(torch.isfinite(term) for term in terms.values())


def test_a_coarser_stage_is_repeated():
    coarse, fine = torch.arange(4.0).reshape(1, 1, 2, 2), torch.rand(1, 2, 4, 4)
    joined = join_stages(coarse, fine)
    assert torch.equal(joined[0, 0, :2, :2], torch.zeros(2, 2))
    assert torch.equal(joined[0, 0, 2:, 2:], torch.full((2, 2), 3.0))
    assert torch.equal(joined[:, 1:], fine)


def test_a_backbone_of_one_stage_is_refused():
    backbone = toy_backbone()
    backbone.layout = backbone.layout[-1:]
    with pytest.raises(UsageError, match="joins the last two stages"):
        C2am(backbone, 3, C2amConfig())


def test_the_released_run_has_hardly_momentum_and_leaves_batch_norm_alone():
    method = load_method("c2am")
    usual = method.recipe_for("resnet50", 200, {})
    official = method.recipe_for("resnet50", 200, {"variant": "official"})
    assert (usual.momentum, usual.new_factor, usual.epochs) == (0.9, 10, 20)
    assert (official.momentum, official.new_factor, official.epochs) == (1e-4, 1, 20)
    assert method.recipe_for("resnet50", 1000, {"variant": "official"}).batch_size == 256
    recipe = Recipe(source="", epochs=1, batch_size=4, lr=0.1)
    for train_norms in (True, False):
        model, batch = c2am(train_norms=train_norms), toy_batch(4, classes=3)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        (objective,) = model.objectives(recipe)
        optimizer = build_optimizer(objective)
        sum(model.loss(batch).values()).backward()
        optimizer.step()
        changed = {name for name, each in model.named_parameters() if not torch.equal(before[name], each)}
        norms = {name for name in before if ".1." in name}
        assert {"activation.1.weight", "backbone.steps.one.1.bias"} <= norms
        assert "activation.0.weight" in changed
        assert norms <= changed if train_norms else not norms & changed


def test_training_on_squares_lowers_the_loss_without_an_accuracy(train_set, val_set, tmp_path):
    load_method("c2am").fit(request(train_set, tmp_path, epochs=4, val=val_set))
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[0] - 0.1
    assert {row["val_accuracy"] for row in rows} == {""}
    assert not (tmp_path / "best.safetensors").exists()  # nothing says which epoch is the best
