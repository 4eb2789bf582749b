"""The protocol: presets, variants, rejected values and the stored form."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from wsolbench.exceptions import UsageError
from wsolbench.protocol import DetectionProtocol, EvalProtocol, protocol_from_json, tau_grid
from wsolbench.ranges import range_of


@pytest.mark.parametrize("name", EvalProtocol.presets())
def test_every_preset_survives_storing(name: str) -> None:
    protocol = EvalProtocol.preset(name)
    assert EvalProtocol.from_json(protocol.to_json()) == protocol


def test_the_default_is_wsoleval() -> None:
    assert EvalProtocol() == EvalProtocol.preset("wsoleval")


def test_presets_differ_from_each_other() -> None:
    assert len({EvalProtocol.preset(name) for name in EvalProtocol.presets()}) == len(EvalProtocol.presets())


def test_a_grid_is_bit_for_bit_arange_and_is_stored_in_three_numbers() -> None:
    assert tau_grid(0.001) == tuple(np.arange(0, 1, 0.001).tolist())
    assert EvalProtocol().to_json()["taus"] == {"start": 0.0, "stop": 1.0, "step": 0.001}


def test_an_uneven_grid_is_stored_whole() -> None:
    protocol = EvalProtocol(taus=(0.1, 0.2, 0.5))
    assert protocol.to_json()["taus"] == [0.1, 0.2, 0.5]
    assert EvalProtocol.from_json(protocol.to_json()) == protocol


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'tscam'"):
        EvalProtocol.preset("ts-cam")


INVALID = [
    {"components": "biggest"},
    {"foreground": ">>"},
    {"taus": ()},
    {"taus": (0.5, 0.1)},
    {"taus": (0.5, 0.5)},
    {"taus": (0.5, 1.5)},
    {"taus": (0.5, 1.0)},
    {"taus": (-0.1, 0.5)},
    {"taus": (float("nan"),)},
    {"taus": tuple(np.linspace(0, 1, 10_001).tolist())},
    {"taus": 0.5},
    {"fixed_tau": 1.5},
    {"fixed_tau": float("nan")},
    {"deltas": ()},
    {"deltas": (0.0,)},
    {"deltas": (0.5, 0.5)},
    {"quantize": "none"},
    {"connectivity": "8"},
    {"percentile": 0.0},
    {"percentile": 101.0},
    {"normalize_eps": float("nan")},
    {"normalize_eps": -1e-9},
    {"frame_size": 0},
    {"frame_size": -1},
    {"frame_size": 100_000},
    {"frame_size": 224.5},
    {"frame_size": True},
    {"resize_size": 0},
    {"frame": "center_crop", "resize_size": 100},
    {"classifier": "ten_crop", "resize_size": 223},
    {"error_iou": 1.5},
    {"error_more_iog": -0.1},
    {"relu": 1},
    {"name": None},
]


@pytest.mark.parametrize(
    "changes", INVALID, ids=[f"{next(iter(each))}={str(each[next(iter(each))])[:12]}" for each in INVALID]
)
def test_an_invalid_value_or_combination_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes)) if len(changes) == 1 else "resize_size"):
        replace(EvalProtocol(), **changes)


@pytest.mark.parametrize("changes", INVALID, ids=range(len(INVALID)))
def test_an_invalid_value_in_a_stored_protocol_is_refused(changes: dict[str, object]) -> None:
    stored = {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}
    with pytest.raises(UsageError):
        EvalProtocol.from_json({**EvalProtocol().to_json(), **stored})


def test_every_number_of_a_protocol_has_a_range() -> None:
    numbers = [
        item.name
        for item in fields(EvalProtocol)
        if isinstance(item.default, float | int) and not isinstance(item.default, bool)
    ]
    assert len(numbers) == 8
    for name in numbers:
        limit = range_of(EvalProtocol, name)[1]
        assert np.isfinite([limit.low, limit.high]).all(), name


@pytest.mark.parametrize("step", [0, -0.1, 1, 1.2, 2, 60, 1e-9, 5e-324, float("nan"), float("inf")])
def test_a_step_that_makes_no_grid_or_an_endless_one_is_refused(step: float) -> None:
    with pytest.raises(UsageError, match="step"):
        tau_grid(step)
    with pytest.raises(UsageError, match="step"):
        EvalProtocol.from_json(
            {**EvalProtocol().to_json(), "taus": {"start": 0.0, "stop": 1.0, "step": step}}
        )


@pytest.mark.parametrize(
    "grid",
    [{"step": 0.1}, {"start": 0, "stop": 1e300, "step": 0.1}, {"start": "0", "stop": "1", "step": "0.1"}],
)
def test_a_stored_grid_that_is_none_is_refused(grid: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        EvalProtocol.from_json({**EvalProtocol().to_json(), "taus": grid})


def test_a_threshold_of_1_needs_pixels_that_equal_the_maximum() -> None:
    assert EvalProtocol(taus=(0.0, 1.0), foreground=">=").taus[-1] == EvalProtocol.preset("lid").taus[-1] == 1
    with pytest.raises(UsageError, match=r"taus ends with 1\.0.*in \[0, 1\), or foreground='>='"):
        EvalProtocol(taus=(0.0, 1.0))


def test_thresholds_that_lie_very_close_are_stored_one_by_one() -> None:
    protocol = EvalProtocol(taus=(0.0, 1e-9, 2e-9, 0.9))
    assert EvalProtocol.from_json(protocol.to_json()) == protocol


@pytest.mark.parametrize(("name", "first"), [("pas", "pas-relu"), ("ivr", "ivr-interpolated")])
def test_a_stored_rule_without_a_version_is_the_first_one_and_stays_as_it_is(name: str, first: str) -> None:
    stored = {**EvalProtocol().to_json(), "normalize": name}
    protocol = EvalProtocol.from_json(stored)
    assert protocol.normalize == first
    assert protocol.to_json() == stored  # so the digest of its record is the same
    now = EvalProtocol(normalize=name)
    assert now != protocol
    assert EvalProtocol.from_json(now.to_json()) == now
    assert now.to_json() != stored


def test_a_version_of_the_future_is_refused() -> None:
    with pytest.raises(UsageError, match="normalize_version=3"):
        EvalProtocol.from_json({**EvalProtocol().to_json(), "normalize_version": 3})


@pytest.mark.parametrize(
    "stored", [{}, {"name": "wsoleval"}, {"detection": {}, "name": "coco"}, [], None, "wsoleval"]
)
def test_a_stored_protocol_without_its_fields_is_refused(stored: object) -> None:
    with pytest.raises(UsageError, match="stored protocol"):
        protocol_from_json(stored)


@pytest.mark.parametrize(
    "changes",
    [
        {"recalls": 0},
        {"recalls": 1e9},
        {"max_detections": 0},
        {"ious": ()},
        {"ious": (1.5,)},
        {"small_below": 1e5},
        {"small_below": -1.0},
    ],
)
def test_an_invalid_protocol_of_detections_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(changes))):
        replace(DetectionProtocol(), **changes)
    stored = DetectionProtocol().to_json()
    stored["detection"] |= {
        key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()
    }
    with pytest.raises(UsageError):
        protocol_from_json(stored)


def test_an_unknown_stored_field_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol field 'componants'; did you mean 'components'"):
        EvalProtocol.from_json({"componants": "all"})


def test_every_field_is_stored() -> None:
    assert set(EvalProtocol().to_json()) == {item.name for item in fields(EvalProtocol)}
