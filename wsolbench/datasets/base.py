"""What all data sets share: where they lie, how annotations become samples, and the fingerprint that names them.

A loader turns its annotation files into `Record`s, in evaluation order and in the internal convention (`wsolbench.types`: continuous
xyxy, exclusive ends), and hands them to `assemble`, which holds them against the files: what is missing, how large the
images are, which boxes stick out. Nothing is dropped silently; `Dataset.findings` and `Dataset.missing` say what was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsolbench.datasets.imagefiles import absent_files, sizes_of
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Boxes, Dataset, Finding, KeyPoints, Sample, no_boxes

Missing = Literal["error", "skip", "keep"]
"""What to do with an image whose file is missing: refuse to load, leave it out (and say so), or keep it where its size
is known from the annotations (enough to score maps, which needs no pixels)."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """A row of `wsolbench list datasets`, and what `verify` expects."""

    name: str
    summary: str
    splits: tuple[str, ...]
    """Names of the splits; empty where the user's file says them."""
    root_holds: str
    """What has to lie in the data root, for messages."""
    repeated: tuple[str, ...] = ()
    """Splits that only put others together."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Images per split of the complete data set."""
    citation: str = ""
    license: str = ""
    generated: bool = False
    """Made by the program; needs no root."""


@dataclass(slots=True, kw_only=True)
class Record:
    """One image as the annotation files have it, not yet held against the image file."""

    id: str
    label: int
    path: str
    size: tuple[int, int] | None = None
    """(width, height) of the annotated frame; None: that of the file `size_path`, or of the image file."""
    size_path: str | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    mask_paths: tuple[str, ...] = ()
    ignore_path: str | None = None
    key_points: KeyPoints | None = None
    crop_bottom: int = 0
    """Rows at the bottom of the file that do not belong to the image."""


def environment_name(name: str) -> str:
    """The environment variable that holds a data set's root.

    >>> environment_name("cub")
    'WSOLBENCH_CUB_ROOT'
    """
    return f"WSOLBENCH_{name.upper()}_ROOT"


def resolve_root(info: DatasetInfo, root: Path | str | None) -> Path:
    """The folder of a data set: the argument, else `WSOLBENCH_<NAME>_ROOT`, else `$WSOLBENCH_DATA/<name>` where that exists.

    Raises `UsageError` when none is given, or when it is no folder or an empty one.
    """
    variable = environment_name(info.name)
    common = os.environ.get("WSOLBENCH_DATA")
    if root is not None:
        folder, source = Path(root), "the data root"
    elif os.environ.get(variable):
        folder, source = Path(os.environ[variable]), f"the data root in {variable}"
    elif common and (Path(common) / info.name).is_dir():
        folder, source = Path(common) / info.name, "the data root in WSOLBENCH_DATA"
    else:
        raise UsageError(
            f"no data root for {info.name!r}. Give one with --data-root, or set {variable}, or put it into $WSOLBENCH_DATA/{info.name} "
            f"(WSOLBENCH_DATA is {common or 'not set'}). It has to hold {info.root_holds}."
        )
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{source}, {folder}, is {'no folder' if folder.exists() else 'not there'}. It has to hold {info.root_holds}.")
    if not any(folder.iterdir()):
        raise UsageError(f"{source}, {folder}, is empty. It has to hold {info.root_holds}.")
    return folder.resolve()


def wrong_root(info: DatasetInfo, root: Path, found: str) -> UsageError:
    """The error for a folder that is not this data set."""
    return UsageError(f"{root} is not the data root of {info.name!r}: {found}. It has to hold {info.root_holds}.")


def fingerprint_of(samples: Iterable[Sample]) -> str:
    """16 hex digits (of a SHA-256) over id, label, size, boxes, mask names and key points of the samples in order.

    Equal fingerprints mean equal annotations. Pixels and mask contents do not enter, nor does where the files lie, nor the
    size of an image that has only a label.
    """
    digest = hashlib.sha256()
    for sample in samples:
        masks = [path.name for path in (*sample.mask_paths, *([sample.ignore_path] if sample.ignore_path else []))]
        located = bool(len(sample.boxes) or masks or sample.key_points is not None)
        head = [sample.id, sample.label, sample.size if located else None, len(sample.boxes), *masks]
        digest.update(("\t".join(map(str, head)) + "\n").encode())
        digest.update((np.asarray(sample.boxes, dtype="<f8") + 0.0).tobytes())  # + 0.0: no minus zero
        if sample.key_points is not None:
            digest.update((np.asarray(sample.key_points, dtype="<f8") + 0.0).tobytes())
    return digest.hexdigest()[:16]


