"""Parts of a split: which ones have images in common."""

from __future__ import annotations

from itertools import product

import pytest

from wsolbench.datasets.base import carve
from wsolbench.datasets.subsets import draw_per_class, hold_out, shares_images, transfer_part
from wsolbench.testing import squares
from wsolbench.types import Dataset


def parts(seed: int) -> dict[str, Dataset]:
    """A split, and the parts of it that commands make."""
    whole = squares(40, seed=seed, split=f"train{seed}")
    train, val = carve(whole, "train"), carve(whole, "val")
    found = {"whole": whole, "train": train, "val": val}
    for draw in (0, 1):
        fit, tune = hold_out(whole, draw)
        found |= {
            f"fit {draw}": fit,
            f"tune {draw}": tune,
            f"shots of fit {draw}": draw_per_class(fit, 5, draw),
        }
        found[f"shots of train {draw}"] = draw_per_class(train, 5, draw)
    return {f"{name}, data {seed}": part for name, part in found.items()}


def metadata(part: Dataset) -> dict[str, object]:
    """What a checkpoint states of its training images."""
    return {"fingerprint": part.fingerprint, "within": list(part.within), "apart": list(part.apart)}


EVERY = {**parts(0), **parts(1)}


def test_a_part_with_images_in_common_is_always_found() -> None:
    for seen, other in product(EVERY, EVERY):
        common = set(EVERY[seen].ids) & set(EVERY[other].ids)
        found = shares_images(metadata(EVERY[seen]), EVERY[other])
        assert found or not common, (seen, other)
        assert not found or seen[-1] == other[-1], (seen, other)  # of other data


@pytest.mark.parametrize(
    ("seen", "other"),
    [
        ("train", "val"),
        ("fit 0", "tune 0"),
        ("shots of fit 0", "tune 0"),
        ("shots of fit 1", "tune 1"),
        ("shots of train 0", "val"),
    ],
)
def test_the_other_part_of_a_division_is_free(seen: str, other: str) -> None:
    assert not shares_images(metadata(EVERY[f"{seen}, data 0"]), EVERY[f"{other}, data 0"])


def test_checkpoints_of_older_versions_state_the_fingerprint_alone() -> None:
    whole, train, val = (EVERY[f"{name}, data 0"] for name in ("whole", "train", "val"))
    assert shares_images({"fingerprint": whole.fingerprint}, val)
    assert not shares_images({"fingerprint": train.fingerprint}, val)
    assert not shares_images({}, val)
    assert transfer_part({}, val) is val
    assert transfer_part({"dataset": {"split": "val/fit", "fingerprint": "another"}}, val) is val
