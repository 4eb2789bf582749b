"""Records: the annotations of one image, as read from annotation files."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsolbench.types import KeyPoints


@dataclass(slots=True, kw_only=True)
class Record:
    """Annotations of one image, before they are checked against the image file."""

    id: str
    label: int
    path: str
    size: tuple[int, int] | None = None
    """(width, height) of the annotated frame. If None, that of the file `size_path`, or of the image file."""
    size_path: str | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    mask_paths: tuple[str, ...] = ()
    ignore_path: str | None = None
    key_points: KeyPoints | None = None
    crop_bottom: int = 0
    """Number of rows at the bottom of the file that are not part of the image."""
