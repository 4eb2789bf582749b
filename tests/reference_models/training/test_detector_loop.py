"""Training of detectors: the same request gives the same weights, interrupted or not; what it writes, learns
and refuses."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reference_models.detection.lio_mask_rcnn.method import LioMaskRcnn
from reference_models.training import detector_loop as train_detector
from reference_models.training.detector_data import TargetReader, make_example
from reference_models.training.run_folder import LAST, LOG, STATE
from tests.datasets.coco_layout import edited, write_coco
from tests.processes import Program
from wsolbench.datasets.coco import InstanceDataset, load_instances
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import DetectorRequest

SETTINGS = {"min_size": "64", "max_size": "64", "recipe.warmup_steps": "2"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images with objects, and one with nothing but a crowd."""
    return write_coco(tmp_path_factory.mktemp("coco"), count=6)


def request(root: Path, out: Path, **changes) -> DetectorRequest:
    values = {"epochs": 2, "batch_size": 2, "device": "cpu", "workers": 0, "settings": SETTINGS}
    return DetectorRequest(
        train=load_instances(root, "train"), out=out, backbone="tiny", weights="none", **{**values, **changes}
    )


def log_of(out: Path) -> list[dict[str, str]]:
    """The log without the columns that time the machine."""
    rows = list(csv.DictReader((out / LOG).open()))
    return [
        {key: value for key, value in row.items() if key not in {"seconds", "images_per_second"}}
        for row in rows
    ]


