"""Per-image scores: computed once for each image, so that every metric is an array look-up.

For one image these are the best IoU at every threshold under both box rules, the error category at every
threshold, pixel histograms if there is a mask, and the predicted labels. Maps and model are not needed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64, UInt8

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
from wsolbench.protocol import DELTA, EvalProtocol, crop_start
from wsolbench.system.files import atomic_path
from wsolbench.system.regular_files import name_content
from wsolbench.types import Sample, ScoreMap


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Per-image scores of n images under one protocol with T thresholds.

    Rows of an image without boxes (`has_boxes` false) or mask (`has_mask` false) are zeros. They enter no
    metric that needs them. `ranked` has one column per predicted label, or none without a classifier.
    `point_*` are of the four best proposed parts. Where `point_real` is false (no such part, or no visible
    key point), the other columns are 0. Stored arrays of `extra` are called `extra_NAME`.
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
    extra: Mapping[str, Float64[np.ndarray, "n c"]] = field(default_factory=dict)
    """Numbers of each extra metric by its name, NaN where undefined."""

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

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by the names under which they are stored."""
        own = {name: getattr(self, name) for name in ARRAYS}
        return own | {f"{EXTRA}{name}": rows for name, rows in self.extra.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ImageScores:
        """Build the table from what `arrays` returns."""
        own = {name: rows for name, rows in arrays.items() if not name.startswith(EXTRA)}
        extra = {name.removeprefix(EXTRA): rows for name, rows in arrays.items() if name.startswith(EXTRA)}
        return cls(**own, extra=extra)

    @classmethod
    def concatenate(cls, parts: Sequence[ImageScores]) -> ImageScores:
        """Join several tables to one, in order.

        Raises `DataError` if only some of them have the numbers of an extra metric.
        """
        tables = [part.arrays() for part in parts]
        if any(table.keys() != tables[0].keys() for table in tables):
            every = {name for table in tables for name in table}
            names = sorted(name for name in every if any(name not in table for table in tables))
            raise DataError(
                f"some images have numbers of extra metrics that others lack ({', '.join(names)}); expected "
                "the same --extra-metrics for all shards"
            )
        joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        return cls.from_arrays(joined)

    def write(self, path: Path, place: str = "") -> None:
        """Store atomically as a file that `read` reads quickly.

        Neighbouring thresholds at which no image differs are stored once. The file begins with a line of
        JSON: [name, dtype, shape] of each array. Then come the arrays' bytes. The first array is `place`,
        which identifies the run and the images. The last array is the SHA-256 of all bytes before it.
        """
        # Drop repeated thresholds, and use the smallest type for counts.
        new = self.new_at_tau()
        stored = {"place": np.array([place.encode()]), "tau_index": np.cumsum(new) - 1}
        stored |= self.arrays()
        for name in _PER_TAU:
            stored[name] = stored[name][:, new]
        for name in _HISTOGRAMS:
            stored[name] = stored[name].astype(np.min_scalar_type(stored[name].max(initial=0)))
        # Write header and arrays, then their digest.
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
        """Read what `write` stored.

        Raises `DataError` if the file is missing, of another kind, or changed after it was written.
        """
        with unreadable_scores(path):
            stored = _stored(path)
            del stored["place"], stored["sha256"]
            index = stored.pop("tau_index")
            for name in _PER_TAU:
                stored[name] = np.take(stored[name], index, axis=1)
            for name in _HISTOGRAMS:
                stored[name] = stored[name].astype(np.int32)
            return cls.from_arrays(stored)

    def select(self, chosen: Bool[np.ndarray, " n"] | Int64[np.ndarray, " k"]) -> ImageScores:
        """Return the rows of some images, chosen by a flag per image or by positions."""
        return ImageScores.from_arrays({name: rows[chosen] for name, rows in self.arrays().items()})

    def outcomes(self, protocol: EvalProtocol) -> ImageScores:
        """Return scores that give the same metrics under `protocol`, and need little space when compressed.

        An IoU between two neighbouring deltas of the protocol is replaced by the middle of both, so that it
        passes the same tests.
        """
        edges = np.array(sorted({0.0, DELTA, *protocol.deltas, 1.0}))
        middles = (edges[1:] + edges[:-1]) / 2

        def rounded(iou: Float64[np.ndarray, "n t"]) -> Float64[np.ndarray, "n t"]:
            place = np.searchsorted(edges, iou, side="right") - 1
            # Rounding makes some IoUs larger than 1, the last edge. They stay as they are.
            kept = (edges[place] == iou) | (iou > 1)
            return np.where(kept, iou, middles[np.minimum(place, len(middles) - 1)])

        return replace(self, best_iou=rounded(self.best_iou), single_iou=rounded(self.single_iou))

    def new_at_tau(self) -> Bool[np.ndarray, " t"]:
        """Whether the scores of any image change at a threshold. Always true at the first threshold."""
        new = np.zeros(self.best_iou.shape[1], dtype=np.bool_)
        new[:1] = True
        for name in _PER_TAU:
            rows = getattr(self, name)
            new[1:] |= (rows[:, 1:] != rows[:, :-1]).any(axis=0)
        return new


ARRAYS = tuple(item.name for item in fields(ImageScores) if item.name != "extra")
"""Names of the arrays that all per-image scores have."""
EXTRA = "extra_"
"""Prefix of the names of arrays of extra metrics."""


def read_ids(path: Path, place: str) -> list[str]:
    """Return the image ids in a file that `ImageScores.write` stored for this place.

    Raises `DataError` if the file is missing, of another kind or place, or changed after it was written.
    """
    with unreadable_scores(path):
        stored = _stored(path)
        if stored["place"].tolist() != [place.encode()]:
            raise ValueError("its scores are of other images, or of another run")
        ids: list[str] = stored["ids"].tolist()
        return ids


def _stored(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of `ImageScores.write`, as stored."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    content = path.read_bytes()
    if hashlib.sha256(memoryview(content)[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise ValueError("it was changed or damaged: its SHA-256 differs")
    start = content.index(b"\n") + 1
    stored = {}
    for name, dtype, shape in json.loads(content[:start]):
        count = int(np.prod(shape))
        stored[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
        start += count * np.dtype(dtype).itemsize
    return stored


@contextlib.contextmanager
def unreadable_scores(path: Path) -> Iterator[None]:
    """Convert any error while a file of scores is read to a `DataError` naming the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"per-image scores {path} cannot be read: there is no such file. Run `wsolbench eval` or "
            "`score` again with --save-scores"
        ) from error
    except Exception as error:  # numpy, zipfile and zlib raise many types for a damaged file
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
    extra: Callable[[Float[np.ndarray, "fh fw"], Float64[np.ndarray, "r 4"]], Mapping[str, np.ndarray]]
    | None = None,
) -> ImageScores:
    """Score one image (n = 1).

    It needs the raw map, the predicted labels, best first, and the proposed parts, if any. `extra` maps the
    map and the boxes in the frame to the rows of extra metrics, (1, c) each. Raises `DataError` naming the
    image for a map that is not finite or not two-dimensional, and for a mask whose size differs from the
    image's.
    """
    # Resize the map to the frame of the protocol.
    unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
    num_taus = len(protocol.taus)
    boxes = frame_boxes(sample.boxes, sample.size, protocol, check_unit=False)
    best_iou = single_iou = np.zeros(num_taus)
    codes = np.zeros(num_taus, dtype=np.uint8)
    # Boxes: IoU and error category at every threshold, (T,).
    if len(boxes):
        swept = sweep(unit_map, boxes, protocol)
        best_iou, single_iou = swept.best_iou, swept.single_iou
        codes = error_codes(swept.single_boxes, boxes, protocol)
    # Mask: pixel histograms, (2, B) and (2, 256).
    mask = sample.mask()
    pixels, levels = (
        np.zeros((2, number_of_bins(protocol)), dtype=np.int32),
        np.zeros((2, 256), dtype=np.int32),
    )
    if mask is not None:
        ignore = sample.ignore()
        size = frame_size(sample.size, protocol)
        framed = frame_mask(mask, size, protocol)
        framed_ignore = None if ignore is None else frame_mask(ignore, size, protocol) & ~framed
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
        extra={} if extra is None else extra(unit_map, boxes),
    )


def _parts(sample: Sample, protocol: EvalProtocol, proposed: ProposedParts | None) -> dict[str, np.ndarray]:
    """Return the columns of the key points."""
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
    """Return the distances of the `PARTS` best proposals to the key points.

    None without a visible key point, and without a ground-truth box, which gives the scale.
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


def frame_mask(
    mask: Bool[np.ndarray, "h w"], size: tuple[int, int], protocol: EvalProtocol
) -> Bool[np.ndarray, "fh fw"]:
    """Bring a mask into the frame of the protocol, of this (width, height)."""
    if protocol.frame != "center_crop":
        return resize_mask(mask, size)
    edge = crop_start(protocol.resize_size, protocol.frame_size)
    whole = resize_mask(mask, (protocol.resize_size, protocol.resize_size))
    return whole[edge : edge + size[1], edge : edge + size[0]]
