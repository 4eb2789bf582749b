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
from wsolbench.report.pictures.grid import OverlayItem
from wsolbench.report.pictures.plots import (
    PICTURES,
    accuracy_curve,
    add_pictures,
    error_bars,
    write_pictures,
)

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
        sheets,
        "overlay_sheet",
        lambda items, paths, title, scale: found.update({paths[0].stem: list(items), "scale": scale}),
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
    assert [path.name for path in written] == [f"{name}.png" for name in PICTURES]
    for path in written:
        height, width, _ = pixels(path).shape
        assert min(width, height) >= 400
        assert pixels(path).std() > 10
        assert path.stat().st_size < 3_000_000


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
    values = [shown_iou(item) for item in shown["best"]]
    assert values == sorted(values, reverse=True)
    assert all(item.caption[1].startswith("pixel IoU") for item in shown["best"])


def test_the_model_is_asked_once_for_the_images_on_the_sheets_and_no_others(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    asked: list[list[int]] = []

    def maps_of(indices: list[int]) -> list[np.ndarray]:
        asked.append(indices)
        return run.maps_of(indices)

    sheets.write_sheets(tmp_path, run.record, run.table, run.dataset, maps_of, count=3)
    (indices,) = asked
    ids = {item.caption[0] for name in sheets.SHEETS for item in shown[name]}
    assert {run.dataset.ids[index] for index in indices} == ids
    assert len(indices) == len(ids) <= 9


def test_sheets_hold_the_highest_the_lowest_and_evenly_spread_ious(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    write_sheets(tmp_path, run)
    tau = run.record.metric("gt_known", "oracle").tau[0]
    iou = np.sort(run.scores.single_iou[:, run.record.protocol.taus.index(tau)])
    expected = {"best": iou[::-1][:6], "worst": iou[:6], "sample": iou[[0, 5, 9, 14, 18, 23]]}
    for name, values in expected.items():
        np.testing.assert_allclose([shown_iou(item) for item in shown[name]], values, atol=0.0051)


def test_of_many_images_that_are_missed_altogether_some_from_all_of_the_data_set_are_shown(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    scores = ScoreTable((replace(run.scores, single_iou=np.zeros_like(run.scores.single_iou)),))
    sheets.write_sheets(tmp_path, run.record, scores, run.dataset, run.maps_of, count=3)
    assert [item.caption[0] for item in shown["worst"]] == [run.dataset.ids[index] for index in (0, 12, 23)]


def test_a_caption_names_image_iou_category_and_both_classes(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    write_sheets(tmp_path, run, count=24)
    assert len(shown["sample"]) == 24
    for item in shown["sample"]:
        index = run.dataset.ids.index(item.caption[0])
        label, predicted = run.scores.labels[index], run.scores.ranked[index, 0]
        cut, category = item.caption[1].split(" at ")[1].split(" · ")
        raw = run.maps[index]
        assert cut == f"tau {run.record.metric('gt_known', 'oracle').tau[0]:g}"
        assert item.caption[2:] == (
            f"true: class_{label}",
            f"predicted: class_{predicted}" + (" (wrong)" if label != predicted else ""),
            f"map {raw.min():.3g} to {raw.max():.3g}",
        )
        assert (category == "Cls") == (label != predicted)
        if category == "Right":
            assert shown_iou(item) >= 0.5


def test_without_a_classifier_a_caption_has_no_predicted_class(
    tmp_path: Path, shown: dict[str, Any], make_run: Callable[..., Any]
) -> None:
    write_sheets(tmp_path, make_run(8, ranks=0))
    assert all(len(item.caption) == 4 and "Cls" not in item.caption[1] for item in shown["sample"])


@pytest.mark.parametrize("preset", ["wsoleval", "spa", "psol", "lid"])
def test_the_drawn_boxes_have_the_iou_that_the_caption_says(
    tmp_path: Path, shown: dict[str, Any], make_run: Callable[..., Any], preset: str
) -> None:
    run = make_run(8, protocol=EvalProtocol.preset(preset))
    write_sheets(tmp_path, run, count=8)
    for item in shown["sample"]:
        assert item.overlay.pixels.shape[:2] == (256, 384)  # four times 96 x 64
        (a,), (b,) = item.overlay.outlines.true_boxes, item.overlay.outlines.predicted_boxes
        inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
        iou = inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter)
        assert iou == pytest.approx(shown_iou(item), abs=0.05)  # without rounding and the protocol's "+1"


def test_the_threshold_is_marked_on_the_colour_bar_where_all_maps_share_it(
    tmp_path: Path, shown: dict[str, Any], make_run: Callable[..., Any]
) -> None:
    run = make_run(8)
    tau = run.record.metric("gt_known", "oracle").tau[0]
    write_sheets(tmp_path, run)
    assert shown["scale"].marks == ((tau, f"tau {tau:g}"),)
    percentile = replace(run.record.protocol, threshold_basis="percentile")
    scale = sheets.tau_scale(percentile, 0.25, "tau 0.25")
    assert (scale.marks, scale.note) == ((), "tau 0.25 of each map's 90th percentile")
    masked = make_run(8, boxes=False, masks=tmp_path)
    write_sheets(tmp_path, masked)
    level = int(masked.record.metric("peak_t").value)
    assert shown["scale"].marks == ((level / 255, f"level {level}"),)


def test_an_image_that_cannot_be_read_is_a_grey_panel_that_says_so(
    tmp_path: Path, shown: dict[str, Any], run: Any
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    broken = replace(run.dataset.samples[3], array=None, path=tmp_path / "broken.jpg")
    samples = tuple(broken if number == 3 else sample for number, sample in enumerate(run.dataset.samples))
    damaged = replace(run.dataset, samples=samples)
    sheets.write_sheets(tmp_path, run.record, run.table, damaged, run.maps_of, count=24)
    (item,) = (item for item in shown["sample"] if item.caption[0] == broken.id)
    assert item.caption[-1] == "image cannot be read"
    assert np.ptp(item.overlay.pixels) == 0
    assert item.image.pixels.shape == (256, 384, 3)


def test_two_runs_keep_their_folders_and_the_same_run_finds_its_own(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    first, second = make_run(2), make_run(2, method={"name": "has"})
    bytes_of = []
    for run in (first, second, first):
        folder, written = add_pictures(tmp_path, run.record, run.table, run.dataset, run.maps_of)
        assert folder == tmp_path / run.record.path.with_suffix("")
        assert {path.parent for path in written} == {folder}
        bytes_of.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(list((tmp_path / "squares").iterdir())) == 2
    assert bytes_of[0] == bytes_of[2]


def test_every_picture_is_also_written_as_a_pdf_with_fonts_and_without_a_date(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    run = make_run(2)
    for name in ("a", "b"):
        found = write_pictures(
            tmp_path / name, run.record, run.table, run.dataset, run.maps_of, formats=("pdf", "png"), count=1
        )
        assert {path.name for path in found} == {
            f"{stem}.{end}" for stem in PICTURES for end in ("pdf", "png")
        }
    for path in (tmp_path / "a").glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content  # an embedded TrueType font
        assert b"CreationDate" not in content
        assert content == (tmp_path / "b" / path.name).read_bytes()


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
