"""SCG: what its settings change, which are refused, and the pictures of a point."""

from __future__ import annotations

import pytest
import torch

from reference_models.layers.correlation import unit_pixels
from reference_models.postprocess.scg.method import (
    Scg,
    ScgConfig,
    eq8_correlations,
    point_correlations,
    stochastic_correlations,
)
from tests.reference_models.postprocess.scg_inputs import (
    CLOSE,
    VARIANTS,
    every_map,
    forward_pass,
    random_inputs,
    scg,
)
from wsolbench.exceptions import UsageError
from wsolbench.testing.fake_cuda import FakeCuda

# --- settings -----------------------------------------------------------------------------------------------


def test_unset_values_are_those_of_the_scripts_for_the_kind_of_data():
    stages, coarse = random_inputs(4)
    asked = torch.tensor([[0], [2]])
    for classes, values in ((200, ("0.1", "0.5", "2")), (1000, ("0.2", "0.2", "1"))):
        explicit = scg(**dict(zip(("fo_th", "so_th", "so_weight"), values, strict=True)))
        result = forward_pass(stages, coarse, classes)
        assert torch.equal(scg().maps(result, asked), explicit.maps(result, asked))
    assert not torch.equal(
        scg().maps(forward_pass(stages, coarse, 200), asked),
        scg().maps(forward_pass(stages, coarse, 1000), asked),
    )


def test_the_variants_differ_in_what_the_paper_and_the_code_do_differently():
    official, paper = scg("official").config, scg("paper").config
    assert official == ScgConfig()
    different = {name for name in vars(official) if getattr(official, name) != getattr(paper, name)} - {
        "variant"
    }
    assert different == {
        "correlation",
        "so_weight",
        "inclusive",
        "seed_axis",
        "stretch_seeds",
        "aggregate",
        "stretch_sums",
        "stretch_map",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fo_th", "0.9"),
        ("so_th", "1.2"),
        ("so_weight", "0.3"),
        ("order", "3"),
        ("delta_h", "0.6"),
        ("delta_l", "0.09"),
        ("combine", "first"),
        ("combine", "high"),
        ("across_stages", "max"),
        ("correlation", "eq8"),
        ("seed_axis", "row"),
        ("stretch_seeds", "false"),
        ("stretch_sums", "false"),
        ("stretch_map", "false"),
        ("features", "-1,penultimate"),
        ("features", "-1"),
    ],
)
def test_every_setting_changes_the_map(name, value):
    stages, coarse = random_inputs(11)
    assert not torch.allclose(
        every_map(scg(**{name: value}), stages, coarse), every_map(scg(), stages, coarse), atol=1e-4
    )


@pytest.mark.parametrize(("threshold", "value"), [("delta_h", 0.1), ("delta_l", 0.05)])
def test_a_value_on_a_threshold_counts_only_where_thresholds_are_inclusive(threshold, value):
    stages, _ = random_inputs(5)
    coarse = torch.full((2, 1, 5, 5), 0.07)  # neither
    coarse[:, :, 0], coarse[:, :, 4] = 1.0, 0.0
    without = every_map(scg(), stages, coarse)
    coarse[:, :, 1] = value
    torch.testing.assert_close(every_map(scg(inclusive="false"), stages, coarse), without)
    assert not torch.allclose(every_map(scg(), stages, coarse), without, atol=1e-4)


def test_sums_and_means_are_the_same_once_stretched_and_differ_before():
    stages, coarse = random_inputs(6)
    torch.testing.assert_close(
        every_map(scg(aggregate="mean"), stages, coarse), every_map(scg(), stages, coarse), atol=5e-5, rtol=0
    )
    one, two = (
        every_map(scg(aggregate=kind, stretch_sums="false"), stages, coarse) for kind in ("mean", "sum")
    )
    assert not torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"features": ""},
        {"order": "0"},
        {"delta_l": "0.2"},
        {"delta_l": "-0.1"},
        {"delta_h": "1.5"},
        {"fo_th": "-1"},
        {"so_th": "nan"},
        {"so_weight": "-2"},
        {"variant": "paper", "order": "3"},
        {"variant": "paper", "so_weight": "2"},
        {"variant": "paper", "aggregate": "sum"},
        {"stretch_map": "false", "stretch_sums": "false"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match="post-process 'scg'"):
        Scg.create(settings)


# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize(
    ("variant", "orders"),
    [
        ("official", (1, 2, 3, 4)),
        ("official", (4, 1, 2)),
        ("official", (1,)),
        ("official", (2,)),
        ("paper", (1, 2)),
        ("paper", (2, 1)),
        ("paper", (1,)),
    ],
    ids=str,
)
def test_the_pictures_of_a_point_are_what_the_map_is_made_of(variant, orders, axis):
    features = torch.rand(2, 6, 4, 5) - (0.3 if variant == "paper" else 0.0)
    features[1, :, 2, 2] = 0
    points = torch.tensor([[0, 3], [3, 1]])
    config = scg(variant, seed_axis=axis, **({"fo_th": "0.7"} if variant == "official" else {})).config
    maps = point_correlations(features, points, config, orders)
    assert maps.shape == (2, len(orders), 4, 5)
    pixels = unit_pixels(features)
    for image, flat in enumerate((3, 16)):
        for number, order in enumerate(orders):
            if variant == "paper":
                whole = eq8_correlations(pixels)[order - 1][image]
            else:
                both = stochastic_correlations(pixels, fo_th=0.7, so_th=0.5, order=max(order, 2))
                whole = both[order > 1][image]
            expected = whole[:, flat] if axis == "column" else whole[flat]
            assert expected.any()
            torch.testing.assert_close(maps[image, number], expected.reshape(4, 5), **CLOSE)


@pytest.mark.parametrize(("variant", "order"), [("official", 0), ("paper", 3)])
def test_there_is_no_picture_of_an_order_that_is_not_defined(variant, order):
    with pytest.raises(UsageError, match="order"):
        point_correlations(torch.rand(1, 6, 4, 5), torch.tensor([[0, 0]]), scg(variant).config, (order,))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("stage", "number"), [(None, 1), ("stage0", 0), ("stage1", 1), ("penultimate", 1)])
def test_a_point_in_the_view_means_the_cell_that_it_is_in(variant, stage, number):
    stages, coarse = random_inputs(0)
    points = torch.tensor([[0.0, 0.999999999], [0.41, 0.2]])  # x, y; in float32 the first y is 1
    name, maps = scg(variant).correlations(forward_pass(stages, coarse), points, orders=(1, 2), stage=stage)
    assert name == (stage or "stage1")
    expected = point_correlations(stages[number], torch.tensor([[4, 0], [1, 2]]), scg(variant).config)
    assert torch.equal(maps, expected)


def test_points_have_the_thresholds_of_the_map():
    stages, coarse = random_inputs(1)
    found = [
        scg().correlations(forward_pass(stages, coarse, classes), torch.rand(2, 2), orders=(1,))[1]
        for classes in (200, 1000)
    ]
    few, many = ((maps > 0).float().mean().item() for maps in found)  # fo_th 0.1, and 0.2
    assert many < few


def test_an_unknown_stage_is_refused_with_the_nearest_one():
    stages, coarse = random_inputs(0)
    with pytest.raises(UsageError, match="unknown feature stage 'stage2'; did you mean 'stage1'"):
        scg().correlations(forward_pass(stages, coarse), torch.zeros(2, 2), orders=(1,), stage="stage2")


@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_the_pictures_of_a_point_never_wait_for_the_host(variant, axis):
    features, points = torch.rand(2, 6, 4, 5), torch.tensor([[0, 3], [3, 1]])
    config = scg(variant, seed_axis=axis).config
    expected = point_correlations(features, points, config)
    with FakeCuda() as gpu:
        maps = point_correlations(gpu.tensor(features), gpu.tensor(points), config)
        torch.testing.assert_close(gpu.values(maps), expected, **CLOSE)
    assert gpu.events == []
