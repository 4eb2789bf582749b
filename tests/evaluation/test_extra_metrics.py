"""Extra metrics: brute-force references, properties, and the way from a name to a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up import MadeUpSource, dataset
from PIL import Image

from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.extra_metrics.base import ExtraMetric, ScoredImage, find_extra_metrics, mean_of
from wsolbench.evaluation.extra_metrics.mask_overlap import dice, mean_iou
from wsolbench.evaluation.extra_metrics.pointing_game import energy, pointing_hits
from wsolbench.evaluation.extra_metrics.size_strata import STRATA
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.split_scores import Metric, Summary
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics import catalog
from wsolbench.metrics.catalog import ExtraMetricInfo, MetricInfo, metric_info
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue, RunRecord, read_record
from wsolbench.types import Dataset

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))
BUILT_IN = ("size-strata", "pointing-game", "mask-overlap")


def with_masks(data: Dataset, folder: Path) -> Dataset:
    """The same images with the filled box as mask file."""
    samples = []
    for sample in data.samples:
        mask = np.zeros(sample.size[::-1], dtype=np.uint8)
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        mask[y0:y1, x0:x1] = 255
        path = folder / sample.id.replace("/", "_")
        Image.fromarray(mask).save(path)
        samples.append(replace(sample, mask_paths=(path,)))
    return replace(data, samples=tuple(samples))


def value(record: RunRecord, name: str, policy: str | None = None) -> MetricValue:
    return next(m for m in record.metrics if m.name == name and (policy is None or m.policy == policy))


# --- the numbers of one image -------------------------------------------------------------------------------

MAPS = hnp.arrays(np.float64, (7, 9), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
REGIONS = hnp.arrays(np.bool_, (7, 9)).filter(lambda region: region.any())


@given(MAPS, REGIONS, st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_the_pointing_game_is_that_of_all_pairs_of_pixels(score_map, region, tolerance):
    hit, near = pointing_hits(score_map, region, tolerance)
    peaks = np.argwhere(score_map == score_map.max())
    inside = np.argwhere(region)
    distance = np.array([min(np.hypot(*(peak - pixel)) for pixel in inside) for peak in peaks])
    if len(peaks) == score_map.size:
        assert (hit, near) == (0.0, 0.0)
    else:
        assert hit == pytest.approx((distance == 0).mean())
        assert near == pytest.approx((distance <= tolerance + 1e-6).mean())
        assert hit <= near


@given(MAPS, REGIONS)
def test_the_energy_of_object_and_background_is_the_whole_map(score_map, region):
    whole = float(score_map.sum() > 0)
    assert energy(score_map, region) + energy(score_map, ~region) == pytest.approx(whole)


def masks_at_levels(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels with these counts: level and mask of each."""
    levels = np.concatenate([np.repeat(np.arange(256), row) for row in histogram])
    return levels, np.repeat([True, False], histogram.sum(axis=1))


@given(st.data())
def test_miou_and_dice_are_those_of_single_pixels(data):
    histogram = np.zeros((2, 256), dtype=np.int32)
    for row, least in ((0, 1), (1, 0)):
        for level in data.draw(st.lists(st.integers(0, 255), min_size=least, max_size=6)):
            histogram[row, level] += 1
    levels, mask = masks_at_levels(histogram)
    for level in (0, 1, 77, 255):
        chosen = levels >= level
        ious = []
        for mine, true in ((chosen, mask), (~chosen, ~mask)):
            union = (mine | true).sum()
            ious.append((mine & true).sum() / union if union else 1.0)
        assert mean_iou(histogram)[level] == pytest.approx(np.mean(ious))
        expected = 2 * (chosen & mask).sum() / (chosen.sum() + mask.sum())
        assert dice(histogram)[level] == pytest.approx(expected)


def test_strata_cut_the_line_from_zero_to_one():
    edges = list(STRATA.values())
    assert edges[0][0] == 0
    assert edges[-1][1] == np.inf
    assert all(low[1] == high[0] for low, high in pairwise(edges))


# --- records ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder = tmp_path_factory.mktemp("masks")
    return with_masks(dataset(40), folder), with_masks(dataset(8, "val", 1), folder)


@pytest.fixture(scope="module")
def run(masked):
    test, val = masked
    options = RunOptions(resamples=100)
    return evaluate(
        test,
        MadeUpSource(),
        PROTOCOL,
        transfer_from=val,
        options=options,
        extra_metrics=BUILT_IN,
        fixed_tau=0.5,
    )


def test_maps_of_the_true_box_point_at_it(run):
    record = run.record
    assert value(record, "pointing_game").value == 1.0
    assert value(record, "pointing_game_15px").value == 1.0
    assert 0.3 < value(record, "energy_on_object").value < 1.0
    assert value(record, "dice", "oracle").value > 0.95
    assert value(record, "miou", "oracle").value > 0.95


def test_strata_are_parts_of_max_box_acc(run):
    record = run.record
    for policy in ("oracle", "transfer", "fixed:0.5"):
        parts = [value(record, f"max_box_acc_{stratum}") for stratum in STRATA]
        found = [m for m in record.metrics if m.name.startswith("max_box_acc_") and m.policy == policy]
        known = [m for m in found if m.value is not None and not m.name.startswith("max_box_acc_v2")]
        assert sum(m.n for m in known) == 40
        whole = sum(m.value * m.n for m in known) / 40
        assert whole == pytest.approx(value(record, "max_box_acc", policy).value)
        assert {m.tau for m in known} == {value(record, "max_box_acc", policy).tau}
    assert {part.name for part in parts} == {f"max_box_acc_{stratum}" for stratum in STRATA}


