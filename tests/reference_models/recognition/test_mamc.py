"""MAMC: the N-pair loss, its batches of pairs, and maps that add up to the score."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.recipes import FINE_GRAINED
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.mamc import (
    Mamc,
    MamcConfig,
    draw_class_pairs,
    n_pair_terms,
)
from tests.reference_models.conftest import toy_backbone, toy_batch

CLASSES = 4
GOLDEN = torch.tensor(
    [
        [[1.0, 0.0], [0.0, 1.0]],
        [[0.8, 0.1], [0.0, 0.9]],
        [[-0.5, 0.2], [0.3, -0.4]],
        [[-0.6, 0.0], [0.1, -0.7]],
    ],
    dtype=torch.float64,
)
PAIRS = torch.tensor([0, 0, 1, 1])


def mamc(**settings) -> Mamc:
    model = Mamc(toy_backbone(), CLASSES, MamcConfig(**{"embedding": 6, **settings})).eval()
    torch.nn.init.normal_(model.osme.bias)
    return model


def pairs_batch(*labels: int) -> Batch:
    labels = labels or (2, 2, 0, 0, 3, 3)
    return replace(toy_batch(len(labels), classes=CLASSES), labels=torch.tensor(labels))


# --- the N-pair loss ----------------------------------------------------------------------------------------


def by_loops(f: torch.Tensor, labels: torch.Tensor, own_positive: bool = False) -> list[float]:
    """The three sums, one anchor, positive and negative after another."""
    anchors = [(i, p) for i in range(f.shape[0]) for p in range(f.shape[1])]

    def kind(a: tuple[int, int], b: tuple[int, int]) -> str:
        attention = "sa" if a[1] == b[1] else "da"
        return attention + ("sc" if labels[a[0]] == labels[b[0]] else "dc")

    sums = []
    for positives, negatives in (
        ("sasc", ("sadc", "dasc", "dadc")),
        ("sadc", ("dadc",)),
        ("dasc", ("dadc",)),
    ):
        total = 0.0
        for a in anchors:
            against = [float(f[a] @ f[b]) for b in anchors if kind(a, b) in negatives]
            for b in anchors:
                if kind(a, b) == positives and (b != a or own_positive):
                    total += math.log1p(sum(math.exp(s - float(f[a] @ f[b])) for s in against))
        sums.append(total)
    return sums


def test_golden_values_of_the_n_pair_loss():
    terms = [term.item() for term in n_pair_terms(GOLDEN, PAIRS)]
    assert terms == pytest.approx([11.175560, 24.996924, 19.653264], abs=1e-5)
    assert sum(terms) / 2 == pytest.approx(27.912874, abs=1e-5)
    assert n_pair_terms(GOLDEN, PAIRS, own_positive=True)[0].item() == pytest.approx(22.181596, abs=1e-5)


@pytest.mark.parametrize("own_positive", [False, True])
@pytest.mark.parametrize("attentions", [1, 2, 3])
@pytest.mark.parametrize("labels", [(0, 0, 1, 1, 2, 2), (0, 0, 1, 2, 2, 2), (1, 1, 1), (0, 1, 2), (3,)])
def test_masks_give_the_sums_of_the_loops(labels, attentions, own_positive):
    f, labels = torch.randn(len(labels), attentions, 5, dtype=torch.float64), torch.tensor(labels)
    terms = [term.item() for term in n_pair_terms(f, labels, own_positive)]
    assert terms == pytest.approx(by_loops(f, labels, own_positive), abs=1e-9)


@pytest.mark.parametrize(("pairs", "attentions"), [(2, 2), (4, 3), (8, 2)])
def test_equal_vectors_give_the_logarithms_of_the_numbers_of_negatives(pairs, attentions):
    count, p = 2 * pairs, attentions
    f, labels = torch.zeros(count, p, 3, dtype=torch.float64), torch.arange(pairs).repeat_interleave(2)
    against = math.log(1 + (count - 2) * (p - 1))
    expected = [
        count * p * math.log(1 + count * p - 2),
        count * p * (count - 2) * against,
        2 * count * p * (p - 1) * against,
    ]
    assert [term.item() for term in n_pair_terms(f, labels)] == pytest.approx(expected)


def test_rotations_and_orders_of_images_and_attentions_do_not_matter():
    f, labels = torch.randn(6, 3, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    expected = n_pair_terms(f, labels)
    for other, of in ((f @ rotation, labels), (f[:, [2, 0, 1]], labels), (f[order], labels[order])):
        torch.testing.assert_close(n_pair_terms(other, of), expected)


def test_gradients_agree_with_finite_differences():
    f, labels = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True), PAIRS
    assert torch.autograd.gradcheck(lambda x: n_pair_terms(x, labels), (f,))
    assert torch.autograd.gradcheck(lambda x: n_pair_terms(x, torch.arange(4)), (f,))  # no positives in two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [(0, 0, 1, 1), (2, 2, 2, 2), (0, 1, 2, 3)])
def test_large_vectors_and_missing_negatives_give_finite_losses_and_gradients(labels, dtype):
    f = (100 * GOLDEN).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        terms = n_pair_terms(f, torch.tensor(labels))
    assert all(term.dtype == torch.float32 and term.isfinite() and term >= 0 for term in terms)
    (gradient,) = torch.autograd.grad(sum(terms), f)
    assert gradient.isfinite().all()


def test_a_step_against_the_gradient_brings_partners_together():
    f = torch.randn(8, 2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(4).repeat_interleave(2)

    def margin() -> float:
        similarity = torch.einsum("ipd,jqd->ijpq", f.detach(), f.detach())
        partners = similarity[0::2, 1::2].diagonal(dim1=0, dim2=1)  # (P, P, N)
        return float(partners.diagonal(dim1=0, dim2=1).mean() - similarity.mean())

    before = margin()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(n_pair_terms(f, labels)[0], f)
        with torch.no_grad():
            f -= 0.01 * gradient
    assert margin() > before + 1


# --- batches ------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(1, 9), st.integers(0, 2**31))
def test_an_epoch_has_every_image_once_in_pairs_of_its_class(labels, pairs, seed):
    classes = np.array(labels)
    batches = draw_class_pairs(classes, pairs, np.random.default_rng(seed))
    shown = np.concatenate(batches).tolist()
    assert len(set(shown)) == len(shown) == len(labels) - len(labels) % 2
    assert len(batches) == -(-(len(shown) // 2) // pairs)
    assert max(map(len, batches)) - min(map(len, batches)) <= 2
    assert max(map(len, batches)) <= 2 * pairs
    couples = np.concatenate(batches).reshape(-1, 2)
    whole = classes[couples[:, 0]] == classes[couples[:, 1]]
    counts = Counter(labels)
    assert whole.sum() == sum(count // 2 for count in counts.values())
    # A class is twice in a batch only if it has more pairs than there are batches.
    most = Counter(
        (number, label)
        for number, batch in enumerate(batches)
        for one, other in batch.reshape(-1, 2)
        if (label := classes[one]) == classes[other]
    )
    for label, count in counts.items():
        repeated = max((times for (_, of), times in most.items() if of == label), default=0) > 1
        assert repeated == (count // 2 > len(batches))


def test_batches_follow_the_seed_and_mix_all_pairs_of_classes():
    labels = np.repeat(np.arange(10), 8)
    draws = [draw_class_pairs(labels, 4, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert all(map(np.array_equal, draws[0], draws[1]))
    assert not all(map(np.array_equal, draws[0], draws[2]))
    rng, met, partners = np.random.default_rng(0), Counter(), Counter()
    for _ in range(200):
        for batch in draw_class_pairs(labels, 4, rng):
            present = sorted(set(labels[batch].tolist()))
            assert len(present) == len(batch) / 2
            met.update((a, b) for a in present for b in present if a < b)
            partners.update(tuple(sorted(pair)) for pair in batch.reshape(-1, 2).tolist() if 0 in pair)
    # 200 epochs x 10 batches x 6 pairs of classes, over 45 of them.
    assert len(met) == 45
    assert max(abs(count - 200 * 60 / 45) for count in met.values()) < 80
    assert set(partners) == {(0, other) for other in range(1, 8)}
    assert max(abs(count - 200 / 7) for count in partners.values()) < 27  # five standard deviations are 25


def test_an_epoch_has_the_images_and_steps_of_the_baseline_s():
    labels = np.arange(1350) % 50  # 27 images of each class
    counts = [
        (len(batches), sum(map(len, batches)))
        for kind in (Mamc, Baseline)
        for batches in (
            kind.create(backbone="tiny", num_classes=50, weights="none", settings={}, image_size=32).batches(
                labels, 16, np.random.default_rng(0)
            ),
        )
    ]
    assert counts[0] == counts[1] == (85, 1350)


# --- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["flatten", "grid7", "gap"])
@pytest.mark.parametrize("join", ["sum", "concat"])
@pytest.mark.parametrize("side", [32, 40, 4])
def test_the_mean_of_a_class_s_map_and_the_biases_make_its_score(pool, join, side):
    model, images = mamc(pool=pool, join=join, attentions=3), torch.randn(2, 3, side, side)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(2, CLASSES))
    weight = model.classifier.weight.view(CLASSES, -1, 6).expand(-1, 3, -1)
    constant = (weight * model.osme.bias).sum(dim=(1, 2)) + model.classifier.bias
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + constant, result.logits, atol=1e-4, rtol=1e-4)


def test_a_map_holds_the_gates_fixed_and_is_else_the_gradient_times_the_features():
    model = mamc().double()
    features = torch.randn(1, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    gates = model.osme.gates(features).detach()
    score = model.classify(model.osme.vectors(features, gates))[0, 2]
    (gradient,) = torch.autograd.grad(score, features)
    weights = model.classifier.weight[2].expand(1, 1, 2, -1)
    torch.testing.assert_close(
        model.osme.maps(features, gates, weights)[0, 0], 64 * (gradient * features).sum(dim=1)[0]
    )


def test_with_one_cell_the_map_is_the_class_activation_map_of_the_gated_features():
    model, images = mamc(pool="gap"), torch.randn(1, 3, 32, 32)
    _, features, gates, _ = model.attend(images)
    weight = torch.einsum("d,pdc->pc", model.classifier.weight[1], model.osme.weight / 16**0.5)
    expected = torch.einsum("pc,pc,chw->hw", weight, gates[0], features[0])
    found = model.localize(images).score_maps(torch.tensor([[1]]))[0, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_vectors_are_a_linear_layer_on_the_gated_map():
    model, images = mamc(pool="flatten"), torch.randn(2, 3, 32, 32)
    _, features, gates, vectors = model.attend(images)
    for p in range(2):
        flat = (gates[:, p, :, None, None] * features).flatten(1)
        expected = F.linear(flat, model.osme.weight[p] / flat.shape[1] ** 0.5, model.osme.bias[p])
        torch.testing.assert_close(vectors[:, p], expected, atol=1e-5, rtol=1e-4)
    extra = model.localize(images).extra_maps
    torch.testing.assert_close(extra["attention_2"], (gates[:, 1, :, None, None] * features).sum(dim=1))


def test_gates_are_shares_that_differ_between_attentions_and_images():
    gates = mamc().osme.gates(torch.randn(3, 16, 4, 4))
    assert gates.shape == (3, 2, 16)
    assert ((gates > 0) & (gates < 1)).all()
    assert (gates[:, 0] - gates[:, 1]).abs().max() > 1e-3
    assert (gates[0] - gates[1]).abs().max() > 1e-4


def test_all_zero_features_give_the_constant_score():
    model, features = mamc(), torch.zeros(1, 16, 8, 8, requires_grad=True)
    gates = model.osme.gates(features)
    vectors = model.osme.vectors(features, gates)
    torch.testing.assert_close(vectors[0], model.osme.bias)
    terms = n_pair_terms(vectors, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(model.classify(vectors).sum() + sum(terms), features)
    assert gradient.isfinite().all()


def test_sizes_are_those_of_the_paper_on_resnet():
    def weights(size: int, **settings: str) -> int:
        with torch.device("meta"):
            backbone = toy_backbone(size)
            backbone.layout = (replace(backbone.layout[-1], stride=32, channels=2048),)
            model = Mamc(backbone, 200, parse_settings(MamcConfig, settings, what="mamc"))
        return model.osme.weight.numel()

    assert weights(448, variant="paper") == 2 * 1024 * 2048 * 14 * 14  # 822 million
    assert weights(448) == weights(224) == 2 * 1024 * 2048 * 49  # 206 million
    assert weights(448, pool="gap") == 2 * 1024 * 2048  # 4.2 million


# --- the loss of the method ---------------------------------------------------------------------------------


def test_terms_are_the_sums_over_the_class_pairs():
    model, batch = mamc(npair_weight=0.5), pairs_batch()
    *_, vectors = model.attend(batch.images)
    terms = model.loss(batch)
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(model(batch.images).logits, batch.labels)
    )
    for name, value in zip(("sasc", "sadc", "dasc"), by_loops(vectors.detach(), batch.labels), strict=True):
        assert terms[name].item() == pytest.approx(0.5 * value / 3, rel=1e-4)


def test_the_first_term_and_no_term_are_settings():
    batch = pairs_batch()
    assert set(mamc(mamc="sasc").loss(batch)) == {"cross_entropy", "sasc"}
    assert set(mamc(mamc="none").loss(batch)) == {"cross_entropy"}
    torch.manual_seed(5)
    model = mamc(npair_weight=0.0)
    terms = model.loss(batch)
    assert torch.equal(sum(terms.values()), terms["cross_entropy"])
    assert mamc(attentions=1).loss(batch)["dasc"] == 0


def test_hawkeye_s_variant_has_its_loss():
    config = parse_settings(MamcConfig, {"variant": "hawkeye", "embedding": "6"}, what="mamc")
    model, batch = Mamc(toy_backbone(), CLASSES, config).eval(), pairs_batch()
    *_, vectors = model.attend(batch.images)
    terms = model.loss(batch)
    logits = model(batch.images).logits
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    )
    expected = by_loops(F.normalize(vectors.detach(), dim=2), batch.labels, own_positive=True)
    assert terms["sasc"].item() == pytest.approx(0.5 * expected[0] / 12, rel=1e-4)


def test_recipes():
    assert Mamc.recipe_for("resnet50", 200, {}) == FINE_GRAINED["nts"]
    hawkeye = Mamc.recipe_for("resnet50", 200, {"recipe": "mamc_hawkeye"})
    assert (hawkeye.lr * hawkeye.new_factor, hawkeye.momentum) == (pytest.approx(0.04), 0)
    assert Baseline.recipe_for("resnet50", 200, {"recipe": "mamc_hawkeye"}) == hawkeye


def test_it_learns_eight_images():
    batch = pairs_batch(0, 0, 1, 1, 2, 2, 3, 3)
    model = mamc().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = model.loss(batch)
        losses.append({name: term.item() for name, term in terms.items()})
        sum(terms.values()).backward()
        optimizer.step()
    assert all(losses[-1][name] < losses[0][name] / 2 for name in ("cross_entropy", "sasc"))
