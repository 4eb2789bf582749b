"""Common code of all data sets: their folders, the step from annotations to samples, and the fingerprint.

A loader converts its annotation files to `Record`s, in evaluation order and in the internal convention
(`wsolbench.types`: continuous xyxy, exclusive ends). `assemble` then checks the records against the files:
missing files, image sizes, boxes outside the image. Nothing is dropped silently; see `Dataset.findings` and
`Dataset.missing`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.boxes import clip_boxes
from wsolbench.datasets.formats.imagefiles import absent_files, read_headers
from wsolbench.datasets.formats.tables import is_inner_path
from wsolbench.datasets.pixels import TURNED, note_dark_masks, note_exchanged
from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.decoding import MAX_PIXELS
from wsolbench.system.listing import is_empty
from wsolbench.types import Boxes, Dataset, Finding, Sample

Missing = Literal["error", "skip", "keep", "keep_or_skip"]
"""What to do with an image whose file is missing.

"error" raises. "skip" excludes the image and reports it. "keep" keeps it if the annotations have its size,
which is enough to score maps without pixels, and raises if not. "keep_or_skip" keeps it, or excludes it if
not.
"""

CHECKED_HEADERS = 256
"""Number of image files, spread evenly, whose size is checked when a split is loaded.

`wsolbench verify --deep` checks all.
"""
_ODD_PARTS = (
    "\\",
    "//",
    "/./",
    "/../",
    "\n/",
    "\n./",
    "\n../",
    "/\n",
    "/.\n",
    "/..\n",
    "\n.\n",
    "\n..\n",
    "\n\n",
)
_ODD_CHARACTER = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class MissingFilesError(DataError):
    """Files named by the annotations are missing. `for_commands` is the message without advice for Python."""

    def __init__(self, message: str, for_callers: str = "") -> None:
        super().__init__(message + for_callers)
        self.for_commands = message


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Metadata of a data set: a row of `wsolbench list datasets`, and what `verify` expects."""

    name: str
    summary: str
    splits: tuple[str, ...]
    """Names of the splits. Empty if the user's file defines them."""
    root_holds: str
    """Required content of the data root, for messages."""
    repeated: tuple[str, ...] = ()
    """Splits that are unions of other splits."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Number of images per split of the complete data set."""
    classes: int = 0
    """Number of classes of the complete data set, or 0 if the user's file defines them."""
    citation: str = ""
    license: str = ""
    generated: bool = False
    """Whether wsolbench generates the images, so that no root is needed."""
    own: bool = False
    """Whether it is a format of the user's own data. Each folder is then a data set, named by the folder."""


def environment_name(name: str) -> str:
    """Return the name of the environment variable for a data set's root.

    >>> environment_name("cub")
    'WSOLBENCH_CUB_ROOT'
    """
    return f"WSOLBENCH_{name.upper().replace('-', '_')}_ROOT"


