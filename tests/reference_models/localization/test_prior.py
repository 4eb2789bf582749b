"""The priors ignore the image: the Gaussian, the best box and the mean mask of a split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_models.localization.prior import Prior, best_box, gaussian, mean_mask
from wsolbench.exceptions import DataError
from wsolbench.methods import TrainRequest, load_method
from wsolbench.testing import squares


def create(**settings: str) -> Prior:
    return load_method("prior").create(backbone="tiny", num_classes=3, weights="none", settings=settings)


def test_the_level_sets_of_the_gaussian_are_centred_and_shrink():
    values = gaussian(40, 60, 0.25, torch.device("cpu"))
    assert torch.equal(values, values.flip(0))
    assert torch.equal(values, values.flip(1))
    sizes = []
    for tau in (0.2, 0.5, 0.8):
        rows, columns = torch.nonzero(values > tau, as_tuple=True)
        assert rows.min() + rows.max() == 39
        assert columns.min() + columns.max() == 59
        sizes.append(len(rows))
    assert sizes == sorted(sizes, reverse=True)
    # One sigma from the centre along x: exp(-1/2).
    assert values[20, 45] == pytest.approx(np.exp(-0.5), abs=0.03)


def test_the_map_depends_neither_on_the_image_nor_on_the_class():
    model = create().eval()
    images = torch.rand(2, 3, 32, 48)
    maps = model.score_maps(images, torch.tensor([[0, 1], [2, 2]]))
    assert all(torch.equal(one, maps[0, 0]) for one in maps.flatten(0, 1))
    assert model.localize(images).logits is None


def brute_force(boxes, cells, deltas):
    """Score every box on the grid by pixels of the grid, one image at a time."""
    best, found = -1.0, None
    for x0 in range(cells):
        for x1 in range(x0 + 3, cells + 1):
            for y0 in range(cells):
                for y1 in range(y0 + 3, cells + 1):
                    candidate = np.zeros((cells, cells), dtype=bool)
                    candidate[y0:y1, x0:x1] = True
                    rate = 0.0
                    for each in boxes:
                        ious = []
                        for box in each:
                            a, b, c, d = (box * cells).round().astype(int)
                            one = np.zeros_like(candidate)
                            one[b:d, a:c] = True
                            ious.append((one & candidate).sum() / (one | candidate).sum())
                        rate += np.mean([max(ious) >= delta for delta in deltas]) / len(boxes)
                    if rate > best + 1e-12:
                        best, found = rate, np.array([x0, y0, x1, y1]) / cells
    return best, found


def rate_of(box, boxes, cells, deltas):
    hits = []
    for each in boxes:
        ious = []
        for one in each:
            w, h = (min(box[axis + 2], one[axis + 2]) - max(box[axis], one[axis]) for axis in (0, 1))
            shared = max(w, 0) * max(h, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, one)]
            ious.append(shared / (sum(areas) - shared))
        hits.append(np.mean([max(ious) >= delta for delta in deltas]))
    return float(np.mean(hits))


@pytest.mark.parametrize("deltas", [(0.5,), (0.3, 0.5, 0.7)])
def test_no_box_on_the_grid_is_better_than_the_best_one(deltas):
    rng, cells = np.random.default_rng(0), 8
    boxes = []
    for count in (1, 2, 1, 3, 1, 1):
        low = rng.integers(0, 4, (count, 2))
        high = low + rng.integers(2, 4, (count, 2))
        boxes.append(np.concatenate([low, high], axis=1) / cells)
    best, _ = brute_force(boxes, cells, deltas)
    found = best_box(boxes, cells, deltas)
    assert rate_of(found, boxes, cells, deltas) == pytest.approx(best)


def test_with_one_training_box_on_the_grid_both_priors_are_that_box():
    box = np.array([[4 / 28, 8 / 28, 12 / 28, 26 / 28]])
    np.testing.assert_allclose(best_box([box], 28, (0.99,)), box[0])
    sample = replace(squares(1).samples[0], size=(56, 112), boxes=box * (56, 112, 56, 112))
    expected = np.zeros((28, 28))
    expected[8:26, 4:12] = 1
    np.testing.assert_allclose(mean_mask([sample], 28), expected)


def mirrored(data):
    samples = []
    for sample in data.samples:
        boxes = sample.boxes.copy()
        boxes[:, [0, 2]] = sample.size[0] - boxes[:, [2, 0]]
        samples.append(replace(sample, boxes=boxes))
    return samples


def test_mirrored_data_have_the_mirrored_mean_mask_and_its_mean_is_the_share_of_the_boxes():
    data = squares(12)
    mean = mean_mask(data.samples, 28)
    np.testing.assert_allclose(mean_mask(mirrored(data), 28), mean[:, ::-1], atol=1e-12)
    shares = [np.prod(sample.boxes[0, 2:] - sample.boxes[0, :2]) / 32**2 for sample in data.samples]
    assert mean.mean() == pytest.approx(np.mean(shares), rel=0.02)


@pytest.mark.parametrize("kind", ["best-box", "mean-mask"])
def test_a_fitted_prior_is_loaded_with_its_map_and_says_what_it_has_read(kind, tmp_path):
    data = squares(12)
    request = TrainRequest(
        train=data,
        out=tmp_path / "run",
        backbone="tiny",
        weights="none",
        settings={"kind": kind},
        device="cpu",
    )
    method = load_method("prior")
    loaded = method.load(method.fit(request), device="cpu")
    made = loaded.map_at(224, 224, torch.device("cpu"))
    assert 0 < float(made.mean()) < 1
    assert loaded.describe()["supervision"] == {
        "labels": False,
        "boxes": True,
        "masks": kind == "mean-mask",
        "used_for": "training",
    }
    assert not create(kind=kind).ready
    assert "supervision" not in create().describe()


def test_a_split_without_boxes_is_refused_with_the_way_out(tmp_path):
    data = squares(4)
    bare = replace(data, samples=[replace(sample, boxes=np.zeros((0, 4))) for sample in data.samples])
    request = TrainRequest(
        train=bare, out=tmp_path / "run", backbone="tiny", weights="none", settings={"kind": "best-box"}
    )
    with pytest.raises(DataError, match=r"needs ground-truth boxes; found none.*split=val"):
        load_method("prior").fit(request)


def test_the_split_is_a_setting():
    assert Prior.train_split({}) == "train"
    assert Prior.train_split({"split": "val"}) == "val"
