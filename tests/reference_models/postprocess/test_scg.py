"""SCG: the identities of its correlations, worked examples, and the values that the released code gives."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.layers.correlation import resize_to_grid, unit_pixels
from reference_models.layers.maps import min_max
from reference_models.postprocess.scg.method import (
    Scg,
    ScgConfig,
    combined,
    eq8_correlations,
    map_of,
    stochastic_correlations,
)
from tests.oracles.golden import golden
from tests.reference_models.postprocess.scg_inputs import (
    CLOSE,
    SEEDS,
    VARIANTS,
    clusters,
    every_map,
    random_inputs,
    scg,
    settings_of,
)
from wsolbench.metrics.sweep import single_box_per_tau
from wsolbench.protocol import EvalProtocol

# --- worked example -----------------------------------------------------------------------------------------


F4 = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 0.5]]).T.reshape(1, 2, 2, 2)
M4 = torch.tensor([1.0, 0.5, 0, 0.2]).reshape(1, 1, 2, 2)
S4 = torch.tensor(
    [
        [1, 0.707107, 0, 0.894427],
        [0.707107, 1, 0.707107, 0.948683],
        [0, 0.707107, 1, 0.447214],
        [0.894427, 0.948683, 0.447214, 1],
    ]
)


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        actual.flatten(), torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0
    )


def test_four_pixels_by_the_released_code():
    config = settings_of(fo_th="0.1", so_th="0.5", so_weight="2", delta_h="0.4", features="-1")
    first, high = stochastic_correlations(unit_pixels(F4), fo_th=0.1, so_th=0.5, order=2)
    close(first[0, :, 0], [0.384387, 0.271803, 0, 0.343806])
    close(high[0, :, 0], [0.350227, 0.231331, 0.241177, 0.177266])
    hsc = combined(first, high, config)
    close(hsc[0, :, 0], [0.350227, 0.231331, 0.241177, 0.177266])
    close(hsc[0, :, 1], [0.152710, 0.469200, 0.102396, 0.275695])
    positive = replace(config, delta_l=-1.0)
    close(map_of(hsc, M4, positive), [0.813997, 1, 0, 0.109164])
    close(map_of(hsc, M4, replace(positive, delta_h=0.9)), [1, 0.312583, 0.369509, 0])
    close(map_of(hsc, 1 - M4, replace(positive, delta_h=0.9)), [1, 0, 0.556312, 0.479939])
    close(map_of(hsc, M4, config), [0, 1, 0, 0])
    close(every_map(Scg(config), [F4], M4), [0, 1, 0, 0])


def test_four_pixels_by_the_paper_s_equations():
    config = settings_of("paper", delta_h="0.4", features="-1")
    first, second = eq8_correlations(unit_pixels(F4))
    close(first, S4.flatten().tolist())
    z = S4 - torch.eye(4)
    s2 = [0.325, 0.212132, 0.225, 0.167705, 0.212132, 0.475, 0.106066, 0.237171]
    s2 += [0.225, 0.106066, 0.175, 0.167705, 0.167705, 0.237171, 0.167705, 0.475]
    close(z @ z / 4, s2)
    rows = torch.tensor(s2).reshape(4, 4)
    close(
        second,
        ((rows - rows.amin(1, keepdim=True)) / (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)))
        .flatten()
        .tolist(),
    )
    hsc = combined(first, second, config)
    close(hsc[0, 0], [1, 0.707107, 0.364251, 0.894427])
    close(hsc[0, 2], [1, 0.707107, 1, 0.518263])
    close(every_map(Scg(config), [F4], M4), [0, 0.146447, 0, 0.403292])


def test_the_second_order_of_the_paper_is_the_sum_that_equation_8_prints():
    pixels = unit_pixels(torch.randn(1, 4, 3, 3))
    s = (pixels @ pixels.mT)[0]
    expected = torch.tensor(
        [
            [sum(s[i, k] * s[k, j] for k in range(9) if k not in (i, j)) / 9 for j in range(9)]
            for i in range(9)
        ]
    )
    low, high = expected.amin(1, keepdim=True), expected.amax(1, keepdim=True)
    torch.testing.assert_close(
        eq8_correlations(pixels)[1][0], (expected - low) / (high - low), atol=1e-5, rtol=1e-5
    )


# --- the released code --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(8))
def test_correlations_are_those_of_the_released_code(case):
    stored = golden("spa_tensors")
    pixels = unit_pixels(torch.tensor(stored[f"hsc_feat_{case:02d}"]))
    fo_th, so_th, order = (stored[f"hsc_{name}"][case].item() for name in ("fo_th", "so_th", "order"))
    first, high = stochastic_correlations(pixels, fo_th=fo_th, so_th=so_th, order=order)
    torch.testing.assert_close(first, torch.tensor(stored[f"hsc_fo_{case:02d}"]), **CLOSE)
    torch.testing.assert_close(high, torch.tensor(stored[f"hsc_ho_{case:02d}"]), **CLOSE)


@pytest.mark.parametrize("case", range(3))
def test_their_combination_is_that_of_the_released_code(case):
    stored = golden("spa_tensors")
    first, high = (
        torch.tensor(stored[f"hsc_{kind}_{stored['com_src_index'][case]:02d}"]) for kind in ("fo", "ho")
    )
    config = settings_of(so_weight=str(stored["com_so_weight"][case]))
    torch.testing.assert_close(combined(first, high, config), torch.tensor(stored[f"com_{case}"]), **CLOSE)


@pytest.mark.parametrize("combine", ["max", "first", "high"])
def test_combining_leaves_both_orders_as_they_are(combine):
    first, high = stochastic_correlations(unit_pixels(torch.rand(1, 5, 3, 3)), fo_th=0.1, so_th=0.5, order=2)
    before = first.clone(), high.clone()
    hsc = combined(first, high, settings_of(combine=combine, so_weight="3"))
    assert torch.equal(first, before[0])
    assert torch.equal(high, before[1])
    both = torch.maximum(first, 3 * high)
    expected = {"max": both / both.sum(1, keepdim=True), "first": first, "high": high}[combine]
    torch.testing.assert_close(hsc, expected)


def released_map_of_one_order(
    stages: list[torch.Tensor], coarse: torch.Tensor, order: str, fo_th: float, so_th: float
) -> np.ndarray:
    """The released program's steps for one image and class, in float64, pixel by pixel where it matters."""
    total = np.zeros((coarse.numel(),) * 2)
    for stage in stages:
        f = stage.double().flatten(1).T.numpy()
        f = f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-10)
        cosines = np.maximum(f @ f.T, 0)
        cosines[cosines < fo_th] = 0
        first = cosines / (cosines.sum(axis=0, keepdims=True) + 1e-5)
        np.fill_diagonal(cosines, 0)
        p = cosines / (cosines.sum(axis=0, keepdims=True) + 1e-5)
        high = p @ p
        high = high / (high.sum(axis=0, keepdims=True) + 1e-10)
        high[high < so_th / len(f)] = 0
        total += first if order == "first" else high

    def stretch(values: np.ndarray, axis: int | None) -> np.ndarray:
        low = values.min(axis=axis, keepdims=True)
        return (values - low) / (values.max(axis=axis, keepdims=True) - low + 1e-10)

    m = stretch(np.maximum(coarse.double().flatten().numpy(), 0), None)
    sums = [stretch(stretch(total[:, chosen], 0).sum(axis=1), None) for chosen in (m >= 0.1, m <= 0.05)]
    return stretch(np.maximum(sums[0] - sums[1], 0), None).reshape(coarse.shape)


