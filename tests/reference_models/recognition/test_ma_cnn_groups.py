"""The channel groups of MA-CNN: clusters, maps that can and cannot be compact, and both geometric losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference_models.recognition.ma_cnn.channel_groups import (
    ChannelGroups,
    attention_maps,
    cauchy_loss,
    cluster_channels,
    distance_loss,
    diversity_loss,
    evidence,
    part_features,
    peak_vectors,
    peaks,
    random_partition,
    squared_distances,
)

GOLDEN = torch.tensor(
    [[[0.5, 0.2, 0], [0.2, 0.1, 0], [0, 0, 0]], [[0, 0.1, 0.4], [0, 0.2, 0.3], [0, 0, 0]]],
    dtype=torch.float64,
)[None]


# --- groups of channels -------------------------------------------------------------------------------------


def test_a_channel_is_the_vector_of_its_peaks_in_all_images():
    features = torch.zeros(2, 2, 4, 8)
    features[0, 0, 1, 2] = features[1, 0, 3, 7] = features[0, 1, 0, 0] = features[1, 1, 2, 5] = 1
    expected = [[2.5 / 8, 7.5 / 8, 1.5 / 4, 3.5 / 4], [0.5 / 8, 5.5 / 8, 0.5 / 4, 2.5 / 4]]
    torch.testing.assert_close(peak_vectors(features), torch.tensor(expected))


def test_the_scale_of_a_channel_does_not_move_its_peaks():
    features, scale = torch.rand(3, 6, 5, 7), torch.rand(1, 6, 1, 1) + 0.1
    assert torch.equal(peak_vectors(features), peak_vectors(scale * features))


def test_channels_with_equal_peaks_fall_into_one_cluster():
    spots, rng = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]), np.random.default_rng(3)
    of = rng.permutation(np.repeat(np.arange(4), 10))
    vectors = np.tile(spots[of], (1, 5)) + rng.normal(scale=0.01, size=(40, 10))
    found = cluster_channels(vectors, 4)
    assert found.shape == (4, 40)
    assert found.sum(axis=0).tolist() == [1] * 40
    for spot in range(4):
        rows = found[:, of == spot]
        assert sorted(rows.sum(axis=1).tolist()) == [0, 0, 0, 10]
    assert np.array_equal(found, cluster_channels(vectors, 4))


def test_a_channel_has_no_peak_in_an_image_in_which_all_its_cells_are_equal():
    features = torch.zeros(2, 2, 3, 3)
    features[0, 0, 1, 2] = features[1, 1, 2, 0] = 1
    features[1, 0] = 7
    missing = torch.nan
    expected = [[2.5 / 3, missing, 1.5 / 3, missing], [missing, 0.5 / 3, missing, 2.5 / 3]]
    torch.testing.assert_close(peak_vectors(features), torch.tensor(expected), equal_nan=True)


def test_channels_are_grouped_by_where_their_peaks_are_and_not_by_how_often_they_are_0():
    """Each channel has its peak at one of four spots, and is 0 in many images, as behind a ReLU."""
    spots, generator = [(1, 1), (1, 5), (5, 1), (5, 5)], torch.Generator().manual_seed(0)
    of, features = torch.arange(40) % 4, torch.zeros(60, 40, 7, 7)
    shown = torch.rand(60, 40, generator=generator) > torch.linspace(0.1, 0.8, 10).repeat_interleave(4)
    for channel in range(40):
        features[:, channel, spots[of[channel]][0], spots[of[channel]][1]] = shown[:, channel].float()
    vectors = peak_vectors(features).numpy()
    found = cluster_channels(vectors, 4)
    sizes = [sorted(found[:, of.numpy() == spot].sum(axis=1).tolist()) for spot in range(4)]
    assert sizes == [[0, 0, 0, 10]] * 4
    # With the first cell as peak of a channel that is 0, the groups are others.
    first_cell = cluster_channels(np.nan_to_num(vectors, nan=0.5 / 7), 4)
    assert (first_cell[:, of.numpy() == 3].sum(axis=1) > 0).sum() > 1


def test_the_control_divides_channels_into_groups_of_equal_size():
    found = random_partition(18, 4)
    assert sorted(found.sum(axis=1).tolist()) == [4, 4, 5, 5]
    assert found.sum(axis=0).tolist() == [1] * 18
    assert not np.array_equal(np.sort(found.argmax(axis=0)), found.argmax(axis=0))


def test_shares_are_those_of_two_layers_for_each_group():
    groups, features = ChannelGroups(16, 4, 3), torch.rand(2, 16, 8, 8)
    found = groups(features)
    for part in range(4):
        first, second = groups.first[part], groups.second[part]
        hidden = torch.tanh(features.mean(dim=(2, 3)) @ first.weight.T + first.bias)
        torch.testing.assert_close(found[:, part], hidden @ second.weight.T + second.bias)
        assert first.weight.shape == (3, 16)


# --- maps ---------------------------------------------------------------------------------------------------


def test_the_released_map_is_a_softmax_in_closed_form():
    summed = 300 * torch.randn(2, 4, 5, 6, dtype=torch.float64)
    found = attention_maps(summed, 16, "official")
    base = F.softplus(torch.tanh(0.1 * summed / 16)) ** 4
    torch.testing.assert_close(
        found.double(), base / base.sum(dim=(2, 3), keepdim=True), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("form", "bound"), [("paper", 2.0), ("official", 12.9)])
def test_negative_two_cells_of_a_map_of_features_that_are_not_negative_differ_by_a_bounded_factor(
    form, bound
):
    """The highest map of 28x28 cells that there can be: one cell without limit, the others 0."""
    summed = torch.zeros(1, 1, 28, 28)
    summed[..., 14, 14] = 1e6
    found = attention_maps(summed, 512, form)[0, 0]
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found.max() / found.min()).item() == pytest.approx(bound, abs=0.05)
    assert found.max().item() == pytest.approx({"paper": 0.00255, "official": 0.0162}[form], rel=5e-3)
    bounds = attention_maps(50 * torch.rand(3, 4, 7, 7), 16, form).flatten(2)
    assert (bounds.amax(dim=2) / bounds.amin(dim=2)).max() <= bound + 0.05
    torch.testing.assert_close(bounds.sum(dim=2), torch.ones(3, 4))


def test_negative_the_spread_of_a_printed_map_is_four_fifths_of_the_uniform_one_s_or_more():
    """A map of least spread has its highest value near its peak and its lowest elsewhere: all radii are tried."""
    top = torch.tensor([[14 * 28 + 14]])
    squared = squared_distances(top, (28, 28), "cell")
    spreads = [
        distance_loss(attention_maps(1e6 * (squared < level), 512, "paper"), top, "cell").item()
        for level in range(400)
    ]
    assert spreads[0] == pytest.approx(131, abs=0.1)  # a uniform map
    assert min(spreads) == pytest.approx(107.7, abs=0.1)


def test_negative_the_sum_of_many_channels_saturates_the_printed_sigmoid():
    features = torch.rand(2, 512, 7, 7)
    shares = torch.full((2, 4, 512), 0.5, requires_grad=True)
    summed = evidence(shares, features)
    flat = attention_maps(summed, 512, "paper")
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 49))
    (gradient,) = torch.autograd.grad(
        distance_loss(flat, peaks(summed), "side").sum(), shares, retain_graph=True
    )
    assert not gradient.any()
    live = distance_loss(attention_maps(summed, 512, "official"), peaks(summed), "side").sum()
    assert torch.autograd.grad(live, shares)[0].any()


def test_a_uniform_map_gives_the_mean_of_the_features_and_a_single_cell_its_own():
    features = torch.rand(2, 3, 4, 5)
    maps = torch.full((2, 2, 4, 5), 1 / 20)
    maps[:, 1] = 0
    maps[:, 1, 2, 3] = 1
    found = part_features(maps, features)
    torch.testing.assert_close(found[:, 0], features.mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, 1], features[:, :, 2, 3])


# --- losses -------------------------------------------------------------------------------------------------


def test_golden_values_of_the_losses():
    top = peaks(GOLDEN)
    assert distance_loss(GOLDEN, top, "cell")[0].tolist() == pytest.approx([0.6, 0.8])
    assert diversity_loss(GOLDEN, 0.02)[0].tolist() == pytest.approx([0.02, 0.02])
    assert cauchy_loss(GOLDEN, top, normalised=False)[0].tolist() == pytest.approx(
        [0.3161728, 0.3628395], abs=1e-7
    )
    assert distance_loss(GOLDEN, top, "side")[0].tolist() == pytest.approx([0.6 / 9, 0.8 / 9])


def losses_by_loops(maps: torch.Tensor, margin: float) -> tuple[list[float], list[float], list[float]]:
    """Dis in sides, Div and the Cauchy loss, cell by cell."""
    count, height, width = maps.shape
    spread, overlap, fit = [], [], []
    for i in range(count):
        cells = [(y, x) for y in range(height) for x in range(width)]
        ty, tx = max(cells, key=lambda cell: (float(maps[i][cell]), -cell[0], -cell[1]))
        spread.append(
            sum(float(maps[i, y, x]) * (((x - tx) / width) ** 2 + ((y - ty) / height) ** 2) for y, x in cells)
        )
        overlap.append(
            sum(
                float(maps[i, y, x]) * (max(float(maps[k, y, x]) for k in range(count) if k != i) - margin)
                for y, x in cells
            )
        )
        target = {(y, x): 1 / (1 + (x - tx) ** 2 + (y - ty) ** 2) for y, x in cells}
        total = sum(target.values())
        fit.append(sum((float(maps[i][cell]) - target[cell] / total) ** 2 for cell in cells) / 2)
    return spread, overlap, fit


def test_the_losses_are_those_of_the_loops():
    maps = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    maps = maps / maps.sum(dim=(2, 3), keepdim=True)
    top = peaks(maps)
    for number in range(2):
        spread, overlap, fit = losses_by_loops(maps[number], 0.02)
        assert distance_loss(maps, top, "side")[number].tolist() == pytest.approx(spread)
        assert diversity_loss(maps, 0.02)[number].tolist() == pytest.approx(overlap)
        assert cauchy_loss(maps, top)[number].tolist() == pytest.approx(fit)


def test_dis_is_0_for_a_single_cell_alone():
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 0, 1, 2] = 1
    maps[0, 1, 1, 2], maps[0, 1, 0, 0] = 0.9, 0.1
    found = distance_loss(maps, peaks(maps), "cell")[0]
    assert found[0] == 0
    assert found[1].item() == pytest.approx(0.1 * 5)


def test_div_is_least_for_distinct_cells_and_highest_for_equal_ones():
    apart, equal = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    apart[0, 0, 0, 0] = apart[0, 1, 2, 2] = 1
    equal[0, :, 1, 1] = 1
    assert diversity_loss(apart, 0.02)[0].tolist() == pytest.approx([-0.02] * 2)
    assert diversity_loss(equal, 0.02)[0].tolist() == pytest.approx([0.98] * 2)


def test_negative_the_margin_has_no_gradient():
    summed = torch.randn(2, 4, 5, 5, requires_grad=True)
    gradients = [
        torch.autograd.grad(diversity_loss(attention_maps(summed, 4, "paper"), margin).sum(), summed)[0]
        for margin in (0.0, 0.5)
    ]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-4


def test_permuted_groups_have_permuted_losses():
    maps, order = attention_maps(torch.randn(2, 4, 5, 5), 4, "official"), [2, 0, 3, 1]
    for loss in (lambda m: distance_loss(m, peaks(m), "side"), lambda m: diversity_loss(m, 0.02)):
        torch.testing.assert_close(loss(maps[:, order]), loss(maps)[:, order])


@pytest.mark.parametrize("loss", ["dis", "cauchy"])
def test_descent_on_the_released_maps_makes_them_more_compact(loss):
    summed = torch.randn(1, 2, 7, 7).mul(5).requires_grad_()
    top = peaks(summed.detach())

    def spread() -> float:
        return distance_loss(attention_maps(summed, 1, "official"), top, "side").sum().item()

    before = spread()
    for _ in range(20):
        maps = attention_maps(summed, 1, "official")
        value = (cauchy_loss(maps, top) if loss == "cauchy" else distance_loss(maps, top, "side")).sum()
        (gradient,) = torch.autograd.grad(value, summed)
        with torch.no_grad():
            summed -= 2 * gradient / gradient.abs().max()
    assert spread() < 0.9 * before


def test_distances_are_between_centres_of_cells():
    found = squared_distances(torch.tensor([[5]]), (2, 4), "cell")[0, 0]  # row 1, column 1
    assert found.tolist() == [[2, 1, 2, 5], [1, 0, 1, 4]]
