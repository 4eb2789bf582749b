"""Hide patches: a grid from the top left corner, each patch by its own coin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.layers.hide_patches import check_patches, fill_hidden, hidden_pixels, scaled_sides
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec


def hidden(
    count: int, height: int, width: int, sides: tuple[int, ...], p: float = 0.5, seed: int = 0
) -> torch.Tensor:
    return hidden_pixels(torch.zeros(count, 3, height, width), sides, p, torch.Generator().manual_seed(seed))


def borders(patterns: torch.Tensor, dim: int) -> list[int]:
    """Where neighbouring pixels differ in any of the images."""
    patterns = patterns.movedim(dim, 0)
    return [
        place for place in range(1, len(patterns)) if not torch.equal(patterns[place], patterns[place - 1])
    ]


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        (224, 44, [44, 88, 132, 176, 220]),  # 6 patches, the last 4 pixels wide
        (224, 16, list(range(16, 224, 16))),  # 14 patches
        (224, 32, list(range(32, 224, 32))),  # 7
        (224, 56, [56, 112, 168]),  # 4
        (10, 4, [4, 8]),  # 4, 4, 2
    ],
)
def test_patches_begin_at_multiples_of_their_side_and_the_last_is_cut_off(size, side, expected):
    patterns = hidden(16, size, size, (side,))
    assert borders(patterns, 2) == borders(patterns, 3) == expected


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 25), st.integers(0, 9))
def test_a_patch_is_hidden_or_shown_as_a_whole_on_images_of_any_shape(height, width, side, seed):
    pattern = hidden(2, height, width, (side,), seed=seed)
    corners = pattern[:, :, ::side, ::side]
    whole = corners.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)[:, :, :height, :width]
    assert torch.equal(pattern, whole)


def test_each_patch_is_hidden_with_chance_p_independent_of_the_others():
    cells = hidden(400, 16, 16, (4,), p=0.3)[:, 0, ::4, ::4].reshape(400, -1).double()
    assert abs(float(cells.mean()) - 0.3) < 0.02  # 6400 coins: four standard deviations
    correlation = torch.corrcoef(cells.T) - torch.eye(16)
    assert correlation.abs().max() < 0.25
    assert len({tuple(image) for image in cells.tolist()}) > 300


def test_p_0_hides_nothing_p_1_everything_and_one_patch_for_the_image_all_or_nothing():
    assert not hidden(5, 32, 32, (8,), p=0.0).any()
    assert hidden(5, 32, 32, (8,), p=1.0).all()
    whole = hidden(64, 32, 32, (32,)).flatten(1)
    assert torch.equal(whole.any(1), whole.all(1))
    assert 0 < whole.all(1).sum() < 64


def test_of_several_sides_each_image_has_one_and_all_are_equally_likely():
    patterns = hidden(600, 24, 24, (3, 8))
    fits = {
        side: (
            patterns == patterns[:, :, ::side, ::side].repeat_interleave(side, 2).repeat_interleave(side, 3)
        )
        .flatten(1)
        .all(1)
        for side in (3, 8)
    }
    assert (fits[3] | fits[8]).all()
    assert abs(float(fits[8].float().mean()) - 0.5) < 0.08


def test_side_0_shows_the_whole_image():
    whole = ~hidden(600, 12, 12, (0, 4, 6), p=1.0).flatten(1).any(1)
    assert abs(float(whole.float().mean()) - 1 / 3) < 0.08
    assert not hidden(4, 12, 12, (0,), p=1.0).any()


def test_sides_are_those_of_an_image_of_224_pixels():
    assert scaled_sides((0, 16, 32, 44, 56), 224) == (0, 16, 32, 44, 56)
    assert scaled_sides((0, 16, 32, 44, 56), 128) == (0, 9, 18, 25, 32)
    assert scaled_sides((1,), 32) == (1,)


def test_hidden_pixels_get_the_mean_or_black_and_the_given_images_stay():
    spec = InputSpec(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.5))
    images = torch.randn(3, 3, 8, 8)
    before, mask = images.clone(), hidden(3, 8, 8, (2,))
    for fill, expected in (("mean", [0.5, 0.4, 0.3]), ("black", [0.0, 0.0, 0.0])):
        changed = fill_hidden(images, mask, fill, spec)
        pixels = changed * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
        everywhere = mask.expand_as(images)
        wanted = torch.tensor(expected)[:, None, None].expand_as(images)
        torch.testing.assert_close(pixels[everywhere], wanted[everywhere], atol=1e-6, rtol=0)
        assert torch.equal(changed[~everywhere], images[~everywhere])
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("patch", "p", "message"),
    [
        ((), 0.5, "patch of method 'x' is none"),
        ((16, 0), 0.5, "patch of method 'x' is 16,0; expected"),
        ((4,), 1.5, "p of method 'x' is 1.5"),
        ((4,), float("nan"), "p of method 'x' is nan"),
    ],
)
def test_impossible_patches_are_refused(patch, p, message):
    with pytest.raises(UsageError, match=message):
        check_patches("x", patch, p, smallest=1)
