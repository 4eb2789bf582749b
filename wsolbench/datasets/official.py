"""Reference values of official splits, by which results from outside are recognised.

`official_splits.csv` has one row per split:

    dataset, split     names as in `wsolbench list datasets`
    annotated          what every image has: boxes, masks, or both
    fingerprint        fingerprint of the annotations (`wsolbench verify`)
    ids                digest of the image ids (`ids_digest`)
    labels             digest of the image ids with their labels

Empty cells are unknown: the data cannot be published here. The number of images is
`DatasetInfo.expected`. Whoever has the data set compares its fingerprint with `--data-root`.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from wsolbench.datasets import dataset_info, list_datasets


@dataclass(frozen=True, kw_only=True)
class OfficialSplit:
    """A complete official split. Digests are empty where they are unknown."""

    images: int
    annotated: frozenset[str] = frozenset()
    """What every image has: `boxes`, `masks`, or both."""
    fingerprint: str = ""
    ids: str = ""
    labels: str = ""


def official_split(name: str, split: str) -> OfficialSplit | None:
    """Return the reference values of a split, or None for one that is not official.

    >>> official_split("cub", "test").images
    5794
    >>> official_split("cub", "my-split") is None
    True
    """
    if name not in {info.name for info in list_datasets()}:
        return None
    images = dataset_info(name).expected.get(split)
    if images is None:
        return None
    lines = (files("wsolbench.datasets") / "official_splits.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines):
        if (row["dataset"], row["split"]) == (name, split):
            return OfficialSplit(
                images=images,
                annotated=frozenset(row["annotated"].split()),
                fingerprint=row["fingerprint"],
                ids=row["ids"],
                labels=row["labels"],
            )
    return OfficialSplit(images=images)


def ids_digest(ids: Iterable[str]) -> str:
    """Return 16 hex digits of a SHA-256 over the sorted image ids, one per line.

    >>> ids_digest(["b", "a"]) == ids_digest(["a", "b"])
    True
    """
    return hashlib.sha256("".join(f"{image_id}\n" for image_id in sorted(ids)).encode()).hexdigest()[:16]


def labels_digest(ids: Iterable[str], labels: Iterable[int]) -> str:
    """Return the digest of the image ids with their labels, after a tab."""
    return ids_digest(f"{image_id}\t{int(label)}" for image_id, label in zip(ids, labels, strict=True))
