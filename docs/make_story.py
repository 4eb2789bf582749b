"""Make the picture of the README's first screen: photographs under CAM, SEM and SCG.

    pip install scikit-image
    python docs/make_story.py

Nothing is trained: the maps are those of the ImageNet classifier of EfficientNet-Lite0. The class is given,
as for GT-known: of the classes of ImageNet that name the object, the one that the classifier scores highest.
The boxes are at the thresholds of the records of the plan `ilsvrc_mini`, tuned on 300 images of ILSVRC.

The photographs are all colour photographs in the wheel of scikit-image that are in the public domain (CC0 or
released by their owner) and whose main object has a class in ImageNet. None was left out because of its maps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from wsolbench.exceptions import UsageError, WsolbenchError
from wsolbench.maps import to_frame
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import load_method, load_post
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, read_records
from wsolbench.report.pictures.figure_files import save_figure
from wsolbench.report.pictures.grid_parts import draw_outlines
from wsolbench.report.pictures.overlays import blend, map_color
from wsolbench.report.pictures.scene import Scene, box_scene
from wsolbench.types import Sample

PHOTOGRAPHS = {
    "chelsea": ("tabby", "tiger cat", "Egyptian cat"),
    "coffee": ("espresso", "cup"),
    "rocket": ("missile", "projectile"),
}
"""Functions of `skimage.data`, and the classes of ImageNet that name the object."""
POSTS = {"CAM": None, "SEM": "sem", "SCG": "scg"}
"""Columns after the photograph, and their post-process."""
BACKBONE = "efficientnet_lite0"
CLASSES = 1000
STRENGTH = 0.55
"""Share of the map's colours."""
MAX_BYTES = 280_000

# Lengths in inches of 150 pixels. A phone shows the picture 358 pixels wide, so text is large.
WIDTH, GAP, HEAD, CAPTION, FOOT = 8.0, 0.06, 0.36, 0.34, 0.5
DPI = 150
TEXT = 16
"""Size of the text in points."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A photograph, the class of its maps, and one scene per column of maps."""

    class_name: str
    scenes: tuple[Scene, ...]


