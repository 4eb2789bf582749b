"""Reader of the metadata text files of wsolevaluation (J. Choe et al., CVPR 2020).

One folder for each split, comma-separated files without header:

    image_ids.txt      path                          the order is the evaluation order
    class_labels.txt   path,label                    label from 0
    image_sizes.txt    path,width,height             may be empty
    localization.txt   path,x0,y0,x1,y1              boxes in original pixels, used unchanged; an image can
                                                     have several lines
                       path,mask,ignore              masks; `ignore` only on the first line of an image

Whether the last line ends with a newline makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.formats.tables import bad_line, check_inner_path, parse_float, parse_int, rows_of
from wsolbench.exceptions import DataError, UsageError

T = TypeVar("T")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class MaskFiles:
    """Instance masks of one image and its ignore mask, paths relative to the data root."""

    masks: tuple[str, ...]
    ignore: str


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of one split. A mapping is empty if its file is absent or empty, else it has every image."""

    ids: tuple[str, ...]
    labels: Mapping[str, int]
    sizes: Mapping[str, tuple[int, int]]
    boxes: Mapping[str, list[tuple[float, float, float, float]]]
    masks: Mapping[str, MaskFiles]

    def records(self, image_root: str) -> list[Record]:
        """Return records in evaluation order. Image, mask and ignore paths are relative to `image_root`."""
        return [self._record(image_id, image_root) for image_id in self.ids]

    def _record(self, image_id: str, image_root: str) -> Record:
        masks = self.masks.get(image_id)
        return Record(
            id=image_id,
            label=self.labels[image_id],
            path=f"{image_root}/{image_id}",
            size=self.sizes.get(image_id),
            boxes=self.boxes.get(image_id, []),
            mask_paths=() if masks is None else tuple(f"{image_root}/{mask}" for mask in masks.masks),
            ignore_path=None if masks is None else f"{image_root}/{masks.ignore}",
        )


def metadata_folder(root: Path, metadata_root: Path | str | None, name: str, split: str) -> Path | None:
    """Return `<metadata root>/<name>/<split>` or `<metadata root>/<split>`, or None if neither exists.

    The metadata root is `<root>/metadata` if none is given. Raises `UsageError` if a metadata root is given
    but does not have the split.
    """
    base = _metadata_base(root, metadata_root)
    folder = _split_folder(base, name, split)
    if folder is None and metadata_root is not None:
        raise UsageError(
            f"the metadata root {base} lacks the split {split!r}; expected {name}/{split}/image_ids.txt or "
            f"{split}/image_ids.txt. Give the `metadata` folder of wsolevaluation with --metadata-root."
        )
    return folder


def has_metadata(root: Path, metadata_root: Path | str | None, name: str, split: str) -> bool:
    """Whether `metadata_folder` finds the split. Raises `UsageError` as `check_metadata_root` does."""
    check_metadata_root(metadata_root, name)
    return _split_folder(_metadata_base(root, metadata_root), name, split) is not None


def check_metadata_root(metadata_root: Path | str | None, name: str) -> None:
    """Raise `UsageError` if a metadata root is given that is not a folder or has no split of the data set."""
    if metadata_root is None:
        return
    base = Path(metadata_root).expanduser()
    if not base.is_dir():
        raise UsageError(
            f"the metadata root {base} is not a folder; expected the `metadata` folder of wsolevaluation. "
            "Give it with --metadata-root."
        )
    if not any(_split_folder(base, name, split) for split in SPLITS):
        raise UsageError(
            f"the metadata root {base} has no split of {name}; expected {name}/SPLIT/image_ids.txt or "
            f"SPLIT/image_ids.txt with SPLIT one of {', '.join(SPLITS)}. Give the `metadata` folder of "
            "wsolevaluation with --metadata-root, or omit the option."
        )


def _metadata_base(root: Path, metadata_root: Path | str | None) -> Path:
    return root / "metadata" if metadata_root is None else Path(metadata_root).expanduser()


def _split_folder(base: Path, name: str, split: str) -> Path | None:
    return next(
        (folder for folder in (base / name / split, base / split) if (folder / "image_ids.txt").is_file()),
        None,
    )


def image_folder(candidates: Sequence[Path], ids: Sequence[str]) -> str:
    """Return the candidate that contains the first image or its folder, or else the first that exists."""
    for candidate in candidates:
        if (candidate / ids[0]).is_file():
            return str(candidate)
    for candidate in candidates:
        if (candidate / ids[0]).parent.is_dir():
            return str(candidate)
    return str(next((candidate for candidate in candidates if candidate.is_dir()), candidates[0]))


