"""Readers of the official files of ILSVRC-2012: folders of images, XML boxes, class lists, blacklist.

Used by `wsolbench.datasets.ilsvrc`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.formats.imagefiles import read_headers
from wsolbench.datasets.formats.matfiles import load_structs, text, whole_number
from wsolbench.datasets.formats.tables import (
    bad_line,
    csv_rows,
    is_inner_path,
    parse_float,
    parse_int,
    rows_of,
)
from wsolbench.datasets.pixels import is_resized, note_exchanged
from wsolbench.exceptions import DataError
from wsolbench.system.listing import list_files, list_folders
from wsolbench.system.regular_files import check_regular, name_content
from wsolbench.types import Finding

WNID = re.compile(r"n\d{8}")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Paths of the official files. `xml` has a file per test image; `solution` is Kaggle's table of boxes."""

    train: Path
    val: Path
    xml: Path | None
    solution: Path | None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Annotation of one test image: WordNet id of its class, boxes, and the image size that it states."""

    wnid: str
    boxes: list[Box]
    size: tuple[int, int] | None


def find_layout(root: Path) -> Layout | None:
    """Return the official layout under `root`, or None if there is neither `train` nor `val`."""
    home = root / "ILSVRC" if (root / "ILSVRC").is_dir() else root
    images = home / "Data" / "CLS-LOC" if (home / "Data" / "CLS-LOC").is_dir() else home
    if not (images / "val").is_dir() and not (images / "train").is_dir():
        return None
    folders = (
        home / "Annotations" / "CLS-LOC" / "val",
        home / "Annotations" / "val",
        home / "bbox" / "val",
        images / "val",
    )
    xml = next((folder for folder in folders if list_files(folder, (".xml",))), None)
    solution = next(
        (path for path in (root / "LOC_val_solution.csv", home / "LOC_val_solution.csv") if path.is_file()),
        None,
    )
    return Layout(train=images / "train", val=images / "val", xml=xml, solution=solution)


def read_class_list(root: Path) -> dict[str, str] | None:
    """Return WordNet id → readable name, sorted by id, so that the position is the class index.

    Returns None if no file lists the classes. The source is `LOC_synset_mapping.txt`, else the devkit's
    `meta.mat`, whose own numbers (ILSVRC2012_ID) have another order.
    """
    for path in (root / "LOC_synset_mapping.txt", root / "ILSVRC" / "LOC_synset_mapping.txt"):
        if path.is_file():
            return _sorted_classes(path, ((wnid, words) for _, (wnid, words) in rows_of(path, "wnid words")))
    for path in (
        root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat",
        root / "data" / "meta.mat",
        root / "meta.mat",
    ):
        if path.is_file():
            rows = load_structs(path, "synsets", ("WNID", "words", "num_children"))
            # Synsets with children are inner nodes, not classes.
            leaves = [row for row in rows if whole_number(row, "num_children", path, "a synset") == 0]
            return _sorted_classes(
                path,
                (
                    (text(row, "WNID", path, "a synset"), text(row, "words", path, "a synset"))
                    for row in leaves
                ),
            )
    return None


def _sorted_classes(path: Path, rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for wnid, words in rows:
        if wnid in found or not is_inner_path(wnid):
            raise DataError(
                f"{path}: expected every WordNet id once, such as n01440764; found "
                f"{wnid!r}{' again' if wnid in found else ''}"
            )
        found[wnid] = words.partition(",")[0]
    return dict(sorted(found.items()))


def list_class_folders(layout: Layout) -> dict[str, str]:
    """Return the classes from the names of the class folders of `train`, else of `val`, as `read_class_list`.

    If folders are named after WordNet ids, other folders are not classes. Raises `DataError` if neither has
    any.
    """
    for folder in (layout.train, layout.val):
        names = list_folders(folder)
        _check_depth(folder, names)
        wnids = [name for name in names if WNID.fullmatch(name)] or names
        if wnids:
            return {wnid: wnid for wnid in wnids}
    raise DataError(
        f"no list of classes: expected class folders in {layout.train}, or LOC_synset_mapping.txt or "
        "ILSVRC2012_devkit_t12/data/meta.mat in the data root. If you have wsolevaluation's text files "
        "instead, name their folder with --metadata-root"
    )


def _check_depth(folder: Path, names: Iterable[str]) -> None:
    """Raise `DataError` if the class folders are nested in a folder of `folder`. `names` are its folders."""
    for name in names:
        inner = (
            ()
            if WNID.fullmatch(name)
            else [inner for inner in list_folders(folder / name) if WNID.fullmatch(inner)]
        )
        if inner:
            found = f"found the folder {name!r}, which holds {len(inner):,} of them"
            raise DataError(
                f"{folder}: expected class folders such as {inner[0]}, {found}. Move them up into {folder}."
            )


def train_records(layout: Layout, index: Mapping[str, int], findings: list[Finding]) -> list[Record]:
    """Return every image of every class folder, sorted by name. Sizes are not read.

    Folders that are not classes and classes without an image are added to `findings`. Raises `DataError`
    for a folder that is named after an unknown WordNet id.
    """
    # Collect the images of each class folder.
    records = []
    others = []
    used = set()
    folders = list_folders(layout.train)
    _check_depth(layout.train, folders)
    for wnid in folders:
        if wnid not in index:
            if WNID.fullmatch(wnid):
                raise DataError(
                    f"{layout.train / wnid}: unknown class; expected a folder named after one of the "
                    f"{len(index)} classes"
                )
            others.append(wnid)
            continue
        names = list_files(layout.train / wnid, (".jpeg", ".jpg"))
        records += [
            Record(id=f"train/{wnid}/{name}", label=index[wnid], path=f"{layout.train}/{wnid}/{name}")
            for name in names
        ]
        if names:
            used.add(wnid)
    # Report other folders and empty classes.
    if others:
        what = "folders in train/ that are not named after a class: ignored"
        findings.append(Finding(what=what, count=len(others), example=others[0], severity="warning"))
    empty = [wnid for wnid in index if wnid not in used]
    if empty:
        findings.append(
            Finding(
                what="classes without an image in train/",
                count=len(empty),
                example=empty[0],
                severity="warning",
            )
        )
    return records


def boxed_records(layout: Layout, index: Mapping[str, int], findings: list[Finding]) -> list[Record]:
    """Return the validation images in the order of their numbers, with boxes at the size of their files."""
    # Read the boxes, from XML files or Kaggle's table.
    if layout.xml is not None:
        truths = {
            name[: -len(".xml")]: read_xml(layout.xml / name) for name in list_files(layout.xml, (".xml",))
        }
    elif layout.solution is not None:
        truths = _read_solution(layout.solution)
    else:
        raise DataError(
            f"no boxes for {layout.val}; expected XML files in Annotations/CLS-LOC/val (or Annotations/val), "
            "LOC_val_solution.csv, or the wsolevaluation metadata (--metadata-root)"
        )
    # Build the records; images are in class folders or in one folder.
    folders = list_folders(layout.val)
    _check_depth(layout.val, folders)
    nested = not index.keys().isdisjoint(folders)
    records = []
    for stem, truth in sorted(truths.items()):
        if truth.wnid not in index:
            raise DataError(
                f"{layout.xml or layout.solution}: image {stem!r} has the class {truth.wnid!r}; expected "
                f"one of the {len(index)} classes"
            )
        folder = f"{layout.val}/{truth.wnid}" if nested else str(layout.val)
        records.append(
            Record(
                id=f"val/{stem}.JPEG",
                label=index[truth.wnid],
                path=f"{folder}/{stem}.JPEG",
                boxes=truth.boxes,
            )
        )
    _rescale(records, [truth.size for _, truth in sorted(truths.items())], findings)
    return records


def _rescale(records: list[Record], claimed: list[tuple[int, int] | None], findings: list[Finding]) -> None:
    """Give each record its file's size, and scale the boxes if the annotation is for another size.

    Boxes are scaled if the stated size differs from the file's by one ratio (a resized copy), or if a box
    exceeds the file. An annotation with width and height exchanged cannot be scaled. It is added to
    `findings`, and so are other boxes that are kept as they are.
    """
    # Decide for each record: keep, scale, or report.
    scaled = []
    turned = []
    unscaled = []
    for record, header, claim in zip(
        records, read_headers([record.path for record in records]), claimed, strict=True
    ):
        if isinstance(header, DataError):
            continue  # missing or unreadable: `assemble` handles it
        size = record.size = header.size
        if claim is None or claim == size:
            continue
        fits = all(x1 <= size[0] and y1 <= size[1] for _, _, x1, y1 in record.boxes)
        if fits and not is_resized(size, claim):
            unscaled.append(f"{record.id}: file {size}, annotation {claim}")
        elif claim == size[::-1]:
            turned.append((record.id, header, claim))
        else:
            across, down = size[0] / claim[0], size[1] / claim[1]
            record.boxes = [
                (x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in record.boxes
            ]
            scaled.append(f"{record.id}: file {size}, annotation {claim}")
    # Report what was scaled and what was kept.
    if scaled:
        what = "images of another size than their annotation states: boxes scaled"
        findings.append(Finding(what=what, count=len(scaled), example=scaled[0], severity="warning"))
    if unscaled:
        what = (
            "images of another size than their annotation states, not resized copies: boxes kept as they "
            "fit the file"
        )
        findings.append(Finding(what=what, count=len(unscaled), example=unscaled[0], severity="warning"))
    note_exchanged(turned, findings)


def read_xml(path: Path) -> Truth:
    """Read one annotation file. Raises `DataError` if it is invalid, or has no object or several classes."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    # Parse the objects and the size.
    check_regular(path)
    try:
        top = parse(path).getroot()
        if top is None:
            raise DataError(f"{path} has no XML element; expected annotations")
        boxes, wnids = [], set()
        for item in top.iterfind("object"):
            wnids.add(item.findtext("name", ""))
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            if not all(map(math.isfinite, (x0, y0, x1, y1))):
                raise DataError(
                    f"{path}: expected finite numbers in bndbox, found {x0:g} {y0:g} {x1:g} {y1:g}"
                )
            if x1 < x0 or y1 < y0:
                raise DataError(
                    f"{path}: expected a box with xmin <= xmax and ymin <= ymax, found {x0:g} {y0:g} "
                    f"{x1:g} {y1:g}"
                )
            boxes.append((x0, y0, x1, y1))
        size = int(top.findtext("size/width", "0")), int(top.findtext("size/height", "0"))
    except (ParseError, DefusedXmlException, OSError, LookupError, UnicodeError) as error:
        # LookupError: an unknown encoding
        raise DataError(
            f"{path} is not an XML file that can be read{name_content(path) or f' ({error})'}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: expected numbers in size and bndbox ({error})") from error
    if len(wnids) != 1:
        raise DataError(f"{path}: expected objects of one class, found {sorted(wnids) or 'no object'}")
    return Truth(wnid=wnids.pop(), boxes=boxes, size=size if min(size) > 0 else None)


