"""Checking a data set on disk: counts, files, sizes, boxes, labels, splits. `wsolbench verify` prints what this finds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsolbench.datasets import available_splits, dataset_info, load_dataset
from wsolbench.datasets.base import DatasetInfo
from wsolbench.exceptions import DataError
from wsolbench.types import Dataset, Finding, Sample

Problem = tuple[str, str, str]
"""(severity, what, example)."""

Around = Callable[[Iterable[list[Problem]], str, int], Iterable[list[Problem]]]

BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What one split holds. `failure` says why it could not be read at all; everything else is empty then."""

    split: str
    expected: int | None
    """Images of the complete data set."""
    images: int = 0
    """Images that the annotations name."""
    usable: int = 0
    """Images without those whose files are missing or broken."""
    classes_used: int = 0
    classes: int = 0
    boxes: int = 0
    masks: int = 0
    key_points: int = 0
    """Visible ones."""
    findings: tuple[Finding, ...] = ()
    missing: tuple[Path, ...] = ()
    fingerprint: str = ""
    failure: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is missing or broken. A subset is sound, and so are boxes that had to be clipped."""
        return self.failure is None and not self.missing and all(finding.severity != "error" for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The splits of one data set and what concerns more than one of them."""

    info: DatasetInfo
    root: Path | None
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether every split is, and no image is in two."""
        return all(split.sound for split in self.splits) and not self.findings

    @property
    def images(self) -> int:
        """Images that the annotations of all checked splits name."""
        return sum(split.images for split in self.splits)

    @property
    def expected(self) -> int | None:
        """Images of the checked splits in the complete data set; None where that is not known."""
        counts = [split.expected for split in self.splits]
        return None if not counts or None in counts else sum(count for count in counts if count is not None)

    def missing_by_folder(self) -> dict[str, int]:
        """Folder relative to the root → number of files missing there, in order of first appearance."""
        return dict(Counter(Path(name).parent.as_posix() for name in self.missing_names()))

    def missing_names(self) -> list[str]:
        """Missing files relative to the root, POSIX paths, each once."""
        paths = dict.fromkeys(path for split in self.splits for path in split.missing)
        return [Path(os.path.relpath(path, self.root)).as_posix() if self.root else path.as_posix() for path in paths]


def verify_dataset(
    name: str,
    root: Path | str | None = None,
    *,
    splits: Sequence[str] | None = None,
    deep: bool = False,
    around: Around | None = None,
    **options: Any,
) -> DatasetReport:
    """Check the given splits, or all that this root has.

    Args:
        name: see `list_datasets`.
        root: as for `load_dataset`.
        splits: which splits; None: every one there is.
        deep: also decode every image and mask.
        around: put around the images that `deep` goes through, as `around(images, split, count)`: a progress bar.
        options: passed on to the data set.

    Raises `UsageError` on an unknown name, split or option and on a wrong root. What is wrong with the data is in the report
    and does not raise.
    """
    info = dataset_info(name)
    chosen = tuple(splits) if splits is not None else available_splits(name, root, **options)
    reports = []
    found_root: Path | None = None
    for split in chosen:
        try:
            dataset = load_dataset(name, split, root, missing="skip", **options)
        except DataError as error:
            reports.append(SplitReport(split=split, expected=info.expected.get(split), failure=str(error)))
            continue
        found_root = dataset.root
        reports.append(_report(dataset, info, check_pixels(dataset, around) if deep else ()))
    return DatasetReport(info=info, root=found_root, splits=tuple(reports), findings=_shared_images(reports))


def _report(dataset: Dataset, info: DatasetInfo, more: Sequence[Finding]) -> SplitReport:
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
        key_points=sum(int((sample.key_points[:, 2] > 0).sum()) for sample in samples if sample.key_points is not None),
        findings=(*dataset.findings, *more),
        missing=dataset.missing,
        fingerprint=dataset.fingerprint,
        ids=(*dataset.ids, *dataset.left_out),
    )


def _shared_images(reports: Iterable[SplitReport]) -> tuple[Finding, ...]:
    owner: dict[str, str] = {}
    shared = []
    for report in reports:
        for image_id in report.ids:
            first = owner.setdefault(image_id, report.split)
            if first != report.split:
                shared.append(f"{image_id} ({first} and {report.split})")
    return (Finding(what="images in two splits", count=len(shared), example=shared[0], severity="error"),) if shared else ()


def check_pixels(dataset: Dataset, around: Around | None = None) -> tuple[Finding, ...]:
    """Decode every image and mask; what cannot be read, has another size or no object pixel is in the findings."""
    problems: dict[tuple[str, str], list[str]] = {}
    checked = _checked(dataset.samples)
    for found in checked if around is None else around(checked, dataset.split, len(dataset)):
        for severity, what, example in found:
            problems.setdefault((severity, what), []).append(example)
    return tuple(
        Finding(what=what, count=len(examples), example=examples[0], severity=severity) for (severity, what), examples in problems.items()
    )


def _checked(samples: Sequence[Sample]) -> Iterator[list[Problem]]:
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:  # decoding releases the interpreter's lock
        for start in range(0, len(samples), BLOCK):  # `map` takes all it is given at once
            yield from pool.map(_check_sample, samples[start : start + BLOCK])


def _check_sample(sample: Sample) -> list[Problem]:
    found = []
    try:
        pixels = sample.image()
        stored = pixels.shape[1], pixels.shape[0]
        if stored != sample.size:
            example = f"{sample.id}: file {stored[0]}x{stored[1]}, annotations {sample.size[0]}x{sample.size[1]}"
            found.append(("note", "image files of another size than the annotated frame: boxes are scaled with the frame", example))
    except DataError as error:
        found.append(("error", "images that cannot be read", str(error)))
    try:
        mask = sample.mask()
        if mask is not None and not mask.any():
            example = f"{sample.id}: no value above {sample.mask_threshold}; an object pixel should be 255"
            found.append(("error", "masks without an object pixel", example))
        sample.ignore()
    except DataError as error:
        found.append(("error", "masks that cannot be used", str(error)))
    return found
