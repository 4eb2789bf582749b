from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.exceptions import DataError, UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures import sheets
from wsolbench.report.pictures.overlays import OverlayItem
from wsolbench.report.pictures.plots import PICTURES, accuracy_curve, error_bars, write_pictures

BLUE, VERMILION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def count(path: Path, color: tuple[int, int, int]) -> int:
    return int((pixels(path) == np.array(color)).all(axis=-1).sum())


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[OverlayItem]]:
    """What is put on each sheet, instead of drawing it."""
    found: dict[str, list[OverlayItem]] = {}
    monkeypatch.setattr(
        sheets, "overlay_sheet", lambda items, path, title: found.update({path.name: list(items)})
    )
    return found


def write_sheets(folder: Path, run: Any, **more: Any) -> list[Path]:
    return sheets.write_sheets(
        folder, run.record, run.table, run.dataset, run.maps_of, **{"count": 6, **more}
    )


def shown_iou(item: OverlayItem) -> float:
    return float(item.caption[1].split("IoU ")[1].split()[0])


def test_a_run_with_boxes_and_labels_gives_every_picture_under_a_megabyte(tmp_path: Path, run: Any) -> None:
    written = write_pictures(tmp_path / "new" / "folder", run.record, run.table, run.dataset, run.maps_of)
    assert [path.name for path in written] == list(PICTURES)
    for path in written:
        height, width, _ = pixels(path).shape
        assert min(width, height) >= 400
        assert pixels(path).std() > 10
        assert path.stat().st_size < 1_000_000


