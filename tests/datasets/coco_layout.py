"""A data set in COCO's layout: two bright rectangles of two classes per image, one as polygon, one as run lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = ({"id": 7, "name": "bottle"}, {"id": 3, "name": "apple"})
"""Category ids with gaps and not sorted, as in COCO."""


def write_coco(
    root: Path, split: str = "train2017", count: int = 4, *, size: int = 64, seed: int = 0
) -> Path:
    """Write images of `size` x `size` - 8, whose objects are of both classes. The last image has only a crowd."""
    rng = np.random.default_rng(seed)
    folder = root / split
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    height, width = size - 8, size
    images, objects = [], []
    for number in range(count):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        name, image_id = f"{number:012d}.png", 100 + 7 * number
        if number == count - 1:
            objects.append(
                _object(len(objects), image_id, 3, (4, 4, 40, 30), None, crowd=1, size=(height, width))
            )
        else:
            for place, category in enumerate((3, 7)):
                x, y = (int(value) for value in rng.integers(2, (size // 4, height // 4)))
                box = (x + place * size // 2, y, size // 4 + 2 * place, height // 2)
                pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2], place] = 250
                objects.append(
                    _object(len(objects), image_id, category, box, place == 0, crowd=0, size=(height, width))
                )
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    values = {"images": images, "annotations": objects, "categories": list(CATEGORIES)}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(values))
    return root


def _object(
    number: int,
    image: int,
    category: int,
    box: tuple[int, int, int, int],
    polygon: bool | None,
    *,
    crowd: int,
    size: tuple[int, int],
) -> dict[str, Any]:
    x, y, width, height = box
    mask = np.zeros(size, dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    changes = np.flatnonzero(
        np.diff(np.concatenate([[0], mask.flatten(order="F"), [2]]))
    )  # runs, column by column
    runs = {"size": list(size), "counts": np.diff(np.concatenate([[0], changes])).tolist()}
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": 1000 + number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": width * height,
        "iscrowd": crowd,
        "segmentation": [corners] if polygon else runs,
    }


def edited(path: Path, **changes: Any) -> Path:
    """Replace top-level entries of a JSON file. None removes an entry."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return path
