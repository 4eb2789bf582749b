"""What a run reads besides maps: images and masks that change between its shards, and boxes in another
unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import SIDE, MadeUpSource, dataset, eval_request
from PIL import Image

from wsolbench.evaluation.evaluate import evaluate, score_shard
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.runs import Shard, digest_of_files, merge
from wsolbench.exceptions import DataError
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.types import Dataset

PROTOCOL = EvalProtocol(taus=tau_grid(0.25))


def on_disk(folder: Path, shade: int = 255) -> Dataset:
    """Seventy images and masks in files."""
    made = dataset(70)
    samples = []
    for index, sample in enumerate(made.samples):
        image, mask = folder / f"{index}.png", folder / f"{index}_mask.png"
        Image.fromarray(sample.array).save(image)
        pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
        pixels[:: 2 + index % 2] = shade
        Image.fromarray(pixels).save(mask)
        samples.append(replace(sample, path=image, array=None, mask_paths=(mask,)))
    return replace(made, samples=tuple(samples))


def test_masks_that_change_between_shards_are_noticed_by_merge(tmp_path: Path) -> None:
    options = RunOptions(resamples=20)
    for index, shade in ((1, 255), (2, 254)):
        score_shard(
            eval_request(on_disk(tmp_path, shade), MadeUpSource(), PROTOCOL, options=options),
            Shard(index, 2),
            tmp_path / "shards",
        )
    with pytest.raises(DataError, match=r"Other shards of that name differ in splits"):
        merge([tmp_path / "shards"])


def test_files_are_told_by_the_bytes_of_masks_and_by_the_sizes_of_images_that_are_read(
    tmp_path: Path,
) -> None:
    data = on_disk(tmp_path)
    with_images, without = (digest_of_files(data, images=images) for images in (True, False))
    assert with_images != without
    assert digest_of_files(replace(data, samples=dataset(3).samples), images=False) is None
    picture = data.samples[5].path
    assert picture is not None
    picture.write_bytes(picture.read_bytes() + b"more")
    assert digest_of_files(data, images=True) != with_images
    assert digest_of_files(data, images=False) == without
    mask = data.samples[7].mask_paths[0]
    changed = bytearray(mask.read_bytes())
    changed[-1] ^= 1
    mask.write_bytes(changed)
    assert digest_of_files(data, images=False) != without


def test_one_box_below_a_pixel_is_scored_and_boxes_that_are_all_fractions_are_refused() -> None:
    data = dataset(6)
    tiny = np.array([[0.5, 0.2, 1.0, 0.9]])
    one = replace(data, samples=(replace(data.samples[0], boxes=tiny), *data.samples[1:]))
    assert len(evaluate(one, MadeUpSource(), PROTOCOL).scores) == 6
    every = replace(data, samples=tuple(replace(sample, boxes=tiny) for sample in data.samples))
    with pytest.raises(
        DataError, match=r"of all images, 's0/000\.png' for instance, look like fractions of the image"
    ):
        evaluate(every, MadeUpSource(), PROTOCOL)
