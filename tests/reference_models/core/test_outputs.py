"""Extra maps are computed when they are read, in the precision of their method, and never before."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.outputs import LazyMaps
from wsolbench.methods import load_method
from wsolbench.testing.subject import random_images


def test_a_map_is_computed_when_it_is_read():
    asked: list[str] = []

    def make(name: str) -> torch.Tensor:
        asked.append(name)
        return torch.ones(1, 2, 2, requires_grad=True) * 2

    known = torch.zeros(1, 2, 2)
    maps = LazyMaps({name: lambda name=name: make(name) for name in "ab"}, {"first": known})
    assert list(maps) == ["first", "a", "b"]
    assert len(maps) == 3
    assert "a" in maps
    assert "c" not in maps
    assert maps["first"] is known
    assert not asked
    assert not maps["b"].requires_grad
    assert asked == ["b"]
    with pytest.raises(KeyError, match="c"):
        maps["c"]


def test_a_map_is_computed_in_its_context():
    maps = LazyMaps(
        {"product": lambda: torch.ones(1, 2, 2) @ torch.ones(1, 2, 2)},
        context=lambda: torch.autocast("cpu", enabled=False),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert maps["product"].dtype == torch.float32


@pytest.mark.parametrize(("name", "asked"), [("b-cnn", "gradient"), ("hbp", "pair_12"), ("nts-net", "union")])
def test_a_forward_pass_computes_no_extra_map(name, asked, monkeypatch):
    made = load_method(name).create(
        backbone="tiny", num_classes=3, weights="none", settings={}, image_size=64
    )
    made.eval()
    result = made.localize(random_images(2))
    maps = result.extra_maps
    assert isinstance(maps, LazyMaps)
    assert asked in maps._functions  # a function, not a map
    assert maps[asked].shape[0] == 2


def test_the_summands_of_hbp_add_up_to_the_map_of_the_predicted_class():
    made = load_method("hbp").create(
        backbone="tiny", num_classes=3, weights="none", settings={}, image_size=64
    )
    made.eval()
    result = made.localize(random_images(2))
    predicted = result.logits.argmax(dim=1, keepdim=True)
    total = sum(map_ for name, map_ in result.extra_maps.items() if name.startswith("pair_"))
    torch.testing.assert_close(total, result.score_maps(predicted)[:, 0])
