"""The one loop: complete, in order, resumable, and independent of how it is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import MadeUpSource, dataset
from PIL import Image

from wsolbench.datasets.subsets import limit_dataset
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.maps.sources import PARTS
from wsolbench.metrics import MaxBoxAcc, MeanPerClassAccuracy, ThresholdPolicy, TopKAccuracy, TopKLoc
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue
from wsolbench.types import Dataset, no_boxes

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a file, so that a dozen are several."""
    monkeypatch.setattr("wsolbench.evaluation.runs.CHUNK", 3)


def value(metrics: Sequence[MetricValue], name: str, policy: str | None = None) -> MetricValue:
    return next(m for m in metrics if m.name == name and (policy is None or m.policy == policy))


def test_maps_of_the_true_box_are_scored_right() -> None:
    metrics = evaluate(dataset(), MadeUpSource(), PROTOCOL).record.metrics
    assert value(metrics, "gt_known").value == 1.0
    assert value(metrics, "top1_cls").value == 0.75
    assert value(metrics, "top1_loc").value == 0.75
    assert value(metrics, "error_right").value == 0.75
    assert value(metrics, "error_cls").value == 0.25


def test_every_interval_holds_its_value() -> None:
    metrics = evaluate(
        dataset(40), MadeUpSource(), PROTOCOL, fixed_tau=0.8, transfer_from=dataset(8, "val", 1)
    ).record.metrics
    assert {m.policy for m in metrics} >= {None, "oracle", "fixed:0.8", "transfer"}
    for metric in metrics:
        if metric.value is not None:
            assert metric.low is not None
            assert metric.high is not None
            assert metric.low <= metric.value <= metric.high or metric.policy == "oracle"


def test_metrics_equal_the_accumulators() -> None:
    result = evaluate(dataset(20), MadeUpSource(), PROTOCOL)
    scores, metrics = result.scores.load(), result.record.metrics
    v2, v1 = MaxBoxAcc(PROTOCOL), MaxBoxAcc(PROTOCOL, deltas=(0.5,))
    loc, cls, mean_cls = TopKLoc(PROTOCOL, ks=(1,)), TopKAccuracy(ks=(1,)), MeanPerClassAccuracy()
    for row in range(len(scores)):
        v2.update(scores.best_iou[row])
        v1.update(scores.single_iou[row])
        loc.update(scores.single_iou[row], scores.ranked[row], int(scores.labels[row]))
        cls.update(scores.ranked[row], int(scores.labels[row]))
        mean_cls.update(scores.ranked[row], int(scores.labels[row]))
    assert value(metrics, "max_box_acc_v2").value == v2.compute().value
    assert value(metrics, "max_box_acc_v2").tau == v2.compute().tau_per_delta
    assert value(metrics, "max_box_acc").value == v1.compute().value
    assert value(metrics, "gt_known").value == loc.compute().gt_known
    assert value(metrics, "top1_loc").value == loc.compute().top_k[1]
    assert value(metrics, "top1_cls").value == cls.compute().top_k[1]
    assert value(metrics, "mean_class_accuracy").value == pytest.approx(mean_cls.compute().value, abs=1e-12)


def test_transfer_reads_the_threshold_that_is_best_on_the_other_split() -> None:
    val = dataset(8, "val", 1)
    best = value(evaluate(val, MadeUpSource(), PROTOCOL).record.metrics, "max_box_acc_v2", "oracle").tau
    transferred = value(
        evaluate(dataset(), MadeUpSource(), PROTOCOL, transfer_from=val).record.metrics,
        "max_box_acc_v2",
        "transfer",
    )
    assert transferred.tau == best
    accuracy = MaxBoxAcc(PROTOCOL)
    for row in evaluate(dataset(), MadeUpSource(), PROTOCOL).scores.load().best_iou:
        accuracy.update(row)
    assert best is not None
    assert transferred.value == accuracy.compute(ThresholdPolicy.transfer(best)).value