def read_photographs() -> list[Sample]:
    """Return the photographs. Raises `UsageError` without scikit-image."""
    try:
        from skimage import data
    except ImportError as error:
        raise UsageError(
            "no scikit-image, which has the photographs; install it: pip install scikit-image"
        ) from error
    images = [np.ascontiguousarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    return [
        Sample(id=name, label=0, size=(image.shape[1], image.shape[0]), array=image)
        for name, image in zip(PHOTOGRAPHS, images, strict=True)
    ]


def threshold_of(post: str | None, records: list[RunRecord], weights: str) -> float:
    """Return the oracle threshold for GT-known on ILSVRC of the record with these weights.

    Raises `UsageError` without such a record.
    """
    name = "cam" if post is None else f"cam+{post}"
    for record in records:
        is_same = record.method["name"] == name and record.method["weights"]["sha256"] == weights
        if is_same and not record.training and (found := record.metric("gt_known", "oracle")) is not None:
            return float(found.tau[0])
    raise UsageError(
        f"no record of {name} on ILSVRC with these weights; make it: wsolbench reproduce ilsvrc_mini"
    )


def class_names() -> list[str]:
    """Return the names of the classes of ImageNet, each cut at its first comma."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(number).split(",")[0] for number in range(CLASSES)]


def make_rows(samples: list[Sample], records: list[RunRecord], protocol: EvalProtocol) -> list[Row]:
    """Compute the maps of all photographs, with their boxes."""
    method = load_method("cam").create(
        backbone=BACKBONE, num_classes=CLASSES, weights="imagenet", settings={"head": "fc"}
    )
    weights = method.describe()["weights"]["sha256"]
    sources = {
        post: ModelSource(
            method,
            protocol,
            num_classes=CLASSES,
            device="cpu",
            batch_size=len(samples),
            post=None if post is None else load_post(post).create({}),
        )
        for post in POSTS.values()
    }
    # The class of each photograph.
    plain = sources[None]
    batch = plain.collate([plain.load(sample) for sample in samples])
    _, probabilities = plain.predict(batch, len(samples))
    assert probabilities is not None
    names = class_names()
    labels = [
        max((names.index(name) for name in PHOTOGRAPHS[sample.id]), key=lambda label, of=row: of[label])
        for sample, row in zip(samples, probabilities, strict=True)
    ]
    samples = [replace(sample, label=label) for sample, label in zip(samples, labels, strict=True)]
    # The scenes of each column.
    columns = []
    for post, source in sources.items():
        tau = threshold_of(post, records, weights)
        unit_maps = [
            to_frame(raw, sample.size, protocol, what=f"map of {sample.id!r}")
            for sample, raw in zip(samples, source.maps(samples, batch).maps, strict=True)
        ]
        columns.append(
            [box_scene(sample, protocol, each, tau) for sample, each in zip(samples, unit_maps, strict=True)]
        )
    return [
        Row(class_name=names[sample.label], scenes=scenes)
        for sample, scenes in zip(samples, zip(*columns, strict=True), strict=True)
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Write the picture: one row per photograph, then the colour bar."""
    from matplotlib.figure import Figure

    columns = len(POSTS) + 1
    side = (WIDTH - (columns + 1) * GAP) / columns
    tall = [side * row.scenes[0].image.shape[0] / row.scenes[0].image.shape[1] for row in rows]
    height = HEAD + sum(tall) + CAPTION * len(rows) + FOOT
    figure: Any = Figure(figsize=(WIDTH, height), dpi=DPI)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / WIDTH, y / height, text, size=TEXT, **style)

    # The names of the columns, then the photographs with their maps.
    places = [GAP + number * (side + GAP) for number in range(columns)]
    for x, name in zip(places, ("image", *POSTS), strict=True):
        write(x + side / 2, height - HEAD + 0.09, name, ha="center")
    top = height - HEAD
    for row, length in zip(rows, tall, strict=True):
        for number, x in enumerate(places):
            axes = figure.add_axes((x / WIDTH, (top - length) / height, side / WIDTH, length / height))
            scene = row.scenes[max(number - 1, 0)]
            rows_, columns_ = scene.image.shape[:2]
            pixels = scene.image if number == 0 else blend(scene.image, scene.unit_map, STRENGTH)
            axes.imshow(pixels, extent=(0, columns_, rows_, 0), aspect="auto", interpolation="lanczos")
            axes.set_axis_off()
            if number:
                draw_outlines(axes, scene.outlines, (columns_, rows_))
        write(places[0], top - length - 0.08, row.class_name, va="top")
        top -= length + CAPTION
    # The colour bar.
    axes = figure.add_axes((places[1] / WIDTH, 0.2 / height, side / WIDTH, 0.16 / height))
    axes.imshow(map_color(np.linspace(0, 1, 256)[None])[..., :3], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_axis_off()
    write(places[1] - 0.1, 0.28, "map: low", ha="right", va="center")
    write(places[1] + side + 0.1, 0.28, "high", va="center")
    line = figure.add_axes((places[3] / WIDTH, 0.2 / height, 0.5 / WIDTH, 0.16 / height))
    line.plot((0, 1), (0.5, 0.5), color=(1.0, 0.0, 0.0), linestyle="--", linewidth=2.5)
    line.set_axis_off()
    write(places[3] + 0.6, 0.28, "box", va="center")
    save_figure(figure, path, max_bytes=MAX_BYTES)


@click.command()
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("results/measured/ilsvrc"),
    show_default=True,
    help="For thresholds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("docs/images/story.jpg"),
    show_default=True,
    help="The picture.",
)
def main(records: Path, out: Path) -> None:
    """Write the picture, and print the class of each photograph."""
    try:
        known = [record for _, record in read_records(records)]
        rows = make_rows(read_photographs(), known, EvalProtocol.preset("wsoleval"))
        draw(rows, out)
    except WsolbenchError as error:
        raise click.ClickException(str(error)) from error
    for name, row in zip(PHOTOGRAPHS, rows, strict=True):
        click.echo(f"{name}: {row.class_name}")
    click.echo(f"picture  {out}")


if __name__ == "__main__":
    main()
