"""The contracts of methods and post-processes, for classes that share nothing with this package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import DetectorRequest, InputSpec, Localization, Method, TrainRequest
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Sample

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Result(Localization):
    """Maps that are the class index everywhere; all else is the contract's default."""

    count: int

    @property
    def logits(self):
        return torch.eye(3)[: self.count]

    def score_maps(self, class_ids):
        return class_ids[:, :, None, None].expand(-1, -1, 4, 4).float()


class Proposing(Result):
    """A result with an extra map and one proposal per image."""

    @property
    def extra_maps(self):
        return {"edges": torch.full((self.count, 2, 2), 7.0)}

    @property
    def propose(self):
        boxes = torch.tensor([[[0.0, 0.0, 4.0, 2.0]]]).expand(self.count, 1, 4)
        return lambda: SimpleNamespace(boxes=boxes, padded=None)


class Plain(Method):
    """A method of numbers alone: no module, no parameters."""

    method_name = "plain"
    input_spec = InputSpec(size=8)
    num_classes = 3
    result: type[Result] = Result

    def localize(self, images):
        return self.result(len(images))

    def describe(self):
        return {"method": "plain"}


class WithMore(Plain):
    result = Proposing


@pytest.fixture
def sample() -> Sample:
    return Sample(id="a", array=np.zeros((8, 8, 3), np.uint8), label=2, size=(8, 8))


def output_of(method: Method, sample: Sample, map_name: str | None = None):
    source = ModelSource(method, EvalProtocol(), num_classes=3, device="cpu", batch_size=2, map_name=map_name)
    return source.maps([sample], source.collate([source.load(sample)]))


def test_a_result_with_logits_and_score_maps_alone_is_enough(sample):
    output = output_of(Plain(), sample)
    np.testing.assert_array_equal(output.maps[0], np.full((4, 4), 2.0))
    assert output.ranked.tolist() == [[0, 1, 2]]
    assert output.proposed is None
    plain = Result(1)
    assert plain.propose is None
    assert plain.penultimate is None
    assert (dict(plain.extra_maps), dict(plain.stages)) == ({}, {})


def test_an_extra_map_is_scored_by_its_name(sample):
    np.testing.assert_array_equal(output_of(WithMore(), sample, "edges").maps[0], np.full((2, 2), 7.0))
    with pytest.raises(UsageError, match="unknown map 'edge' of plain; did you mean 'edges'"):
        output_of(WithMore(), sample, "edge")
    with pytest.raises(UsageError, match="unknown map 'edges' of plain"):
        output_of(Plain(), sample, "edges")


def test_proposals_are_read_where_key_points_are_known(sample):
    assert output_of(WithMore(), sample).proposed is None
    pointed = replace(sample, key_points=np.array([[1.0, 2.0, 1.0]]))
    (parts,) = output_of(WithMore(), pointed).proposed
    assert parts.boxes.tolist() == [[0.0, 0.0, 4.0, 2.0]]
    assert parts.padded.tolist() == [False]
    assert parts.side == 8
    assert output_of(Plain(), pointed).proposed is None


def test_an_unrelated_class_is_no_result():
    assert not isinstance(SimpleNamespace(logits=None), Localization)


@pytest.mark.parametrize(
    ("kind", "rest"), [(TrainRequest, {}), (DetectorRequest, {"backbone": "tiny", "weights": "none"})]
)
@pytest.mark.parametrize("name", ["lr", "epochs", "batch_size"])
def test_an_option_and_the_setting_of_its_recipe_exclude_each_other(kind, rest, name: str) -> None:
    def request(**given):
        return kind(train=SimpleNamespace(), out=Path("run"), **rest, **given)

    with pytest.raises(UsageError, match=f"and --set recipe.{name}=3 change the same field"):
        request(**{name: 2}, settings={f"recipe.{name}": "3"})
    assert request(**{name: 2}, settings={"recipe.momentum": "0.5"}).settings
    assert request(settings={f"recipe.{name}": "3"}).settings