@pytest.mark.parametrize("order", ["first", "high"])
@pytest.mark.parametrize("seed", range(6))
def test_one_order_alone_is_not_normalised_again(order, seed):
    """Columns of `high` do not add up to 1 after its threshold. If they are made to, its two stages weigh
    otherwise in the sum."""
    source = torch.Generator().manual_seed(seed)
    stages, coarse = (
        [torch.rand(1, 6, 5, 5, generator=source) ** 3 for _ in range(2)],
        torch.rand(1, 1, 5, 5, generator=source) - 0.1,
    )
    settings = settings_of(combine=order, fo_th="0.6", so_th="1.0", so_weight="2")
    expected = released_map_of_one_order([stage[0] for stage in stages], coarse[0, 0], order, 0.6, 1.0)
    np.testing.assert_allclose(every_map(Scg(settings), stages, coarse)[0, 0].numpy(), expected, atol=5e-5)


def test_a_correlation_that_equals_the_threshold_stays():
    pixels = unit_pixels(torch.tensor([[3.0, 4], [1, 0], [0, 1]]).T.reshape(1, 2, 3, 1))
    cosine = float((pixels @ pixels.mT)[0, 0, 1])  # 0.6
    for fo_th, stays in ((cosine, True), (np.nextafter(np.float32(cosine), np.float32(1)).item(), False)):
        first, _ = stochastic_correlations(pixels, fo_th=fo_th, so_th=0.0, order=2)
        assert (float(first[0, 0, 1]) > 0) == stays