def test_pictures_that_a_run_does_not_allow_are_left_out_and_old_ones_removed(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    run = make_run(8, boxes=False)
    (tmp_path / "errors.png").write_bytes(b"of an earlier run")
    (tmp_path / "holiday.png").write_bytes(b"not ours")
    assert write_pictures(tmp_path, run.record, run.table, run.dataset, run.maps_of) == []
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_data_set_with_masks_only_is_shown_by_pixel_iou(
    tmp_path: Path, shown: dict[str, Any], make_run: Callable[..., Any]
) -> None:
    run = make_run(8, boxes=False, masks=tmp_path)
    write_sheets(tmp_path, run)
    values = [shown_iou(item) for item in shown["best.png"]]
    assert values == sorted(values, reverse=True)
    assert all(item.caption[1].startswith("pixel IoU") for item in shown["best.png"])


def test_the_model_is_asked_once_for_the_images_on_the_sheets_and_no_others(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    asked: list[list[int]] = []

    def maps_of(indices: list[int]) -> list[np.ndarray]:
        asked.append(indices)
        return run.maps_of(indices)

    sheets.write_sheets(tmp_path, run.record, run.table, run.dataset, maps_of, count=3)
    (indices,) = asked
    ids = {item.caption[0] for chosen in shown.values() for item in chosen}
    assert {run.dataset.ids[index] for index in indices} == ids
    assert len(indices) == len(ids) <= 9


def test_sheets_hold_the_highest_the_lowest_and_evenly_spread_ious(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    write_sheets(tmp_path, run)
    tau = run.record.metric("gt_known", "oracle").tau[0]
    iou = np.sort(run.scores.single_iou[:, run.record.protocol.taus.index(tau)])
    expected = {"best.png": iou[::-1][:6], "worst.png": iou[:6], "sample.png": iou[[0, 5, 9, 14, 18, 23]]}
    for name, values in expected.items():
        np.testing.assert_allclose([shown_iou(item) for item in shown[name]], values, atol=0.0051)


def test_of_many_images_that_are_missed_altogether_some_from_all_of_the_data_set_are_shown(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    scores = ScoreTable((replace(run.scores, single_iou=np.zeros_like(run.scores.single_iou)),))
    sheets.write_sheets(tmp_path, run.record, scores, run.dataset, run.maps_of, count=3)
    assert [item.caption[0] for item in shown["worst.png"]] == [
        run.dataset.ids[index] for index in (0, 12, 23)
    ]


def test_a_caption_names_image_iou_category_and_both_classes(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    write_sheets(tmp_path, run, count=24)
    assert len(shown["sample.png"]) == 24
    for item in shown["sample.png"]:
        index = run.dataset.ids.index(item.caption[0])
        label, predicted = run.scores.labels[index], run.scores.ranked[index, 0]
        category = item.caption[1].split(" · ")[1]
        assert item.caption[2:] == (
            f"true: class_{label}",
            f"predicted: class_{predicted}" + (" (wrong)" if label != predicted else ""),
        )
        assert (category == "Cls") == (label != predicted)
        if category == "Right":
            assert shown_iou(item) >= 0.5


def test_without_a_classifier_a_caption_has_no_predicted_class(
    tmp_path: Path, shown: dict[str, Any], make_run: Callable[..., Any]
) -> None:
    write_sheets(tmp_path, make_run(8, ranks=0))
    assert all(len(item.caption) == 3 and "Cls" not in item.caption[1] for item in shown["sample.png"])


@pytest.mark.parametrize("preset", ["wsoleval", "spa", "psol", "lid"])
def test_the_drawn_boxes_have_the_iou_that_the_caption_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., Any], preset: str
) -> None:
    run = make_run(8, protocol=EvalProtocol.preset(preset))
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    captions: list[float] = []
    original = sheets.overlay
    monkeypatch.setattr(
        sheets,
        "overlay",
        lambda image, unit, true, predicted: (
            boxes.append((true, predicted)),
            original(image, unit, true, predicted),
        )[1],
    )
    monkeypatch.setattr(
        sheets,
        "overlay_sheet",
        lambda items, path, title: (
            captions.extend(map(shown_iou, items)) if path.name == "sample.png" else None
        ),
    )
    write_sheets(tmp_path, run, count=8)
    ious = []
    for true, predicted in boxes:
        (a,), (b,) = true, predicted
        inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
        ious.append(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))
    np.testing.assert_allclose(
        sorted(ious), captions, atol=0.03
    )  # drawn in whole pixels, without the protocol's "+1"


def test_scores_of_other_images_than_the_data_set_s_are_an_error(tmp_path: Path, run: Any) -> None:
    other = replace(run.dataset, samples=run.dataset.samples[::-1])
    with pytest.raises(DataError, match="ids differ"):
        write_pictures(tmp_path, run.record, run.table, other, run.maps_of)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, run: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="file"):
        write_pictures(tmp_path / "file" / "pictures", run.record, run.table, run.dataset, run.maps_of)


def test_the_accuracy_curve_goes_from_the_foot_of_the_axis_for_no_hit_to_its_head_for_hits_only(
    tmp_path: Path, run: Any
) -> None:
    record, heights = replace(run.record, metrics=()), {}
    for share in (0.0, 0.5, 1.0):
        hit = np.zeros_like(run.scores.best_iou)
        hit[: round(share * len(hit))] = 1.0
        accuracy_curve(
            record, ScoreTable((replace(run.scores, best_iou=hit, single_iou=hit),)), tmp_path / "curve.png"
        )
        picture = pixels(tmp_path / "curve.png")
        assert picture.shape == (490, 1000, 3)
        rows = np.nonzero((picture[:440] == np.array(GREEN)).all(axis=-1))[
            0
        ]  # the topmost line, above the legend
        heights[share] = rows.mean()
    assert heights[0.0] - heights[1.0] > 250
    assert heights[0.5] == pytest.approx((heights[0.0] + heights[1.0]) / 2, abs=2)


def test_the_accuracy_curve_marks_each_policy_of_the_record(tmp_path: Path, run: Any) -> None:
    accuracy_curve(run.record, run.table, tmp_path / "all.png")
    one_policy = tuple(metric for metric in run.record.metrics if metric.policy in (None, "oracle"))
    accuracy_curve(replace(run.record, metrics=one_policy), run.table, tmp_path / "oracle.png")
    assert count(tmp_path / "all.png", BLUE) > count(tmp_path / "oracle.png", BLUE) > 100


def test_the_accuracy_curve_averages_classes_where_the_protocol_does(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    run = make_run(20)  # 6 classes: the first two have one image more
    by_class = replace(run.record, protocol=replace(run.record.protocol, averaging="class"))
    accuracy_curve(run.record, run.table, tmp_path / "image.png")
    accuracy_curve(by_class, run.table, tmp_path / "class.png")
    assert (pixels(tmp_path / "image.png")[60:400] != pixels(tmp_path / "class.png")[60:400]).any()


def test_an_accuracy_curve_without_boxes_is_an_error(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    run = make_run(8, boxes=False)
    with pytest.raises(DataError, match="ground-truth box"):
        accuracy_curve(run.record, run.table, tmp_path / "curve.png")


def test_error_bars_show_the_shares_of_each_run_in_its_own_colour(tmp_path: Path, run: Any) -> None:
    error_bars([("one", run.record)], tmp_path / "one.png")
    error_bars([("one", run.record), ("$two$", run.record)], tmp_path / "two.png")
    assert count(tmp_path / "one.png", BLUE) > 1000
    assert count(tmp_path / "one.png", VERMILION) == 0
    assert count(tmp_path / "two.png", VERMILION) == pytest.approx(count(tmp_path / "two.png", BLUE), rel=0.1)


def test_a_longer_bar_is_a_larger_share(tmp_path: Path, run: Any) -> None:
    def with_right(share: float) -> Any:
        metrics = [
            replace(m, low=None, high=None, value=share if m.name == "error_right" else 0.0)
            if m.name.startswith("error_")
            else m
            for m in run.record.metrics
        ]
        return replace(run.record, metrics=tuple(metrics))

    error_bars([("half", with_right(0.4)), ("full", with_right(0.8))], tmp_path / "bars.png")
    picture = pixels(tmp_path / "bars.png")[:-60]  # without the legend
    heights = [
        np.ptp(np.nonzero((picture == np.array(color)).all(axis=-1))[0]) for color in (BLUE, VERMILION)
    ]
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("policy", ["transfer", "fixed:0.9"])
def test_error_bars_of_a_run_without_that_policy_are_an_error_that_names_the_run(
    tmp_path: Path, make_run: Callable[..., Any], policy: str
) -> None:
    with pytest.raises(UsageError, match="'plain'.*" + policy):
        error_bars([("plain", make_run(8).record)], tmp_path / "bars.png", policy=policy)
    assert not list(tmp_path.iterdir())