def test_transferred_overlap_is_at_the_best_level_of_the_other_split(run, masked):
    _, val = masked
    other = evaluate(val, MadeUpSource(), PROTOCOL, extra_metrics=("mask-overlap",)).record
    for name in ("miou", "dice"):
        assert value(run.record, name, "transfer").tau == value(other, name, "oracle").tau
        assert value(run.record, name, "transfer").value <= value(run.record, name, "oracle").value


def test_every_run_without_a_request_has_the_same_metrics_as_before(run, masked):
    plain = evaluate(masked[0], MadeUpSource(), PROTOCOL, transfer_from=masked[1], fixed_tau=0.5).record
    assert plain.metrics == run.record.metrics[: len(plain.metrics)] or {
        (m.name, m.policy, m.value) for m in plain.metrics
    } < {(m.name, m.policy, m.value) for m in run.record.metrics}
    added = {m.name for m in run.record.metrics} - {m.name for m in plain.metrics}
    assert added == {info.name for metric in find_extra_metrics(BUILT_IN) for info in metric.infos}


def test_records_and_scores_are_read_again(run, tmp_path):
    path = run.record.write(tmp_path)
    assert read_record(path).metrics == run.record.metrics
    for outcomes in (None, PROTOCOL):
        file = tmp_path / "scores.npz"
        run.scores.write(file, run.record, outcomes=outcomes)
        read = ScoreTable.read(file).load()
        for name, rows in run.scores.load().extra.items():
            np.testing.assert_array_equal(read.extra[name], rows)
    chunk = tmp_path / "chunk.scores"
    run.scores.load().write(chunk)
    assert ImageScores.read(chunk).arrays().keys() == run.scores.load().arrays().keys()


def test_images_without_an_object_are_not_counted(masked):
    test = masked[0]
    bare = replace(test[0], boxes=np.zeros((0, 4)), mask_paths=())
    mixed = replace(test, samples=(bare, *test.samples[1:]))
    record = evaluate(mixed, MadeUpSource(), PROTOCOL, extra_metrics=BUILT_IN).record
    assert value(record, "pointing_game").n == 39
    nothing = replace(test, samples=(bare,))
    record = evaluate(nothing, MadeUpSource(), PROTOCOL, extra_metrics=BUILT_IN).record
    for name in ("pointing_game", "energy_on_object", "miou", "dice", "max_box_acc_small"):
        assert value(record, name).value is None
        assert value(record, name).reason


def test_comparisons_have_the_extra_metrics_that_both_runs_have(run, masked):
    plain = evaluate(masked[0], MadeUpSource(), PROTOCOL).scores
    names = {row.name for row in compare([run.scores], [run.scores], PROTOCOL, resamples=100)}
    assert {"pointing_game", "dice", "miou"} < names
    assert "pointing_game" not in {
        row.name for row in compare([run.scores], [plain], PROTOCOL, resamples=100)
    }


def test_chunks_with_and_without_an_extra_metric_are_not_joined(run, masked):
    plain = evaluate(masked[0], MadeUpSource(), PROTOCOL).scores
    with pytest.raises(DataError, match="extra_pointing-game"):
        ScoreTable((*run.scores.chunks, *plain.chunks)).load()


# --- metrics of other packages ------------------------------------------------------------------------------


class Brightness(ExtraMetric):
    """A metric that a package could add: the mean of the map."""

    columns = ("mean",)

    def of_image(self, image: ScoredImage) -> Sequence[float] | None:
        return [float(image.map.mean())]

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        yield mean_of("map_mean", summary, self, "mean", reason="no image")


def offer(kind: type[ExtraMetric]) -> ExtraMetricInfo:
    """The row of a metric of this file."""
    info = MetricInfo(name="map_mean", title="Mean of the map", needs="labels", summary="mean of the map")
    return ExtraMetricInfo(
        name="brightness", infos=(info,), implementation=f"{kind.__module__}:{kind.__name__}"
    )


class TooMany(Brightness):
    def of_image(self, image):
        return [1.0, 2.0]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch):
    """Install metrics as if packages offered them."""

    def install(*metrics):
        class Point:
            def load(self):
                return lambda: list(metrics)

        points = catalog.entry_points(group=catalog.ENTRY_POINT_GROUP)
        monkeypatch.setattr(catalog, "entry_points", lambda group: [*points, Point()])
        for function in (catalog.offered_metrics, catalog.all_metrics):
            function.cache_clear()

    yield install
    monkeypatch.undo()
    for function in (catalog.offered_metrics, catalog.all_metrics):
        function.cache_clear()


def test_a_metric_of_another_package_reaches_the_record(offered):
    offered(offer(Brightness))
    record = evaluate(dataset(), MadeUpSource(), PROTOCOL, extra_metrics=["brightness"]).record
    assert 0 < value(record, "map_mean").value < 1
    assert metric_info("map_mean").title == "Mean of the map"


def test_two_metrics_of_one_name_are_refused(offered):
    offered(offer(Brightness), offer(Brightness))
    with pytest.raises(UsageError, match="brightness"):
        catalog.offered_metrics()


def test_a_wrong_number_of_values_is_refused(offered):
    offered(offer(TooMany))
    with pytest.raises(UsageError, match="returned 2 numbers"):
        evaluate(dataset(), MadeUpSource(), PROTOCOL, extra_metrics=["brightness"])


@pytest.mark.parametrize(
    ("names", "message"), [(["pointing"], "pointing-game"), (["size-strata"] * 2, "once")]
)
def test_unknown_and_repeated_names_are_refused(names, message):
    with pytest.raises(UsageError, match=message):
        find_extra_metrics(names)
