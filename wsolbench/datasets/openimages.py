"""OpenImages30k: 100 classes with instance masks and ignore masks, in the layout of wsolevaluation.

J. Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020; images from Open
Images V5.

    {train,val,test}/<mid>/<image>.jpg
    {val,test}/<mid>/<image>_m<mid>_<instance>.png       masks of the image's class
    {val,test}/<mid>/<image>_ignore.png                  regions without mask; object pixels inside them count
                                                         as object

The metadata folder has ids, labels and mask names, but no sizes. `Sample.size` is that of the masks, which
may differ from the image file's. A missing ignore file is an error and is never treated as empty.
"""

from __future__ import annotations

from pathlib import Path

from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.class_folders import class_folder, note_contradictions
from wsolbench.datasets.formats.wsoleval import has_metadata, image_folder, metadata_folder, read_metadata
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="openimages",
    summary="OpenImages30k: 37,319 images of 100 classes with masks and ignore regions",
    splits=("train", "val", "test"),
    root_holds=(
        "train/, val/, test/ (or OpenImages/ with them) and, unless --metadata-root is given, metadata/"
    ),
    expected={"train": 29819, "val": 2500, "test": 5000},
    classes=100,
    citation="Choe et al., CVPR 2020; Benenson, Popov, Ferrari, CVPR 2019",
    license="annotations CC BY 4.0, images CC BY 2.0 (as listed by Open Images)",
)
CLASSES = 100


def load(
    root: Path, split: str, *, metadata_root: Path | str | None = None, missing: Missing = "error"
) -> Dataset:
    """Load one split in evaluation order. `train` has labels only.

    Raises `UsageError` without metadata, and `DataError` naming file and line.
    """
    # Read the metadata; the size of an image is that of its first mask.
    folder = metadata_folder(root, metadata_root, "OpenImages", split)
    if folder is None:
        raise wrong_root(
            INFO,
            root,
            f"there is no metadata for {split!r} (give the folder of wsolevaluation with --metadata-root)",
        )
    metadata = read_metadata(folder, "masks")
    images = image_folder([root, root / "OpenImages", root / "images"], metadata.ids)
    records = metadata.records(images)
    for record in records:
        if record.mask_paths:
            record.size_path = record.mask_paths[0]
    # Class names are the folders; note labels that contradict them.
    mids = {metadata.labels[image_id]: Path(image_id).parent.name for image_id in metadata.ids}
    class_names = [mids.get(label, f"class {label}") for label in range(CLASSES)]
    findings: list[Finding] = []
    flat = ("", "images", *INFO.splits)
    note_contradictions(
        [item for item in metadata.labels.items() if class_folder(item[0]) not in flat], findings
    )
    lazy = not metadata.masks
    return assemble(
        INFO.name,
        split,
        Path(images),
        records,
        class_names,
        findings=findings,
        missing=missing,
        lazy_sizes=lazy,
    )


def available_splits(root: Path, *, metadata_root: Path | str | None = None) -> tuple[str, ...]:
    """Return the splits that the metadata has."""
    return tuple(split for split in INFO.splits if has_metadata(root, metadata_root, "OpenImages", split))
