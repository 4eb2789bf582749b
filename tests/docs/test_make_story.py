"""docs/make_story.py: thresholds are those of the records, and the picture is small and has its parts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.conftest import make_dataset, make_record
from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.report.pictures.scene import box_scene
from wsolbench.types import Sample, no_boxes

PICTURE = Path(__file__).parents[2] / "docs/images/story.jpg"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
        import make_story

        yield make_story


@pytest.fixture
def record() -> Callable[..., RunRecord]:
    def make(name: str, tau: float, weights: str = "w", **method: object) -> RunRecord:
        metric = MetricValue(name="gt_known", value=0.5, n=3, policy="oracle", tau=(tau,))
        described = {"name": name, "weights": {"sha256": weights}, "training": {}, **method}
        return make_record(make_dataset(3), EvalProtocol(), (metric,), method=described)

    return make


def test_a_threshold_is_that_of_the_record_of_the_same_weights_without_training(
    script, record: Callable[..., RunRecord]
) -> None:
    others = [
        record("cam+scg", 0.1, "other"),
        record("cam", 0.2),
        record("cam+scg", 0.3, training={"seed": 0}),
    ]
    assert script.threshold_of("scg", [*others, record("cam+scg", 0.4)], "w") == 0.4
    assert script.threshold_of(None, others, "w") == 0.2
    with pytest.raises(UsageError, match=r"no record of cam\+scg on ILSVRC with these weights; make it"):
        script.threshold_of("scg", others, "w")


def test_a_row_shows_the_photograph_in_its_colours_and_then_the_maps(script, tmp_path: Path) -> None:
    image = np.full((60, 90, 3), (20, 160, 60), dtype=np.uint8)
    sample = Sample(id="green", label=0, size=(90, 60), array=image, boxes=no_boxes())
    protocol = EvalProtocol()
    low, high = (np.full((224, 224), value, dtype=np.float32) for value in (0.0, 1.0))
    scenes = tuple(box_scene(sample, protocol, unit_map, 0.5) for unit_map in (low, high, low))
    script.draw([script.Row(class_name="a lawn", scenes=scenes)], tmp_path / "story.png")
    pixels = np.asarray(Image.open(tmp_path / "story.png").convert("RGB"), dtype=np.int64)
    assert pixels.shape[1] == 1200
    # The middle of each column of panels, which are 2/3 as tall as they are wide.
    row = int(script.DPI * script.HEAD) + 90
    colors = [pixels[row, 150 + 298 * column] for column in range(4)]
    assert np.abs(colors[0] - image[0, 0]).max() <= 2
    assert colors[2].sum() > colors[0].sum() > colors[1].sum()  # the highest colour is the brightest
    assert np.abs(colors[1] - colors[3]).max() <= 2


def test_without_scikit_image_the_error_says_what_to_install(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UsageError, match="install it: pip install scikit-image"):
        script.read_photographs()


def test_the_committed_picture_is_small_enough_and_wide_enough(script) -> None:
    assert PICTURE.stat().st_size < 300_000
    assert Image.open(PICTURE).width == 1200


def test_every_class_is_one_of_imagenet(script) -> None:
    names = script.class_names()
    assert len(names) == 1000
    assert all(names.count(name) == 1 for classes in script.PHOTOGRAPHS.values() for name in classes)
