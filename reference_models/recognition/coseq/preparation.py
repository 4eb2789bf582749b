"""Steps 1 to 5 of CoSeq on a training split: from images and ground-truth boxes to the boxes of the parts.

Everything is deterministic. Masks and boxes are stored in the folder of caches (`WSOLBENCH_CACHE`), by a
digest of images, boxes, classes and settings, and for boxes also of the poses. Delete its folder `coseq` to
compute them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from reference_models.layers.k_means import squared_distances
from reference_models.layers.norm_statistics import NormStatistics, PartInputConfig
from reference_models.recognition.coseq.alignment import align_outlines, outline
from reference_models.recognition.coseq.parts import (
    Frame,
    group_points,
    least_side,
    make_frame,
    part_boxes,
    propagate,
    root_points,
)
from reference_models.recognition.coseq.pose_graph import TREES, spanning_trees, visit_order
from reference_models.recognition.coseq.segmentation import (
    ROUNDS,
    Mask,
    Scene,
    accepted_mask,
    cosegment,
    grabcut,
)
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.masks import resize_mask
from wsolbench.ranges import Range, Seed
from wsolbench.system.files import atomic_path, cache_folder
from wsolbench.system.progress import note, track
from wsolbench.types import Dataset, Sample

VERSION = 2
"""Of the steps. A change of their results needs another number."""
Segmentation = Literal["coseg", "grabcut", "mask"]


@dataclass(frozen=True, kw_only=True)
class PartConfig(PartInputConfig):
    """Settings of the parts."""

    later: ClassVar[frozenset[str]] = frozenset()

    norm_statistics: NormStatistics = "per_input"
    """Running statistics of batch norm: `per_input`, or `shared` by images, objects and parts.

    The paper has one network for objects and another one for parts. With `shared`, the class maps of whole
    images, and so the objects' boxes, suffer most.
    """
    parts: Annotated[int, Range(0, 256)] = 31
    """K: released code. 0, a control: the object alone."""
    part_boxes: Literal["aligned", "grid"] = "aligned"
    """Parts by alignment, or a fixed grid of boxes in the object, a control."""
    segment: Segmentation = "coseg"
    """Masks: co-segmentation, OpenCV's GrabCut of each image, or ground-truth masks (an upper bound)."""
    mask_pixels: Annotated[int, Range(100, 1_000_000)] = 10_000
    """Most pixels of an image for segmentation. Released code: 100,000."""
    points: Annotated[int, Range(1, 10_000)] = 500
    """Points that travel from image to image: released code."""
    part_seed: Seed = 0
    """Seed of mixtures, points, clusters and folds."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Results of the steps.

    Attributes:
        masks: of the scenes.
        trajectories: (N, points, 2), places of the points in the frames.
        labels: (points,), the part of each point.
        boxes: (N, parts, 4), relative to the ground-truth box of each image.
    """

    masks: list[Mask]
    trajectories: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


# --- reading ------------------------------------------------------------------------------------------------


def object_boxes(train: Dataset) -> Float[np.ndarray, "n 4"]:
    """Return the largest ground-truth box of each image, in coordinates in which the image is [0, 1]^2.

    Raises `DataError` for an image without a box.
    """
    found = []
    for sample in train.samples:
        width, height = sample.size
        scale = np.array([width, height, width, height], dtype=np.float64)
        boxes = np.clip(sample.boxes, 0, scale)
        sides = boxes[:, 2:] - boxes[:, :2]
        if not len(boxes) or not (sides > 0).all(axis=1).any():
            raise DataError(
                f"image {sample.id!r} of {train.name} {train.split} has no ground-truth box; method 'coseq' "
                "needs one for each training image. Use a data set with boxes, or object_box=image for "
                "images that are cropped to their objects"
            )
        found.append(boxes[(sides.clip(min=0).prod(axis=1)).argmax()] / scale)
    return np.stack(found)


