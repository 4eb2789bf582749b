"""toybirds, in all versions: generated birds of 12 classes that differ only in small parts. No download.

One jointed bird is posed, textured and coloured at random. The class determines only its beak, crest, wing
bar, tail and breast patch. So a correct classifier has found a part, and a map that shows only what the
classifier used misses most of the bird. Scenery, distractors, leaves in front of the bird and light are
random, and one image of seven has a second bird of the same class. Every image has boxes, masks and the 15
key points of CUB-200-2011 with visibility.

The versions have other sizes and positions of the birds (`wsolbench.datasets.toybirds.versions`). Each is a
data set with a name of its own.

A set is rendered once into a cache folder with the layout of `wsolbench.datasets.csvfolder`, which you can
browse and use as an example of this layout.
"""

from __future__ import annotations

import csv
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.datasets.base import DatasetInfo, Missing
from wsolbench.datasets.toybirds.versions import SPLITS, VERSIONS, Version
from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.files import atomic_path, cache_folder, make_folder
from wsolbench.types import Dataset

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

Rows = tuple[int, list[Any], list[Any]]
"""Number of an image, its rows of `annotations.csv` and its rows of `keypoints.csv`."""

SIZE = 128

_ABANDONED_SECONDS = 3600
_IMAGES_TO_START = 24


def describe(version: Version) -> DatasetInfo:
    """Return the metadata of a version."""
    return DatasetInfo(
        name=version.name,
        summary=version.summary,
        splits=SPLITS,
        root_holds="nothing: the images are generated there",
        expected=version.counts,
        license="MIT, as this program",
        generated=True,
    )


def make_loader(version: Version) -> Callable[..., Dataset]:
    """Return the function `load` of a version."""

    def load(
        root: Path | None,
        split: str,
        *,
        missing: Missing = "error",
        seed: int = 0,
        size: int = SIZE,
        counts: Mapping[str, int] = version.counts,
        workers: int | None = None,
    ) -> Dataset:
        """Load one split. It is rendered first if it is not in the cache.

        Args:
            root: folder for the rendered set. If None, a folder in `cache_folder()`.
            split: "train", "val" or "test".
            missing: see `wsolbench.datasets.load_dataset`.
            seed: at least 0. Another seed gives other birds in other scenes.
            size: side of the images in pixels, at least 32.
            counts: number of images per split.
            workers: number of rendering processes. If None, one per core. The images do not depend on it.

        Raises `UsageError` for an invalid size, seed or count and for a folder that cannot be written.
        """
        from wsolbench.datasets.csvfolder import load_csv_folder

        if size < 32 or seed < 0 or set(counts) != set(SPLITS) or min(counts.values()) < 1:
            raise UsageError(
                f"{version.name} of size {size} and seed {seed} with {dict(counts)} images; "
                "expected a size of at least 32, a seed of at least 0, and at least one image for each of "
                "train, val and test"
            )
        usual = dict(counts) == dict(version.counts)
        amounts = "" if usual else "".join(f"-{counts[name]}" for name in SPLITS)
        name = f"toybirds-v{version.number}-seed{seed}-{size}{amounts}"
        folder = (cache_folder() if root is None else root) / name
        if not folder.is_dir():
            _render_set(folder, version, seed, size, counts, workers)
        return load_csv_folder(folder, split, name=version.name, missing=missing)

    return load


def contact_sheet(dataset: Dataset, examples: int = 5) -> UInt8[np.ndarray, "h w 3"]:
    """Return a picture (h, w, 3) with one row per class that shows its first images.

    In the last column, boxes (white) and visible key points (yellow) are drawn.
    """
    import cv2
    import numpy as np

    rows = []
    for label in range(len(dataset.class_names)):
        samples = [sample for sample in dataset.samples if sample.label == label][:examples]
        tiles = [sample.image().copy() for sample in samples]
        last = samples[-1]
        for x0, y0, x1, y1 in last.boxes.round().astype(int).tolist():
            cv2.rectangle(tiles[-1], (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)
        for x, y, visible in [] if last.key_points is None else last.key_points.tolist():
            if visible:
                cv2.circle(tiles[-1], (int(x), int(y)), 1, (255, 230, 0), -1)
        rows.append(
            np.concatenate(
                [np.pad(tile, ((2, 2), (2, 2), (0, 0)), constant_values=255) for tile in tiles], axis=1
            )
        )
    return np.concatenate(rows)


def write_contact_sheet(path: Path, dataset: Dataset, examples: int = 5) -> None:
    """Write `contact_sheet` as a picture, with the second half of the classes next to the first.

    The suffix of `path` is the format. Raises `UsageError` if the folder cannot be written or the suffix is
    not that of an image format.
    """
    import numpy as np
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"{path} has no suffix of an image format; expected one such as .jpg or .png")
    sheet = np.concatenate(np.split(contact_sheet(dataset, examples), 2), axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, quality=80)


def _render_set(
    folder: Path, version: Version, seed: int, size: int, counts: Mapping[str, int], workers: int | None
) -> None:
    """Render into a folder next to the final one and rename it, so that no partial set is ever visible."""
    from wsolbench.system.progress import track

    try:
        make_folder(folder.parent)
    except UsageError as error:
        raise UsageError(
            f"{version.name} cannot be rendered into {folder.parent}: {error.__cause__}. Set WSOLBENCH_CACHE "
            "to a folder that can be written."
        ) from error
    # Render the images and masks, then write the CSV files.
    _remove_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split in counts:
            for kind in ("images", "masks"):
                (temporary / kind / split).mkdir(parents=True)
        jobs = _jobs(version, seed, counts)
        rendered = _render_jobs(temporary, version, seed, size, counts, workers or _worker_count(len(jobs)))
        rows = sorted(track(rendered, f"rendering {version.name}", total=len(jobs)))
        _write_tables(temporary, rows)
        # Move the folder to its place.
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has finished first, with the same images
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def render_some(folder: Path, version: Version, split: str, indices: Sequence[int]) -> None:
    """Render only these images of a split into an existing folder, in the layout of `csvfolder`.

    They are those of the whole set. A few take a second, where the whole set takes a minute.
    """
    for kind in ("images", "masks"):
        make_folder(folder / kind / split)
    labels = {index: label for name, index, label in _jobs(version, 0, version.counts) if name == split}
    _write_tables(
        folder,
        [
            (index, *_render_one(folder, version, 0, SIZE, split, index, labels[index]))
            for index in sorted(indices)
        ],
    )


