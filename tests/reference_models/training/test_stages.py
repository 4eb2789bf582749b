"""Runs in several stages."""

from __future__ import annotations

import pytest

from reference_models.training.stages import stage_at


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
