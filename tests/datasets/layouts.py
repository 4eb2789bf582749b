"""Writers of small synthetic data sets in the layout of each real archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(
        path, format="JPEG" if path.suffix.lower() in {".jpg", ".jpeg"} else None
    )


def write_mask(
    path: Path,
    size: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]],
    *,
    on: int = 255,
    mode: str = "L",
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = on
    Image.fromarray(pixels).convert(mode).save(path)


def write_lines(path: Path, lines: Sequence[str], *, final_newline: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + ("\n" if final_newline else ""), encoding="utf-8")


CUB_IMAGES = ["001.Auk/a.jpg", "001.Auk/b.jpg", "002.Great_Owl/c.jpg", "002.Great_Owl/d.jpg"]


def write_cub(root: Path, *, boxes: Sequence[str] | None = None) -> Path:
    """Write four images of 40 x 30 in two classes with two parts; images 1 and 3 are for training.

    Returns the folder CUB_200_2011.
    """
    home = root / "CUB_200_2011"
    for name in CUB_IMAGES:
        write_image(home / "images" / name, (40, 30))
    numbers = range(1, len(CUB_IMAGES) + 1)
    write_lines(
        home / "images.txt", [f"{number} {name}" for number, name in zip(numbers, CUB_IMAGES, strict=True)]
    )
    write_lines(home / "classes.txt", ["1 001.Auk", "2 002.Great_Owl"])
    write_lines(home / "image_class_labels.txt", ["1 1", "2 1", "3 2", "4 2"])
    write_lines(home / "train_test_split.txt", ["1 1", "2 0", "3 1", "4 0"])
    given = boxes or ["0.0 0.0 40.0 30.0", "3.0 4.0 10.0 20.0", "1.5 2.5 8.0 9.0", "5.0 5.0 10.0 10.0"]
    write_lines(
        home / "bounding_boxes.txt", [f"{number} {box}" for number, box in zip(numbers, given, strict=True)]
    )
    write_lines(home / "parts" / "parts.txt", ["1 back", "2 left wing"])
    parts = [line for number in numbers for line in (f"{number} 1 12.0 13.0 1", f"{number} 2 77.0 88.0 0")]
    write_lines(home / "parts" / "part_locs.txt", parts)
    return home


def write_metadata(
    folder: Path,
    labels: Mapping[str, int],
    sizes: Mapping[str, tuple[int, int]],
    localization: Sequence[str],
    *,
    final_newline: bool = True,
) -> None:
    """Write the four text files of wsolevaluation. As in the original, the last line has no newline."""
    write_lines(folder / "image_ids.txt", list(labels), final_newline=final_newline)
    write_lines(
        folder / "class_labels.txt",
        [f"{name},{label}" for name, label in labels.items()],
        final_newline=final_newline,
    )
    write_lines(
        folder / "image_sizes.txt",
        [f"{name},{w},{h}" for name, (w, h) in sizes.items()],
        final_newline=final_newline,
    )
    write_lines(folder / "localization.txt", localization, final_newline=final_newline)


def write_openimages(root: Path, localization: Sequence[str] | None = None) -> None:
    """Write one test image with two instances, one of which overlaps the ignore region.

    Masks are 20 x 10; the image is twice as large.
    """
    image = "test/01226z/aa.jpg"
    write_image(root / image, (40, 20))
    write_mask(root / "test/01226z/aa_m01226z_1.png", (20, 10), [(0, 0, 4, 4)], mode="1")
    write_mask(root / "test/01226z/aa_m01226z_2.png", (20, 10), [(10, 0, 14, 4)], mode="1")
    write_mask(root / "test/01226z/aa_ignore.png", (20, 10), [(2, 0, 8, 10)], mode="RGB")
    lines = localization or [
        f"{image},test/01226z/aa_m01226z_1.png,test/01226z/aa_ignore.png",
        f"{image},test/01226z/aa_m01226z_2.png,",
    ]
    write_metadata(root / "metadata" / "OpenImages" / "test", {image: 0}, {}, lines, final_newline=False)


def write_aircraft(root: Path) -> None:
    """Write two images of 50 x 60. The box of the first reaches into the banner of 20 rows."""
    data = root / "data"
    for name in ("0000001", "0000002"):
        write_image(data / "images" / f"{name}.jpg", (50, 60))
    write_lines(data / "variants.txt", ["Boeing 737-700", "F-16A/B"])
    write_lines(data / "families.txt", ["Boeing 737", "F-16"])
    write_lines(data / "images_box.txt", ["0000001 1 1 50 60", "0000002 11 6 20 15"])
    write_lines(data / "images_variant_test.txt", ["0000001 F-16A/B", "0000002 Boeing 737-700"])
    write_lines(data / "images_family_test.txt", ["0000001 F-16", "0000002 Boeing 737"])


def _struct(rows: Sequence[Mapping[str, object]]) -> np.ndarray:
    array = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for index, row in enumerate(rows):
        array[index] = tuple(row.values())
    return array


def _car(box: tuple[int, int, int, int], **rest: object) -> dict[str, object]:
    """Build a row as MATLAB writes it: every number in the smallest type that holds it."""
    names = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    return {name: np.uint8(value) for name, value in zip(names, box, strict=True)} | rest


def _names(*names: str) -> np.ndarray:
    cells = np.empty(len(names), dtype=object)
    cells[:] = names
    return cells


def write_cars_split(root: Path, *, labels: bool = True, classes: tuple[int, int] = (2, 1)) -> None:
    from scipy.io import savemat

    home = root / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    rows = [_car((1, 1, 200, 150), fname="00001.jpg"), _car((0, 10, 180, 140), fname="00002.jpg")]
    labelled = [row | {"class": np.uint8(number)} for row, number in zip(rows, classes, strict=True)]
    for split in ("train", "test"):
        for row in rows:
            write_image(home / f"cars_{split}" / str(row["fname"]), (200, 150))
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": _names("AM General Hummer", "Audi TT")})
    savemat(home / "devkit" / "cars_train_annos.mat", {"annotations": _struct(labelled)})
    savemat(home / "devkit" / "cars_test_annos.mat", {"annotations": _struct(rows)})
    if labels:
        savemat(home / "cars_test_annos_withlabels.mat", {"annotations": _struct(labelled)})


def write_cars_joint(root: Path) -> None:
    from scipy.io import savemat

    rows = [
        {"relative_im_path": f"car_ims/00000{number}.jpg"}
        | _car((11, 21, 30, 40), test=np.uint8(number == 2))
        | {"class": np.uint8(number)}
        for number in (1, 2)
    ]
    for row in rows:
        write_image(root / str(row["relative_im_path"]), (60, 50))
    savemat(
        root / "cars_annos.mat",
        {"annotations": _struct(rows), "class_names": _names("AM General Hummer", "Audi TT")},
    )


WNIDS = ("n01440764", "n01751748", "n02099601")


def voc_xml(wnid: str, size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> str:
    objects = "".join(
        f"<object><name>{wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{objects}</annotation>"


def write_ilsvrc_official(root: Path, *, kaggle: bool, nested: bool = False) -> None:
    """Write three test images, the first with two objects.

    The first class in order of WordNet ids is the last of the devkit's.
    """
    from scipy.io import savemat

    home = root / "ILSVRC" if kaggle else root
    images = home / "Data" / "CLS-LOC" if kaggle else home
    xml = home / "Annotations" / ("CLS-LOC/val" if kaggle else "val")
    boxes = [[(2, 3, 20, 25), (30, 5, 40, 15)], [(0, 0, 49, 39)], [(1, 1, 9, 9)]]
    for number, (wnid, own) in enumerate(zip((WNIDS[1], WNIDS[0], WNIDS[2]), boxes, strict=True), start=1):
        stem = f"ILSVRC2012_val_{number:08d}"
        write_image(images / "val" / (wnid if nested else "") / f"{stem}.JPEG", (50, 40))
        write_lines(xml / f"{stem}.xml", [voc_xml(wnid, (50, 40), own)])
    for wnid in WNIDS:
        write_image(images / "train" / wnid / f"{wnid}_1.JPEG", (50, 40))
    synsets = [
        {
            "ILSVRC2012_ID": np.uint16(number),
            "WNID": wnid,
            "words": f"{wnid} name, other",
            "num_children": np.uint8(wnid == "n00001740"),
        }
        for number, wnid in enumerate((*reversed(WNIDS), "n00001740"), start=1)
    ]
    (root / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    savemat(root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat", {"synsets": _struct(synsets)})


CSV_HEADER = "image,label,split,width,height,x0,y0,x1,y1,mask"


def write_csv_folder(
    root: Path, rows: Sequence[str] | None = None, *, header: str = CSV_HEADER, classes: int | None = 2
) -> None:
    """Write four images of 20 x 10 (two for training, two for testing), the last with two objects.

    `rows` replaces the default lines of annotations.csv.
    """
    lines = rows or [
        "a.png,0,train,20,10,0,0,20,10,a.png",
        "b.png,1,train,20,10,5,2,15,8,b.png",
        "sub/c.png,0,test,20,10,1,1,4,4,c.png",
        "d.png,1,test,20,10,2,2,6,6,d0.png",
        "d.png,1,test,20,10,10,2,16,8,d1.png",
    ]
    for name in ("a.png", "b.png", "sub/c.png", "d.png"):
        write_image(root / "images" / name, (20, 10))
    for name, box in {
        "a": (0, 0, 20, 9),
        "b": (5, 2, 15, 8),
        "c": (1, 1, 4, 4),
        "d0": (2, 2, 6, 6),
        "d1": (10, 2, 16, 8),
    }.items():
        write_mask(root / "masks" / f"{name}.png", (20, 10), [box])
    write_lines(root / "annotations.csv", [header, *lines])
    if classes is not None:
        write_lines(
            root / "classes.csv", ["label,name", *(f"{label},class {label}" for label in range(classes))]
        )
