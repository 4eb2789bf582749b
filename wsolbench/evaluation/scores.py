"""Score once, derive everything: what is kept of each image, from which every metric is an array look-up.

For one image: the best IoU at every threshold under both box rules, the error category at every threshold,
pixel histograms where there is a mask, and the predicted labels. Maps and model are not needed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from wsolbench.exceptions import DataError
from wsolbench.maps import frame_boxes, frame_size, to_frame
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.masks import resize_mask
from wsolbench.maps.sources import PARTS, ProposedParts
from wsolbench.metrics.errors import error_codes
from wsolbench.metrics.histograms import histograms
from wsolbench.metrics.keypoints import ImageDistances, keypoint_distance
from wsolbench.metrics.pxap import number_of_bins
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol, crop_start
from wsolbench.system.files import atomic_path
from wsolbench.system.regular_files import name_content
from wsolbench.types import Sample, ScoreMap


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Per-image scores of n images under one protocol with T thresholds.

    Rows of an image without boxes (`has_boxes` false) or mask (`has_mask` false) are zeros and enter no
    metric that needs them. `ranked` has as many columns as labels were predicted; none where there is no
    classifier. `point_*` are of the four best proposed parts; where `point_real` is false (no such part, no
    visible key point) the others are 0.
    """

    ids: np.ndarray
    labels: Int64[np.ndarray, " n"]
    ranked: Int64[np.ndarray, "n k"]
    has_boxes: Bool[np.ndarray, " n"]
    best_iou: Float64[np.ndarray, "n t"]
    single_iou: Float64[np.ndarray, "n t"]
    error_codes: UInt8[np.ndarray, "n t"]
    has_mask: Bool[np.ndarray, " n"]
    pixel_histogram: Int32[np.ndarray, "n 2 b"]
    level_histogram: Int32[np.ndarray, "n 2 256"]
    point_real: Bool[np.ndarray, "n 4"]
    point_px: Float64[np.ndarray, "n 4"]
    point_norm: Float64[np.ndarray, "n 4"]
    point_hit: Bool[np.ndarray, "n 4"]
    point_nearest: Int64[np.ndarray, "n 4"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_object(self) -> Bool[np.ndarray, " n"]:
        """Whether the image has a mask with an object pixel."""
        return np.asarray(self.has_mask & self.level_histogram[:, 0].any(axis=1))

    @property
    def has_parts(self) -> Bool[np.ndarray, " n"]:
        """Whether the image has a proposal and a visible key point."""
        return np.asarray(self.point_real.any(axis=1))

    @classmethod
    def concatenate(cls, parts: Sequence[ImageScores]) -> ImageScores:
        """One table of several, in order."""
        return cls(
            **{
                item.name: np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(cls)
            }
        )

    def write(self, path: Path, place: str = "") -> None:
        """Store as a file that `read` reads quickly, atomically; neighbouring thresholds at which no image
        differs are stored once.

        A line of JSON, [name, dtype, shape] for each array, and then the arrays' bytes. The first array is
        `place`: which images of which run these are; the last is the SHA-256 of all bytes before it.
        """
        new = self.new_at_tau()
        stored = {"place": np.array([place.encode()]), "tau_index": np.cumsum(new) - 1}
        stored |= {item.name: getattr(self, item.name) for item in fields(self)}
        for name in _PER_TAU:
            stored[name] = stored[name][:, new]
        for name in _HISTOGRAMS:
            stored[name] = stored[name].astype(np.min_scalar_type(stored[name].max(initial=0)))
        header = [
            *([name, array.dtype.str, array.shape] for name, array in stored.items()),
            ["sha256", "|u1", [_DIGEST]],
        ]
        content = (
            json.dumps(header).encode()
            + b"\n"
            + b"".join(np.ascontiguousarray(array).tobytes() for array in stored.values())
        )
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            stream.write(content)
            stream.write(hashlib.sha256(content).digest())

    @classmethod
    def read(cls, path: Path) -> ImageScores:
        """What `write` stored. Raises `DataError` when the file is missing, of another kind, or not as it was
        written.
        """
        with unreadable_scores(path):
            stored = _stored(path)
            del stored["place"], stored["sha256"]
            index = stored.pop("tau_index")
            for name in _PER_TAU:
                stored[name] = np.take(stored[name], index, axis=1)
            for name in _HISTOGRAMS:
                stored[name] = stored[name].astype(np.int32)
            return cls(**stored)

    def select(self, chosen: Bool[np.ndarray, " n"] | Int64[np.ndarray, " k"]) -> ImageScores:
        """The rows of some of the images: a flag for each image, or positions."""
        return ImageScores(**{item.name: getattr(self, item.name)[chosen] for item in fields(self)})

    def new_at_tau(self) -> Bool[np.ndarray, " t"]:
        """Whether some image's scores at a threshold are not those at the threshold before; always so at the
        first.
        """
        new = np.zeros(self.best_iou.shape[1], dtype=np.bool_)
        new[:1] = True
        for name in _PER_TAU:
            rows = getattr(self, name)
            new[1:] |= (rows[:, 1:] != rows[:, :-1]).any(axis=0)
        return new


def read_ids(path: Path, place: str) -> list[str]:
    """The ids of the images in a file that `ImageScores.write` stored for this place.

    Raises `DataError` when the file is missing, of another kind, not as it was written, or of another place.
    """
    with unreadable_scores(path):
        stored = _stored(path)
        if stored["place"].tolist() != [place.encode()]:
            raise ValueError("it holds scores of other images, or of another run")
        ids: list[str] = stored["ids"].tolist()
        return ids


def _stored(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of `ImageScores.write`, as they are there."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    content = path.read_bytes()
    if hashlib.sha256(memoryview(content)[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise ValueError("its bytes are not those that were written: the SHA-256 differs")
    start = content.index(b"\n") + 1
    stored = {}
    for name, dtype, shape in json.loads(content[:start]):
        count = int(np.prod(shape))
        stored[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
        start += count * np.dtype(dtype).itemsize
    return stored


@contextlib.contextmanager
def unreadable_scores(path: Path) -> Iterator[None]:
    """What goes wrong while a file of scores is read, as `DataError` naming it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"per-image scores {path} cannot be read: there is no such file. Run `wsolbench eval` or "
            "`score` again with --save-scores"
        ) from error
    except Exception as error:  # numpy, zipfile and zlib raise whatever a damaged file makes them stumble on
        raise DataError(
            f"per-image scores {path} cannot be read: "
            f"{str(error) or type(error).__name__}{name_content(path)}"
        ) from error


_DIGEST = hashlib.sha256().digest_size


_PER_TAU = ("best_iou", "single_iou", "error_codes")
_HISTOGRAMS = ("pixel_histogram", "level_histogram")


def score_image(
    sample: Sample,
    raw_map: ScoreMap,
    ranked: Sequence[int],
    protocol: EvalProtocol,
    proposed: ProposedParts | None = None,
) -> ImageScores:
    """Scores of one image (n = 1) from its raw map, the predicted labels, best first, and the proposed parts.

    Raises `DataError`, naming the image, for a map that is not finite or not two-dimensional, and for a mask
    of another size.
    """
    unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
    num_taus = len(protocol.taus)
    boxes = frame_boxes(sample.boxes, sample.size, protocol, check_unit=False)
    best_iou = single_iou = np.zeros(num_taus)
    codes = np.zeros(num_taus, dtype=np.uint8)
    if len(boxes):
        swept = sweep(unit_map, boxes, protocol)
        best_iou, single_iou = swept.best_iou, swept.single_iou
        codes = error_codes(swept.single_boxes, boxes, protocol)
    mask = sample.mask()
    pixels, levels = (
        np.zeros((2, number_of_bins(protocol)), dtype=np.int32),
        np.zeros((2, 256), dtype=np.int32),
    )
    if mask is not None:
        ignore = sample.ignore()
        size = frame_size(sample.size, protocol)
        framed = _frame_mask(mask, size, protocol)
        framed_ignore = None if ignore is None else _frame_mask(ignore, size, protocol) & ~framed
        pixels, levels = (
            counts.astype(np.int32) for counts in histograms(unit_map, framed, framed_ignore, protocol)
        )
    return ImageScores(
        ids=np.array([sample.id]),
        labels=np.array([sample.label], dtype=np.int64),
        ranked=np.array(ranked, dtype=np.int64).reshape(1, -1),
        has_boxes=np.array([len(boxes) > 0]),
        best_iou=best_iou[None],
        single_iou=single_iou[None],
        error_codes=codes[None],
        has_mask=np.array([mask is not None]),
        pixel_histogram=pixels[None],
        level_histogram=levels[None],
        **_parts(sample, protocol, proposed),
    )


def _parts(sample: Sample, protocol: EvalProtocol, proposed: ProposedParts | None) -> dict[str, np.ndarray]:
    """The columns of the key points."""
    columns: dict[str, np.ndarray] = {
        name: np.zeros((1, PARTS), dtype) for name, dtype in _POINT_COLUMNS.items()
    }
    found = None if proposed is None else part_distances(sample, protocol, proposed)
    if found is not None:
        slots = np.flatnonzero(found.real)
        for name, column in columns.items():
            column[0, slots] = getattr(found, name.removeprefix("point_"))[slots]
    return columns


def part_distances(sample: Sample, protocol: EvalProtocol, proposed: ProposedParts) -> ImageDistances | None:
    """Of the `PARTS` best proposals to the key points; None without a visible one, and without a true box,
    which is the scale.
    """
    if sample.key_points is None or not len(sample.boxes):
        return None
    points = sample.key_points.copy()
    points[:, :2] = map_to_view(points[:, :2], sample.size, proposed.side, protocol)
    true_box = map_to_view(sample.boxes[0].reshape(2, 2), sample.size, proposed.side, protocol).reshape(4)
    best, padded = proposed.boxes[:PARTS], proposed.padded[:PARTS]
    return keypoint_distance(best, points, true_box, side=proposed.side, padded=padded)


_POINT_COLUMNS = {
    "point_real": np.bool_,
    "point_px": np.float64,
    "point_norm": np.float64,
    "point_hit": np.bool_,
    "point_nearest": np.int64,
}


def _frame_mask(
    mask: Bool[np.ndarray, "h w"], size: tuple[int, int], protocol: EvalProtocol
) -> Bool[np.ndarray, "fh fw"]:
    if protocol.frame != "center_crop":
        return resize_mask(mask, size)
    edge = crop_start(protocol.resize_size, protocol.frame_size)
    whole = resize_mask(mask, (protocol.resize_size, protocol.resize_size))
    return whole[edge : edge + size[1], edge : edge + size[0]]
