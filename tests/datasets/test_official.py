"""Reference values of official splits: they agree with the loaders and with the committed records."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from wsolbench.datasets import dataset_info
from wsolbench.datasets.official import ids_digest, labels_digest, official_split

ROOT = Path(__file__).parents[2]
TEXT = (files("wsolbench.datasets") / "official_splits.csv").read_text(encoding="utf-8")
ROWS = list(csv.DictReader(TEXT.splitlines()))


def test_every_row_is_of_a_split_whose_size_is_known() -> None:
    assert len({(row["dataset"], row["split"]) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row["split"] in dataset_info(row["dataset"]).expected
        assert set(row["annotated"].split()) <= {"boxes", "masks"}


@pytest.mark.parametrize(
    ("name", "images"),
    [("cub", 5794), ("ilsvrc", 50000), ("openimages", 5000), ("cars", 8041), ("aircraft", 3333)],
)
def test_the_sizes_are_those_of_the_data_sets_papers(name: str, images: int) -> None:
    split = official_split(name, "test")
    assert split is not None
    assert (split.images, split.fingerprint) == (images, "")


def test_an_unknown_data_set_or_split_is_not_official() -> None:
    assert official_split("my-birds", "test") is None
    assert official_split("cub", "part") is None
    assert official_split("csvfolder", "test") is None


@pytest.mark.parametrize("name", ["butterflies", "toybirds-v2"])
def test_committed_records_of_all_images_have_the_reference_values(name: str) -> None:
    split = official_split(name, "test")
    assert split is not None
    compared = 0
    for path in sorted((ROOT / "results/measured" / name).glob("*.outcomes.npz"))[:2]:
        data = json.loads(path.with_name(f"{path.name[:-13]}.json").read_text())["dataset"]
        with np.load(path, allow_pickle=False) as arrays:
            ids, labels = arrays["ids"].tolist(), arrays["labels"].tolist()
        found = (data["images"], data["fingerprint"], ids_digest(ids), labels_digest(ids, labels))
        assert found == (split.images, split.fingerprint, split.ids, split.labels)
        compared += 1
    assert compared == 2


def test_the_ids_of_ilsvrc_are_numbered_without_gaps() -> None:
    split = official_split("ilsvrc", "test")
    assert split is not None
    assert split.ids == ids_digest(f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001))


def test_the_digest_of_labels_does_not_depend_on_the_order() -> None:
    assert labels_digest(["a", "b"], [0, 1]) == labels_digest(["b", "a"], [1, 0])
    assert labels_digest(["a", "b"], [0, 1]) != labels_digest(["a", "b"], [1, 0])
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])
