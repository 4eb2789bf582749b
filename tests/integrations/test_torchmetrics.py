"""The torchmetrics adapters give the same numbers as the metrics themselves, alone and in several processes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import box_map, dataset

from tests.processes import together
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.exceptions import DataError, UsageError
from wsolbench.integrations.torchmetrics import Localization, PixelLocalization
from wsolbench.maps import frame_boxes, to_frame
from wsolbench.metrics import MaxBoxAcc, PxAP, TopKLoc
from wsolbench.metrics.peak_iou import PeakIoU
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.01))


def batch(count: int = 12, seed: int = 0) -> dict[str, object]:
    samples = dataset(count, seed=seed).samples
    rng = np.random.default_rng(seed)
    maps = np.stack([np.roll(box_map(sample), rng.integers(0, 20, 2), (0, 1)) for sample in samples])
    return {
        "maps": torch.from_numpy(maps),
        "boxes": [torch.from_numpy(sample.boxes) for sample in samples],
        "sizes": [sample.size for sample in samples],
        "logits": torch.from_numpy(rng.normal(size=(count, 6))),
        "labels": torch.tensor([sample.label for sample in samples]),
    }


def masks(count: int = 12, seed: int = 0) -> list[torch.Tensor]:
    found = []
    for sample in dataset(count, seed=seed).samples:
        mask = torch.zeros(64, 64, dtype=torch.bool)
        x0, y0, x1, y1 = sample.boxes[0].astype(int)
        mask[y0:y1, x0:x1] = True
        found.append(mask)
    return found


@pytest.mark.parametrize("protocol", [PROTOCOL, replace(PROTOCOL, v2_tau="shared", single_box="union")])
def test_boxes_give_what_the_accumulators_give(protocol: EvalProtocol) -> None:
    data = batch()
    metric = Localization(protocol)
    for start in (0, 5):
        stop = 5 if start == 0 else 12
        part = {name: values[start:stop] for name, values in data.items()}
        metric.update(part.pop("maps"), part.pop("boxes"), part.pop("sizes"), **part)
    v2, loc = MaxBoxAcc(protocol), TopKLoc(protocol)
    for raw, boxes, size, logits, label in zip(*data.values(), strict=True):
        swept = sweep(
            to_frame(raw.numpy(), size, protocol), frame_boxes(boxes.numpy(), size, protocol), protocol
        )
        v2.update(swept.best_iou)
        loc.update(swept.single_iou, logits.argsort(descending=True).numpy()[:5], int(label))
    expected = loc.compute()
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["max_box_acc_v2"] == v2.compute().value
    assert found["gt_known"] == found["max_box_acc"] == expected.gt_known
    assert (found["top1_loc"], found["top5_loc"]) == (expected.top_k[1], expected.top_k[5])


def test_pixels_give_what_the_accumulators_give() -> None:
    maps, truth = batch()["maps"], masks()
    metric = PixelLocalization(PROTOCOL)
    metric.update(maps, truth)
    pxap, peak = PxAP(PROTOCOL), PeakIoU(PROTOCOL)
    for raw, mask in zip(maps, truth, strict=True):
        framed = to_frame(raw.numpy(), (64, 64), PROTOCOL)
        whole = (
            torch.nn.functional.interpolate(mask[None, None].float(), size=224, mode="nearest")[0, 0]
            .bool()
            .numpy()
        )
        pxap.update(framed, whole)
        peak.update(framed, whole)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["pxap"] == pxap.compute().value
    assert (found["peak_iou"], found["peak_t"]) == (peak.compute().peak_iou, peak.compute().peak_t)


def test_an_evaluation_gives_the_same() -> None:
    from made_up import MadeUpSource

    data = dataset()
    metric = Localization(PROTOCOL)
    metric.update(
        torch.from_numpy(np.stack([box_map(s) for s in data.samples])),
        [s.boxes for s in data.samples],
        [s.size for s in data.samples],
    )
    record = evaluate(data, MadeUpSource(), PROTOCOL).record
    assert float(metric.compute()["max_box_acc_v2"]) == record.metric("max_box_acc_v2", "oracle").value
    assert "top1_loc" not in metric.compute()


def test_reset_and_a_second_epoch_start_from_nothing() -> None:
    metric = Localization(PROTOCOL)
    for _ in range(2):
        metric.update(*(batch()[name] for name in ("maps", "boxes", "sizes")))
        first = metric.compute()
        metric.reset()
    assert first["gt_known"] == metric(*(batch()[name] for name in ("maps", "boxes", "sizes")))["gt_known"]


def nothing_counted(metric: Localization | PixelLocalization) -> bool:
    return not any(int(state.sum()) for state in metric.metric_state.values())


WRONG = {
    "NaN logits": {"logits": torch.full((3, 6), float("nan"))},
    "one NaN logit": {"logits": torch.tensor([[0.0] * 6, [0, 0, float("nan"), 0, 0, 0], [0.0] * 6])},
    "too few classes": {"logits": torch.zeros(3, 4)},
    "logits of other images": {"logits": torch.zeros(2, 6)},
    "logits without an axis": {"logits": torch.zeros(6)},
    "a label outside the classes": {"labels": torch.tensor([0, 1, 6])},
    "a negative label": {"labels": torch.tensor([0, -1, 2])},
    "labels of other images": {"labels": torch.tensor([0, 1])},
    "labels that are no whole numbers": {"labels": torch.tensor([0.0, 1.0, 2.0])},
    "one-hot labels": {"labels": torch.zeros(3, 6, dtype=torch.int64)},
    "maps with channels": {"maps": torch.zeros(3, 1, 8, 8)},
    "maps of other images": {"maps": torch.rand(4, 8, 8)},
    "maps with NaN in the last image": {
        "maps": torch.cat([torch.rand(2, 8, 8), torch.full((1, 8, 8), float("nan"))])
    },
    "maps that are a list of texts": {"maps": [["a"]]},
    "boxes of other images": {"boxes": [torch.tensor([[0.0, 0, 9, 9]])] * 2},
    "boxes as x, y, width, height": {"boxes": [torch.tensor([[30.0, 30, 9, 9]])] * 3},
    "boxes as fractions": {"boxes": [torch.tensor([[0.1, 0.1, 0.5, 0.9]])] * 3},
    "boxes without a column": {"boxes": [torch.zeros(1, 5)] * 3},
    "an image without a box": {"boxes": [torch.tensor([[0.0, 0, 9, 9]])] * 2 + [torch.zeros(0, 4)]},
    "boxes that are a number": {"boxes": 3},
    "sizes of other images": {"sizes": [(64, 64)] * 2},
    "sizes with channels": {"sizes": [(3, 64, 64)] * 3},
    "sizes of 0": {"sizes": [(64, 0)] * 3},
    "a tensor of widths and heights": {"sizes": torch.full((2, 3), 64)},
    "sizes that are a number": {"sizes": 64},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_a_batch_that_cannot_be_counted_is_refused_and_leaves_no_count(
    unchecked_shapes: None, changes: dict[str, object]
) -> None:
    metric = Localization(PROTOCOL)
    data = {**batch(3), **changes}
    with pytest.raises(DataError):
        metric.update(
            data["maps"], data["boxes"], data["sizes"], logits=data["logits"], labels=data["labels"]
        )
    assert nothing_counted(metric)


WRONG_MASKS = {
    "masks with a channel": {"masks": torch.zeros(2, 1, 64, 64)},
    "masks of other images": {"masks": [torch.ones(64, 64)]},
    "a mask with NaN": {"masks": [torch.ones(64, 64), torch.full((64, 64), float("nan"))]},
    "ignored pixels of another size": {"ignore": [torch.zeros(64, 64), torch.zeros(32, 64)]},
    "ignored pixels of other images": {"ignore": [torch.zeros(64, 64)]},
}


@pytest.mark.parametrize("changes", WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_masks_that_cannot_be_counted_are_refused_and_leave_no_count(
    unchecked_shapes: None, changes: dict[str, object]
) -> None:
    metric = PixelLocalization(PROTOCOL)
    with pytest.raises(DataError):
        metric.update(**{"maps": batch(2)["maps"], "masks": masks(2), **changes})
    assert nothing_counted(metric)


def counted(boxes: list[torch.Tensor], sizes: object) -> dict[str, float]:
    metric = Localization(PROTOCOL)
    metric.update(batch(len(boxes))["maps"], boxes, sizes)
    return {name: float(value) for name, value in metric.compute().items()} | {
        f"hits {k}": float(hits) for k, hits in enumerate(metric.one_box[0])
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sizes_as_the_default_collation_gives_them_are_read_as_widths_and_heights(count: int) -> None:
    from torch.utils.data import default_collate

    sizes = [(200, 90), (120, 300), (80, 64)][:count]
    boxes = [torch.tensor([[0.0, 0.0, width * 0.9, height * 0.9]]) for width, height in sizes]
    expected = counted(boxes, sizes)
    assert counted(boxes, default_collate(sizes)) == expected
    assert counted(boxes, torch.tensor(sizes)) == expected
    assert counted(boxes, [torch.tensor(size) for size in sizes]) == expected


def test_sizes_of_two_images_that_fit_both_ways_are_refused() -> None:
    boxes = [torch.tensor([[0.0, 0.0, 40.0, 40.0]])] * 2
    with pytest.raises(DataError, match="two widths and two heights"):
        counted(boxes, [torch.tensor([200, 120]), torch.tensor([90, 300])])
    assert counted(boxes, [torch.tensor([64, 64]), torch.tensor([64, 64])]) == counted(boxes, [(64, 64)] * 2)


def test_a_tensor_of_one_box_for_each_image_is_taken() -> None:
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [5.0, 5.0, 20.0, 60.0]])
    assert counted(list(boxes), [(64, 64)] * 2) == counted([box[None] for box in boxes], [(64, 64)] * 2)


@pytest.mark.parametrize("ks", [(0,), (1, 1), (1.5,), (-1,)])
def test_ks_that_are_no_ranks_are_refused(ks: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="ks="):
        Localization(PROTOCOL, ks=ks)


def test_a_protocol_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="expected the name of a preset"):
        Localization({"name": "wsoleval"})


def test_what_means_nothing_is_refused() -> None:
    data = batch(2)
    with pytest.raises(UsageError, match="averages over classes"):
        Localization("bas")
    with pytest.raises(UsageError, match="expected logits and labels, or neither"):
        Localization(PROTOCOL).update(data["maps"], data["boxes"], data["sizes"], logits=data["logits"])
    with pytest.raises(DataError, match=r"expected \(B, h, w\)"):
        Localization(PROTOCOL).update(data["maps"][:, None], data["boxes"], data["sizes"])
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(DataError, match="no image was counted"),
    ):
        Localization(PROTOCOL).compute()
    with pytest.raises(UsageError, match="centre crop"):
        PixelLocalization(replace(PROTOCOL, frame="center_crop")).update(data["maps"], masks(2))


TWO = """
import json, os, sys
import torch
import torch.distributed as dist
sys.path.insert(0, "tests")
from tests.integrations.test_torchmetrics import PROTOCOL, Localization, PixelLocalization, batch, masks
dist.init_process_group("gloo")
rank, data = dist.get_rank(), batch()
mine = slice(0, 7) if rank == 0 else slice(7, 12)
boxes, pixels = Localization(PROTOCOL), PixelLocalization(PROTOCOL)
boxes.update(*(data[name][mine] for name in ("maps", "boxes", "sizes")), logits=data["logits"][mine], labels=data["labels"][mine])
pixels.update(data["maps"][mine], masks()[mine])
print(json.dumps({name: float(value) for metric in (boxes, pixels) for name, value in metric.compute().items()}))
dist.destroy_process_group()
"""


def test_two_processes_give_the_numbers_of_one() -> None:
    data = batch()
    boxes, pixels = Localization(PROTOCOL), PixelLocalization(PROTOCOL)
    boxes.update(
        *(data[name] for name in ("maps", "boxes", "sizes")), logits=data["logits"], labels=data["labels"]
    )
    pixels.update(data["maps"], masks())
    expected = {name: float(value) for metric in (boxes, pixels) for name, value in metric.compute().items()}
    for ended in together(TWO):
        assert ended.code == 0, ended.err
        assert json.loads(ended.out) == expected
