"""Normalisation: the result of each rule on worked maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsolbench.maps import normalize
from wsolbench.protocol import EvalProtocol

PROTOCOL = EvalProtocol.preset("wsoleval")
RULES = ("minmax", "max", "pas", "ivr", "pas-relu", "ivr-interpolated")
maps = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-100, 100, width=32)
)


@pytest.mark.parametrize("rule", RULES)
@given(score_map=maps)
def test_every_rule_maps_into_the_unit_interval(rule: str, score_map: np.ndarray) -> None:
    result = normalize(score_map, replace(PROTOCOL, normalize=rule))
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("level", [-3.0, 0.0, 7.0])
def test_a_constant_map_is_all_zeros_under_every_rule(rule: str, level: float) -> None:
    assert not normalize(np.full((3, 4), level, dtype=np.float32), replace(PROTOCOL, normalize=rule)).any()


def test_minmax_spans_zero_to_one() -> None:
    np.testing.assert_allclose(
        normalize(np.array([[-1.0, 0.0], [1.0, 3.0]]), PROTOCOL), [[0, 0.25], [0.5, 1]]
    )


def test_relu_comes_before_minmax() -> None:
    protocol = replace(PROTOCOL, relu=True)
    np.testing.assert_allclose(normalize(np.array([[-1.0, 0.0], [1.0, 4.0]]), protocol), [[0, 0], [0.25, 1]])


def test_max_keeps_zero_where_it_is() -> None:
    np.testing.assert_allclose(
        normalize(np.array([[-1.0, 1.0, 4.0]]), replace(PROTOCOL, normalize="max")), [[0, 0.25, 1]]
    )


def by_hand(score_map: np.ndarray, rule: str, percentile: float) -> list[float]:
    """Compute the rules of the IVR evaluation, value by value."""
    values = [float(value) for value in score_map.ravel()]
    if len(set(values)) == 1:
        return [0.0] * len(values)
    lowest = min(values)
    rank = min(int(len(values) * (percentile / 100)), len(values) - 1)
    if rule == "pas":
        shifted = [value - lowest for value in values]
        divisor = sorted(shifted)[rank]
        return [min(1.0, value / divisor) if divisor > 0 else float(value > 0) for value in shifted]
    floor = {"minmax": lowest, "max": 0.0, "ivr": sorted(values)[rank]}[rule]
    kept = [max(0.0, value - floor) for value in values]
    return [value / max(kept) if max(kept) > 0 else 0.0 for value in kept]


@pytest.mark.parametrize("rule", ["minmax", "max", "pas", "ivr"])
@pytest.mark.parametrize("percentile", [30.0, 50.0, 90.0, 100.0])
def test_the_four_rules_of_the_ivr_evaluation_equal_a_loop_over_values(rule: str, percentile: float) -> None:
    rng = np.random.default_rng(0)
    protocol = replace(PROTOCOL, normalize=rule, percentile=percentile)
    for shape in [(1, 2), (3, 3), (7, 5), (14, 14)]:
        for score_map in (
            rng.normal(size=shape),
            np.maximum(rng.normal(size=shape), 0),
            rng.integers(-2, 3, shape).astype(float),
        ):
            np.testing.assert_array_equal(
                normalize(score_map, protocol).ravel(), by_hand(score_map, rule, percentile)
            )


def test_pas_divides_by_the_value_of_rank_int_of_the_share_of_pixels() -> None:
    # values -5 .. 5 less the minimum are 0 .. 10; of 11 sorted values that of rank int(11 x .5) = 5 is 5
    result = normalize(np.arange(-5.0, 6.0)[None], replace(PROTOCOL, normalize="pas", percentile=50.0))
    np.testing.assert_allclose(result[0, [0, 1, 5, 10]], [0, 0.2, 1, 1])


def test_pas_of_a_signed_map_keeps_its_negative_values_apart_and_pas_relu_does_not() -> None:
    score_map = np.random.default_rng(1).normal(
        -0.5, 1, (28, 28)
    )  # as of an unrectified class activation map
    zeros = {
        rule: (normalize(score_map, replace(PROTOCOL, normalize=rule)) == 0).mean()
        for rule in ("pas", "pas-relu")
    }
    assert zeros["pas"] == 1 / 28**2
    assert zeros["pas-relu"] > 0.6


def test_pas_relu_divides_by_the_interpolated_percentile_of_what_is_positive() -> None:
    # values 0..9: the 50th percentile is 4.5
    result = normalize(np.arange(10.0)[None], replace(PROTOCOL, normalize="pas-relu", percentile=50.0))
    np.testing.assert_allclose(result[0, [0, 1, 4, 5]], [0, 1 / 4.5, 4 / 4.5, 1])


def test_ivr_subtracts_a_value_of_the_map_and_its_first_version_an_interpolated_one() -> None:
    # values 0..9: that of rank int(10 x .5) is 5; the 50th percentile is 4.5
    for rule, floor in (("ivr", 5.0), ("ivr-interpolated", 4.5)):
        result = normalize(np.arange(10.0)[None], replace(PROTOCOL, normalize=rule, percentile=50.0))
        np.testing.assert_allclose(
            result[0, [0, 4, 5, 6, 9]], np.maximum(np.array([0, 4, 5, 6, 9]) - floor, 0) / (9 - floor)
        )


@given(score_map=maps)
def test_ivr_of_percentile_0_is_minmax(score_map: np.ndarray) -> None:
    ivr = replace(PROTOCOL, normalize="ivr", percentile=0.0)
    np.testing.assert_array_equal(normalize(score_map, ivr), normalize(score_map, PROTOCOL))


@pytest.mark.parametrize("rule", ["minmax", "pas", "ivr"])
def test_a_constant_added_to_a_map_changes_nothing(rule: str) -> None:
    score_map = np.random.default_rng(2).integers(-50, 50, (9, 9)).astype(np.float64)  # exact sums
    protocol = replace(PROTOCOL, normalize=rule)
    np.testing.assert_array_equal(normalize(score_map + 64, protocol), normalize(score_map, protocol))


@given(score_map=maps, exponent=st.integers(-8, 8))
def test_minmax_does_not_depend_on_the_scale(score_map: np.ndarray, exponent: int) -> None:
    # a power of two is exact in float32 unless the product under- or overflows
    scaled = score_map * np.float32(2.0**exponent)
    if (
        np.array_equal(scaled / np.float32(2.0**exponent), score_map)
        and (np.abs(scaled[scaled != 0]) > 1e-30).all()
    ):
        np.testing.assert_array_equal(normalize(scaled, PROTOCOL), normalize(score_map, PROTOCOL))