def same_weights(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the same request, the same weights ---------------------------------------------------------------------


KILLED_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
import torch
from reference_models.training import detector_loop
from reference_models.detection.lio_mask_rcnn.method import LioMaskRcnn
from tests.processes import Program
from tests.reference_models.training.test_detector_loop import request

torch.set_num_threads(1)
detector_loop.SAVE_SECONDS = 0.0
whole_loss, steps = LioMaskRcnn.loss, []

def loss(self, images, targets):
    steps.append(1)
    if len(steps) == 5:  # the second of three batches of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return whole_loss(self, images, targets)

LioMaskRcnn.loss = loss
LioMaskRcnn.fit(request(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_goes_on_there(root, tmp_path, monkeypatch):
    killed, unbroken = request(root, tmp_path / "killed"), request(root, tmp_path / "unbroken", workers=2)
    done = Program(KILLED_IN_THE_MIDDLE, root, killed.out).end()
    assert done.code == -signal.SIGKILL, done.err
    # The state after step 4 was being written. That after step 3 was written before it began.
    step = json.loads(torch.load(killed.out / STATE, weights_only=True)["progress"])["step"]
    assert step in (3, 4)
    steps = []
    whole_step = train_detector._step
    monkeypatch.setattr(
        train_detector, "_step", lambda run, examples: steps.append(run.step) or whole_step(run, examples)
    )
    LioMaskRcnn.fit(killed)
    assert steps == list(range(step, 6))
    LioMaskRcnn.fit(unbroken)
    assert same_weights(killed.out / LAST, unbroken.out / LAST)
    assert log_of(killed.out) == log_of(unbroken.out)
    assert [row["epoch"] for row in log_of(killed.out)] == ["1", "2"]
    assert not (killed.out / STATE).exists()
    LioMaskRcnn.fit(request(root, tmp_path / "other", seed=1))
    assert not same_weights(tmp_path / "other" / LAST, unbroken.out / LAST)


def test_a_finished_run_is_returned_and_one_of_another_request_refused(root, tmp_path, monkeypatch):
    before = torch.get_rng_state()
    path = LioMaskRcnn.fit(request(root, tmp_path, epochs=1, limit=2))
    assert torch.equal(before, torch.get_rng_state())
    bytes_before = path.read_bytes()
    monkeypatch.setattr(LioMaskRcnn, "loss", lambda *_: pytest.fail("trained again"))
    assert LioMaskRcnn.fit(request(root, tmp_path, epochs=1, limit=2)) == path
    assert path.read_bytes() == bytes_before
    for change in ({"limit": None}, {"seed": 3}, {"settings": {**SETTINGS, "scl_weight": "0"}}):
        with pytest.raises(UsageError, match="belongs to another run"):
            LioMaskRcnn.fit(request(root, tmp_path, **{"epochs": 1, "limit": 2, **change}))
    facts = json.loads((tmp_path / "last.json").read_text())
    assert facts["training"]["dataset"]["limit"] == 2
    assert next(csv.DictReader((tmp_path / LOG).open())).keys() >= {
        "loss_scl",
        "loss_mask",
        "lr",
        "images_per_second",
    }


def test_an_image_is_learnt_by_heart(root, tmp_path):
    """And what was learnt is found again by `detect`."""
    settings = {
        **SETTINGS,
        "recipe.flip": "0",
        "recipe.schedule": "step",
        "recipe.clip_norm": "0",
        "recipe.weight_decay": "0",
    }
    path = LioMaskRcnn.fit(request(root, tmp_path, epochs=45, limit=1, lr=2e-3, settings=settings))
    losses = [float(row["train_loss"]) for row in log_of(tmp_path)]
    assert losses[-1] < losses[0] / 3
    model = LioMaskRcnn.load(path, device="cpu")
    sample = load_instances(root, "train").samples[0]
    found = model.detect(sample.image())
    assert sorted(found.labels[:2].tolist()) == [0, 1]
    for label, box, mask in zip(sample.labels, sample.boxes, sample.masks(), strict=True):
        (first, *_) = np.flatnonzero(found.labels == label)
        low, high = np.maximum(found.boxes[first, :2], box[:2]), np.minimum(found.boxes[first, 2:], box[2:])
        inside = np.prod(np.maximum(high - low, 0))
        areas = [np.prod(each[2:] - each[:2]) for each in (found.boxes[first], box)]
        assert inside / (sum(areas) - inside) > 0.5
        assert (found.masks[first] & (mask > 0)).sum() / (found.masks[first] | (mask > 0)).sum() > 0.4


# --- what is read -------------------------------------------------------------------------------------------


def test_images_with_nothing_to_learn_from_are_left_out(root):
    dataset = load_instances(root, "train")
    reader = TargetReader(dataset, masks=True, workers=0)
    assert len(reader) == len(dataset) - 1
    with pytest.raises(DataError, match="has no object to learn from"):
        TargetReader(replace(dataset, samples=dataset.samples[-1:]), masks=True)


def test_a_mirrored_example_is_mirrored_as_a_whole(root):
    sample = load_instances(root, "train").samples[0]
    image, target = make_example(sample, masks=True, mirrored=True)
    plain, as_is = make_example(sample, masks=True, mirrored=False)
    assert torch.equal(image.flip(2), plain)
    assert torch.equal(target["masks"].flip(2), as_is["masks"])
    assert torch.equal(target["labels"], as_is["labels"])
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_mirroring_depends_on_seed_and_epoch_and_not_on_threads(root):
    plan = [np.array([3, 1]), np.array([0, 2, 4])]

    def boxes(dataset: InstanceDataset, workers: int, epoch: int) -> list[list[float]]:
        reader = TargetReader(dataset, masks=False, workers=workers)
        return [
            target["boxes"].flatten().tolist()
            for batch in reader.batches(plan, flip=0.5, seed=0, epoch=epoch)
            for _, target in batch
        ]

    dataset = load_instances(root, "train")
    assert boxes(dataset, 0, 0) == boxes(dataset, 3, 0)
    assert any(boxes(dataset, 0, 0) != boxes(dataset, 0, epoch) for epoch in range(1, 5))


# --- what it refuses ----------------------------------------------------------------------------------------


def test_objects_without_masks_are_refused_unless_boxes_are_all_that_is_learnt(tmp_path):
    path = write_coco(tmp_path / "coco") / "annotations/instances_train2017.json"
    objects = json.loads(path.read_text())["annotations"]
    edited(
        path,
        annotations=[
            {key: value for key, value in item.items() if key != "segmentation"} for item in objects
        ],
    )
    with pytest.raises(UsageError, match=r"6 objects of coco train have no mask.*--set masks=false"):
        LioMaskRcnn.fit(request(tmp_path / "coco", tmp_path / "run"))
    LioMaskRcnn.fit(
        request(
            tmp_path / "coco", tmp_path / "boxes", epochs=1, limit=2, settings={**SETTINGS, "masks": "false"}
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1000.0}, r"'lio-mask-rcnn' is no longer finite: epoch \d.*smaller --lr"),
        ({"epochs": 0}, "epochs=0"),
        ({"workers": -1}, "workers=-1"),
        ({"settings": {"recipe": "1x"}}, "unknown recipe '1x'.*Known: lio_coco, tiny"),
        ({"settings": {"recipe.lr_": "1"}}, "did you mean 'lr'"),
    ],
)
def test_what_cannot_work_is_refused(root, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        LioMaskRcnn.fit(request(root, tmp_path, **change))
    assert not (tmp_path / LAST).exists()


def test_several_processes_are_refused(root, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="without torchrun"):
        LioMaskRcnn.fit(request(root, tmp_path))
