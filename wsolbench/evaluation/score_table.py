"""The per-image scores of a split, in chunks: everything that metrics and plots of a split are made from."""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from wsolbench.evaluation.scores import EXTRA, ImageScores, unreadable_scores
from wsolbench.exceptions import DataError
from wsolbench.maps.sources import PARTS
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.system.files import atomic_path, canonical_json, sha256_of_json
from wsolbench.system.stored import check_regular_file

SCORES = ".scores.npz"
"""Suffix of the file of scores next to a record."""

OUTCOMES = ".outcomes.npz"
"""Suffix of the smaller file, which gives the same metrics (`ImageScores.outcomes`)."""


RECORD = "record"
"""Array of a file of scores with `scores_digest` of the record, the image ids and the other arrays."""

_SHAPES = {
    "ids": "n",
    "labels": "n",
    "ranked": "nk",
    "has_boxes": "n",
    "best_iou": "nt",
    "single_iou": "nt",
    "error_codes": "nt",
    "has_mask": "n",
    "pixel_histogram": "n2b",
    "level_histogram": "n2l",
    **{f"point_{name}": "np" for name in ("real", "px", "norm", "hit", "nearest")},
}
"""Axes of each array. Axes with the same letter have the same size."""
_SIZES = {"2": 2, "l": 256, "p": PARTS}
_KINDS = {"ids": "U", **dict.fromkeys(("has_boxes", "has_mask", "point_real", "point_hit"), "b")}
_FLOATS = ("best_iou", "single_iou", "point_px", "point_norm")
_SLACK = 1e-9
_MOST_COMPRESSED = {zipfile.ZIP_DEFLATED: 1100, zipfile.ZIP_LZMA: 10_000}
"""Upper limit of how far a format can shrink data: bytes of content per compressed byte."""