def _write_tables(folder: Path, rows: Sequence[Rows]) -> None:
    """Write the CSV files of a rendered set."""
    from wsolbench.datasets.toybirds.bird import KINDS

    with _table(folder / "annotations.csv", "image,label,split,width,height,x0,y0,x1,y1,mask") as annotations:
        annotations.writerows(row for _, boxes, _ in rows for row in boxes)
    with _table(folder / "keypoints.csv", "image,part,x,y,visible") as key_points:
        key_points.writerows(row for _, _, points in rows for row in points)
    with _table(folder / "classes.csv", "label,name") as classes:
        classes.writerows(enumerate(kind.name for kind in KINDS))


def _worker_count(images: int) -> int:
    """Return one process per core, but fewer if there are too few images to be worth starting a process."""
    return max(1, min(os.cpu_count() or 1, images // _IMAGES_TO_START))


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed renderings of this set left behind, unless they may still be running."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _jobs(version: Version, seed: int, counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return (split, index, label) of every image."""
    from wsolbench.datasets.toybirds.render import draw_labels

    return [
        (split, index, int(label))
        for split, count in counts.items()
        for index, label in enumerate(draw_labels(version, seed, split, count))
    ]


def _render_jobs(
    folder: Path, version: Version, seed: int, size: int, counts: Mapping[str, int], workers: int
) -> Iterator[Rows]:
    """Yield the rows of every image as it is finished, from processes that share the work.

    Plain subprocesses are used: forking a process with threads can hang, and the other start methods of
    `multiprocessing` run the caller's script again.
    """
    # Each worker renders a share in its own process; a thread reads its rows.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        "OMP_NUM_THREADS": "1",
    }
    ready: queue.Queue[Rows | None] = queue.Queue()

    def watch(share: int) -> None:
        job = json.dumps([str(folder), version.number, seed, size, dict(counts), share, workers])
        code = (
            "import sys; from wsolbench.datasets.toybirds.dataset import render_share; "
            "render_share(sys.argv[1])"
        )
        try:
            with subprocess.Popen(
                [sys.executable, "-c", code, job], stdout=subprocess.PIPE, env=environment, text=True
            ) as process:
                processes.append(process)
                assert process.stdout is not None
                for line in process.stdout:
                    ready.put(tuple(json.loads(line)))
            if process.returncode:
                failed.append(f"exit code {process.returncode}")
        except (OSError, ValueError) as error:  # the process could not start, or was killed within a line
            failed.append(str(error))
        finally:
            ready.put(None)  # otherwise the consumer would wait forever

    # Yield the rows until all workers are done.
    processes: list[subprocess.Popen[str]] = []
    failed: list[str] = []
    threads = [threading.Thread(target=watch, args=(share,), daemon=True) for share in range(workers)]
    try:
        for thread in threads:
            thread.start()
        running = workers
        while running:
            rows = ready.get()
            if rows is None:
                running -= 1
            else:
                yield rows
    finally:
        for process in processes:
            process.kill()
    if failed:
        raise DataError(
            f"rendering {version.name} into {folder.parent} failed ({failed[0]}); the messages above say "
            "why. Nothing was kept. Fix the cause, or choose another folder with WSOLBENCH_CACHE, and start "
            "again."
        )


def render_share(job: str) -> None:
    """Render every n-th image in a process of its own, and print a JSON line with the rows of each."""
    folder, number, seed, size, counts, share, workers = json.loads(job)
    version = VERSIONS[number]
    for place, (split, index, label) in list(enumerate(_jobs(version, seed, counts)))[share::workers]:
        rows = (place, *_render_one(Path(folder), version, seed, size, split, index, label))
        sys.stdout.write(json.dumps(rows) + "\n")
        sys.stdout.flush()


@contextmanager
def _table(path: Path, header: str) -> Iterator[Any]:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header.split(","))
        yield writer


def _render_one(
    folder: Path, version: Version, seed: int, size: int, split: str, index: int, label: int
) -> tuple[list[Any], list[Any]]:
    """Write one image and its masks. Returns its rows of `annotations.csv` and `keypoints.csv`."""
    import numpy as np
    from PIL import Image

    from wsolbench.datasets.toybirds.bird import KINDS, PART_NAMES
    from wsolbench.datasets.toybirds.render import render

    result = render(version, seed, split, index, KINDS[label], size)
    name = f"{split}/{index:05d}.png"
    Image.fromarray(result.image).save(folder / "images" / name)
    boxes: list[Any] = []
    for number, mask in enumerate(result.masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):  # completely hidden behind the other bird
            continue
        mask_name = f"{split}/{index:05d}_{number}.png"
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / "masks" / mask_name)
        x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        boxes.append((name, label, split, size, size, x0, y0, x1, y1, mask_name))
    points = [
        (name, part, f"{x:.2f}", f"{y:.2f}", int(visible))
        for part, (x, y, visible) in zip(PART_NAMES, result.key_points.tolist(), strict=True)
    ]
    return boxes, points
