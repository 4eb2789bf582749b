"""The protocol as data: presets, variants, what is refused, and the stored form."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol, tau_grid


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


@pytest.mark.parametrize(
    "changes",
    [
        {"components": "biggest"},
        {"foreground": ">>"},
        {"taus": ()},
        {"taus": (0.5, 0.1)},
        {"taus": (0.5, 1.5)},
        {"deltas": ()},
        {"deltas": (0.0,)},
        {"quantize": "none"},
        {"connectivity": "8"},
        {"percentile": 0.0},
    ],
)
def test_a_convention_that_means_nothing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(EvalProtocol(), **changes)


def test_an_unknown_stored_field_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol field 'componants'; did you mean 'components'"):
        EvalProtocol.from_json({"componants": "all"})


def test_every_field_is_stored() -> None:
    assert set(EvalProtocol().to_json()) == {item.name for item in fields(EvalProtocol)}
