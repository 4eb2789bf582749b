"""Comparison of labels with the class folders of the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from wsolbench.types import Finding


def class_folder(image_id: str) -> str:
    """Return the name of the folder of an image, or "" if its id has none."""
    return PurePosixPath(image_id).parent.name


def note_contradictions(
    labels: Iterable[tuple[str, int]], notes: list[Finding], expected: Mapping[str, int] | None = None
) -> None:
    """Add a finding for images whose label differs from that of their class folder.

    Args:
        labels: id and label of each image in a class folder.
        notes: the finding is added here.
        expected: folder -> label. If None, the folder's most frequent label, unless a larger folder has it.
    """
    given = list(labels)
    known = _usual_labels(given) if expected is None else expected
    wrong = [(image_id, label) for image_id, label in given if known.get(class_folder(image_id)) != label]
    if wrong:
        image_id, label = wrong[0]
        example = (
            f"{image_id}: label {label}, its folder has "
            f"{known.get(class_folder(image_id), 'none of its own')}"
        )
        what = "images whose label contradicts their class folder"
        notes.append(Finding(what=what, count=len(wrong), example=example, severity="warning"))


def _usual_labels(given: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts = Counter((class_folder(image_id), label) for image_id, label in given)
    usual: dict[str, int] = {}
    taken: set[int] = set()
    for (folder, label), _ in counts.most_common():
        if folder not in usual and label not in taken:
            usual[folder] = label
            taken.add(label)
    return usual