def _read_solution(path: Path) -> dict[str, Truth]:
    """Read Kaggle's `ImageId,PredictionString`. The string repeats "wnid xmin ymin xmax ymax"."""
    truths: dict[str, Truth] = {}
    for line, row in csv_rows(path, ("ImageId", "PredictionString")):
        # Check the groups of one image, then convert them to boxes.
        words = row["PredictionString"].split()
        wnids = set(words[::5])
        if not words or len(words) % 5 or len(wnids) != 1 or row["ImageId"] in truths:
            raise bad_line(
                path,
                line,
                "a new image with groups of wnid xmin ymin xmax ymax of one class",
                f"{row['ImageId']},{row['PredictionString']}",
            )
        boxes: list[Box] = []
        for start in range(0, len(words), 5):
            x0, y0, x1, y1 = (
                parse_float(text, path, line, "a box corner") for text in words[start + 1 : start + 5]
            )
            if x1 < x0 or y1 < y0:
                raise bad_line(
                    path,
                    line,
                    "a box with xmin <= xmax and ymin <= ymax",
                    " ".join(words[start + 1 : start + 5]),
                )
            boxes.append((x0, y0, x1, y1))
        truths[row["ImageId"]] = Truth(wnid=wnids.pop(), boxes=boxes, size=None)
    return truths


def exclude_blacklisted(root: Path, records: Iterable[Record], findings: list[Finding]) -> list[Record]:
    """Exclude the images of `ILSVRC2014_clsloc_validation_blacklist.txt`, and report it in `findings`."""
    name = "ILSVRC2014_clsloc_validation_blacklist.txt"
    folders = (root, root / "data", root / "ILSVRC2014_devkit" / "data")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"no file {root / 'ILSVRC2014_devkit' / 'data' / name}; expected it for exclude_blacklist. It "
            "is in the ILSVRC-2014 devkit"
        )
    rows = rows_of(path, "number")
    numbers = {
        f"val/ILSVRC2012_val_{parse_int(number, path, line, 'number of an image'):08d}.JPEG"
        for line, (number,) in rows
    }
    given = list(records)
    kept = [record for record in given if record.id not in numbers]
    if len(kept) < len(given):
        what = "blacklisted images: excluded on request"
        findings.append(Finding(what=what, count=len(given) - len(kept), example=f"see {path.name}"))
    return kept