@pytest.mark.parametrize("name", EvalProtocol.presets())
def test_every_preset_evaluates(name: str) -> None:
    metrics = evaluate(
        dataset(6), MadeUpSource(), EvalProtocol.preset(name), options=RunOptions(resamples=100)
    ).record.metrics
    gt_known = value(metrics, "gt_known").value
    assert gt_known is not None
    assert gt_known > 0.5


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (5, 3), (100, 2)])
def test_batches_and_workers_change_nothing(batch_size: int, workers: int) -> None:
    base = evaluate(dataset(), MadeUpSource(), PROTOCOL)
    other = evaluate(
        dataset(), MadeUpSource(), PROTOCOL, options=RunOptions(batch_size=batch_size, workers=workers)
    )
    assert other.record.digest == base.record.digest
    assert other.scores.load().ids.tolist() == list(dataset().ids)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, small_chunks: None) -> None:
    options = RunOptions(batch_size=3, work=tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(dataset(), MadeUpSource(fail_after=2), PROTOCOL, options=options)
    source = MadeUpSource()
    resumed = evaluate(dataset(), source, PROTOCOL, options=options)
    assert len(source.loads) < len(dataset())
    assert "s0/000.png" not in source.loads
    assert resumed.record.digest == evaluate(dataset(), MadeUpSource(), PROTOCOL).record.digest
    resumed.finish()
    assert list(tmp_path.iterdir()) == []


def test_chunks_of_another_protocol_are_not_taken_over(tmp_path: Path) -> None:
    options = RunOptions(batch_size=3, work=tmp_path)
    evaluate(dataset(), MadeUpSource(), PROTOCOL, options=options)
    source = MadeUpSource()
    evaluate(dataset(), source, replace(PROTOCOL, components="union"), options=options)
    assert len(source.loads) == len(dataset())


def test_the_same_run_twice_at_once_is_refused(tmp_path: Path) -> None:
    options = RunOptions(work=tmp_path)

    class Nested(MadeUpSource):
        def maps(self, samples, batch):
            evaluate(dataset(), MadeUpSource(), PROTOCOL, options=options)
            return super().maps(samples, batch)

    with pytest.raises(UsageError, match="another process is evaluating the same run"):
        evaluate(dataset(), Nested(), PROTOCOL, options=options)


def test_two_different_runs_share_a_work_folder(tmp_path: Path) -> None:
    options = RunOptions(work=tmp_path)

    class Nested(MadeUpSource):
        def maps(self, samples, batch):
            evaluate(dataset(), MadeUpSource(), EvalProtocol.preset("spa"), options=options).finish()
            return super().maps(samples, batch)

    result = evaluate(dataset(), Nested(), PROTOCOL, options=options)
    assert result.record.digest == evaluate(dataset(), MadeUpSource(), PROTOCOL).record.digest


def test_stored_maps_give_the_same_numbers(tmp_path: Path) -> None:
    val = dataset(8, "val", 1)
    direct = evaluate(
        dataset(),
        MadeUpSource(),
        PROTOCOL,
        transfer_from=val,
        options=RunOptions(save_maps=MapFolder(tmp_path)),
    )
    from wsolbench.maps.predictions import PREDICTIONS, read_predictions

    source = FolderSource(
        MapFolder(tmp_path), name="made-up", ranked=read_predictions(tmp_path / PREDICTIONS, 3)
    )
    source.check(dataset(), PROTOCOL)
    assert evaluate(dataset(), source, PROTOCOL, transfer_from=val).record.metrics == direct.record.metrics


def test_maps_of_other_data_or_of_another_view_are_refused(tmp_path: Path) -> None:
    evaluate(dataset(), MadeUpSource(), PROTOCOL, options=RunOptions(save_maps=MapFolder(tmp_path)))
    source = FolderSource(MapFolder(tmp_path), name="made-up")
    with pytest.raises(DataError, match="other images or annotations"):
        source.check(dataset(11), PROTOCOL)
    with pytest.raises(DataError, match=r"cover the image.*--crop-maps"):
        source.check(dataset(), EvalProtocol.preset("bas"))


def test_maps_of_the_whole_image_are_cut_to_a_centre_crop(tmp_path: Path) -> None:
    folder, bas = MapFolder(tmp_path), EvalProtocol.preset("bas")
    evaluate(dataset(), MadeUpSource(), PROTOCOL, options=RunOptions(save_maps=folder))
    source = FolderSource(folder, name="made-up", crop=bas)
    source.check(dataset(), bas)
    record = evaluate(dataset(), source, bas).record
    assert record.method["maps"] == "stored, of the whole image, cut to the centre crop"
    assert record.metric("gt_known").value > 0.9
    with pytest.raises(UsageError, match="no centre crop"):
        source.check(dataset(), PROTOCOL)
    folder.write_manifest({"view": "center_crop"})
    with pytest.raises(DataError, match="must cover the image"):
        source.check(dataset(), bas)


def test_incomplete_predictions_are_refused(tmp_path: Path) -> None:
    source = FolderSource(MapFolder(tmp_path), name="x", ranked={"s0/000.png": [0]})
    with pytest.raises(DataError, match=r"predictions for the maps in .* lack 11 of 12 images"):
        source.check(dataset(), PROTOCOL)


def test_a_limit_is_spread_over_the_split() -> None:
    assert limit_dataset(dataset(12), 3).ids == ("s0/000.png", "s0/006.png", "s0/011.png")
    assert limit_dataset(dataset(12), 99).ids == dataset(12).ids
    with pytest.raises(UsageError, match="at least 1"):
        limit_dataset(dataset(12), 0)


@pytest.mark.parametrize("name", EvalProtocol.presets())
def test_some_images_may_have_a_mask_and_others_none(name: str, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    data = dataset(4)
    mixed = replace(data, samples=(replace(data[0], mask_paths=(tmp_path / "mask.png",)), *data.samples[1:]))
    metrics = evaluate(
        mixed, MadeUpSource(), EvalProtocol.preset(name), options=RunOptions(resamples=100)
    ).record.metrics
    assert value(metrics, "pxap").n == 1
    assert value(metrics, "gt_known").n == 4


def by_hand(single_iou: list[list[float]], labels: list[int]) -> ScoreTable:
    """Scores of two thresholds, with the right label predicted and no mask."""
    iou, n = np.array(single_iou), len(labels)
    scores = ImageScores(
        ids=np.array([str(i) for i in range(n)]),
        labels=np.array(labels),
        ranked=np.array(labels)[:, None],
        has_boxes=np.ones(n, dtype=bool),
        best_iou=iou,
        single_iou=iou,
        error_codes=np.where(iou > 0.5, 0, 3).astype(np.uint8),
        has_mask=np.zeros(n, dtype=bool),
        pixel_histogram=np.zeros((n, 2, 4), dtype=np.int32),
        level_histogram=np.zeros((n, 2, 256), dtype=np.int32),
        **{
            f"point_{name}": np.zeros((n, PARTS), dtype)
            for name, dtype in {
                "real": bool,
                "px": float,
                "norm": float,
                "hit": bool,
                "nearest": np.int64,
            }.items()
        },
    )
    return ScoreTable((scores,))


def test_the_error_breakdown_is_read_where_gt_known_is_also_when_classes_are_averaged() -> None:
    # images favour tau 0.1 (3 of 4 right), classes tau 0.2 (class 1 right, class 0 one of three: 2/3 against
    # 1/2)
    scores = by_hand([[0.9, 0.9], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]], [0, 0, 0, 1])
    protocol = EvalProtocol(taus=(0.1, 0.2), averaging="class")
    metrics = summarize(scores, protocol, resamples=100)
    assert value(metrics, "gt_known").tau == value(metrics, "error_right").tau == (0.2,)
    assert value(metrics, "gt_known").value == pytest.approx(2 / 3)
    assert value(metrics, "error_right").value == 0.5


def test_with_a_shared_threshold_the_parts_of_v2_average_to_the_whole() -> None:
    scores = by_hand([[0.4, 0.8], [0.4, 0.1]], [0, 1])
    metrics = summarize(scores, EvalProtocol(taus=(0.1, 0.2), v2_tau="shared"), resamples=100)
    whole = value(metrics, "max_box_acc_v2")
    parts = [value(metrics, f"max_box_acc_v2@{delta}") for delta in (0.3, 0.5, 0.7)]
    assert whole.tau == (0.2, 0.2, 0.2)
    assert {part.tau for part in parts} == {(0.2,)}
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))


