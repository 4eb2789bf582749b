"""The shared vocabulary: what a data set hands out and what the other steps exchange.

Coordinates. Boxes are `xyxy` in continuous pixels of the annotated image, whose area is [0, W] x [0, H]; the
end is exclusive, so a box of one pixel is (x, y, x + 1, y + 1). Published conventions that count otherwise
("+1", inclusive ends) are applied by the evaluation protocol, never by a loader.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.decoding import read_gray, read_rgb, read_size

Boxes = Float[np.ndarray, "r 4"]
"""float64 boxes, one row (x0, y0, x1, y1) each."""

ScoreMap = Float[np.ndarray, "h w"]
"""One raw localization map of one class of one image: any finite range, larger means more likely object."""

UnitMap = Shaped[np.ndarray, "h w"]
"""A map in the evaluation frame: floats in [0, 1], or uint8, which stands for value / 255."""

KeyPoints = Float[np.ndarray, "p 3"]
"""float64 rows (x, y, visible); `visible` is 1 or 0, and (x, y) means nothing where it is 0."""


def no_boxes() -> Boxes:
    """An empty (0, 4) box array."""
    return np.zeros((0, 4), dtype=np.float64)


class _Size:
    """The field `Sample.size`: a value, or (None) what the image file's header says, read when first asked
    for.
    """

    @overload
    def __get__(self, sample: None, owner: type) -> None: ...
    @overload
    def __get__(self, sample: Sample, owner: type) -> tuple[int, int]: ...
    def __get__(self, sample: Sample | None, owner: type) -> tuple[int, int] | None:
        if sample is None:
            return None  # the default of the dataclass field
        size: tuple[int, int] | None = vars(sample)["size"]
        if size is None:
            size = vars(sample)["size"] = sample._stored_size()
        return size

    def __set__(self, sample: Sample, size: tuple[int, int] | None) -> None:
        vars(sample)["size"] = size


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with all that is known about it. Pixels and masks are read only when asked for.

    Attributes: id: the only key: a relative POSIX path or name, unique in its data set. label: class index,
        0-based. size: (width, height) of the frame in which boxes, masks and key points are given. The stored
        file may have
            another size (a shrunken copy beside original annotations); readers scale by `size`, never by the
            file. None when made: the file's header is read when the size is first asked for.
        boxes: true boxes, (R, 4); R is 0 where the data set has none.
        path: image file; or `array`: the pixels, uint8 (H, W, 3).
        crop: (x0, y0, x1, y1), the part of the stored file that is the image; `size` is the size of this
            part.
        mask_paths: instance masks; the object is their union.
        ignore_path: pixels that count neither way, except where an instance mask covers them.
        key_points: (P, 3) or None.
        mask_threshold: a mask pixel is object when its 8-bit value is greater than this. Values of 16 bits
            and floats are scaled to 8 bits (`wsolbench.system.decoding`).
    """

    id: str
    label: int
    if TYPE_CHECKING:
        size: _Size = _Size()
    else:  # run-time checkers look at the values that may be given
        size: tuple[int, int] | None = _Size()
    boxes: Boxes = field(default_factory=no_boxes)
    path: Path | None = None
    array: UInt8[np.ndarray, "h w 3"] | None = None
    crop: tuple[int, int, int, int] | None = None
    mask_paths: tuple[Path, ...] = ()
    ignore_path: Path | None = None
    key_points: KeyPoints | None = None
    mask_threshold: int = 127

    @property
    def has_mask(self) -> bool:
        """Whether `mask()` gives an array."""
        return bool(self.mask_paths)

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels, RGB; the EXIF orientation is not applied (annotations refer to stored pixels).

        Raises `DataError` when the file is missing, truncated or no image.
        """
        if self.array is not None:
            return self._cropped(self.array)
        if self.path is None:
            raise DataError(f"sample {self.id!r} has neither pixels nor a path")
        return self._cropped(read_rgb(self.path, f"image {self.id!r}"))

    def _cropped(self, pixels: UInt8[np.ndarray, "stored_h stored_w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        if self.crop is None:
            return pixels
        x0, y0, x1, y1 = self.crop
        return pixels[y0:y1, x0:x1]

    def _stored_size(self) -> tuple[int, int]:
        if self.crop is not None:
            return self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        if self.array is not None:
            return self.array.shape[1], self.array.shape[0]
        if self.path is None:
            raise DataError(f"sample {self.id!r} has neither a size nor pixels nor a path")
        return read_size(self.path)

    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """Union of the instance masks at `size`, or None where the data set has no masks."""
        if not self.mask_paths:
            return None
        union = self._mask_file(self.mask_paths[0])
        for path in self.mask_paths[1:]:
            union |= self._mask_file(path)
        return union

    def ignore(self) -> Bool[np.ndarray, "h w"] | None:
        """Pixels to leave out: the ignore file minus the object; None where there is none."""
        if self.ignore_path is None:
            return None
        ignored = self._mask_file(self.ignore_path)
        mask = self.mask()
        return ignored if mask is None else ignored & ~mask

    def _mask_file(self, path: Path) -> Bool[np.ndarray, "h w"]:
        pixels = read_gray(path, f"mask of {self.id!r}")
        if pixels.shape != (self.size[1], self.size[0]):
            raise DataError(
                f"mask {path} is {pixels.shape[1]}x{pixels.shape[0]}, but its image {self.id!r} is "
                f"{self.size[0]}x{self.size[1]}; "
                "a mask must have the size of its image"
            )
        return np.asarray(pixels > self.mask_threshold)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something a loader noticed and dealt with: how often, and an example, so that nothing is dropped
    silently.
    """

    what: str
    count: int
    example: str
    severity: str = "note"
    """"note" (normal), "warning" (repaired, for instance clipped) or "error" (left out or missing)."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split of one data set, in evaluation order.

    `findings` holds what the loader repaired or left out. `fingerprint` (see `wsolbench.datasets.base`) names
    the exact annotations, so that two numbers are known to be about the same images and boxes.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    class_names: tuple[str, ...]
    fingerprint: str
    key_point_names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    missing: tuple[Path, ...] = ()
    """Image and mask files that the annotations name and that are not there."""
    unreadable: tuple[Path, ...] = ()
    """Image files that are there and cannot be read, as far as the loader has looked at them."""
    left_out: tuple[str, ...] = ()
    """Ids of the annotated images that are no samples, because a file of theirs is missing or cannot be
    read.
    """
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids in order."""
        return tuple(sample.id for sample in self.samples)

    def find(self, image_id: str) -> Sample:
        """The sample with this id. Raises `UsageError` with the nearest id."""
        ids = self.ids
        if image_id not in ids:
            near = difflib.get_close_matches(image_id, ids, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"the first of its {len(ids)} ids is {next(iter(ids), '(none)')!r}"
            )
            raise UsageError(f"no image {image_id!r} in {self.name}/{self.split}; {hint}")
        return self.samples[ids.index(image_id)]

    @property
    def has_boxes(self) -> bool:
        """Whether any image has a true box."""
        return any(len(sample.boxes) for sample in self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask."""
        return any(sample.has_mask for sample in self.samples)


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """What a detector finds in one image, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the image.
        scores: (N,) in [0, 1].
        labels: (N,) class indices, 0-based.
        masks: (N, h, w) of the image's size; None for a detector that finds boxes only.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"] | None = None


DatasetLoader = Callable[..., Dataset]
"""`load(root, split, **options) -> Dataset`: the one function every file in `wsolbench/datasets/` offers."""
