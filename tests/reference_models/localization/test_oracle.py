"""The oracle of a grid draws the ground truth in cells, and finer grids score no lower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.localization.oracle import Oracle, drawn_boxes, grid_map
from wsolbench import EvalProtocol
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.maps.truths import true_box, true_mask
from wsolbench.methods import Supervision
from wsolbench.testing import squares


def create(**settings: str) -> Oracle:
    return Oracle.create(num_classes=3, settings=settings, image_size=224)


def scored(data, **settings):
    source = ModelSource(create(**settings), EvalProtocol(), num_classes=3, device="cpu", batch_size=8)
    return evaluate(data, source, EvalProtocol(), options=RunOptions(batch_size=8, resamples=100)).record


def test_a_drawn_box_has_the_exact_share_of_each_pixel():
    drawn = drawn_boxes(torch.tensor([[1.25, 0.0, 3.0, 2.5]]), 4)[0]
    expected = torch.zeros(4, 4)
    expected[:2, 1:3] = torch.tensor([0.75, 1.0])
    expected[2, 1:3] = torch.tensor([0.375, 0.5])
    assert torch.equal(drawn, expected)


def test_a_grid_is_the_mean_of_a_grid_twice_as_fine_and_keeps_the_share_of_the_box():
    truth = drawn_boxes(torch.tensor([[10.0, 3.5, 41.0, 50.25]]), 56)
    fine, coarse = grid_map(truth, 14, "area"), grid_map(truth, 7, "area")
    means = fine.reshape(1, 7, 2, 7, 2).mean(dim=(2, 4))
    torch.testing.assert_close(means, coarse)
    assert float(coarse.mean()) == pytest.approx(31.0 * 46.75 / 56**2)


def test_whole_cells_lose_an_object_below_half_of_every_cell():
    truth = drawn_boxes(torch.tensor([[6.0, 6.0, 10.0, 10.0]]), 16)
    assert grid_map(truth, 2, "cells").sum() == 0
    assert grid_map(truth, 16, "cells").sum() == 16


def test_a_fine_grid_finds_every_box_and_a_coarser_one_no_more():
    data = squares(24)
    values = [scored(data, cells=str(cells)).metric("gt_known", "oracle").value for cells in (7, 14, 28, 224)]
    assert values[-1] == 1
    assert values == sorted(values)
    record = scored(data)
    assert record.supervision == Supervision(boxes=True, used_for="prediction")


def test_the_truth_is_in_the_frame_of_the_input_also_when_the_protocol_crops():
    mask = np.zeros((40, 80), dtype=bool)
    mask[10:30, 20:60] = True
    sample = replace(squares(1).samples[0], size=(80, 40), boxes=np.array([[20.0, 10, 60, 30]]))
    sample.__dict__["mask"] = lambda: mask
    for protocol in (EvalProtocol(), EvalProtocol(frame="center_crop")):
        x0, y0, x1, y1 = true_box(sample, 112, protocol)
        drawn = true_mask(sample, 112, protocol)
        expected = np.zeros((112, 112), dtype=bool)
        pixels = np.arange(112) + 0.5
        expected[(pixels >= y0) & (pixels < y1)] = (pixels >= x0) & (pixels < x1)
        np.testing.assert_array_equal(drawn, expected)


def test_without_ground_truth_it_says_what_is_missing():
    with pytest.raises(UsageError, match="of=box needs the ground truth"):
        create().localize(torch.rand(1, 3, 224, 224))
    with pytest.raises(DataError, match="has no mask"):
        scored(squares(2), of="mask")
