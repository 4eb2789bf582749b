"""The per-image scores of a split, chunk by chunk: what a split of any size is summarised and drawn from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from wsolbench.files import atomic_path
from wsolbench.scores import ImageScores, unreadable_scores

SCORES = ".scores.npz"
"""Ends the name of the scores that lie beside a record."""


@dataclass(frozen=True)
class ScoreTable:
    """Chunks of consecutive images, in memory or in files that `ImageScores.write` made; one file is in memory at a time.

    >>> len(ScoreTable(()))
    0
    """

    chunks: Sequence[ImageScores | Path]

    def __iter__(self) -> Iterator[ImageScores]:
        """The chunks, in order. Raises `DataError` for a file that cannot be read."""
        return (ImageScores.read(chunk) if isinstance(chunk, Path) else chunk for chunk in self.chunks)

    def __len__(self) -> int:
        """Images. Reads every file."""
        return sum(map(len, self))

    def column(self, of: Callable[[ImageScores], Shaped[np.ndarray, " m"]]) -> Shaped[np.ndarray, " n"]:
        """`of(chunk)`, one value for each image, for all images."""
        return np.concatenate([of(chunk) for chunk in self])

    def take(self, indices: Sequence[int]) -> ImageScores:
        """The scores of the images at these positions, in that order."""
        wanted: Int64[np.ndarray, " k"] = np.asarray(indices, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        parts, start = [], 0
        for chunk in self:
            here = wanted[order]
            parts.append(chunk.select(here[(here >= start) & (here < start + len(chunk))] - start))
            start += len(chunk)
        return ImageScores.concatenate(parts).select(np.argsort(order))

    def load(self) -> ImageScores:
        """All of it, in memory."""
        return ImageScores.concatenate(list(self))

    @classmethod
    def read(cls, path: Path) -> ScoreTable:
        """What `write` stored, in memory. Raises `DataError` when the file is missing, broken or of another kind."""
        with unreadable_scores(path), np.load(path, allow_pickle=False) as stored:
            return cls((ImageScores(**{item.name: stored[item.name] for item in fields(ImageScores)}),))

    def write(self, path: Path) -> None:
        """Store as one compressed `.npz` that `numpy.load` reads: one array for each field of `ImageScores`, a row an image."""
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for item in fields(ImageScores):
                # Strings are as wide as the longest of their chunk.
                parts = [(getattr(chunk, item.name).dtype, getattr(chunk, item.name).shape) for chunk in self]
                dtype = np.result_type(*(dtype for dtype, _ in parts))
                shape = (sum(shape[0] for _, shape in parts), *parts[0][1][1:])
                with archive.open(f"{item.name}.npy", "w", force_zip64=True) as stream:
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, header)
                    for chunk in self:
                        stream.write(np.ascontiguousarray(getattr(chunk, item.name), dtype=dtype).tobytes())
