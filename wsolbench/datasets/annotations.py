"""What a reader of annotations gives for each image, before files are looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsolbench.types import KeyPoints


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
