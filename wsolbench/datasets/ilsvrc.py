"""ILSVRC-2012 CLS-LOC: 1,000 classes. The 50,000 validation images with boxes are the split `test`.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.

Two sources of annotations:

- wsolevaluation text files (`--metadata-root`, or `metadata/` in the root): `train`, `val` (ImageNetV2,
  10,000 images with boxes by J. Choe et al., CVPR 2020) and `test`. Sizes come from these files, so shrunken
  or warped copies of the images work too.
- the official XML files or `LOC_val_solution.csv`: `train` (folders of images) and `test`. Images and
  annotations are in `ILSVRC/Data/CLS-LOC` and `ILSVRC/Annotations/CLS-LOC` (Kaggle's packaging), or in
  `train/`, `val/` with the XML files in `Annotations/val`. `val/` may be flat or have class folders.

The text files are used if both exist. Boxes are used unchanged as xyxy. Ids are
`val/ILSVRC2012_val_00000001.JPEG` in every layout. The class index is the position in the sorted list of
WordNet ids, never the devkit's ILSVRC2012_ID. `exclude_blacklist=True` excludes the 1,762 images that
ILSVRC-2014 blacklisted. Boxes of train images are never read.
"""

from __future__ import annotations

from pathlib import Path

from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.class_folders import class_folder, note_contradictions
from wsolbench.datasets.formats.ilsvrc_official import (
    WNID,
    boxed_records,
    exclude_blacklisted,
    find_layout,
    list_class_folders,
    read_class_list,
    train_records,
)
from wsolbench.datasets.formats.wsoleval import has_metadata, image_folder, metadata_folder, read_metadata
from wsolbench.exceptions import UsageError
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="ilsvrc",
    summary="ILSVRC-2012: 1,000 classes; 50,000 test images with boxes",
    splits=("train", "val", "test"),
    root_holds=(
        "train/ and val/ (or ILSVRC/Data/CLS-LOC/) with wsolevaluation metadata or the official XML "
        "annotations"
    ),
    expected={"train": 1281167, "val": 10000, "test": 50000},
    classes=1000,
    citation="Russakovsky et al., IJCV 2015; val: Recht et al., ICML 2019 and Choe et al., CVPR 2020",
    license="ImageNet terms of access: non-commercial research",
)
CLASSES = 1000


def load(
    root: Path,
    split: str,
    *,
    metadata_root: Path | str | None = None,
    exclude_blacklist: bool = False,
    missing: Missing = "error",
) -> Dataset:
    """Load one split in evaluation order (train: sorted by name). `train` has labels only.

    Raises `UsageError` for a folder without images or annotations and for `val` without metadata, and
    `DataError` naming the file.
    """
    # Find metadata and official files.
    folder = metadata_folder(root, metadata_root, "ILSVRC", split)
    layout = find_layout(root)
    findings: list[Finding] = []
    # Records and class names, from the metadata if there is any.
    if folder is not None:
        metadata = read_metadata(folder, "boxes")
        candidates = [root, root / "images", root / "ILSVRC"] + ([layout.val.parent] if layout else [])
        home = Path(image_folder(candidates, metadata.ids))
        records = metadata.records(str(home))
        listed = read_class_list(root) or {}
        index = {wnid: number for number, wnid in enumerate(listed)}
        in_synsets = [
            (image_id, label)
            for image_id, label in metadata.labels.items()
            if WNID.fullmatch(class_folder(image_id))
        ]
        note_contradictions(in_synsets, findings, index if len(listed) == CLASSES else None)
        class_names = (
            tuple(listed.values())
            if len(listed) == CLASSES
            else tuple(f"class {label}" for label in range(CLASSES))
        )
    elif split == "val":
        raise UsageError(
            "the split 'val' of ilsvrc is ImageNetV2; expected the wsolevaluation metadata for it. Give its "
            "folder with --metadata-root"
        )
    elif layout is None:
        raise wrong_root(INFO, root, "there is neither train/ nor val/ nor metadata/")
    else:
        classes = read_class_list(root) or list_class_folders(layout)
        index = {wnid: number for number, wnid in enumerate(classes)}
        home = layout.val.parent
        records = (
            train_records(layout, index, findings)
            if split == "train"
            else boxed_records(layout, index, findings)
        )
        class_names = tuple(classes.values())
    if exclude_blacklist and split == "test":
        records = exclude_blacklisted(root, records, findings)
    return assemble(
        INFO.name,
        split,
        home,
        records,
        class_names,
        findings=findings,
        missing=missing,
        lazy_sizes=split == "train",
    )


def available_splits(root: Path, *, metadata_root: Path | str | None = None) -> tuple[str, ...]:
    """Return the splits with metadata, and `train` or `test` if the official files exist."""
    layout = find_layout(root)
    official = set()
    if layout is not None:
        official = {
            split
            for split, there in (("train", layout.train.is_dir()), ("test", layout.xml or layout.solution))
            if there
        }
    return tuple(
        split
        for split in INFO.splits
        if split in official or has_metadata(root, metadata_root, "ILSVRC", split)
    )
