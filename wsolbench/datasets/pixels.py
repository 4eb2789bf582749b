"""Problems of image files that only their pixels or heads show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsolbench.exceptions import DataError
from wsolbench.system.decoding import Header, is_transparent, read_gray, read_header
from wsolbench.types import Finding

TURNED = (
    "images annotated as viewers show them (EXIF orientation), but read as stored: width and height are "
    "exchanged"
)
EXCHANGED = "images whose annotations have width and height exchanged"
DIFFERENT_SIZE = "image files of another size than the annotated frame"
OTHER_RATIO = (
    "image files of another aspect ratio than the annotated frame: warped copies, or annotations of other "
    "images"
)

CHECKED_MASKS = 64
"""Mask files that are looked at when a split is loaded; `wsolbench verify --deep` looks at all."""


class Problem(NamedTuple):
    """Something wrong with one image: `file` is the one that cannot be read."""

    severity: str
    what: str
    example: str
    file: Path | None = None


def note_exchanged(
    images: Iterable[tuple[str, Header, object]], notes: list[Finding], rest: str = ""
) -> None:
    """Add findings for images whose annotated size is that of the file with width and height exchanged: (id,
    header, annotated size).
    """
    examples: dict[str, list[str]] = {}
    for name, header, size in images:
        turned = header.orientation >= 5
        orientation = f" with EXIF orientation {header.orientation}" if turned else ""
        example = f"{name}: stored {header.size[0]}x{header.size[1]}{orientation}, annotated {size}"
        examples.setdefault(TURNED if turned else EXCHANGED, []).append(example)
    for what, found in examples.items():
        notes.append(Finding(what=what + rest, count=len(found), example=found[0], severity="warning"))


def note_dark_masks(
    paths: Sequence[str], threshold: int, notes: list[Finding], *, ignore: bool = False
) -> None:
    """Look at up to `CHECKED_MASKS` mask files, spread evenly: has each a value that counts as object?

    Values such as 0 and 1 are above 0 and never above `threshold`. A mask of zeros may be meant, unless all
    object masks are zeros; `ignore` says that these are ignore masks. Files that cannot be read are left to
    whoever reads them.
    """
    some = paths[:: max(1, -(-len(paths) // CHECKED_MASKS))]
    dark = [
        (path, largest)
        for path, largest in zip(some, map(_largest, some), strict=True)
        if largest is not None and largest <= threshold
    ]
    if ignore or len(dark) < len(some):
        dark = [(path, largest) for path, largest in dark if largest]
    if not dark:
        return
    values = (
        "with values 0 and 1"
        if all(largest == 1 for _, largest in dark)
        else f"without a value above {threshold}"
    )
    rest = "" if len(some) == len(paths) else f" (of {len(some)} that were looked at)"
    what = (
        f"{'ignore masks' if ignore else 'masks'} {values}; an {'ignored' if ignore else 'object'} pixel "
        f"should be 255{rest}"
    )
    example = f"{dark[0][0]}: largest value {dark[0][1]}"
    notes.append(Finding(what=what, count=len(dark), example=example, severity="error"))


def _largest(path: str) -> int | None:
    """The largest value of a mask file of 8 bits; None where it cannot be read."""
    try:
        return int(read_gray(Path(path), "mask").max())
    except DataError:
        return None


def check_file(
    path: Path,
    name: str,
    size: tuple[int, int],
    *,
    located: bool,
    problems: list[Problem],
    cropped: bool = False,
    boxed: bool = False,
) -> None:
    """Add what is unusual about the stored image: its size against the annotated one, its orientation, its
    kind of pixels.

    Args:
        path: the file.
        name: of the image, for messages.
        size: (width, height) that the annotations are for.
        located: whether the image has boxes, masks or key points.
        problems: where problems are added.
        cropped: whether the image is a part of the file; then sizes are not compared.
        boxed: whether the image has boxes.

    Raises `DataError` when the file is no image.
    """
    header = read_header(path, f"image {name!r}")
    stored, turned = (
        header.size,
        f" (EXIF orientation {header.orientation})" if header.orientation > 1 else "",
    )
    example = f"{name}: file {stored[0]}x{stored[1]}{turned}, annotations {size[0]}x{size[1]}"
    if stored == size or cropped:
        if header.orientation > 1 and located:
            what = (
                "images with an EXIF orientation, read as stored: are their annotations for the stored "
                "pixels, or as viewers show them?"
            )
            problems.append(Problem("warning", what, example))
    elif _same_ratio(stored, size):
        scaled = ": boxes are scaled with the frame" if boxed else ""
        problems.append(Problem("note", DIFFERENT_SIZE + scaled, example))
    elif _same_ratio(stored[::-1], size):
        problems.append(Problem("warning", TURNED if header.orientation >= 5 else EXCHANGED, example))
    else:
        problems.append(Problem("warning", OTHER_RATIO, example))
    problems += [
        Problem("warning", what, f"{name}: mode {header.mode}")
        for what in unusual_pixels(path, header.mode, "images")
    ]


def unusual_pixels(path: Path, mode: str, kind: str) -> list[str]:
    """What is unusual about the pixels of an image or mask file; `kind` is its plural. Raises `DataError`
    when it cannot be read.
    """
    found = []
    if mode == "F":
        found.append(f"{kind} with float pixels: 1.0 is taken for white")
    elif mode.startswith("I"):
        found.append(f"{kind} with 16-bit pixels: scaled to 8 bits")
    if is_transparent(path):
        found.append(f"{kind} with transparent pixels: read in their stored colours, without transparency")
    return found


def _same_ratio(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other shrunken, up to a pixel that was rounded."""
    scale = max(size[0] / other[0], size[1] / other[1])
    return all(
        abs(side - scale * length) <= max(1.0, scale) for side, length in zip(size, other, strict=True)
    )


def is_resized(size: tuple[int, int], claimed: tuple[int, int]) -> bool:
    """Whether an image of `size` is a larger or smaller copy of one of `claimed`: one ratio, up to 1 % or a
    pixel, that is not 1.
    """
    across, down = size[0] / claimed[0], size[1] / claimed[1]
    alike = _same_ratio(size, claimed) or abs(across / down - 1) <= 0.01
    return alike and all(abs(side - length) > 1 for side, length in zip(size, claimed, strict=True))
