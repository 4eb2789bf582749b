"""wsolbench's metrics inside other frameworks give what the metrics themselves give, alone and in several processes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up import box_map, dataset

from tests.processes import together
from wsolbench.evaluate import evaluate
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
        swept = sweep(to_frame(raw.numpy(), size, protocol), frame_boxes(boxes.numpy(), size, protocol), protocol)
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
        whole = torch.nn.functional.interpolate(mask[None, None].float(), size=224, mode="nearest")[0, 0].bool().numpy()
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
        torch.from_numpy(np.stack([box_map(s) for s in data.samples])), [s.boxes for s in data.samples], [s.size for s in data.samples]
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


def test_what_means_nothing_is_refused() -> None:
    data = batch(2)
    with pytest.raises(UsageError, match="averages classes"):
        Localization("bas")
    with pytest.raises(UsageError, match="give both"):
        Localization(PROTOCOL).update(data["maps"], data["boxes"], data["sizes"], logits=data["logits"])
    with pytest.raises(DataError, match=r"expected \(B, h, w\)"):
        Localization(PROTOCOL).update(data["maps"][:, None], data["boxes"], data["sizes"])
    with pytest.warns(UserWarning, match="before the"), pytest.raises(DataError, match="no image was counted"):
        Localization(PROTOCOL).compute()
    with pytest.raises(UsageError, match="centre crop"):
        PixelLocalization(replace(PROTOCOL, frame="center_crop")).update(data["maps"], masks(2))


TWO = """
import json, os, sys
import torch
import torch.distributed as dist
sys.path.insert(0, "tests")
from test_integrations import PROTOCOL, Localization, PixelLocalization, batch, masks
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
    boxes.update(*(data[name] for name in ("maps", "boxes", "sizes")), logits=data["logits"], labels=data["labels"])
    pixels.update(data["maps"], masks())
    expected = {name: float(value) for metric in (boxes, pixels) for name, value in metric.compute().items()}
    for ended in together(TWO):
        assert ended.code == 0, ended.err
        assert json.loads(ended.out) == expected
