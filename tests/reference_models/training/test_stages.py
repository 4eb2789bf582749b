"""Runs in several stages."""

from __future__ import annotations

import pytest

from reference_models.core.recipes import Recipe
from reference_models.training.stages import stage_at, stage_if_any, stage_lr_factor


def test_stages_share_a_run_by_their_lengths_and_each_has_an_epoch():
    assert [stage_at(epoch, 271, (90, 90, 90, 1)).stage for epoch in (0, 89, 90, 179, 180, 269, 270)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
    ]
    assert [stage_at(epoch, 4, (90, 90, 90, 1)).stage for epoch in range(4)] == [0, 1, 2, 3]
    assert [stage_at(epoch, 5, (1, 1, 100)).stage for epoch in range(5)] == [0, 1, 2, 2, 2]
    place = stage_at(12.7, 27, (90, 90, 90, 1))
    assert (place.stage, place.start, place.stop) == (1, 9, 18)
    assert stage_at(27, 27, (90, 90, 90, 1)).stage == 3
    with pytest.raises(ValueError, match="3 epochs for 4 stages"):
        stage_at(0, 3, (90, 90, 90, 1))


def test_every_epoch_belongs_to_the_place_that_it_is_given():
    for epochs in range(4, 40):
        places = [stage_at(epoch, epochs, (90, 90, 60, 1)) for epoch in range(epochs)]
        assert sorted({place.stage for place in places}) == [0, 1, 2, 3]
        assert all(place.start <= epoch < place.stop for epoch, place in enumerate(places))


def test_each_stage_has_the_whole_schedule_and_a_run_without_stages_has_it_once():
    recipe = Recipe(source="", epochs=30, batch_size=1, lr=1.0, milestones=(0.5,))
    lengths, epochs = (20, 10), (0, 9, 10, 19, 20, 24, 25, 29)
    factors = [stage_lr_factor(recipe, at / 30, stage_if_any(at, 30, lengths)) for at in epochs]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 1, 1, 0.1, 0.1])
    assert [stage_lr_factor(recipe, at / 30, None) for at in (14, 15)] == pytest.approx([1, 0.1])