def assemble(
    name: str,
    split: str,
    root: Path,
    records: Sequence[Record],
    class_names: Sequence[str],
    *,
    key_point_names: Sequence[str] = (),
    findings: Sequence[Finding] = (),
    missing: Missing = "error",
    lazy_sizes: bool = False,
    mask_threshold: int = 127,
) -> Dataset:
    """Hold records against their files and make the `Dataset`.

    Boxes are clipped to the image; one without area after that is left out. A record without `size` gets the header's;
    with `lazy_sizes` only when asked for (splits without any box or mask).

    Raises `DataError` on no record, an id that is no plain relative path or occurs twice, a label outside the classes, and, with
    `missing="error"`, on files that are missing or are no images.
    """
    _check_ids_and_labels(name, split, root, records, len(class_names))
    notes = list(findings)
    kept, absent = _leave_out_missing(name, split, root, records, missing)
    if not lazy_sizes:
        kept = _with_sizes(kept, missing, notes)
    boxes = _clipped_boxes(kept, notes)
    samples = tuple(_sample(record, own, mask_threshold) for record, own in zip(kept, boxes, strict=True))
    _note_key_points(samples, notes)
    return Dataset(
        name=name,
        split=split,
        samples=samples,
        class_names=tuple(class_names),
        fingerprint=fingerprint_of(samples),
        key_point_names=tuple(key_point_names),
        findings=tuple(notes),
        missing=tuple(Path(path) for path in absent),
        left_out=_left_out(records, samples),
        root=root,
    )


def _check_ids_and_labels(name: str, split: str, root: Path, records: Sequence[Record], classes: int) -> None:
    if not records:
        raise DataError(f"{name}: the split {split!r} of {root} names no image")
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{name} {split}: the image id {record.id!r} occurs twice; an id must be unique")
        seen.add(record.id)
        if record.id.startswith("/") or "\\" in record.id or (".." in record.id and ".." in record.id.split("/")):
            raise DataError(f"{name} {split}: the image id {record.id!r} must be a relative path with '/' and without '..'")
        if not 0 <= record.label < classes:
            raise DataError(
                f"{name} {split}: image {record.id!r} has the label {record.label}, but there are {classes} classes (0 to {classes - 1})"
            )


def _leave_out_missing(
    name: str, split: str, root: Path, records: Sequence[Record], missing: Missing
) -> tuple[Sequence[Record], Sequence[str]]:
    needed = {record.id: (record.path, *record.mask_paths, *([record.ignore_path] if record.ignore_path else [])) for record in records}
    absent = absent_files(path for paths in needed.values() for path in paths)
    if not absent:
        return records, ()
    ordered = list(dict.fromkeys(path for paths in needed.values() for path in paths if path in absent))
    if missing == "skip":
        return [record for record in records if absent.isdisjoint(needed[record.id])], ordered
    if missing == "keep" and all(record.size is not None and absent.isdisjoint(needed[record.id][1:]) for record in records):
        return records, ordered
    shown = ", ".join(os.path.relpath(path, root) for path in ordered[:3]) + (" and so on" if len(ordered) > 3 else "")
    if len(absent) == sum(len(paths) for paths in needed.values()):
        raise DataError(f"{name} {split}: none of the {len(ordered):,} files is under {root} ({shown}); is this the right data root?")
    raise DataError(
        f"{name} {split}: {len(ordered):,} files of {len(records):,} images are missing under {root}: {shown}. Restore them "
        f"(`wsolbench verify --dataset {name} --list-missing FILE` lists all), or load with missing='skip' to leave these images out."
    )


def _left_out(records: Sequence[Record], samples: Sequence[Sample]) -> tuple[str, ...]:
    if len(records) == len(samples):
        return ()
    kept = {sample.id for sample in samples}
    return tuple(record.id for record in records if record.id not in kept)


