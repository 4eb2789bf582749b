"""The official files of ILSVRC-2012: folders of images, XML boxes, class lists, blacklist. Used by `wsolbench.datasets.ilsvrc`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsolbench.datasets.base import Record
from wsolbench.datasets.imagefiles import sizes_of
from wsolbench.datasets.matfiles import load_mat
from wsolbench.datasets.tables import bad_line, csv_rows, parse_float, rows_of
from wsolbench.exceptions import DataError
from wsolbench.types import Finding

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where things lie. `xml` holds one file for each test image; `solution` is Kaggle's table of the same boxes."""

    train: Path
    val: Path
    xml: Path | None
    solution: Path | None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Annotation of one test image: WordNet id of its class, boxes, and the size that the annotation claims."""

    wnid: str
    boxes: list[Box]
    size: tuple[int, int] | None


def find_layout(root: Path) -> Layout | None:
    """The official layout under `root`, or None where there is neither `train` nor `val`."""
    home = root / "ILSVRC" if (root / "ILSVRC").is_dir() else root
    images = home / "Data" / "CLS-LOC" if (home / "Data" / "CLS-LOC").is_dir() else home
    if not (images / "val").is_dir() and not (images / "train").is_dir():
        return None
    folders = (home / "Annotations" / "CLS-LOC" / "val", home / "Annotations" / "val", home / "bbox" / "val", images / "val")
    xml = next((folder for folder in folders if folder.is_dir() and any(folder.glob("*.xml"))), None)
    solution = next((path for path in (root / "LOC_val_solution.csv", home / "LOC_val_solution.csv") if path.is_file()), None)
    return Layout(train=images / "train", val=images / "val", xml=xml, solution=solution)


def listed_classes(root: Path) -> dict[str, str] | None:
    """WordNet id → readable name, sorted by id, so that the position is the class index; None where no file lists them.

    From `LOC_synset_mapping.txt`, else the devkit's `meta.mat`, whose own numbers (ILSVRC2012_ID) are in another order.
    """
    for path in (root / "LOC_synset_mapping.txt", root / "ILSVRC" / "LOC_synset_mapping.txt"):
        if path.is_file():
            return dict(sorted((wnid, words.partition(",")[0]) for _, (wnid, words) in rows_of(path, "wnid words")))
    for path in (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", root / "data" / "meta.mat", root / "meta.mat"):
        if path.is_file():
            leaves = [row for row in load_mat(path, "synsets") if int(row["num_children"]) == 0]  # the rest are inner nodes
            return dict(sorted((str(row["WNID"]), str(row["words"]).partition(",")[0]) for row in leaves))
    return None


def foldered_classes(layout: Layout) -> dict[str, str]:
    """The same from the names of the class folders of `train`, else of `val`. `DataError` where neither has any."""
    for folder in (layout.train, layout.val):
        wnids = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        if wnids:
            return {wnid: wnid for wnid in wnids}
    raise DataError(
        f"no list of classes: expected class folders in {layout.train}, or LOC_synset_mapping.txt or "
        "ILSVRC2012_devkit_t12/data/meta.mat in the data root"
    )


def train_records(layout: Layout, index: Mapping[str, int]) -> list[Record]:
    """Every image of every class folder, sorted by name. Sizes are not read."""
    records = []
    for wnid in sorted(entry.name for entry in layout.train.iterdir() if entry.is_dir()) if layout.train.is_dir() else []:
        if wnid not in index:
            raise DataError(f"{layout.train / wnid}: expected a folder named after one of the {len(index)} classes")
        with os.scandir(layout.train / wnid) as entries:
            names = sorted(entry.name for entry in entries if entry.name.lower().endswith((".jpeg", ".jpg")))
        records += [Record(id=f"train/{wnid}/{name}", label=index[wnid], path=f"{layout.train}/{wnid}/{name}") for name in names]
    return records


def boxed_records(layout: Layout, index: Mapping[str, int], findings: list[Finding]) -> list[Record]:
    """The validation images in the order of their numbers, with boxes, at the size of their files."""
    if layout.xml is not None:
        truths = {path.stem: read_xml(path) for path in sorted(layout.xml.glob("*.xml"))}
    elif layout.solution is not None:
        truths = _read_solution(layout.solution)
    else:
        raise DataError(
            f"no boxes for {layout.val}: expected XML files in Annotations/CLS-LOC/val (or Annotations/val), or LOC_val_solution.csv, "
            "or the wsolevaluation metadata (--metadata-root)"
        )
    nested = layout.val.is_dir() and any(entry.is_dir() for entry in layout.val.iterdir())
    records = []
    for stem, truth in sorted(truths.items()):
        if truth.wnid not in index:
            raise DataError(
                f"{layout.xml or layout.solution}: image {stem!r} has the class {truth.wnid!r}, which is not among the {len(index)} classes"
            )
        folder = f"{layout.val}/{truth.wnid}" if nested else str(layout.val)
        records.append(Record(id=f"val/{stem}.JPEG", label=index[truth.wnid], path=f"{folder}/{stem}.JPEG", boxes=truth.boxes))
    _rescale(records, [truth.size for _, truth in sorted(truths.items())], findings)
    return records


def _rescale(records: list[Record], claimed: list[tuple[int, int] | None], findings: list[Finding]) -> None:
    """Give each record its file's size; where the annotation claims another and a box sticks out of the file, scale the boxes."""
    scaled = []
    for record, size, claim in zip(records, sizes_of([record.path for record in records]), claimed, strict=True):
        if isinstance(size, DataError):
            continue  # missing or broken: `assemble` deals with it
        record.size = size
        if claim is not None and claim != size and any(x1 > size[0] or y1 > size[1] for _, _, x1, y1 in record.boxes):
            across, down = size[0] / claim[0], size[1] / claim[1]
            record.boxes = [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in record.boxes]
            scaled.append(f"{record.id}: file {size}, annotation {claim}")
    if scaled:
        what = "images of another size than their annotation says: boxes scaled"
        findings.append(Finding(what=what, count=len(scaled), example=scaled[0], severity="warning"))


