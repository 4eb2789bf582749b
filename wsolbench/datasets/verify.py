"""Verification of a data set on disk: counts, files, sizes, boxes, labels and splits.

`wsolbench verify` prints the report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsolbench.datasets import available_splits, data_folder, dataset_info, load_dataset
from wsolbench.datasets.base import DatasetInfo
from wsolbench.datasets.boxes import outside_mask
from wsolbench.datasets.coco import INFO as INSTANCES
from wsolbench.datasets.coco import InstanceDataset, load_instances
from wsolbench.datasets.pixels import Problem, check_file, find_unusual_pixels
from wsolbench.datasets.verify_instances import check_instances
from wsolbench.exceptions import DataError
from wsolbench.system.decoding import read_header
from wsolbench.types import Dataset, Finding, Sample

Around = Callable[[Iterable[list[Problem]], str, int], Iterable[list[Problem]]]

BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Contents of one split. `failure` states why it could not be loaded; then all other fields are empty."""

    split: str
    expected: int | None
    """Number of images of the complete data set, or None if unknown."""
    images: int = 0
    """Number of images that the annotations name."""
    usable: int = 0
    """Number of images without those whose files are missing or unreadable."""
    classes_used: int = 0
    classes: int = 0
    boxes: int = 0
    masks: int = 0
    key_points: int = 0
    """Number of visible key points."""
    findings: tuple[Finding, ...] = ()
    missing: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
    """Files that exist but are not images. Complete only with `deep`."""
    fingerprint: str = ""
    failure: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is missing or unreadable. Subsets and clipped boxes are sound."""
        return (
            self.failure is None
            and not self.missing
            and all(finding.severity != "error" for finding in self.findings)
        )


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Reports of the splits of one data set, and findings that concern several of them."""

    info: DatasetInfo
    root: Path | None
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether every split is sound and no image is in two splits."""
        return all(split.sound for split in self.splits) and not self.findings

    @property
    def images(self) -> int:
        """Number of images that the annotations of all checked splits name."""
        return sum(split.images for split in self.splits)

    @property
    def expected(self) -> int | None:
        """Number of images of the checked splits in the complete data set, or None if unknown."""
        counts = [split.expected for split in self.splits]
        return None if not counts or None in counts else sum(count for count in counts if count is not None)

    def missing_by_folder(self) -> dict[str, int]:
        """Return folder relative to the root → number of missing files, in order of first appearance."""
        return dict(Counter(Path(name).parent.as_posix() for name in self.missing_names()))

    def missing_names(self) -> list[str]:
        """Return the missing files as POSIX paths relative to the root, each once."""
        return self._names(path for split in self.splits for path in split.missing)

    def unreadable_names(self) -> list[str]:
        """Return the unreadable files in the same form."""
        return self._names(path for split in self.splits for path in split.unreadable)

    def _names(self, paths: Iterable[Path]) -> list[str]:
        return [
            Path(os.path.relpath(path, self.root)).as_posix() if self.root else path.as_posix()
            for path in dict.fromkeys(paths)
        ]


def verify_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    splits: Sequence[str] | None = None,
    deep: bool = False,
    around: Around | None = None,
    **options: Any,
) -> DatasetReport:
    """Check the given splits, or all splits of this root.

    Args:
        name: see `list_datasets`.
        root: as for `load_dataset`.
        splits: splits to check. If None, all that exist.
        deep: whether to decode every image and mask too.
        around: wrapper of the images that `deep` checks, `around(images, split, count)`, for a progress bar.
        options: passed to the data set.

    Raises `UsageError` for an unknown name, split or option and for a wrong root. Problems of the data do not
    raise; they are in the report.
    """
    # Which splits are there?
    info = dataset_info(name)
    try:
        chosen = tuple(splits) if splits is not None else available_splits(name, root, **options)
    except DataError as error:  # the file that lists the splits cannot be read
        unlisted = SplitReport(split="all splits", expected=None, failure=str(error))
        return DatasetReport(info=info, root=data_folder(info, root), splits=(unlisted,))
    # Load and check each split.
    reports = []
    found_root = data_folder(info, root)
    for split in chosen:
        try:
            dataset = load_split(name, split, root, options)
        except DataError as error:
            reports.append(SplitReport(split=split, expected=info.expected.get(split), failure=str(error)))
            continue
        found_root = dataset.root or found_root
        more, unreadable = _check_pixels(dataset, around) if deep else ((), ())
        describe = _report_instances if isinstance(dataset, InstanceDataset) else _report
        report = describe(dataset, info)  # type: ignore[arg-type]
        said = {finding.what for finding in dataset.findings}
        new = [finding for finding in more if finding.what not in said]
        reports.append(
            replace(
                report,
                findings=(*dataset.findings, *new),
                unreadable=_deduplicate(report.unreadable, unreadable),
            )
        )
    return DatasetReport(info=info, root=found_root, splits=tuple(reports), findings=_shared_images(reports))


def load_split(
    name: str, split: str, root: Path | str | None, options: dict[str, Any]
) -> Dataset | InstanceDataset:
    """Load the usable images of a split, for `coco` with all their objects."""
    if name == INSTANCES.name and not options:
        return load_instances(root, split, missing="skip")
    return load_dataset(name, split, root, missing="skip", **options)


def _deduplicate(*paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path for some in paths for path in some))


def _report(dataset: Dataset, info: DatasetInfo) -> SplitReport:
    samples = dataset.samples
    return SplitReport(
        split=dataset.split,
        expected=info.expected.get(dataset.split),
        images=len(samples) + len(dataset.left_out),
        usable=len(samples),
        classes_used=len({sample.label for sample in samples}),
        classes=len(dataset.class_names),
        boxes=sum(len(sample.boxes) for sample in samples),
        masks=sum(len(sample.mask_paths) for sample in samples),
        key_points=sum(
            int((sample.key_points[:, 2] > 0).sum()) for sample in samples if sample.key_points is not None
        ),
        missing=dataset.missing,
        unreadable=dataset.unreadable,
        fingerprint=dataset.fingerprint,
        ids=(*dataset.ids, *dataset.left_out),
    )


def _report_instances(dataset: InstanceDataset, info: DatasetInfo) -> SplitReport:
    samples = dataset.samples
    return SplitReport(
        split=dataset.split,
        expected=info.expected.get(dataset.split) if dataset.name == info.name else None,
        images=len(samples) + len(dataset.missing),
        usable=len(samples),
        classes_used=len({int(label) for sample in samples for label in sample.labels}),
        classes=len(dataset.class_names),
        boxes=sum(len(sample.boxes) for sample in samples),
        masks=sum(segmentation is not None for sample in samples for segmentation in sample.segmentations),
        missing=dataset.missing,
        fingerprint=dataset.fingerprint,
        ids=tuple(str(sample.path.relative_to(dataset.root or sample.path.anchor)) for sample in samples),
    )


def _shared_images(reports: Iterable[SplitReport]) -> tuple[Finding, ...]:
    owner: dict[str, str] = {}
    shared = []
    for report in reports:
        for image_id in report.ids:
            first = owner.setdefault(image_id, report.split)
            if first != report.split:
                shared.append(f"{image_id} ({first} and {report.split})")
    return (
        (Finding(what="images in two splits", count=len(shared), example=shared[0], severity="error"),)
        if shared
        else ()
    )


def check_pixels(dataset: Dataset | InstanceDataset, around: Around | None = None) -> tuple[Finding, ...]:
    """Decode every image and mask, and find those that are unreadable, of another size or without object."""
    return _check_pixels(dataset, around)[0]


def _check_pixels(
    dataset: Dataset | InstanceDataset, around: Around | None
) -> tuple[tuple[Finding, ...], tuple[Path, ...]]:
    """Return the findings, and the files that cannot be read."""
    problems: dict[tuple[str, str], list[str]] = {}
    unreadable: list[Path] = []
    checked = _check_all(dataset)
    for found in checked if around is None else around(checked, dataset.split, len(dataset)):
        for problem in found:
            problems.setdefault((problem.severity, problem.what), []).append(problem.example)
            unreadable += [] if problem.file is None else [problem.file]
    findings = tuple(
        Finding(what=what, count=len(examples), example=examples[0], severity=severity)
        for (severity, what), examples in problems.items()
    )
    return findings, _deduplicate(unreadable)


def _check_all(dataset: Dataset | InstanceDataset) -> Iterator[list[Problem]]:
    """Yield the problems of each image. Threads help, because decoding releases the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        if isinstance(dataset, InstanceDataset):
            yield from check_instances(dataset, pool, BLOCK)
            return
        samples = dataset.samples
        for start in range(0, len(samples), BLOCK):  # `map` submits all its items at once
            yield from pool.map(_check_sample, samples[start : start + BLOCK])