def _with_sizes(records: Sequence[Record], missing: Missing, notes: list[Finding]) -> Sequence[Record]:
    unsized = [index for index, record in enumerate(records) if record.size is None]
    if not unsized:
        return records
    sizes: dict[int, tuple[int, int]] = {}
    broken: list[DataError] = []
    for index, size in zip(unsized, sizes_of([records[index].size_path or records[index].path for index in unsized]), strict=True):
        if isinstance(size, DataError):
            broken.append(size)
        elif size[1] <= records[index].crop_bottom:
            broken.append(DataError(f"{records[index].path}: expected more than {records[index].crop_bottom} rows, found {size[1]}"))
        else:
            sizes[index] = (size[0], size[1] - records[index].crop_bottom)
    if broken and missing != "skip":
        raise broken[0]
    if broken:
        notes.append(Finding(what="images left out: the file cannot be read", count=len(broken), example=str(broken[0]), severity="error"))
    sized = []
    for index, record in enumerate(records):
        if record.size is not None:
            sized.append(record)
        elif index in sizes:
            record.size = sizes[index]
            sized.append(record)
    return sized


def _clipped_boxes(records: Sequence[Record], notes: list[Finding]) -> list[Boxes]:
    """The boxes of each record cut to its image, those without area left out; says so in `notes`."""
    counts = [len(record.boxes) for record in records]
    if not sum(counts):
        return [no_boxes() for _ in records]
    owner = np.repeat(np.arange(len(records)), counts)
    given = np.array([box for record in records for box in record.boxes], dtype=np.float64)  # (R, 4)
    sizes = np.array([record.size or (np.inf, np.inf) for record in records], dtype=np.float64)[owner]  # (R, 2)
    clipped = np.clip(given, 0.0, np.concatenate([sizes, sizes], axis=1))
    sound = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    cut = sound & np.any(clipped != given, axis=1)

    def note(which: np.ndarray, what: str, severity: str) -> None:
        if which.any():
            first = int(np.flatnonzero(which)[0])
            record = records[owner[first]]
            example = f"{record.id}: box {given[first].tolist()} in an image of {record.size}"
            notes.append(Finding(what=what, count=int(which.sum()), example=example, severity=severity))

    note(cut, "boxes that stick out of the image: clipped", "warning")
    note(~sound, "boxes without area inside the image: left out", "error")
    ends = np.cumsum(np.bincount(owner[sound], minlength=len(records)))
    boxes = np.split(clipped[sound], ends[:-1])
    bare = [record.id for record, own in zip(records, boxes, strict=True) if not len(own)]
    if bare:
        notes.append(Finding(what="images without a box, in a split that has boxes", count=len(bare), example=bare[0], severity="error"))
    return boxes


def _sample(record: Record, boxes: Boxes, mask_threshold: int) -> Sample:
    key_points = record.key_points
    if key_points is not None:
        key_points = np.where(key_points[:, 2:] > 0, key_points, 0.0)  # coordinates of an invisible part mean nothing
    return Sample(
        id=record.id,
        label=record.label,
        size=record.size,
        boxes=boxes,
        path=Path(record.path),
        crop=(0, 0, *record.size) if record.crop_bottom and record.size else None,
        mask_paths=tuple(Path(path) for path in record.mask_paths),
        ignore_path=Path(record.ignore_path) if record.ignore_path else None,
        key_points=key_points,
        mask_threshold=mask_threshold,
    )


def _note_key_points(samples: Sequence[Sample], notes: list[Finding]) -> None:
    outside = []
    for sample in samples:
        if sample.key_points is not None:
            x, y, visible = sample.key_points.T
            width, height = sample.size
            if np.any((visible > 0) & ((x < 0) | (y < 0) | (x > width) | (y > height))):
                outside.append(sample.id)
    if outside:
        notes.append(
            Finding(
                what="images with a visible key point outside: kept as given", count=len(outside), example=outside[0], severity="warning"
            )
        )


def carve(train: Dataset, part: Literal["train", "val"], *, fraction: float = 0.1, seed: int = 0) -> Dataset:
    """`train` without, or only with, the held-out tenth of each class (at least one image of a class with two or more).

    For data sets without a `val` split, so that thresholds are never chosen on `test`. The same seed gives the same images.
    """
    generator = np.random.default_rng(seed)
    labels = np.array([sample.label for sample in train.samples])
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held_out[members[: max(1, round(fraction * len(members)))]] = True
    wanted = held_out if part == "val" else ~held_out
    samples = tuple(sample for sample, keep in zip(train.samples, wanted, strict=True) if keep)
    return replace(train, split=part, samples=samples, fingerprint=fingerprint_of(samples))
