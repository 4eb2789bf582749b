"""SSANET's scales: which boxes are candidates, the responses of all shifts, and the candidate that is
aligned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.recognition.ssanet.scale_alignment import (
    ScaleMining,
    circulant_responses,
    fourier_responses,
    scale_candidates,
)

ALPHA = 2**0.25
PHI = torch.tensor([(1.0, 0), (0, 1), (2, 1), (1, 1), (0, 3)])
WEIGHT = torch.tensor([(1.0, -1), (0, 1), (1, 0), (-1, 2), (0, 0)])
FORMS = (circulant_responses, fourier_responses)


def mining(
    count: int = 5,
    length: int = 6,
    *,
    classes: int = 4,
    mode: str = "full",
    form: str = "circulant",
    kinds: int = 1,
) -> ScaleMining:
    module = ScaleMining(classes, count, length, mode=mode, form=form, kinds=kinds)
    torch.nn.init.normal_(module.weight)
    return module


def known(mode: str = "full") -> ScaleMining:
    """The weights of the known case, of one class."""
    module = mining(5, 2, classes=1, mode=mode)
    with torch.no_grad():
        module.weight.copy_(WEIGHT[None, None])
    return module


def circulant_matrix(base: torch.Tensor) -> torch.Tensor:
    """(6): row r is the base row, shifted to the right r times."""
    return torch.stack([base.roll(r) for r in range(len(base))])


# --- responses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_responses_of_known_features(form):
    found = form(PHI[None, None], WEIGHT[None, None])
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([5.0, -3, 6, 1, 7]))
    three = form(
        torch.tensor([1.0, 2, 3])[None, None, :, None], torch.tensor([1.0, 0, 2])[None, None, :, None]
    )
    torch.testing.assert_close(three[0, 0, 0], torch.tensor([7.0, 7, 4]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_responses_are_the_products_with_circulant_matrices(form, count):
    phi, weight = torch.randn(2, 3, count, 7), torch.randn(2, 4, count, 7)
    found = form(phi, weight)
    for kind in range(2):
        for part in range(3):
            for label in range(4):
                expected = sum(
                    circulant_matrix(phi[kind, part, :, k]) @ weight[kind, label, :, k] for k in range(7)
                )
                torch.testing.assert_close(found[kind, part, label], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 9])
def test_both_forms_have_the_same_values_and_gradients(count):
    results = []
    for form in FORMS:
        torch.manual_seed(count)
        phi, weight = (
            torch.randn(1, 6, count, 8, requires_grad=True),
            torch.randn(1, 4, count, 8, requires_grad=True),
        )
        responses = form(phi, weight)
        (responses * torch.randn(responses.shape)).sum().backward()
        results.append((responses.detach(), phi.grad, weight.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 999), st.integers(2, 7))
def test_rolled_candidates_roll_the_responses_the_other_way(seed, count):
    generator = torch.Generator().manual_seed(seed)
    phi, weight = (
        torch.randn(1, 2, count, 3, generator=generator),
        torch.randn(1, 4, count, 3, generator=generator),
    )
    responses = circulant_responses(phi, weight)
    torch.testing.assert_close(
        circulant_responses(phi.roll(1, 2), weight), responses.roll(-1, 3), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        circulant_responses(phi, weight.roll(1, 2)), responses.roll(1, 3), atol=1e-5, rtol=1e-5
    )


def test_responses_of_all_shifts_add_up_to_the_product_of_the_sums():
    phi, weight = torch.randn(1, 3, 5, 6), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(
        circulant_responses(phi, weight).sum(3), phi.sum(2) @ weight.sum(2).mT, atol=1e-4, rtol=1e-5
    )


# --- the classifier -----------------------------------------------------------------------------------------


def test_the_known_case_has_its_best_shift_and_candidate():
    module, phi = known(), PHI[None, None]
    scores = module(phi)
    assert (scores.logits.item(), scores.shift.item()) == (7, 4)
    taps = (torch.arange(5) + 4) % 5
    assert (PHI * WEIGHT[taps]).sum(1).tolist() == [0, -1, 1, 1, 6]
    assert module.pick_aligned(phi, scores.shift, torch.tensor([0])).item() == 4


def test_without_shifts_the_known_case_has_the_response_of_the_first():
    module = known("fixed")
    scores = module(PHI[None, None])
    assert (scores.logits.item(), scores.shift.item()) == (5, 0)
    assert (PHI * WEIGHT).sum(1).tolist() == [1, 1, 2, 1, 0]
    assert module.pick_aligned(PHI[None, None], scores.shift, torch.tensor([0])).item() == 2


def test_of_equal_responses_the_lowest_shift_counts():
    module = mining(3, 1, classes=1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.0, 0, 2])[None, None, :, None])
    scores = module(torch.tensor([1.0, 2, 3])[None, None, :, None])
    assert (scores.logits.item(), scores.shift.item()) == (7, 0)


@pytest.mark.parametrize("form", ["circulant", "fourier"])
def test_the_score_is_the_best_response_and_never_below_that_without_shifts(form):
    module, phi = mining(form=form), torch.randn(3, 2, 5, 6)
    scores = module(phi)
    responses = circulant_responses(phi.flatten(0, 1)[None], module.weight)[0].view(3, 2, 4, 5)
    torch.testing.assert_close(scores.logits, responses.amax(3), atol=1e-5, rtol=1e-5)
    fixed = mining(mode="fixed")
    fixed.load_state_dict(module.state_dict())
    torch.testing.assert_close(fixed(phi).logits, responses[..., 0], atol=1e-5, rtol=1e-5)
    assert (scores.logits >= fixed(phi).logits - 1e-5).all()


def test_where_candidates_begin_changes_no_score_and_moves_the_aligned_one_along():
    module, phi, classes = mining(), torch.randn(3, 2, 5, 6), torch.tensor([1, 3, 0])
    scores, rolled = module(phi), module(phi.roll(1, 2))
    torch.testing.assert_close(rolled.logits, scores.logits)
    assert torch.equal(rolled.shift, (scores.shift - 1) % 5)
    best = module.pick_aligned(phi, scores.shift, classes)
    assert torch.equal(module.pick_aligned(phi.roll(1, 2), rolled.shift, classes), (best + 1) % 5)


def test_where_weights_begin_changes_neither_scores_nor_the_aligned_candidate():
    module, phi, classes = mining(), torch.randn(3, 2, 5, 6), torch.tensor([1, 3, 0])
    scores = module(phi)
    best = module.pick_aligned(phi, scores.shift, classes)
    with torch.no_grad():
        module.weight.copy_(module.weight.roll(2, 2))
    again = module(phi)
    torch.testing.assert_close(again.logits, scores.logits)
    assert torch.equal(module.pick_aligned(phi, again.shift, classes), best)


def test_with_one_weight_that_is_not_zero_it_is_the_classifier_of_a_single_scale():
    single, phi, classes = mining(mode="one"), torch.randn(3, 2, 5, 6), torch.tensor([1, 3, 0])
    assert single.weight.shape == (1, 4, 1, 6)
    full = mining()
    with torch.no_grad():
        full.weight.zero_()
        full.weight[:, :, 2] = single.weight[:, :, 0]
    scores = single(phi)
    torch.testing.assert_close(scores.logits, (phi @ single.weight[0, :, 0].mT).amax(2), atol=1e-5, rtol=1e-5)
    both = full(phi)
    torch.testing.assert_close(both.logits, scores.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal((2 - both.shift) % 5, scores.shift)  # shift r puts the weight on candidate 2 - r
    chosen = single.pick_aligned(phi, scores.shift, classes)
    expected = torch.stack(
        [(phi[image] @ single.weight[0, label, 0]).argmax(1) for image, label in enumerate(classes)]
    )
    assert torch.equal(chosen, expected)


def test_the_gradient_of_the_winning_class_is_the_shifted_features_and_that_of_the_features_the_shifted_weights():
    module, phi = mining(), torch.randn(1, 1, 5, 6, requires_grad=True)
    scores = module(phi)
    label, delta = 2, 0.7
    (delta * scores.logits[0, 0, label]).backward()
    shift = int(scores.shift[0, 0, label])
    torch.testing.assert_close(module.weight.grad[0, label], delta * phi.detach()[0, 0].roll(shift, 0))
    torch.testing.assert_close(phi.grad[0, 0], delta * module.weight.detach()[0, label].roll(-shift, 0))
    assert not module.weight.grad[0, [0, 1, 3]].any()


@pytest.mark.parametrize("mode", ["full", "fixed", "one"])
def test_parts_with_weights_of_their_own_are_as_many_classifiers(mode):
    several, phi, classes = mining(mode=mode, kinds=2), torch.randn(3, 2, 5, 6), torch.tensor([1, 3, 0])
    scores = several(phi)
    best = several.pick_aligned(phi, scores.shift, classes)
    for part in range(2):
        alone = mining(mode=mode)
        with torch.no_grad():
            alone.weight.copy_(several.weight[part : part + 1])
        own = alone(phi[:, part : part + 1])
        torch.testing.assert_close(own.logits, scores.logits[:, part : part + 1], atol=1e-5, rtol=1e-5)
        assert torch.equal(own.shift, scores.shift[:, part : part + 1])
        assert torch.equal(
            alone.pick_aligned(phi[:, part : part + 1], own.shift, classes), best[:, part : part + 1]
        )


def test_from_a_linear_classifier_all_shifts_are_nearly_equally_good_but_not_equal():
    module, classifier, phi = mining(5, 64), torch.randn(4, 64), torch.rand(2, 3, 5, 64)
    module.start_from(classifier)
    responses = circulant_responses(phi.flatten(0, 1)[None], module.weight.detach())[0]
    mean = phi.mean(2).flatten(0, 1) @ classifier.mT
    torch.testing.assert_close(responses, mean[..., None].expand(-1, -1, 5), atol=0.02, rtol=0)
    assert (responses.std(2) > 0).all()
    noise = module.weight.detach() - classifier[:, None] / 5
    assert 0.8e-3 < float(noise.std() * 8) < 1.2e-3


def test_the_first_weights_have_unit_variance_over_all_that_is_added_up():
    weight = ScaleMining(50, 5, 100, mode="full", form="circulant", kinds=1).weight.detach()
    assert abs(float(weight.square().mean()) * 500 - 1) < 0.05


@pytest.mark.parametrize("mode", ["full", "fixed", "one"])
def test_responses_are_computed_in_float32_under_autocast_too(mode):
    module, phi = mining(mode=mode), torch.randn(2, 3, 5, 6)
    plain = module(phi)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(phi)
    assert torch.equal(mixed.logits, plain.logits)
    assert module(phi.bfloat16()).logits.dtype == torch.float32


# --- candidates ---------------------------------------------------------------------------------------------


def test_the_candidates_of_a_known_part():
    boxes = torch.tensor(
        [[[100.0, 100, 200, 180], [260, 120, 340, 220], [120, 250, 220, 330], [300, 300, 380, 400]]]
    )
    expected = [
        [129.2893, 123.4315, 200, 180],
        [115.9104, 112.7283, 200, 180],
        [100, 100, 200, 180],
        [100, 100, 218.9207, 195.1366],
        [100, 100, 241.4214, 213.1371],
    ]
    found = scale_candidates(boxes, ALPHA, 5)
    assert found.shape == (1, 4, 5, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor(expected), atol=1e-4, rtol=0)


@given(st.integers(0, 999), st.sampled_from([3, 5, 7]), st.floats(1.05, 1.6))
def test_candidates_grow_towards_the_common_centre_and_shrink_towards_it(seed, count, alpha):
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(
        2, 2, 4, 2, generator=generator, dtype=torch.float64
    )  # single precision rounds sides of boxes far from 0
    boxes = torch.cat([400 * low, 400 * low + 10 + 100 * size], dim=2)
    found, middle = scale_candidates(boxes, alpha, count), count // 2
    torch.testing.assert_close(found[:, :, middle], boxes, atol=1e-4, rtol=0)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    for image in range(2):
        common = centres[image].mean(0)
        for part in range(4):
            corners = torch.cartesian_prod(boxes[image, part, [0, 2]], boxes[image, part, [1, 3]])
            away = (corners - common).norm(dim=1)
            near, far = corners[away.argmin()], corners[away.argmax()]
            for number in range(count):
                box = found[image, part, number]
                torch.testing.assert_close(
                    box[2:] - box[:2],
                    (boxes[image, part, 2:] - boxes[image, part, :2]) * alpha ** (number - middle),
                )
                fixed = torch.cartesian_prod(box[[0, 2]], box[[1, 3]])
                if number >= middle:
                    assert (fixed - far).norm(dim=1).min() < 1e-3
                if number <= middle:
                    assert (fixed - near).norm(dim=1).min() < 1e-3
    grown = found[:, :, middle:]
    assert (grown[:, :, 1:, :2] <= grown[:, :, :-1, :2] + 1e-3).all()
    assert (grown[:, :, 1:, 2:] >= grown[:, :, :-1, 2:] - 1e-3).all()


def test_a_part_in_the_common_centre_grows_down_and_to_the_right():
    found = scale_candidates(torch.tensor([[[10.0, 10, 20, 20]]]), 2.0, 3)
    assert found[0, 0].tolist() == [[15, 15, 20, 20], [10, 10, 20, 20], [10, 10, 30, 30]]


def test_a_single_scale_is_the_part_itself():
    boxes = torch.tensor([[[10.0, 10, 20, 30], [0, 0, 5, 5]]])
    assert torch.equal(scale_candidates(boxes, ALPHA, 1)[:, :, 0], boxes)