def without_boxes(data: Dataset, keep: int = 0) -> Dataset:
    return replace(
        data,
        samples=tuple(s if i < keep else replace(s, boxes=no_boxes()) for i, s in enumerate(data.samples)),
    )


def test_metrics_that_need_boxes_say_so_where_there_are_none() -> None:
    metrics = evaluate(without_boxes(dataset()), MadeUpSource(), PROTOCOL).record.metrics
    assert value(metrics, "gt_known").value is None
    assert value(metrics, "gt_known").reason == "no image has a true box"
    assert value(metrics, "pxap").reason == "no image has a mask"
    assert value(metrics, "top1_cls").value == 0.75


def test_images_without_a_box_do_not_count_for_boxes() -> None:
    metrics = evaluate(without_boxes(dataset(), keep=5), MadeUpSource(), PROTOCOL).record.metrics
    assert value(metrics, "gt_known").n == 5
    assert value(metrics, "top1_cls").n == 12


def test_a_constant_map_is_scored_as_the_protocol_says() -> None:
    class Constant(MadeUpSource):
        def load(self, sample):
            return np.full((4, 4), 3.0, dtype=np.float32)

    assert (
        value(evaluate(dataset(), Constant(), PROTOCOL).record.metrics, "gt_known").value == 0.0
    )  # the box (0, 0, 0, 0)
    whole = evaluate(dataset(), Constant(), replace(PROTOCOL, empty_box="image")).scores.load().single_iou
    assert (whole > 0).all()


def test_a_map_with_nan_names_its_image() -> None:
    class Broken(MadeUpSource):
        def load(self, sample):
            return np.full((4, 4), np.nan, dtype=np.float32)

    with pytest.raises(DataError, match=r"map of 's0/000\.png' holds 16 NaN"):
        evaluate(dataset(), Broken(), PROTOCOL)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="has no image"):
        evaluate(dataset(0), MadeUpSource(), PROTOCOL)
