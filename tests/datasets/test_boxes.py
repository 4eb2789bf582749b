"""Boxes in another unit, order or frame are reported in every layout with boxes; correct boxes are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.coco_layout import write_coco
from tests.datasets.layouts import write_csv_folder, write_cub, write_image, write_mask
from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import assemble
from wsolbench.datasets.boxes import outside_mask
from wsolbench.datasets.coco import load_instances
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import DataError
from wsolbench.types import Dataset, Finding

WIDTH, HEIGHT = 120, 80
SIGNS = (
    "fractions",
    "smaller than a pixel",
    "narrower",
    "all boxes fit if",
    "larger copies",
    "upper left quarter",
    "reversed corners; all boxes fit",
)


def usual_boxes(count: int = 20) -> np.ndarray:
    rng = np.random.default_rng(3)
    start = rng.random((count, 2)) * (WIDTH - 30, HEIGHT - 30)
    return np.hstack([start, start + 10 + rng.random((count, 2)) * 20])


def loaded(boxes: np.ndarray, tmp_path: Path) -> Dataset:
    (tmp_path / "a").touch()
    records = [
        Record(id=f"{number}", label=0, path=f"{tmp_path}/a", size=(WIDTH, HEIGHT), boxes=[tuple(box)])
        for number, box in enumerate(boxes.tolist())
    ]
    return assemble("x", "test", tmp_path, records, ["only"])


def signs(findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(sign, finding.severity) for finding in findings for sign in SIGNS if sign in finding.what]


FRAME = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
WRONG = {
    "fractions": (usual_boxes() / FRAME, ("fractions", "error")),
    "fractions, shifted by a pixel as in files that count from 1": (
        usual_boxes() / FRAME + (-1, -1, 0, 0),
        ("fractions", "error"),
    ),
    "below a pixel": (
        np.hstack([usual_boxes()[:, :2], usual_boxes()[:, :2] + 0.5]),
        ("smaller than a pixel", "error"),
    ),
    "y before x": (usual_boxes()[:, [1, 0, 3, 2]], ("all boxes fit if", "error")),
    "of larger copies": (usual_boxes() * 4 + 40, ("larger copies", "error")),
    "x, y, width, height, larger than the corner or not": (
        np.hstack([usual_boxes()[:, :2], usual_boxes()[:, 2:] - usual_boxes()[:, :2]]),
        ("reversed corners; all boxes fit", "error"),
    ),
    "x, y, width, height": (
        np.array([(x, y, x + 15, y + 20) for x, y in np.random.default_rng(1).random((20, 2)) * (40, 15)]),
        ("upper left quarter", "warning"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_boxes_that_mean_something_else_are_findings(case: str, tmp_path: Path) -> None:
    boxes, sign = WRONG[case]
    assert sign in signs(loaded(boxes, tmp_path).findings)


def test_one_box_below_a_pixel_among_usual_ones_is_a_warning(tmp_path: Path) -> None:
    boxes = np.vstack([usual_boxes(), [[0.2, 0.3, 0.6, 0.7]]])
    assert signs(loaded(boxes, tmp_path).findings) == [("narrower", "warning")]


@pytest.mark.parametrize(
    "boxes",
    [usual_boxes(), usual_boxes(1), np.tile(FRAME * (0, 0, 1, 1), (20, 1)), np.array([[1.0, 1, 2, 2]])],
)
def test_usual_boxes_are_no_finding(boxes: np.ndarray, tmp_path: Path) -> None:
    assert loaded(boxes.astype(np.float64), tmp_path).findings == ()


@pytest.mark.parametrize("widest", [780, 1000])
def test_boxes_in_thousandths_of_the_sides_are_called_that(widest: int, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    boxes = [(10.0, 20.0 + number, widest - number, 1000.0 - 30 * number) for number in range(10)]
    records = [
        Record(id=f"{number}", label=0, path=f"{tmp_path}/a", size=(1200, 800), boxes=[box])
        for number, box in enumerate(boxes)
    ]
    (finding,) = [
        finding
        for finding in assemble("x", "test", tmp_path, records, ["only"]).findings
        if finding.severity == "error"
    ]
    assert "thousandths of the image's sides" in finding.what
    assert ("exchanged" in finding.what) is (widest == 780)  # both fit then


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_corner_that_is_not_finite_is_refused_whatever_the_loader(value: float, tmp_path: Path) -> None:
    boxes = usual_boxes(3)
    boxes[1, 2] = value
    with pytest.raises(DataError, match=r"image '1' has the box .*; expected finite numbers"):
        loaded(boxes, tmp_path)


def test_fractions_in_a_csv_make_the_data_unsound(tmp_path: Path) -> None:
    rows = [f"{number}.png,0,test,20,10,0.1,0.2,0.5,0.{number + 4}," for number in range(4)]
    write_csv_folder(tmp_path, rows)
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", (20, 10))
    report = verify_dataset("csvfolder", tmp_path)
    assert not report.sound
    assert signs(report.splits[0].findings) == [("fractions", "error")]


def test_corners_in_cub_where_width_and_height_belong_are_an_error(tmp_path: Path) -> None:
    write_cub(tmp_path, boxes=["20 15 38 28", "22 11 39 29", "20 15 40 30", "21 16 35 27"])
    report = verify_dataset("cub", tmp_path)
    assert [sign for split in report.splits for sign in signs(split.findings)] == [
        ("all boxes fit if", "error")
    ] * 2


class TestCoco:
    def changed(self, root: Path, change: object) -> Path:
        path = write_coco(root, "val", 9) / "annotations" / "instances_val.json"
        values = json.loads(path.read_text())
        for row in values["annotations"]:
            row["bbox"] = change(*row["bbox"])  # type: ignore[operator]
        path.write_text(json.dumps(values))
        return root

    def test_boxes_as_they_should_be_are_sound(self, tmp_path: Path) -> None:
        write_coco(tmp_path, "val", 9)
        report = verify_dataset("coco", tmp_path, deep=True)
        assert report.sound
        assert (
            report.splits[0].split,
            report.splits[0].images,
            report.splits[0].boxes,
            report.splits[0].findings,
        ) == ("val", 9, 17, ())

    def test_fractions_and_corners_are_errors(self, tmp_path: Path) -> None:
        fractions = self.changed(tmp_path / "a", lambda x, y, w, h: [x / 64, y / 56, w / 64, h / 56])
        assert signs(load_instances(fractions, "val").findings) == [("fractions", "error")]
        corners = self.changed(tmp_path / "b", lambda x, y, w, h: [x, y, x + w, y + h])
        assert ("all boxes fit if", "error") in signs(load_instances(corners, "val").findings)
        assert not verify_dataset("coco", corners).sound

    def test_boxes_outside_their_masks_and_broken_images_are_found_deep(self, tmp_path: Path) -> None:
        root = self.changed(tmp_path, lambda x, y, w, h: [64 - x - w, 0, w, 5])
        (root / "val" / "000000000000.png").write_bytes(b"")
        (root / "val" / "000000000001.png").unlink()
        (split,) = verify_dataset("coco", root, deep=True).splits
        assert [path.name for path in split.missing] == ["000000000001.png"]
        assert [path.name for path in split.unreadable] == ["000000000000.png"]
        assert any("less than half of their object's mask" in finding.what for finding in split.findings)


def test_boxes_are_held_against_the_mask_by_counting_pixels() -> None:
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:6, 3:9] = True  # 24 pixels
    assert outside_mask(np.array([[3.0, 2, 9, 6]]), mask) == (0, 0.0)
    assert outside_mask(np.array([[3.0, 2, 6, 6], [15, 0, 18, 9]]), mask) == (1, 0.5)
    assert outside_mask(np.array([[5.5, 0, 5.9, 10]]), mask) == (0, 20 / 24)


def test_a_box_outside_its_mask_is_a_warning_of_the_deep_look(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test,20,10,12,2,18,8,m.png", "b.png,0,test,20,10,2,2,6,6,m.png"])
    write_mask(tmp_path / "masks" / "m.png", (20, 10), [(2, 2, 6, 6)])
    findings = verify_dataset("csvfolder", tmp_path, deep=True).splits[0].findings
    assert [(finding.count, finding.severity, finding.example[:5]) for finding in findings] == [
        (1, "warning", "a.png")
    ] * 2
