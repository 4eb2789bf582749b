"""Types that all steps share: samples, data sets, boxes, score maps and detections.

Coordinates. Boxes are `xyxy` in continuous pixels of the annotated image, whose area is [0, W] x [0, H].
The end is exclusive, so a box of one pixel is (x, y, x + 1, y + 1). Other published conventions ("+1",
inclusive ends) are applied by the evaluation protocol, never by a loader.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.decoding import read_gray, read_picture, read_size

if TYPE_CHECKING:
    import PIL.Image

Boxes = Float[np.ndarray, "r 4"]
"""float64 boxes, one row (x0, y0, x1, y1) each."""

ScoreMap = Float[np.ndarray, "h w"]
"""Raw localization map of one class of one image: any finite range, higher means more likely object."""

UnitMap = Shaped[np.ndarray, "h w"]
"""A map in the evaluation frame: floats in [0, 1], or uint8, which stands for value / 255."""

KeyPoints = Float[np.ndarray, "p 3"]
"""float64 rows (x, y, visible). `visible` is 1 or 0; (x, y) is undefined where it is 0."""


def no_boxes() -> Boxes:
    """Return an empty (0, 4) box array."""
    return np.zeros((0, 4), dtype=np.float64)


class _Size:
    """Descriptor of `Sample.size`: the given value, or if None, the size from the image header."""

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
    """One image with its annotations. Pixels and masks are read only on request.

    Attributes:
        id: unique key in the data set, a relative POSIX path or a name.
        label: class index, 0-based.
        size: (width, height) of the frame in which boxes, masks and key points are given. The stored file may
            have another size, for example a shrunken copy with the original annotations. Readers scale by
            `size`, never by the file. If None, the size is read from the file's header on first access.
        boxes: ground-truth boxes (R, 4). R is 0 if the data set has none.
        path: image file. Give either `path` or `array`.
        array: pixels, uint8 (H, W, 3).
        crop: (x0, y0, x1, y1), the part of the stored file that is the image. `size` refers to it.
        mask_paths: instance masks. The object is their union.
        ignore_path: mask of pixels that are excluded, except where an instance mask covers them.
        key_points: (P, 3), or None if the data set has none.
        mask_threshold: a mask pixel is object if its 8-bit value is greater than this. Values of 16 bits and
            floats are first scaled to 8 bits (`wsolbench.system.decoding`).
    """

    id: str
    label: int
    if TYPE_CHECKING:
        size: _Size = _Size()
    else:  # run-time type checkers need the type of the values that callers pass
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
        """Whether `mask()` returns an array."""
        return bool(self.mask_paths)

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the pixels (H, W, 3), RGB.

        The EXIF orientation is not applied, because annotations refer to stored pixels. Raises `DataError`
        if the file is missing, truncated or not an image.
        """
        if self.array is None:
            return np.array(self.picture())  # np.asarray would be read-only
        if self.crop is None:
            return self.array
        x0, y0, x1, y1 = self.crop
        return self.array[y0:y1, x0:x1]

    def picture(self) -> PIL.Image.Image:
        """Return the pixels of `image` as a Pillow image, with fewer copies if they are in a file.

        Errors are as for `image`.
        """
        if self.array is not None:
            from PIL import Image

            return Image.fromarray(self.image())
        if self.path is None:
            raise DataError(f"sample {self.id!r} has neither pixels nor a path")
        picture = read_picture(self.path, f"image {self.id!r}")
        if self.crop is None:
            return picture
        x0, y0, x1, y1 = self.crop
        return picture.crop((x0, y0, min(x1, picture.width), min(y1, picture.height)))

    def _stored_size(self) -> tuple[int, int]:
        if self.crop is not None:
            return self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        if self.array is not None:
            return self.array.shape[1], self.array.shape[0]
        if self.path is None:
            raise DataError(f"sample {self.id!r} has neither a size nor pixels nor a path")
        return read_size(self.path)

    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """Return the union of the instance masks, (H, W) at `size`, or None if the data set has no masks."""
        if not self.mask_paths:
            return None
        union = self._mask_file(self.mask_paths[0])
        for path in self.mask_paths[1:]:
            union |= self._mask_file(path)
        return union

    def ignore(self) -> Bool[np.ndarray, "h w"] | None:
        """Return the pixels to exclude, (H, W): the ignore file minus the object, or None without a file."""
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
                f"{self.size[0]}x{self.size[1]}; expected a mask of the size of its image"
            )
        return np.asarray(pixels > self.mask_threshold)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem that a loader found and handled, so that nothing is dropped silently."""

    what: str
    count: int
    """How often it occurred."""
    example: str
    severity: str = "note"
    """"note" (normal), "warning" (repaired, for instance clipped) or "error" (excluded or missing)."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split of one data set, in evaluation order.

    `findings` lists what the loader repaired or excluded. `fingerprint` is a digest of the annotations (see
    `wsolbench.datasets.base`): two numbers with the same fingerprint use the same images and boxes. A part of
    a split has the fingerprints of the splits that it is in (`within`), and of parts that have no image in
    common with it (`apart`).
    """

    name: str
    split: str
    samples: Sequence[Sample]
    class_names: tuple[str, ...]
    fingerprint: str
    key_point_names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    missing: tuple[Path, ...] = ()
    """Image and mask files that the annotations name but that do not exist."""
    unreadable: tuple[Path, ...] = ()
    """Image files that exist but cannot be read, among those that the loader has checked."""
    left_out: tuple[str, ...] = ()
    """Ids of annotated images that are excluded, because a file is missing or unreadable."""
    root: Path | None = None
    within: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    format: str = ""
    """Value of `--dataset` for the user's own data, which is named by its folder. Else empty: the name."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of a record's `dataset`, JSON values only: for instance how a split was drawn."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def option(self) -> str:
        """The value of `--dataset` that loads it."""
        return self.format or self.name

    @property
    def ids(self) -> tuple[str, ...]:
        """Image ids in evaluation order."""
        return tuple(sample.id for sample in self.samples)

    def find(self, image_id: str) -> Sample:
        """Return the sample with this id. Raises `UsageError` naming the closest id if there is none."""
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
        """Whether any image has a ground-truth box."""
        return any(len(sample.boxes) for sample in self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask."""
        return any(sample.has_mask for sample in self.samples)


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the image.
        scores: (N,) in [0, 1].
        labels: (N,) class indices, 0-based.
        masks: (N, h, w) of the image's size, or None for a box detector.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"] | None = None


DatasetLoader = Callable[..., Dataset]
"""`load(root, split, **options) -> Dataset`: the function that every data set module provides."""