def _check_sample(sample: Sample) -> list[Problem]:
    found: list[Problem] = []
    located = bool(len(sample.boxes) or sample.has_mask or sample.key_points is not None)
    try:
        sample.image()
        if sample.path is not None:
            cropped, boxed = sample.crop is not None, len(sample.boxes) > 0
            check_file(
                sample.path,
                sample.id,
                sample.size,
                located=located,
                problems=found,
                cropped=cropped,
                boxed=boxed,
            )
    except DataError as error:
        found.append(Problem("error", "images that cannot be read", str(error), sample.path))
    try:
        _check_mask(sample, found)
    except DataError as error:
        found.append(Problem("error", "masks that cannot be used", str(error)))
    return found


def _check_mask(sample: Sample, found: list[Problem]) -> None:
    # Pixel types, then the ignore mask, then the object mask against its boxes.
    mask = sample.mask()
    ignored = sample.ignore()
    for path in (*sample.mask_paths, *([sample.ignore_path] if sample.ignore_path else [])):
        what = find_unusual_pixels(path, read_header(path).mode, "masks")
        found += [Problem("warning", text, f"{sample.id}: {path.name}") for text in what]
    if (
        ignored is not None
        and (ignored if mask is None else ignored | mask).all()
        and (mask is None or not mask.all())
    ):
        found.append(
            Problem("warning", "ignore masks over the whole image: no background pixel counts", sample.id)
        )
    if mask is None:
        return
    if mask.all():
        found.append(Problem("error", "masks without a background pixel", sample.id))
    if not mask.any():
        example = (
            f"{sample.id}: no value above {sample.mask_threshold} of 255; an object pixel should be 255 "
            "(65,535 of 16 bits)"
        )
        found.append(Problem("error", "masks without an object pixel", example))
    elif len(sample.boxes):
        empty, outside = outside_mask(sample.boxes, mask)
        example = f"{sample.id}: boxes {sample.boxes.tolist()}"
        if empty:
            found.append(
                Problem("warning", "images with a box that has no pixel of the mask inside", example)
            )
        if outside > 0.5:
            found.append(
                Problem("warning", "images with more than half of the mask outside their boxes", example)
            )