def read_scene(sample: Sample, box: Float[np.ndarray, " 4"], pixels: int) -> Scene:
    """Read an image with at most that many pixels, and its box in whole pixels."""
    picture = sample.picture().convert("RGB")
    factor = min(1.0, float(np.sqrt(pixels / (picture.width * picture.height))))
    width, height = (max(2, round(side * factor)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    sides = np.array([width, height, width, height])
    x0, y0 = np.floor(box[:2] * sides[:2] + 1e-6).astype(int)
    x1, y1 = np.ceil(box[2:] * sides[2:] - 1e-6).astype(int)
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return Scene(np.array(picture), (int(x0), int(y0), int(max(x1, x0 + 1)), int(max(y1, y0 + 1))))


def given_mask(sample: Sample, scene: Scene) -> Mask:
    """Return the ground-truth mask of an image. Raises `DataError` if it has none."""
    mask = sample.mask()
    if mask is None:
        raise DataError(
            f"image {sample.id!r} has no ground-truth mask; use segment=coseg, which needs only boxes"
        )
    height, width = scene.pixels.shape[:2]
    return accepted_mask(resize_mask(mask, (width, height)), scene)


# --- the cache ----------------------------------------------------------------------------------------------


def digest_of(values: dict[str, Any], arrays: Sequence[np.ndarray]) -> str:
    """Return a digest of plain values and arrays."""
    digest = hashlib.sha256(json.dumps({**values, "version": VERSION}, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def cached(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays from the cache, or compute and store them.

    A damaged file is computed again. If the cache cannot be written, a note says so.
    """
    path = cache_folder() / "coseq" / f"{name}.npz"
    if (found := _read(path)) is not None:
        return found
    arrays = compute()
    try:
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    except UsageError as error:
        note(f"the parts of coseq are not cached: {error}")
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    # numpy and zipfile raise many types on damage.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    return None


# --- the steps ----------------------------------------------------------------------------------------------


def segment(train: Dataset, scenes: Sequence[Scene], settings: PartConfig) -> list[Mask]:
    """Return the mask of each image, step 1."""
    labels = np.array([sample.label for sample in train.samples])
    masks: list[Mask] = [scene.inside for scene in scenes]
    what, rounds = f"segmenting {train.name} {train.split}", ROUNDS if settings.segment == "coseg" else 1
    with track(description=what, total=len(scenes) * rounds, unit="cuts") as bar:
        if settings.segment == "coseg":
            for label in np.unique(labels):
                own = np.flatnonzero(labels == label).tolist()
                found = cosegment([scenes[image] for image in own], settings.part_seed, done=bar.advance)
                for image, mask in zip(own, found, strict=True):
                    masks[image] = mask
            return masks
        for image, (sample, scene) in enumerate(zip(train.samples, scenes, strict=True)):
            masks[image] = grabcut(scene) if settings.segment == "grabcut" else given_mask(sample, scene)
            bar.advance()
    return masks


def find_parts(
    scenes: Sequence[Scene], masks: Sequence[Mask], poses: Float[np.ndarray, "n d"], settings: PartConfig
) -> dict[str, np.ndarray]:
    """Return trajectories, labels and boxes of `Prepared`: steps 2 to 5."""
    rng, count = np.random.default_rng(settings.part_seed), len(scenes)
    frames = [make_frame(mask, scene.box) for mask, scene in zip(masks, scenes, strict=True)]
    outlines = [outline(frame.mask) for frame in frames]
    # 2: trees of similar poses.
    trees = spanning_trees(np.sqrt(squared_distances(*(2 * [poses.astype(np.float64)]))), TREES)
    order = visit_order(trees, count)
    # 3 and 4: points travel from image to image.
    edges = sum(len(visit.sources) for visit in order)
    with track(description="aligning outlines", total=edges, unit="pairs") as bar:

        def predict(source: int, target: int, points: np.ndarray) -> tuple[np.ndarray, bool]:
            alignment = align_outlines(outlines[source], outlines[target], frames[source].width)
            bar.advance()
            return alignment(points), alignment.mirrored

        first = root_points(frames[order[0].image].mask, settings.points, rng)
        trajectories = propagate(order, first, count, predict)
    labels, places = group_points(trajectories, settings.parts, rng)
    # 5: boxes, relative to the ground-truth box.
    boxes = np.stack([_boxes_of(*each) for each in zip(scenes, frames, places, strict=True)])
    return {"trajectories": trajectories.astype(np.float32), "labels": labels, "boxes": boxes}


def _boxes_of(scene: Scene, frame: Frame, points: np.ndarray) -> Float[np.ndarray, "k 4"]:
    area = scene.pixels.shape[0] * scene.pixels.shape[1]
    height, width = frame.mask.shape
    found = part_boxes(frame, points, least_side(scene.box, area))
    return np.asarray(found / np.array([width, height, width, height]))


def prepare(
    train: Dataset,
    boxes: Float[np.ndarray, "n 4"],
    poses: Float[np.ndarray, "n d"],
    settings: PartConfig,
) -> Prepared:
    """Run steps 1 to 5, or read their results from the cache.

    Args:
        train: the training split.
        boxes: of the objects, relative to the images.
        poses: features of the objects, for step 2.
        settings: of the steps.

    Raises `DataError` if an image, or with `segment=mask` its mask, cannot be read.
    """
    samples = zip(train.samples, boxes, strict=True)
    reading = (read_scene(sample, box, settings.mask_pixels) for sample, box in samples)
    scenes = list(track(reading, f"reading {train.name} {train.split}", total=len(train)))
    labels = np.array([sample.label for sample in train.samples])
    data = [labels, *(scene.pixels for scene in scenes), np.array([scene.box for scene in scenes])]
    kind = {"segment": settings.segment, "seed": settings.part_seed, "mask_pixels": settings.mask_pixels}
    if settings.segment == "mask":  # which the pixels do not determine
        masks = segment(train, scenes, settings)
        of_masks = digest_of(kind, [*data, *masks])
    else:
        of_masks = digest_of(kind, data)
        stored = cached(f"masks-{of_masks}", partial(_pack_masks, train, scenes, settings))
        masks = _unpack_masks(stored["masks"], scenes)
    wanted = {"parts": settings.parts, "points": settings.points, "seed": settings.part_seed}
    of_parts = digest_of({**wanted, "masks": of_masks}, [poses])
    found = cached(f"parts-{of_parts}", partial(find_parts, scenes, masks, poses, settings))
    return Prepared(masks, found["trajectories"], found["labels"], found["boxes"])


def _pack_masks(train: Dataset, scenes: Sequence[Scene], settings: PartConfig) -> dict[str, np.ndarray]:
    masks = segment(train, scenes, settings)
    return {"masks": np.packbits(np.concatenate([mask.ravel() for mask in masks]))}


def _unpack_masks(packed: np.ndarray, scenes: Sequence[Scene]) -> list[Mask]:
    shapes = [scene.pixels.shape[:2] for scene in scenes]
    ends = np.cumsum([height * width for height, width in shapes])
    flat = np.unpackbits(packed, count=int(ends[-1])).astype(np.bool_)
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
