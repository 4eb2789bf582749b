"""Checks of image and mask files that need their pixels or headers."""

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
"""Number of mask files that are checked when a split is loaded. `wsolbench verify --deep` checks all."""


class Problem(NamedTuple):
    """A problem of one image. `file` is set if it cannot be read."""

    severity: str
    what: str
    example: str
    file: Path | None = None


def note_exchanged(
    images: Iterable[tuple[str, Header, object]], notes: list[Finding], rest: str = ""
) -> None:
    """Add findings for images whose annotated size is the file's with width and height exchanged.

    `images` are (id, header, annotated size). `rest` is appended to the finding.
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
    """Check up to `CHECKED_MASKS` mask files, spread evenly, for a value that counts as object.

    Values such as 0 and 1 are positive but never above `threshold`. A mask of zeros may be intended, unless
    all object masks are zeros. `ignore` marks ignore masks. Unreadable files are skipped here; their
    readers raise.
    """
    # Masks whose largest value is not above the threshold.
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
    # Describe them in one finding.
    values = (
        "with values 0 and 1"
        if all(largest == 1 for _, largest in dark)
        else f"without a value above {threshold}"
    )
    rest = "" if len(some) == len(paths) else f" (of {len(some)} that were checked)"
    what = (
        f"{'ignore masks' if ignore else 'masks'} {values}; an {'ignored' if ignore else 'object'} pixel "
        f"should be 255{rest}"
    )
    example = f"{dark[0][0]}: largest value {dark[0][1]}"
    notes.append(Finding(what=what, count=len(dark), example=example, severity="error"))


def _largest(path: str) -> int | None:
    """Return the largest value of a mask file, scaled to 8 bits, or None if it cannot be read."""
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
    """Add problems of a stored image: its size against the annotated one, its orientation, its pixel type.


    Args:
        path: the file.
        name: name of the image, for messages.
        size: (width, height) that the annotations refer to.
        located: whether the image has boxes, masks or key points.
        problems: problems are added here.
        cropped: whether the image is a part of the file. Then sizes are not compared.
        boxed: whether the image has boxes.

    Raises `DataError` if the file is not an image.
    """
    # Compare the sizes, also with width and height exchanged.
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
    # Unusual pixel types.
    problems += [
        Problem("warning", what, f"{name}: mode {header.mode}")
        for what in find_unusual_pixels(path, header.mode, "images")
    ]


def find_unusual_pixels(path: Path, mode: str, kind: str) -> list[str]:
    """Describe unusual pixel types of an image or mask file. `kind` is "images" or "masks".

    Raises `DataError` if the file cannot be read.
    """
    found = []
    if mode == "F":
        found.append(f"{kind} with float pixels: 1.0 is read as white")
    elif mode.startswith("I"):
        found.append(f"{kind} with 16-bit pixels: scaled to 8 bits")
    if is_transparent(path):
        found.append(f"{kind} with transparent pixels: read in their stored colours, without transparency")
    return found


def _same_ratio(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled, up to rounding of a pixel."""
    scale = max(size[0] / other[0], size[1] / other[1])
    return all(
        abs(side - scale * length) <= max(1.0, scale) for side, length in zip(size, other, strict=True)
    )


def is_resized(size: tuple[int, int], claimed: tuple[int, int]) -> bool:
    """Whether an image of `size` is a scaled copy of one of size `claimed`.

    Both sides must have the same ratio, up to 1 % or a pixel, and the ratio must not be 1.
    """
    across, down = size[0] / claimed[0], size[1] / claimed[1]
    alike = _same_ratio(size, claimed) or abs(across / down - 1) <= 0.01
    return alike and all(abs(side - length) > 1 for side, length in zip(size, claimed, strict=True))