def read_xml(path: Path) -> Truth:
    """One annotation file. `DataError` when it is no such file, has no object, or objects of two classes."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    try:
        top = parse(path).getroot()
        if top is None:
            raise DataError(f"{path} holds no XML element")
        boxes, wnids = [], set()
        for item in top.iterfind("object"):
            wnids.add(item.findtext("name", ""))
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax"))
            if x1 < x0 or y1 < y0:
                raise DataError(f"{path}: expected a box with xmin <= xmax and ymin <= ymax, found {x0:g} {y0:g} {x1:g} {y1:g}")
            boxes.append((x0, y0, x1, y1))
        size = int(top.findtext("size/width", "0")), int(top.findtext("size/height", "0"))
    except (ParseError, DefusedXmlException, OSError) as error:
        raise DataError(f"{path} is not an XML file that can be read ({error})") from error
    except ValueError as error:
        raise DataError(f"{path}: expected numbers in size and bndbox ({error})") from error
    if len(wnids) != 1:
        raise DataError(f"{path}: expected objects of one class, found {sorted(wnids) or 'no object'}")
    return Truth(wnid=wnids.pop(), boxes=boxes, size=size if min(size) > 0 else None)


def _read_solution(path: Path) -> dict[str, Truth]:
    """Kaggle's `ImageId,PredictionString`; the string repeats "wnid xmin ymin xmax ymax"."""
    truths: dict[str, Truth] = {}
    for line, row in csv_rows(path, ("ImageId", "PredictionString")):
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
            x0, y0, x1, y1 = (parse_float(text, path, line, "a box corner") for text in words[start + 1 : start + 5])
            if x1 < x0 or y1 < y0:
                raise bad_line(path, line, "a box with xmin <= xmax and ymin <= ymax", " ".join(words[start + 1 : start + 5]))
            boxes.append((x0, y0, x1, y1))
        truths[row["ImageId"]] = Truth(wnid=wnids.pop(), boxes=boxes, size=None)
    return truths


def without_blacklisted(root: Path, records: Iterable[Record], findings: list[Finding]) -> list[Record]:
    """Leave out the images whose numbers are in `ILSVRC2014_clsloc_validation_blacklist.txt`; says so in `findings`."""
    name = "ILSVRC2014_clsloc_validation_blacklist.txt"
    folders = (root, root / "data", root / "ILSVRC2014_devkit" / "data")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise DataError(
            f"no file {root / 'ILSVRC2014_devkit' / 'data' / name}, which exclude_blacklist needs; it is in the ILSVRC-2014 devkit"
        )
    numbers = {f"val/ILSVRC2012_val_{int(number):08d}.JPEG" for _, (number,) in rows_of(path, "number") if number.strip().isdigit()}
    given = list(records)
    kept = [record for record in given if record.id not in numbers]
    if len(kept) < len(given):
        what = "blacklisted images: left out as asked"
        findings.append(Finding(what=what, count=len(given) - len(kept), example=f"see {path.name}"))
    return kept
