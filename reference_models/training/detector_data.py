"""Images and objects for the training of detectors.

They are read in threads. The random flip depends only on (seed, epoch, image).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from reference_models.core.outputs import Target
from reference_models.training.images import map_ordered
from wsolbench.datasets.coco import InstanceDataset, InstanceSample
from wsolbench.exceptions import DataError, UsageError

AHEAD = 2
"""Number of batches that are prepared while another is in use."""

Examples = list[tuple[Tensor, Target]]
"""(3, h, w) uint8 images and their objects."""


class TargetReader:
    """Reader of the images of a split that have objects to learn from.

    Args:
        dataset: the split. Crowds and boxes of less than a pixel are dropped, and images without other
            objects.
        masks: whether masks are needed. An object without a segmentation raises `UsageError`.
        workers: reading threads. 0: the calling thread reads.
    """

    def __init__(self, dataset: InstanceDataset, *, masks: bool, workers: int = 2) -> None:
        self.masks, self.workers = masks, workers
        learnable = (sample.learnable() for sample in dataset.samples)
        self.samples: list[InstanceSample] = [sample for sample in learnable if len(sample.boxes)]
        if not self.samples:
            raise DataError(f"{dataset.name} {dataset.split} has no object to learn from")
        lacking = sum(
            segmentation is None for sample in self.samples for segmentation in sample.segmentations
        )
        if masks and lacking:
            raise UsageError(
                f"{lacking:,} objects of {dataset.name} {dataset.split} have no mask; train on boxes alone "
                "with --set masks=false"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def batches(
        self, batches: Sequence[Int[np.ndarray, " _"]], *, flip: float, seed: int, epoch: int
    ) -> Iterator[Examples]:
        """Yield the examples of each batch, which is given by positions.

        Each example is flipped with probability `flip`.
        """

        def one(index: int) -> tuple[Tensor, Target]:
            mirrored = np.random.default_rng((seed, epoch, index)).random() < flip
            return make_example(self.samples[index], masks=self.masks, mirrored=mirrored)

        ahead = AHEAD * max((len(batch) for batch in batches), default=0)
        examples = map_ordered(
            (int(index) for batch in batches for index in batch), one, workers=self.workers, ahead=ahead
        )
        for batch in batches:
            yield [next(examples) for _ in batch]


def make_example(sample: InstanceSample, *, masks: bool, mirrored: bool) -> tuple[Tensor, Target]:
    """Convert a sample to the format of torchvision's detectors. `mirrored` exchanges left and right."""
    image, (x0, y0, x1, y1) = sample.image(), sample.boxes.T
    found = sample.masks() if masks else None
    if mirrored:
        image, x0, x1 = image[:, ::-1], sample.size[0] - x1, sample.size[0] - x0
        found = None if found is None else found[:, :, ::-1]
    boxes = np.stack([x0, y0, x1, y1], axis=1)
    target = {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.from_numpy(sample.labels + 1),
    }
    if found is not None:
        target["masks"] = torch.from_numpy(np.ascontiguousarray(found))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0))), target