def resolve_root(info: DatasetInfo, root: Path | str | None) -> Path:
    """Return the folder of a data set: the argument, or from the environment.

    The order is `root`, `WSOLBENCH_<NAME>_ROOT`, `$WSOLBENCH_DATA/<name>`. The last is used only if it
    exists. Raises `UsageError` if no folder is given, and if it is empty or not a folder.
    """
    # Which source names the folder?
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
            f"no data root for {info.name!r}; expected a folder with {info.root_holds}. Give it with "
            f"--data-root, or set {variable}, or put it into $WSOLBENCH_DATA/{info.name} (WSOLBENCH_DATA is "
            f"{common or 'not set'})."
        )
    # Is it a folder with content?
    folder = folder.expanduser()
    try:
        if not folder.is_dir():
            found = "not a folder" if os.path.lexists(folder) else "missing"
            raise UsageError(f"{source}, {folder}, is {found}; expected a folder with {info.root_holds}.")
        if is_empty(folder):
            raise UsageError(f"{source}, {folder}, is empty; expected {info.root_holds}.")
        return folder.resolve()
    except (OSError, ValueError) as error:  # no permission, a name that is too long or contains a zero byte
        raise UsageError(
            f"{source}, {folder}, cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error


@contextlib.contextmanager
def convert_os_errors(name: str) -> Iterator[None]:
    """Convert errors of the operating system while reading a data set to `DataError`, naming the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{name}: cannot read {error.filename or 'a file'}: {error.strerror or error}"
        ) from error
    except MemoryError as error:
        raise DataError(f"{name}: the annotations do not fit into memory") from error


def wrong_root(info: DatasetInfo, root: Path, found: str) -> UsageError:
    """Return the error for a folder that is not this data set."""
    return UsageError(f"{root} is not the data root of {info.name!r}: {found}; expected {info.root_holds}.")


def compute_fingerprint(samples: Iterable[Sample]) -> str:
    """Return 16 hex digits of a SHA-256 over the annotations of the samples, in order.

    It covers id, label, size, boxes, mask names and key points. Equal fingerprints mean equal annotations. It
    ignores pixels, mask contents, the location of the files, and the size of an image that has only a label.
    """
    digest = hashlib.sha256()
    for sample in samples:
        masks = [
            path.name for path in (*sample.mask_paths, *([sample.ignore_path] if sample.ignore_path else []))
        ]
        located = bool(len(sample.boxes) or masks or sample.key_points is not None)
        head = [sample.id, sample.label, sample.size if located else None, len(sample.boxes), *masks]
        digest.update(("\t".join(map(str, head)) + "\n").encode())
        digest.update((np.asarray(sample.boxes, dtype="<f8") + 0.0).tobytes())  # + 0.0 removes minus zero
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
    """Check that every annotated file exists and build the `Dataset`.

    Boxes are clipped to the image, and a box without area after that is dropped. A record without `size`
    gets the header's size. With `lazy_sizes` (for splits without boxes and masks), it is read only on
    access.

    Raises `DataError` for a split without records, an id that is not a plain relative path or occurs twice, a
    label outside the classes, and a size above `MAX_PIXELS`. With `missing="error"`, also for files that are
    missing (`MissingFilesError`) or not images.
    """
    # Check the records, drop those without files, and read sizes.
    _check_records(name, split, root, records, len(class_names))
    notes = list(findings)
    kept, absent = _leave_out_missing(name, split, root, records, missing)
    unreadable: tuple[str, ...] = ()
    if not lazy_sizes:
        _note_turned(kept, notes)
        kept, unreadable = _read_sizes(name, split, kept, missing, notes)
    # Clip the boxes and build the samples; note what is doubtful.
    boxes = clip_boxes(
        [record.id for record in kept],
        [record.size for record in kept],
        [record.boxes for record in kept],
        notes,
    )
    samples = tuple(
        _build_sample(record, own, mask_threshold) for record, own in zip(kept, boxes, strict=True)
    )
    _note_key_points(samples, notes)
    note_dark_masks([path for record in kept for path in record.mask_paths], mask_threshold, notes)
    note_dark_masks(
        [record.ignore_path for record in kept if record.ignore_path], mask_threshold, notes, ignore=True
    )
    return Dataset(
        name=name,
        split=split,
        samples=samples,
        class_names=tuple(class_names),
        fingerprint=compute_fingerprint(samples),
        key_point_names=tuple(key_point_names),
        findings=tuple(notes),
        missing=tuple(Path(path) for path in absent),
        unreadable=tuple(Path(path) for path in unreadable),
        left_out=_find_excluded(records, samples),
        root=root,
    )


def _check_records(name: str, split: str, root: Path, records: Sequence[Record], classes: int) -> None:
    if not records:
        raise DataError(f"{name}: the split {split!r} of {root} names no image; expected at least one")
    _check_ids(name, split, [record.id for record in records])
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(
                f"{name} {split}: the image id {record.id!r} occurs twice; expected every id once"
            )
        seen.add(record.id)
        if not 0 <= record.label < classes:
            raise DataError(
                f"{name} {split}: image {record.id!r} has the label {record.label}; expected 0 to "
                f"{classes - 1} for {classes} classes"
            )
        if record.size is not None and record.size[0] * record.size[1] > MAX_PIXELS:
            found = f"{record.size[0]}x{record.size[1]} pixels"
            raise DataError(
                f"{name} {split}: image {record.id!r} has {found} in the annotations; expected at most "
                f"{MAX_PIXELS:,}"
            )


def _check_ids(name: str, split: str, ids: Sequence[str]) -> None:
    """Raise `DataError` for an id that is not a plain relative path.

    All ids are first checked at once, which is faster than one by one.
    """
    text = "\n" + "\n".join(ids) + "\n"
    plain = (
        text.count("\n") == len(ids) + 1
        and not any(part in text for part in _ODD_PARTS)
        and not _ODD_CHARACTER.search(text)
    )
    if plain and max(map(len, ids)) <= 60:  # at most 240 bytes
        return
    for image_id in ids:
        if not is_inner_path(image_id):
            shown = image_id if len(image_id) <= 80 else f"{image_id[:80]}..."
            raise DataError(
                f"{name} {split}: the image id is {shown!r}; expected a relative path with '/', without '..' "
                "or control characters, with at most 255 bytes in a name"
            )


def _leave_out_missing(
    name: str, split: str, root: Path, records: Sequence[Record], missing: Missing
) -> tuple[Sequence[Record], Sequence[str]]:
    # The files of every record, and which of them are absent.
    needed = {
        record.id: (record.path, *record.mask_paths, *([record.ignore_path] if record.ignore_path else []))
        for record in records
    }
    absent = absent_files(path for paths in needed.values() for path in paths)
    if not absent:
        return records, ()
    ordered = list(dict.fromkeys(path for paths in needed.values() for path in paths if path in absent))
    if missing == "skip":
        return [record for record in records if absent.isdisjoint(needed[record.id])], ordered
    # A record with a size is usable without its image file, which is listed first, but not without its masks.
    keepable = [
        record
        for record in records
        if absent.isdisjoint(needed[record.id][0 if record.size is None else 1 :])
    ]
    if missing == "keep_or_skip" or (missing == "keep" and len(keepable) == len(records)):
        return keepable, ordered
    # Report the absent files.
    shown = ", ".join(map(_path_describer(root), ordered[:3])) + (" and so on" if len(ordered) > 3 else "")
    if len(absent) == sum(len(paths) for paths in needed.values()):
        message = (
            f"{name} {split}: none of the {len(ordered):,} files is under {root} ({shown}); expected the "
            "data set there. Is this the right data root?"
        )
    else:
        message = (
            f"{name} {split}: {len(ordered):,} files of {len(records):,} images are missing under {root}: "
            f"{shown}. Restore them; `wsolbench verify --dataset {name} --list-missing FILE` lists all."
        )
    raise MissingFilesError(message, " In Python, missing='skip' leaves these images out.")


def _path_describer(root: Path) -> Callable[[str], str]:
    def describe(path: str) -> str:
        what = os.path.relpath(path, root)
        return f"{what} (a dangling link to {Path(path).readlink()})" if Path(path).is_symlink() else what

    return describe


def _find_excluded(records: Sequence[Record], samples: Sequence[Sample]) -> tuple[str, ...]:
    if len(records) == len(samples):
        return ()
    kept = {sample.id for sample in samples}
    return tuple(record.id for record in records if record.id not in kept)


def _note_turned(records: Sequence[Record], notes: list[Finding]) -> None:
    """Check some image files: is the annotated size the stored size with width and height exchanged?"""
    sized = [
        record
        for record in records
        if record.size is not None and record.size[0] != record.size[1] and not record.crop_bottom
    ]
    some = sized[:: max(1, len(sized) // CHECKED_HEADERS)]
    exchanged = [
        (record.id, header, record.size)
        for record, header in zip(some, read_headers(record.path for record in some), strict=True)
        if not isinstance(header, DataError) and record.size == header.size[::-1]
    ]
    note_exchanged(
        exchanged, notes, "" if len(some) == len(sized) else f" (of {len(some)} that were checked)"
    )


def _read_sizes(
    name: str, split: str, records: Sequence[Record], missing: Missing, notes: list[Finding]
) -> tuple[Sequence[Record], tuple[str, ...]]:
    """Give records without a size that of their file. An unreadable file drops the record or raises."""
    # Read the headers.
    unsized = [record for record in records if record.size is None]
    if not unsized:
        return records, ()
    broken: dict[str, DataError] = {}
    turned = []
    for record, header in zip(
        unsized, read_headers(record.size_path or record.path for record in unsized), strict=True
    ):
        path = record.size_path or record.path
        if isinstance(header, DataError):
            broken[path] = header
        elif header.size[1] <= record.crop_bottom:
            broken[path] = DataError(
                f"{path}: expected more than {record.crop_bottom} rows, found {header.size[1]}"
            )
        else:
            record.size = header.size[0], header.size[1] - record.crop_bottom
            if (
                header.orientation >= 5
                and _fits(record.boxes, header.shown_size)
                and not _fits(record.boxes, header.size)
            ):
                turned.append(
                    f"{record.id}: stored {header.size[0]}x{header.size[1]} with EXIF orientation "
                    f"{header.orientation}"
                )
    # Report images that are turned or broken.
    if turned:
        notes.append(Finding(what=TURNED, count=len(turned), example=turned[0], severity="warning"))
    if not broken:
        return records, ()
    errors = [str(error) for error in broken.values()]
    if missing in {"error", "keep"}:
        if len(errors) == 1:
            raise next(iter(broken.values()))
        shown = "; ".join(errors[:3]) + ("; and so on" if len(errors) > 3 else "")
        listing = f"`wsolbench verify --dataset {name} --list-missing FILE` lists all"
        raise DataError(
            f"{name} {split}: {len(errors):,} image files cannot be read: {shown}. Replace them; {listing}."
        )
    notes.append(
        Finding(
            what="images excluded: the file cannot be read",
            count=len(errors),
            example=errors[0],
            severity="error",
        )
    )
    return [record for record in records if record.size is not None], tuple(broken)


def _fits(boxes: Sequence[tuple[float, float, float, float]], size: tuple[int, int]) -> bool:
    return all(x1 <= size[0] + 1 and y1 <= size[1] + 1 for _, _, x1, y1 in boxes)


def _build_sample(record: Record, boxes: Boxes, mask_threshold: int) -> Sample:
    key_points = record.key_points
    if key_points is not None:
        # The coordinates of an invisible part are undefined: set them to 0.
        key_points = np.where(key_points[:, 2:] > 0, key_points, 0.0)
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
                what="images with a visible key point outside: kept as given",
                count=len(outside),
                example=outside[0],
                severity="warning",
            )
        )


def carve(train: Dataset, part: Literal["train", "val"], *, fraction: float = 0.1, seed: int = 0) -> Dataset:
    """Return `train` without ("train") or only with ("val") the held-out tenth of each class.

    Use it for data sets without a `val` split, so that thresholds are never chosen on `test`. The same seed
    gives the same images.
    """
    rest, held_out = divide(train, ("train", "val"), fraction=fraction, seed=seed)
    return held_out if part == "val" else rest


def divide(
    dataset: Dataset, names: tuple[str, str], *, fraction: float, seed: int
) -> tuple[Dataset, Dataset]:
    """Hold out a fraction of each class, and return the other images and those that are held out.

    A class with two or more images holds out at least one. The same seed gives the same images. `names` are
    the names of both splits.
    """
    generator = np.random.default_rng(seed)
    labels = np.array([sample.label for sample in dataset.samples])
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held_out[members[: max(1, round(fraction * len(members)))]] = True
    rest, held = (
        replace(part_of(dataset, np.flatnonzero(chosen)), split=name)
        for name, chosen in zip(names, (~held_out, held_out), strict=True)
    )
    return (
        replace(rest, apart=(held.fingerprint, *rest.apart)),
        replace(held, apart=(rest.fingerprint, *held.apart)),
    )


def part_of(dataset: Dataset, indices: Iterable[int]) -> Dataset:
    """Return the images at these positions as a split with a fingerprint of its own."""
    samples = tuple(dataset.samples[index] for index in indices)
    within = (dataset.fingerprint, *dataset.within)
    return replace(dataset, samples=samples, fingerprint=compute_fingerprint(samples), within=within)