def stage_maps(case: int) -> list[torch.Tensor]:
    """The map of each stage of a recorded case: (5, s, s)."""
    stored = golden("spa_tensors")
    config = replace(
        ScgConfig(), delta_h=float(stored["scg_fg_th"][case]), delta_l=float(stored["scg_bg_th"][case])
    )
    cams = torch.tensor(stored[f"scg_cams_{case:02d}"])[None]
    side = stored[f"scg_expected_{case:02d}"].shape[-1]
    hscs = [
        torch.tensor(stored[f"scg_hsc{number}_{case:02d}"])
        for number in range(stored[f"scg_num_hsc_{case:02d}"])
    ]
    return [map_of(hsc, resize_to_grid(cams, side, side), config)[0] for hsc in hscs]


@pytest.mark.parametrize("case", range(6))
def test_maps_are_those_of_the_released_code(case):
    expected = torch.tensor(golden("spa_tensors")[f"scg_expected_{case:02d}"]).float()
    torch.testing.assert_close(torch.stack(stage_maps(case)).amax(0), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", range(6))
def test_boxes_are_those_of_the_released_code_wherever_no_pixel_is_on_the_threshold(case):
    stored = golden("spa_tensors")
    height, width = stored["scgloc_image_size_hw"][case].tolist()
    resized = [
        [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in maps.numpy()]
        for maps in stage_maps(case)
    ]
    maps = np.clip(np.max(resized, axis=0), 0, 1)
    for mode, rule in ((0, "union"), (1, "largest")):
        taus = tuple(stored["scgloc_thresholds"].tolist())
        protocol = replace(EvalProtocol.preset("spa"), taus=taus, components=rule, single_box=rule)
        rows = stored["scgloc_rows"]
        rows = rows[(rows[:, 0] == case) & (rows[:, 1] == mode) & (rows[:, 8] == 0)]
        assert len(rows) > 10
        got = np.stack([single_box_per_tau(one, protocol) for one in maps])  # (rank, threshold, 4)
        np.testing.assert_array_equal(got[rows[:, 3], rows[:, 2]], rows[:, 4:8])


def test_the_maximum_over_stages_is_that_of_their_maps():
    stages, coarse = random_inputs(3)
    both = every_map(scg(across_stages="max"), stages, coarse)
    alone = [every_map(scg(features=name), stages, coarse) for name in ("-2", "-1")]
    assert torch.equal(both, torch.maximum(*alone))


# --- identities ---------------------------------------------------------------------------------------------


@given(SEEDS, st.floats(0, 0.9), st.integers(1, 4))
def test_columns_of_the_released_code_s_correlations_are_distributions(seed, fo_th, order):
    pixels = unit_pixels(torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed)))
    first, high = stochastic_correlations(pixels, fo_th=fo_th, so_th=0.0, order=order)
    near = (pixels @ pixels.mT >= fo_th) & ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(first.sum(1), torch.ones(2, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(high.sum(1), near.any(1).float(), atol=1e-4, rtol=0)
    assert min(first.min(), high.min()) >= 0
    hsc = combined(first, high, settings_of(so_weight="2"))
    torch.testing.assert_close(hsc.sum(1), torch.ones(2, 16), atol=1e-4, rtol=0)


@given(SEEDS)
def test_the_paper_s_correlations_are_cosines_and_stretched_rows(seed):
    pixels = unit_pixels(torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed)))
    first, second = eq8_correlations(pixels)
    torch.testing.assert_close(first, first.mT)
    torch.testing.assert_close(first.diagonal(dim1=1, dim2=2), torch.ones(2, 16))
    assert 0 <= first.min() <= first.max() <= 1 + 1e-6
    torch.testing.assert_close(second.amin(2), torch.zeros(2, 16))
    torch.testing.assert_close(second.amax(2), torch.ones(2, 16))
    assert not torch.allclose(second, second.mT)