@dataclass(frozen=True)
class ScoreTable:
    """Chunks of consecutive images, in memory or in files of `ImageScores.write`.

    One file is in memory at a time.

    >>> len(ScoreTable(()))
    0
    """

    chunks: Sequence[ImageScores | Path]
    written_with: str = ""
    """`scores_digest` that a file of scores names, or empty if it names none."""

    def __iter__(self) -> Iterator[ImageScores]:
        """Yield the chunks, in order. Raises `DataError` for a file that cannot be read."""
        return (ImageScores.read(chunk) if isinstance(chunk, Path) else chunk for chunk in self.chunks)

    def __len__(self) -> int:
        """Return the number of images. Reads every file."""
        return sum(map(len, self))

    def column(self, of: Callable[[ImageScores], Shaped[np.ndarray, " m"]]) -> Shaped[np.ndarray, " n"]:
        """Return `of(chunk)`, one value per image, for all images."""
        return np.concatenate([of(chunk) for chunk in self])

    def take(self, indices: Sequence[int]) -> ImageScores:
        """Return the scores of the images at these positions, in that order."""
        wanted: Int64[np.ndarray, " k"] = np.asarray(indices, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        parts, start = [], 0
        for chunk in self:
            here = wanted[order]
            parts.append(chunk.select(here[(here >= start) & (here < start + len(chunk))] - start))
            start += len(chunk)
        return ImageScores.concatenate(parts).select(np.argsort(order))

    def load(self) -> ImageScores:
        """Return all scores, in memory."""
        return ImageScores.concatenate(list(self))

    @classmethod
    def sizes_in(cls, path: Path) -> tuple[int, int]:
        """Return the number of images and of thresholds in a file of `write`, without reading the scores.

        Raises as `read`.
        """
        axes = cls.axes_in(path)
        return axes["n"], axes["t"]

    @classmethod
    def axes_in(cls, path: Path) -> dict[str, int]:
        """Return the numbers of images `n`, thresholds `t`, labels `k` and bins `b`; reads no scores.

        Raises as `read`.
        """
        with _opened(path) as archive:
            return _sizes({name: _header(archive, name)[0] for name in _names(archive)})

    @classmethod
    def read(cls, path: Path) -> ScoreTable:
        """Read what `write` stored into memory, and check it.

        Raises `DataError` if the file is missing, broken or of another kind, and for values outside their
        ranges. Sizes are checked before memory is allocated.
        """
        with _opened(path) as archive:
            names = _names(archive)
            _sizes({name: _header(archive, name)[0] for name in names})
            scores = ImageScores.from_arrays({name: _array(archive, name) for name in names})
            digest = str(_array(archive, RECORD)) if f"{RECORD}.npy" in archive.namelist() else ""
            check_scores(scores)
        return cls((scores,), digest)

    def write(
        self, path: Path, record: RunRecord | None = None, *, outcomes: EvalProtocol | None = None
    ) -> None:
        """Store as one compressed `.npz` that `numpy.load` reads: one array per field, one row per image.

        With a record, the file names the record and the images of its scores (`scores_digest`). With
        `outcomes`, the file is about a hundredth as large and gives the same metrics under this protocol
        (`ImageScores.outcomes`).
        """
        content = hashlib.sha256()
        method, level = (zipfile.ZIP_DEFLATED, 1) if outcomes is None else (zipfile.ZIP_LZMA, None)
        with (
            atomic_path(path) as temporary,
            zipfile.ZipFile(temporary, "w", method, compresslevel=level) as archive,
        ):
            # One array per field, chunk by chunk.
            for name in next(iter(self)).arrays():
                # Strings are as wide as the longest of their chunk, so the common type is found first.
                parts = [(array.dtype, array.shape) for array in (chunk.arrays()[name] for chunk in self)]
                dtype = np.result_type(*(dtype for dtype, _ in parts))
                shape = (sum(shape[0] for _, shape in parts), *parts[0][1][1:])
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": shape,
                    }
                    content.update(_title(name, dtype, shape))
                    np.lib.format.write_array_header_1_0(stream, header)
                    for chunk in self if outcomes is None else (part.outcomes(outcomes) for part in self):
                        values = np.ascontiguousarray(chunk.arrays()[name], dtype=dtype).tobytes()
                        content.update(values)
                        stream.write(values)
            # The digest comes last, because it covers all arrays.
            if record is not None:
                with archive.open(f"{RECORD}.npy", "w") as stream:
                    np.lib.format.write_array(
                        stream, np.array(scores_digest(self, record, content.hexdigest())), allow_pickle=False
                    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive. Any error while reading it becomes a `DataError` naming it."""
    if path.exists():
        check_regular_file(path, "per-image scores")
    with unreadable_scores(path), zipfile.ZipFile(path) as archive:
        yield archive


def find_scores(path: Path) -> Path:
    """Return the file of per-image scores next to a record: all scores, or else the outcomes.

    If there is neither, this is the place of all scores.
    """
    scores, outcomes = path.with_suffix(SCORES), path.with_suffix(OUTCOMES)
    return outcomes if outcomes.is_file() and not scores.is_file() else scores


def scores_digest(scores: ScoreTable, record: RunRecord, content: str = "") -> str:
    """Return a digest of a record's values, the ids of the scored images in order, and `content`, if given.

    `content` is the digest of the arrays' bytes.
    """
    ids = [str(image_id) for part in scores for image_id in part.ids]
    return sha256_of_json([record.values_digest, ids, *([content] if content else [])])


def are_scores_of(scores: ScoreTable, record: RunRecord) -> bool:
    """Whether scores that were read from a file match the file's digest for this record.

    The digest in files of older versions covers the record and the image ids only.
    """
    content, every = hashlib.sha256(), scores.load()
    for name, array in every.arrays().items():
        content.update(_title(name, array.dtype, array.shape))
        content.update(np.ascontiguousarray(array).tobytes())
    return scores.written_with in (
        scores_digest(scores, record, content.hexdigest()),
        scores_digest(scores, record),
    )


def _title(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """Return what the digest of the arrays covers before the bytes of each: name, type and shape."""
    return canonical_json([name, dtype.str, list(shape)]).encode()


def check_scores(scores: ImageScores) -> None:
    """Raise `DataError` for scores whose arrays do not fit together, or with values outside their ranges."""
    # Shapes, types and ranges of the arrays.
    try:
        arrays = scores.arrays()
        _sizes({name: array.shape for name, array in arrays.items()})
        for name, array in arrays.items():
            _check_kind(name, array.dtype)
        for name in ("best_iou", "single_iou"):
            _check_range(name, getattr(scores, name), 0.0, 1.0 + _SLACK)
        for name in ("point_px", "point_norm"):
            _check_range(name, getattr(scores, name), 0.0, float(np.finfo(np.float32).max))
        for name in ("labels", "ranked", "pixel_histogram", "level_histogram", "point_nearest"):
            _check_range(name, getattr(scores, name), 0.0, math.inf)
        _check_range("error_codes", scores.error_codes, 0.0, float(len(ERROR_NAMES) - 1))
    except ValueError as error:
        raise DataError(str(error)) from error
    # Ids must be unique.
    if len(np.unique(scores.ids)) < len(scores.ids):
        values, counts = np.unique(scores.ids, return_counts=True)
        raise DataError(
            f"the image {str(values[counts.argmax()])!r} occurs {counts.max()} times; expected each "
            "image once"
        )


def _check_range(name: str, values: np.ndarray, low: float, high: float) -> None:
    if not values.size:
        return
    least, most = values.min(), values.max()
    if not (least >= low and most <= high):  # NaN is neither
        raise ValueError(
            f"{name} has values from {least} to {most}; expected {low:g} "
            f"{'or more' if high == math.inf else f'to {high:g}'}"
        )


def _check_kind(name: str, dtype: np.dtype[np.generic]) -> None:
    kinds = _KINDS.get(name, "f" if name in _FLOATS or name.startswith(EXTRA) else "iu")
    if dtype.kind not in kinds:
        raise ValueError(
            f"{name} has values of type {dtype}; expected {' or '.join(_KIND_NAMES[kind] for kind in kinds)}"
        )


_KIND_NAMES = {
    "U": "texts",
    "b": "truth values",
    "f": "floating-point numbers",
    "i": "whole numbers",
    "u": "unsigned ones",
}


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the size of each axis. Raises `ValueError` for arrays that do not fit together."""
    sizes = dict(_SIZES)
    for name, shape in shapes.items():
        axes = ("n", name) if name.startswith(EXTRA) else tuple(_SHAPES[name])
        if len(shape) != len(axes) or any(
            sizes.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)
        ):
            raise ValueError(f"{name} has the shape {shape}, which does not fit the other arrays")
    return sizes


def _names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays of scores: those that every file has, and those of extra metrics."""
    stored = [name.removesuffix(".npy") for name in archive.namelist()]
    return [*_SHAPES, *(name for name in stored if name.startswith(EXTRA))]


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return shape and type of a stored array.

    Raises `ValueError` for an array whose size does not match its header.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
        most = _MOST_COMPRESSED.get(info.compress_type, 1) * max(info.compress_size, 1)
        if stream.tell() + size != info.file_size or info.file_size > most:
            raise ValueError(
                f"the array {name} is incomplete: shape {shape} does not fit its {info.compress_size:,} "
                "bytes in the file"
            )
    _check_kind(name, dtype)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        return array
