"""A model as the source of maps: the same maps however a run is cut into batches."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference_models.conftest import squares
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import load_method
from wsolbench.methods.device import normalized
from wsolbench.methods.inputs import to_input
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.05), frame_size=32, resize_size=36)


def model():
    return load_method("cam").create(
        backbone="tiny", num_classes=3, weights="none", settings={}, image_size=32
    )


def source(batch_size: int, protocol: EvalProtocol = PROTOCOL) -> ModelSource:
    return ModelSource(model(), protocol, num_classes=3, device="cpu", batch_size=batch_size)


def seen_by(made: ModelSource, pixels):
    return normalized(pixels, made.method.input_spec, made.device)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 23, 64])
def test_the_batch_size_changes_no_bit(batch_size):
    data = squares(23)
    sources = [source(16), source(batch_size)]
    sources[1].method.load_state_dict(sources[0].method.state_dict())
    one, two = (
        evaluate(data, s, PROTOCOL, options=RunOptions(batch_size=s.batch_size, resamples=100))
        for s in sources
    )
    np.testing.assert_array_equal(one.scores.load().best_iou, two.scores.load().best_iou)
    assert one.record.digest == two.record.digest


def test_an_incomplete_batch_is_filled_and_cut_again():
    made, data = source(8), squares(3)
    batch = made.collate([made.load(sample) for sample in data.samples])
    assert batch["image"].shape == (8, 32, 32, 3)
    output = made.maps(data.samples, batch)
    assert len(output.maps) == 3
    assert output.ranked.shape == (3, 3)


@pytest.mark.parametrize("frame", ["squash", "center_crop"])
def test_the_network_sees_the_normalised_view(frame):
    from dataclasses import replace

    protocol = replace(PROTOCOL, frame=frame)
    made, (sample, *_) = source(2, protocol), squares(2, size=50).samples
    seen = seen_by(made, made.collate([made.load(sample)])["image"])[0].numpy()
    expected = to_input(sample.image(), made.method.input_spec, frame=frame, resize_size=36)
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_ten_crops_give_the_labels():
    from dataclasses import replace

    made, data = source(2, replace(PROTOCOL, classifier="ten_crop")), squares(2)
    batch = made.collate([made.load(sample) for sample in data.samples])
    assert batch["crops"].shape == (2, 10, 32, 32, 3)
    ranked = made.maps(data.samples, batch).ranked
    logits = [made.method.localize(seen_by(made, crops)).logits for crops in batch["crops"]]
    assert [int(each.softmax(1).mean(0).argmax()) for each in logits] == ranked[:, 0].tolist()
