"""Normalisation: what each rule does to which map."""

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
RULES = ("minmax", "max", "pas", "ivr")
maps = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-100, 100, width=32))


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
    np.testing.assert_allclose(normalize(np.array([[-1.0, 0.0], [1.0, 3.0]]), PROTOCOL), [[0, 0.25], [0.5, 1]])


def test_relu_comes_before_minmax() -> None:
    protocol = replace(PROTOCOL, relu=True)
    np.testing.assert_allclose(normalize(np.array([[-1.0, 0.0], [1.0, 4.0]]), protocol), [[0, 0], [0.25, 1]])


def test_max_keeps_zero_where_it_is() -> None:
    np.testing.assert_allclose(normalize(np.array([[-1.0, 1.0, 4.0]]), replace(PROTOCOL, normalize="max")), [[0, 0.25, 1]])


def test_pas_divides_by_the_percentile_and_cuts() -> None:
    # values 0..10; the 50th percentile is 5: 0.2 for 1, and 1 from 5 on
    result = normalize(np.arange(11.0)[None], replace(PROTOCOL, normalize="pas", percentile=50.0))
    np.testing.assert_allclose(result[0, [0, 1, 5, 10]], [0, 0.2, 1, 1])


def test_ivr_subtracts_the_percentile() -> None:
    # the 50th percentile of 0..10 is 5: 5 and below are 0, 6 is 1/5, 10 is 1
    result = normalize(np.arange(11.0)[None], replace(PROTOCOL, normalize="ivr", percentile=50.0))
    np.testing.assert_allclose(result[0, [0, 5, 6, 10]], [0, 0, 0.2, 1], rtol=1e-6)


@given(score_map=maps, exponent=st.integers(-8, 8))
def test_minmax_does_not_depend_on_the_scale(score_map: np.ndarray, exponent: int) -> None:
    # a power of two is exact in float32 unless the product under- or overflows
    scaled = score_map * np.float32(2.0**exponent)
    if np.array_equal(scaled / np.float32(2.0**exponent), score_map) and (np.abs(scaled[scaled != 0]) > 1e-30).all():
        np.testing.assert_array_equal(normalize(scaled, PROTOCOL), normalize(score_map, PROTOCOL))
