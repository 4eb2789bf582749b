"""Every damaged annotation file of every layout is either read or rejected with a `DataError`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.datasets.coco_layout import write_coco
from tests.datasets.layouts import (
    write_aircraft,
    write_cars_joint,
    write_cars_split,
    write_csv_folder,
    write_cub,
    write_ilsvrc_official,
    write_image,
    write_lines,
    write_metadata,
    write_openimages,
)
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import WsolbenchError


def _ilsvrc_metadata(root: Path) -> None:
    write_image(root / "val" / "a.JPEG", (40, 30))
    write_metadata(
        root / "metadata" / "ILSVRC" / "test",
        {"val/a.JPEG": 0},
        {"val/a.JPEG": (40, 30)},
        ["val/a.JPEG,1,1,9,9"],
    )


def _csv_folder(root: Path) -> None:
    write_csv_folder(root)
    write_lines(root / "keypoints.csv", ["image,part,x,y,visible", "d.png,beak,3,4,1"])


LAYOUTS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "csvfolder": ("csvfolder", _csv_folder, ("annotations.csv", "classes.csv", "keypoints.csv")),
    "cub": (
        "cub",
        write_cub,
        tuple(
            f"CUB_200_2011/{name}.txt"
            for name in (
                "images",
                "classes",
                "bounding_boxes",
                "image_class_labels",
                "train_test_split",
                "parts/parts",
                "parts/part_locs",
            )
        ),
    ),
    "aircraft": (
        "aircraft",
        write_aircraft,
        ("data/variants.txt", "data/images_box.txt", "data/images_variant_test.txt"),
    ),
    "cars, split": (
        "cars",
        write_cars_split,
        tuple(
            f"stanford_cars/{name}.mat"
            for name in ("devkit/cars_meta", "devkit/cars_train_annos", "cars_test_annos_withlabels")
        ),
    ),
    "cars, joint": ("cars", write_cars_joint, ("cars_annos.mat",)),
    "ilsvrc": (
        "ilsvrc",
        lambda root: write_ilsvrc_official(root, kaggle=False),
        ("ILSVRC2012_devkit_t12/data/meta.mat", "Annotations/val/ILSVRC2012_val_00000001.xml"),
    ),
    "ilsvrc, metadata": (
        "ilsvrc",
        _ilsvrc_metadata,
        tuple(
            f"metadata/ILSVRC/test/{name}.txt"
            for name in ("image_ids", "class_labels", "image_sizes", "localization")
        ),
    ),
    "openimages": ("openimages", write_openimages, ("metadata/OpenImages/test/localization.txt",)),
    "coco": ("coco", lambda root: write_coco(root, "val"), ("annotations/instances_val.json",)),
}
FILES = [(layout, file) for layout, (_, _, files) in LAYOUTS.items() for file in files]


def _as_link(target: str) -> Callable[[Path], None]:
    return lambda path: (path.unlink(), path.symlink_to(target))[1]


def _as(make: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda path: (path.unlink(), make(path), None)[2]


def _content(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a pipe": _as(os.mkfifo),
    "a folder": _as(Path.mkdir),
    "a link in a loop": lambda path: _as_link(path.name)(path),
    "a dead link": _as_link("/no/such/store/file"),
    "empty": _content(lambda content: b""),
    "a web page": _content(lambda content: b"<!DOCTYPE html><html><body>404</body></html>"),
    "a Git LFS pointer": _content(
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    ),
    "UTF-16": _content(lambda content: content.decode("latin-1").encode("utf-16")),
    "Latin-1": _content(lambda content: content[:-3] + b"\xe9\xff" + content[-3:]),
    "zero bytes": _content(
        lambda content: content[: len(content) // 2] + b"\0" * 20 + content[len(content) // 2 :]
    ),
    "half": _content(lambda content: content[: len(content) // 2]),
    "a field of 200 KB": _content(lambda content: content + b"x" * 200_000 + b",0,test\n"),
    "nested deeply": _content(lambda content: b"[" * 100_000),
    "elements nested deeply": _content(lambda content: b"<a>" * 100_000),
    "a number of 5,000 digits": _content(lambda content: content.replace(b"1", b"9" * 5000)),
}


def messages_of(name: str, root: Path) -> list[str]:
    """Return the messages for what is wrong with the data. Any other error propagates."""
    try:
        return [split.failure for split in verify_dataset(name, root).splits if split.failure is not None]
    except WsolbenchError as error:
        return [str(error)]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("layout", "file"), FILES)
def test_a_damaged_annotation_file_is_an_error_of_the_data(
    layout: str, file: str, damage: str, tmp_path: Path
) -> None:
    name, write, _ = LAYOUTS[layout]
    write(tmp_path)
    DAMAGE[damage](tmp_path / file)
    assert all(len(message) < 1000 for message in messages_of(name, tmp_path))


@pytest.mark.parametrize(("layout", "file"), FILES)
def test_flipped_bits_are_an_error_of_the_data_or_other_data(layout: str, file: str, tmp_path: Path) -> None:
    name, write, _ = LAYOUTS[layout]
    write(tmp_path)
    content = (tmp_path / file).read_bytes()
    generator = random.Random(file)
    for _ in range(3 if file.endswith(".mat") else 20):  # a .mat file is parsed in a child process
        place = generator.randrange(len(content))
        flipped = content[place] ^ (1 << generator.randrange(8))
        (tmp_path / file).write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        assert all(messages_of(name, tmp_path))