def read_metadata(folder: Path, truth: Literal["boxes", "masks"]) -> Metadata:
    """Read the folder of one split.

    Raises `DataError` naming file and line for contradictory or incomplete files.
    """
    # Ids, labels and sizes.
    ids = _read_ids(folder / "image_ids.txt")
    known = set(ids)
    if not ids:
        raise DataError(f"{folder / 'image_ids.txt'} names no image; expected at least one")
    labels = _read_once(folder / "class_labels.txt", "path label", known, _label)
    _check_complete(folder / "class_labels.txt", labels, known)
    sizes = _read_once(folder / "image_sizes.txt", "path width height", known, _size)
    if sizes:
        _check_complete(folder / "image_sizes.txt", sizes, known)
    # Boxes or masks. They are optional for `train`, because weak supervision does not use them.
    table = folder / "localization.txt"
    boxes: Mapping[str, list[tuple[float, float, float, float]]] = {}
    masks: Mapping[str, MaskFiles] = {}
    if table.exists() or folder.name != "train":
        if truth == "boxes":
            boxes = _read_boxes(table, known)
        else:
            masks = _read_masks(table, known)
        if boxes or masks or folder.name != "train":
            _check_complete(table, boxes or masks, known)
    return Metadata(ids=ids, labels=labels, sizes=sizes, boxes=boxes, masks=masks)


def _read_ids(path: Path) -> tuple[str, ...]:
    lines: dict[str, int] = {}
    for line, (image_id,) in rows_of(path, "path", separator=","):
        if image_id in lines:
            raise bad_line(path, line, "every image once", f"{image_id!r} again (line {lines[image_id]})")
        lines[image_id] = line
    return tuple(lines)


def _read_once(
    path: Path, columns: str, known: set[str], convert: Callable[[Path, int, list[str]], T]
) -> dict[str, T]:
    found: dict[str, T] = {}
    for line, (image_id, *rest) in rows_of(path, columns, separator=","):
        _check_known(path, line, image_id, known)
        if image_id in found:
            raise bad_line(path, line, "every image once", f"{image_id!r} again")
        found[image_id] = convert(path, line, rest)
    return found


def _label(path: Path, line: int, fields: list[str]) -> int:
    return parse_int(fields[0], path, line, "label")


def _size(path: Path, line: int, fields: list[str]) -> tuple[int, int]:
    size = parse_int(fields[0], path, line, "width"), parse_int(fields[1], path, line, "height")
    if min(size) < 1:
        raise bad_line(path, line, "a width and a height of at least 1", ",".join(fields))
    return size


def _read_boxes(path: Path, known: set[str]) -> dict[str, list[tuple[float, float, float, float]]]:
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    for line, (image_id, *corners) in rows_of(path, "path x0 y0 x1 y1", separator=","):
        _check_known(path, line, image_id, known)
        x0, y0, x1, y1 = (parse_float(text, path, line, "a box corner") for text in corners)
        if x1 < x0 or y1 < y0:
            raise bad_line(path, line, "a box with x0 <= x1 and y0 <= y1", ",".join(corners))
        boxes.setdefault(image_id, []).append((x0, y0, x1, y1))
    return boxes


def _read_masks(path: Path, known: set[str]) -> dict[str, MaskFiles]:
    masks: dict[str, list[str]] = {}
    ignores: dict[str, str] = {}
    for line, (image_id, mask, ignore) in rows_of(path, "path mask ignore", separator=","):
        _check_known(path, line, image_id, known)
        if bool(ignore) == (image_id in ignores):
            expected = "an ignore mask on the first line of an image, and only there"
            raise bad_line(path, line, expected, f"{ignore!r} for {image_id!r}")
        if ignore:
            ignores[image_id] = check_inner_path(ignore, path, line, "ignore mask")
        masks.setdefault(image_id, []).append(check_inner_path(mask, path, line, "mask"))
    return {
        image_id: MaskFiles(masks=tuple(names), ignore=ignores[image_id]) for image_id, names in masks.items()
    }


def _check_known(path: Path, line: int, image_id: str, known: set[str]) -> None:
    if image_id not in known:
        raise bad_line(path, line, "an image of image_ids.txt", repr(image_id))


def _check_complete(path: Path, found: Mapping[str, object], known: set[str]) -> None:
    absent = known - found.keys()
    if absent:
        raise DataError(
            f"{path}: expected all {len(known):,} images of image_ids.txt, found none for {len(absent):,}, "
            f"such as {min(absent)[:200]!r}"
        )
