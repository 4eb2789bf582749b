"""A model as the source of maps: the same maps however a run is cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.made_up import eval_request
from tests.reference_models.conftest import squares
from wsolbench.evaluation import loop
from wsolbench.evaluation.evaluate import conclude, evaluate, score_together
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import load_method, load_post
from wsolbench.methods.device import normalized
from wsolbench.methods.inputs import to_input
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.system.processes import WorkerPool

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


@pytest.mark.parametrize("classifier", ["single", "ten_crop"])
def test_on_a_gpu_the_host_waits_once_for_all_that_a_batch_gives(classifier, monkeypatch):
    from dataclasses import replace

    from tests.methods.test_transfers import Streams
    from wsolbench.testing.fake_cuda import FakeCuda

    made, data = source(4, replace(PROTOCOL, classifier=classifier)), squares(3)
    batch = made.collate([made.load(sample) for sample in data.samples])
    expected = made.maps(data.samples, batch)
    with FakeCuda() as gpu, Streams().patched() as streams:
        gpu.move(made.method)
        made.device = torch.device("cuda")
        pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
        finish = made.start(data.samples, pinned, [made])
        assert not [line for line in streams.log if "host waits" in line or "waiting" in line]
        # Labels and images, and the ten crops of each, are copied while the device computes.
        copies = [line for line in streams.log if "copy on" in line]
        assert copies == ["pinned copy on second"] * (2 + (classifier == "ten_crop"))
        (output,) = finish()
    assert len([line for line in streams.log if "host waits" in line]) == 1
    # The fake GPU does not know that copies to pinned memory do not wait.
    reads = {event.where.partition(":")[0] for event in gpu.events if event.kind == "read"}
    assert reads == {"methods/transfers.py"}
    np.testing.assert_allclose(np.stack(output.maps), np.stack(expected.maps), rtol=1e-5)
    assert np.array_equal(output.ranked, expected.ranked)


def test_worker_processes_change_no_bit(monkeypatch):
    monkeypatch.setattr(loop, "WORTH_SECONDS", 0.0)
    data, processes = squares(23), source(8)
    started = []

    class Pool(WorkerPool):
        def __init__(self, *how, **more) -> None:
            super().__init__(*how, **more)
            started.append(self)

    monkeypatch.setattr(loop, "WorkerPool", Pool)
    records = [
        evaluate(data, processes, PROTOCOL, options=RunOptions(batch_size=8, workers=workers, resamples=100))
        for workers in (1, 2)
    ]
    assert len(started) == 1
    assert not started[0]._end.alive  # closed
    np.testing.assert_array_equal(*(record.scores.load().best_iou for record in records))
    assert records[0].record.digest == records[1].record.digest


def read_from(method, post=None, map_name=None):
    return ModelSource(
        method, PROTOCOL, num_classes=3, device="cpu", batch_size=8, post=post, map_name=map_name
    )


@pytest.mark.parametrize("on_disk", [False, True])
def test_one_pass_gives_the_maps_of_several_posts_to_the_bit(tmp_path, monkeypatch, on_disk):
    method, data = model(), squares(23)
    posts = [None, load_post("scg").create({}), load_post("tokencut").create({})]
    options = RunOptions(batch_size=8, resamples=100)
    alone = [evaluate(data, read_from(method, post), PROTOCOL, options=options) for post in posts]
    passes = []
    localize = type(method).localize
    monkeypatch.setattr(
        type(method), "localize", lambda self, images: passes.append(len(images)) or localize(self, images)
    )
    work = tmp_path / "work" if on_disk else None
    requests = [
        eval_request(
            data,
            read_from(method, post),
            PROTOCOL,
            options=RunOptions(
                batch_size=8, resamples=100, work=work, save_maps=MapFolder(tmp_path / str(place))
            ),
        )
        for place, post in enumerate(posts)
    ]
    together = [conclude(run) for run in score_together(requests)]
    assert passes == [8] * 3
    for one, other, folder in zip(alone, together, requests, strict=True):
        assert one.record.digest == other.record.digest
        for field, rows in one.scores.load().arrays().items():
            np.testing.assert_array_equal(rows, other.scores.load().arrays()[field])
        # Each post has its maps in its own folder: they give the same record's scores again.
        stored = FolderSource(folder.options.save_maps, name="stored")
        again = evaluate(data, stored, PROTOCOL, options=options)
        np.testing.assert_array_equal(again.scores.load().best_iou, one.scores.load().best_iou)
    assert len({evaluation.record.digest for evaluation in together}) == 3
    names = [f"wsoleval of {name}" for name in ("cam", "cam+scg", "cam+tokencut")]
    assert together[0].record.provenance["scored_together"] == names


def test_a_pass_with_gradients_or_of_another_network_is_not_shared():
    method, data = model(), squares(3)
    one = read_from(method)
    for other in (read_from(method, load_post("grad-cam").create({})), read_from(model())):
        assert one.pass_key != other.pass_key
        with pytest.raises(UsageError, match="sources that one pass does not serve"):
            score_together([eval_request(data, each, PROTOCOL) for each in (one, other)])
