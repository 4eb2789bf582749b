"""The percentile of IVR, chosen on `val`: against loops over candidates, and nothing of the test split is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.made_up import MadeUpSource, box_map, dataset, eval_request
from wsolbench.evaluation.evaluate import conclude, evaluate, score_together
from wsolbench.evaluation.percentile import choose_percentiles, read_percentiles, with_percentile
from wsolbench.evaluation.request import RunOptions
from wsolbench.exceptions import UsageError
from wsolbench.maps import normalize
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.types import Sample

DATA, VAL = dataset(count=24), dataset(count=15, split="val", seed=1)
PERCENTILES = (0.0, 10.0, 20.0, 40.0, 90.0)
PLAIN = replace(
    EvalProtocol.preset("wsoleval"),
    name="wsoleval+normalize=ivr",
    normalize="ivr",
    taus=tau_grid(0.02),
    frame_size=64,
)


@dataclass
class Uneven(MadeUpSource):
    """Maps whose background ends in a slope of its own depth in each image, which min-max follows."""

    asked: list[str] = field(default_factory=list)

    def load(self, sample: Sample) -> np.ndarray:
        self.asked.append(sample.id)
        depth = 1 + 9 * (int(sample.id[-7:-4]) % 5)
        return box_map(sample) - depth * (np.arange(64)[:, None] < 10).astype(np.float32)


def request(protocol: EvalProtocol = PLAIN, source: Any = None, **options: Any):
    options = {"transfer_from": VAL, **options}
    options.setdefault("options", RunOptions(batch_size=8, workers=1, resamples=100))
    return eval_request(DATA, source or Uneven(), protocol, **options)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Of inclusive pixel boxes, as wsoleval counts."""
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1) for i in (0, 1))
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def best_rates(percentile: float) -> tuple[float, list[float]]:
    """MaxBoxAccV2 on `val` at the best thresholds, and these, with a threshold, contours and a loop."""
    hits = np.zeros((3, len(PLAIN.taus)))
    for sample in VAL.samples:
        values = normalize(Uneven().load(sample), replace(PLAIN, percentile=percentile)).astype(np.float64)
        levels = (values * 255).astype(np.uint8)
        truth = [int(value) for value in np.minimum(sample.boxes[0], 63)]
        for column, tau in enumerate(PLAIN.taus):
            _, seen = cv2.threshold(levels, int(tau * levels.max()), 255, cv2.THRESH_BINARY)
            contours, _ = cv2.findContours(seen, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            boxes = [cv2.boundingRect(each) for each in contours]
            ends = [(x, y, min(x + w, 63), min(y + h, 63)) for x, y, w, h in boxes] or [(0, 0, 0, 0)]
            found = max(iou(box, truth) for box in ends)
            hits[:, column] += [found >= delta for delta in PLAIN.deltas]
    rates = hits / len(VAL)
    return float(rates.max(axis=1).mean()), [PLAIN.taus[index] for index in rates.argmax(axis=1)]


def test_percentile_and_thresholds_of_val_are_those_of_loops_over_both() -> None:
    ((changed, choice),) = choose_percentiles([request()], PERCENTILES)
    expected = [best_rates(percentile) for percentile in PERCENTILES]
    np.testing.assert_allclose(choice.values, [value for value, _ in expected], atol=1e-12)
    assert [list(taus) for taus in choice.taus] == [taus for _, taus in expected]
    # An inner candidate is best here, and better than min-max by far.
    assert choice.best == PERCENTILES[int(np.argmax(choice.values))] not in (0.0, 90.0)
    assert max(choice.values) > choice.values[0] + 0.3
    assert changed.protocol == replace(
        PLAIN, percentile=choice.best, name=f"wsoleval+normalize=ivr,percentile={choice.best:g}@val"
    )


def test_the_record_has_the_numbers_of_the_fixed_percentile_and_transfers_both() -> None:
    ((changed, choice),) = choose_percentiles([request()], PERCENTILES)
    (run,) = score_together([changed])
    record = conclude(run).record
    fixed = evaluate(DATA, Uneven(), with_percentile(PLAIN, choice.best, chosen_on=None), transfer_from=VAL,
                     options=changed.options)  # fmt: skip
    assert record.metrics == fixed.record.metrics
    transferred = record.metric("max_box_acc_v2", "transfer")
    assert transferred.tau == choice.taus[PERCENTILES.index(choice.best)]
    assert record.protocol.percentile == choice.best


def test_only_images_of_val_decide() -> None:
    source = Uneven()
    ((_, choice),) = choose_percentiles([request(source=source)], PERCENTILES)
    assert sorted(source.asked) == sorted(VAL.ids)  # each map is made once, whatever the candidates
    assert (choice.split, choice.fingerprint, choice.images) == ("val", VAL.fingerprint, len(VAL))


def test_of_equal_candidates_the_lowest_is_taken() -> None:
    """Maps that are 0 on half of the image: percentiles below that are one rule."""
    ((_, choice),) = choose_percentiles([request(source=Halves())], (0.0, 5.0, 20.0))
    assert len(set(choice.values)) == 1
    assert choice.best == 0.0


class Halves(MadeUpSource):
    def load(self, sample: Sample) -> np.ndarray:
        return np.where(box_map(sample) == 1, 1.0, 0.0).astype(np.float32)


def test_protocols_of_one_call_choose_each_for_itself_and_others_stay() -> None:
    pas = replace(PLAIN, name="wsoleval+normalize=pas", normalize="pas")
    plain = EvalProtocol.preset("wsoleval")
    source = Uneven()
    options = RunOptions(batch_size=8, workers=1, resamples=100)
    requests = [request(each, source, options=options) for each in (plain, PLAIN, pas)]
    first, ivr, scaled = choose_percentiles(requests, PERCENTILES[1:])
    assert first == (requests[0], None)
    assert sorted(source.asked) == sorted(VAL.ids)
    ((_, alone),) = choose_percentiles([request(pas)], PERCENTILES[1:])
    assert (ivr[1].values, scaled[1].values) == (
        choose_percentiles([request()], PERCENTILES[1:])[0][1].values,
        alone.values,
    )
    assert ivr[1].values != scaled[1].values


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        (EvalProtocol.preset("wsoleval"), {}, "normalize='minmax', which has no percentile to choose"),
        (replace(PLAIN, threshold_basis="percentile"), {}, "no percentile to choose"),
        (PLAIN, {"transfer_from": None}, "Add --carve-val"),
    ],
)
def test_what_has_no_percentile_or_no_val_is_refused(protocol, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        choose_percentiles([request(protocol, **options)], PERCENTILES)


def test_images_that_the_method_was_trained_on_choose_nothing() -> None:
    source = Uneven()
    learned = {"dataset": {"split": "val", "fingerprint": VAL.fingerprint, "images": 15}}
    source.describe = lambda: {"name": "made-up", "backbone": None, "training": learned}
    with pytest.raises(UsageError, match="which the method was trained on"):
        choose_percentiles([request(source=source)], PERCENTILES)
    assert not source.asked


@pytest.mark.parametrize("text", ["", "a", "10,5", "5,5", "-1,5", "50,101", "nan", "1,inf"])
def test_candidates_are_ascending_percentages(text: str) -> None:
    with pytest.raises(UsageError, match="expected ascending numbers from 0 to 100"):
        read_percentiles(text)
    assert read_percentiles("0,2.5,100") == (0.0, 2.5, 100.0)