@pytest.mark.parametrize("variant", VARIANTS)
@given(SEEDS)
def test_maps_are_in_the_unit_interval_and_stretched_by_the_released_code(variant, seed):
    stages, coarse = random_inputs(seed, signed=True)
    maps = every_map(scg(variant), stages, coarse)
    assert 0 <= maps.min() <= maps.max() <= 1
    if variant == "official":
        highest = maps.amax((2, 3))
        assert ((highest > 1 - 1e-6) | (highest == 0)).all()


@pytest.mark.parametrize("variant", VARIANTS)
@given(SEEDS)
def test_the_length_of_a_pixel_s_features_does_not_matter(variant, seed):
    stages, coarse = random_inputs(seed)
    scale = 0.5 + torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    scaled = every_map(scg(variant), [stage * scale for stage in stages], coarse)
    torch.testing.assert_close(scaled, every_map(scg(variant), stages, coarse), atol=5e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@given(SEEDS)
def test_maps_move_with_the_pixels(variant, seed):
    stages, coarse = random_inputs(seed)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))

    def moved(each: torch.Tensor) -> torch.Tensor:
        return each.flatten(2)[..., order].reshape(each.shape)

    maps = every_map(scg(variant), stages, coarse)
    torch.testing.assert_close(
        every_map(scg(variant), [moved(stage) for stage in stages], moved(coarse)),
        moved(maps),
        atol=5e-4,
        rtol=0,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@given(SEEDS, st.integers(4, 12), st.integers(4, 12))
def test_two_kinds_of_pixels_are_told_apart_exactly_when_all_of_them_are_seeds(variant, seed, first, second):
    features, kinds = clusters(seed, first, second)
    coarse = kinds.float().reshape(1, 1, -1, 1)
    maps = every_map(scg(variant), [features, features], coarse)
    torch.testing.assert_close(maps, coarse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@given(SEEDS, st.integers(40, 60))
def test_one_seed_of_each_kind_finds_all_of_its_kind(variant, seed, count):
    features, kinds = clusters(seed, count, count)
    coarse = torch.full((2 * count,), 0.07)  # between the thresholds
    coarse[kinds.nonzero()[0]] = 1.0
    coarse[(~kinds).nonzero()[0]] = 0.0
    maps = every_map(scg(variant), [features, features], coarse.reshape(1, 1, -1, 1))
    torch.testing.assert_close(
        maps, kinds.float().reshape(1, 1, -1, 1), atol=1e-5 if variant == "paper" else 0.03, rtol=0
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_seed_of_the_object_the_map_is_zero(variant):
    stages, _ = random_inputs(0)
    for coarse in (torch.full((2, 1, 5, 5), 0.7), -torch.rand(2, 1, 5, 5), torch.zeros(2, 1, 5, 5)):
        assert not every_map(scg(variant), stages, coarse).any()


def test_without_a_seed_of_the_background_nothing_is_taken_off():
    stages, coarse = random_inputs(1)
    config = settings_of(features="-1")
    hsc = combined(*stochastic_correlations(unit_pixels(stages[1]), fo_th=0.1, so_th=0.5, order=2), config)
    m = min_max(coarse.relu())
    seeds = min_max(hsc.mT.reshape(2, 25, 1, 25)).flatten(2)  # (B, seed, pixel)
    expected = min_max(torch.einsum("bkj,bjn->bkn", (m.flatten(2) >= 0.1).float(), seeds).reshape(m.shape))
    torch.testing.assert_close(map_of(hsc, m, replace(config, delta_l=-1.0)), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_that_are_all_zero_give_maps_of_zeros(variant):
    _, coarse = random_inputs(0)
    assert not every_map(scg(variant), [torch.zeros(2, 6, 5, 5)] * 2, coarse).any()


@pytest.mark.parametrize("settings", [{"combine": "first"}, {"variant": "paper"}], ids=str)
def test_rounding_does_not_show_as_structure_where_all_pixels_are_alike(settings):
    _, coarse = random_inputs(0, side=7)
    features = torch.rand(2, 33, 1, 1).expand(2, 33, 7, 7) * (0.5 + torch.rand(2, 1, 7, 7))
    assert every_map(Scg.create(settings), [features, features], coarse).max() <= 1e-5


def test_a_finer_stage_is_averaged_down_and_coarse_maps_are_brought_to_the_grid():
    stages, coarse = random_inputs(2)
    finer = stages[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(
        every_map(scg(), [finer, stages[1]], coarse), every_map(scg(), stages, coarse), atol=5e-5, rtol=0
    )
    halved = every_map(scg(), stages, coarse.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3))
    assert halved.shape == coarse.shape
