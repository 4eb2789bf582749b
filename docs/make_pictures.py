"""Make pictures of methods: the same images under maps of CAM, of a method, and of the method with
post-processes.

    python docs/make_pictures.py --dataset toybirds --options weights=cam-tiny-seed0 --post scg,sem \\
        --out docs/images/methods
    python docs/make_pictures.py --dataset toybirds --regions --seed 1 \\
        --options weights=baseline-tiny-seed1-epochs=8 --out docs/images/methods
    python docs/make_pictures.py --dataset toybirds-v2 --options weights=baseline-tiny-seed0-epochs=12 \\
        --out docs/images/methods
    python docs/make_pictures.py --dataset cub --data-root /data/CUB_200_2011 --post scg,sem --out pictures

The first three make the pictures on the methods' pages, whose images are generated. Photographs of other data
sets have licences of their own, so their pictures are not part of the documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from wsolbench.cli._models import default_backbone, name_runs
from wsolbench.cli.options import DataOptions, data_options
from wsolbench.exceptions import UsageError, WsolbenchError
from wsolbench.maps import frame_boxes, to_frame
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import list_methods, load_method, load_post
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, read_records
from wsolbench.report.pictures.grid import MapScale, Panel, panel_grid
from wsolbench.report.pictures.regions import regions_panel
from wsolbench.report.pictures.scene import box_scene, mask_scene, scene
from wsolbench.report.pictures.sheets import spread, tau_scale
from wsolbench.system.files import file_name, sha256_of_file
from wsolbench.types import Dataset, Sample

BASELINE = "cam"
IMAGES = 6
MAX_BYTES = 80_000
SIDE = 1.12
"""Side of a panel, in inches of 100 pixels."""
STRENGTH = 0.6
"""Share of the map's colours in these small pictures."""
LINE_WIDTH = 2.0
"""Width of the lines of regions, which remain visible in panels of half the frame's size."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model, with a post-process or without."""

    method: str
    post: str | None
    checkpoint: Path

    @property
    def name(self) -> str:
        """Name of the run in records."""
        return self.method if self.post is None else f"{self.method}+{self.post}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Threshold of the maps: tau for boxes, or an 8-bit level for a data set that has only masks."""

    tau: float | None = None
    level: int | None = None

    @property
    def text(self) -> str:
        """Label of the row."""
        return f"level {self.level}" if self.tau is None else f"tau {round(self.tau, 3):g}"


def find_runs(folder: Path, backbone: str, seed: int, options: str, names: Sequence[str]) -> dict[str, Path]:
    """Return the checkpoint of each trained method, or of the named ones, by method."""
    ending = "-".join([backbone, f"seed{seed}", *filter(None, [options])])
    found = {
        row.name: path
        for row in list_methods()
        if (path := folder / f"{file_name(f'{row.name}-{ending}')}/last.safetensors").is_file()
    }
    if missing := [name for name in names if name not in found]:
        raise UsageError(
            f"no trained model in {folder / f'{missing[0]}-{ending}'}; expected one of "
            f"{', '.join(found) or 'none'}"
        )
    if not found:
        raise UsageError(
            f"no trained model in {folder / f'<method>-{ending}'}; train one with `wsolbench train`, or "
            "name other --options"
        )
    return found


def cut_of(run: Run, source: ModelSource, dataset: Dataset, records: Sequence[RunRecord]) -> Cut | None:
    """Return the oracle threshold of the run's record, or None without a record.

    The record must be of the same weights, post-process, data and protocol.
    """
    digest, post = sha256_of_file(run.checkpoint), None if source.post is None else source.post.describe()
    for record in records:
        weights = record.method.get("training", {}).get("checkpoint", {}).get("sha256")
        wanted = {
            "name": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
            "limit": None,
            "transform": None,
        }
        data = {name: record.dataset.get(name) for name in wanted}
        same = (record.method["name"], weights, record.method.get("post")) == (run.name, digest, post)
        if same and data == wanted and record.protocol == source.protocol:
            boxes, masks = record.metric("gt_known", "oracle"), record.metric("peak_t")
            if boxes is not None and boxes.tau:
                return Cut(tau=boxes.tau[0])
            if masks is not None and masks.value is not None:
                return Cut(level=int(masks.value))
    return None


def truth_panel(sample: Sample, class_name: str, protocol: EvalProtocol) -> Panel:
    """Draw the image with its ground-truth boxes, or with its ground-truth mask if it has no boxes."""
    masks = not len(sample.boxes)
    return scene(sample, protocol, masks=masks).panel(caption=(class_name,))


def map_panel(sample: Sample, raw_map: np.ndarray, protocol: EvalProtocol, cut: Cut) -> Panel:
    """Draw the image under a map, with prediction and ground truth."""
    unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
    if cut.tau is None:
        assert cut.level is not None
        return mask_scene(sample, protocol, unit_map, cut.level).panel(strength=STRENGTH)
    drawn = box_scene(sample, protocol, unit_map, cut.tau)
    if not len(sample.boxes):
        return drawn.panel(strength=STRENGTH)
    truth = frame_boxes(sample.boxes, sample.size, protocol)
    iou = sweep(unit_map, truth, replace(protocol, taus=(cut.tau,))).single_iou[0]
    return drawn.panel(strength=STRENGTH, caption=(f"IoU {iou:.2f}",))


class Pictures:
    """Rows of panels. Each is made once for all sheets that show it."""

    def __init__(
        self, dataset: Dataset, samples: Sequence[Sample], protocol: EvalProtocol, device: str
    ) -> None:
        self.dataset, self.samples, self.protocol, self.device = dataset, samples, protocol, device
        self.truth = [truth_panel(sample, dataset.class_names[sample.label], protocol) for sample in samples]
        self.rows: dict[str, tuple[list[Panel], Cut]] = {}
        self.regions: dict[str, list[Panel]] = {}

    def add(self, run: Run, records: Sequence[RunRecord], tau: float | None) -> None:
        """Make the row of a run. A run with a post-process but without a record has no row.

        Raises `UsageError` for a run without a post-process and without a record. `tau` replaces the
        threshold of the records.
        """
        source = ModelSource(
            load_method(run.method).load(run.checkpoint, device=self.device),
            self.protocol,
            num_classes=len(self.dataset.class_names),
            device=self.device,
            batch_size=len(self.samples),
            post=None if run.post is None else load_post(run.post).create({}),
        )
        if tau is None:
            cut = cut_of(run, source, self.dataset, records)
        else:
            cut = Cut(tau=tau) if self.dataset.has_boxes else Cut(level=round(255 * tau))
        if cut is None and run.post is None:
            raise UsageError(
                f"no record of {run.name} with {run.checkpoint} on "
                f"{self.dataset.name}/{self.dataset.split}: wsolbench eval "
                f"--method {run.method} --checkpoint {run.checkpoint} --dataset {self.dataset.option}, or "
                "name a --tau"
            )
        if cut is None:
            return
        found = source.maps(self.samples, source.collate([source.load(sample) for sample in self.samples]))
        rows = [
            map_panel(sample, raw_map, self.protocol, cut)
            for sample, raw_map in zip(self.samples, found.maps, strict=True)
        ]
        self.rows[run.name] = rows, cut
        if run.post is None and found.proposed is not None:
            style = {"line_width": LINE_WIDTH}
            pairs = zip(self.samples, found.proposed, strict=True)
            self.regions[run.name] = [
                regions_panel(sample, proposed, self.protocol, **style) for sample, proposed in pairs
            ]

    def write(self, path: Path, names: Sequence[str], title: str, *, regions: bool = False) -> None:
        """Write a sheet: the images with their ground truth, then the existing rows of these runs.

        With `regions`, their rows of proposals follow.
        """
        names = [name for name in names if name in self.rows]
        labels = ["image", *(f"{name.replace('+', ' + ')}\n{self.rows[name][1].text}" for name in names)]
        ids = [sample.id for sample in self.samples]
        grid = [self.truth, *(self.rows[name][0] for name in names)]
        if regions:
            grid += [self.regions[name] for name in names if name in self.regions]
            labels += [f"{name}\nregions" for name in names if name in self.regions]
        panel_grid(
            grid,
            path,
            title,
            row_names=labels,
            column_names=ids,
            side=SIDE,
            scale=self.scale([self.rows[name][1] for name in names]),
            max_bytes=MAX_BYTES,
        )

    def scale(self, cuts: Sequence[Cut]) -> MapScale:
        """Return the colour bar. The threshold is marked if all rows have the same one."""
        if len(set(cuts)) != 1:
            return MapScale(strength=STRENGTH, note="thresholds: left of each row")
        if cuts[0].tau is not None:
            return tau_scale(self.protocol, cuts[0].tau, cuts[0].text, strength=STRENGTH)
        assert cuts[0].level is not None
        return MapScale(strength=STRENGTH, marks=((cuts[0].level / 255, cuts[0].text),))


def choose(dataset: Dataset, ids: Sequence[str]) -> list[Sample]:
    """Return the named images, or six spread evenly over those with a ground-truth box or mask."""
    if ids:
        return [dataset.find(image_id) for image_id in ids]
    known = [
        sample
        for sample in dataset.samples
        if len(sample.boxes) or (sample.has_mask and not dataset.has_boxes)
    ]
    if not known:
        raise UsageError(
            f"no image of {dataset.name}/{dataset.split} has a ground-truth box or mask; name some with "
            "--image and a --tau"
        )
    return [known[index] for index in spread(len(known), IMAGES)]


def sheets(
    methods: Sequence[str], trained: Collection[str], posts: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield name and rows of each picture.

    There is one for each of `methods`. If that is empty, there is one for each trained method and each
    post-process.
    """
    for method in methods or trained:
        first = [BASELINE] if BASELINE in trained and method != BASELINE else []
        yield method, [*first, method, *(f"{method}+{post}" for post in posts)]
    if BASELINE in trained and not methods:
        yield from ((post, [BASELINE, f"{BASELINE}+{post}"]) for post in posts)


records_option = click.option(
    "--records",
    type=click.Path(path_type=Path),
    default=Path("results/measured"),
    show_default=True,
    help="For thresholds.",
)


@click.command()
@data_options
@click.option("--split", default="test", show_default=True, help="Split that the images are of.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of trained models.",
)
@click.option("--backbone", help="Backbone of the runs; default: tiny for generated data, else resnet50.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the runs.")
@click.option(
    "--options",
    default="",
    metavar="TEXT",
    help="What follows the seed in the names of the run folders: weights=cam-tiny-seed0.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="A method to make a picture of; may be repeated. Default: all that are trained.",
)
@click.option("--post", default="", help="Post-processes, as they are by default, of further rows: scg,sem.")
@click.option(
    "--regions",
    is_flag=True,
    help="Rows of the four best proposals, each with a line to the nearest key point.",
)
@records_option
@click.option(
    "--tau",
    type=click.FloatRange(0, 1),
    help="Threshold of all rows, in place of the oracle of each run's record.",
)
@click.option("--protocol", default="wsoleval", show_default=True, help="Preset of conventions.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="ID",
    help="Id of an image; may be repeated. Default: six of the split.",
)
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the pictures, <method>.jpg."
)
def main(
    data: DataOptions,
    split: str,
    runs: Path,
    methods: tuple[str, ...],
    post: str,
    regions: bool,
    tau: float | None,
    out: Path,
    **options: Any,
) -> None:
    """Write a picture of each trained method."""
    try:
        backbone = default_backbone(data.dataset, options["backbone"])
        found = find_runs(runs / name_runs(data), backbone, options["seed"], options["options"], methods)
        plan = dict(sheets(methods, found, [name for name in post.split(",") if name]))
        dataset = data.open(split)
        pictures = Pictures(
            dataset,
            choose(dataset, options["images"]),
            EvalProtocol.preset(options["protocol"]),
            options["device"],
        )
        records = [record for _, record in read_records(options["records"])]
        rows = dict.fromkeys(name for names in plan.values() for name in names)
        for name in rows:
            method, _, post_name = name.partition("+")
            pictures.add(Run(method=method, post=post_name or None, checkpoint=found[method]), records, tau)
        threshold = f"tau {tau:g}" if tau is not None else "the best threshold of each run (oracle)"
        facts = [f"{dataset.name}/{split}", backbone, f"seed {options['seed']}", options["options"]]
        for name, names in plan.items():
            title = f"{name}\n{' · '.join(filter(None, facts))}\n"
            title += (
                f"Maps of the true class, min-max normalised; predicted at {threshold}, protocol "
                f"{options['protocol']}."
            )
            if regions:
                title += (
                    "\nRegions: the best red, then orange, blue, violet; lines lead to the nearest "
                    "visible key point (white)."
                )
                title += (
                    "\nAway: the mean length of these lines, in percent of the diagonal of the ground-truth "
                    "box."
                )
            if names[-1] in pictures.rows or name in pictures.rows:
                pictures.write(out / f"{name}.jpg", names, title, regions=regions)
                click.echo(f"picture  {out / f'{name}.jpg'}")
        for name in rows:
            if name not in pictures.rows:
                click.echo(
                    f"note     no row of {name}: no record; evaluate it with --post "
                    f"{name.partition('+')[2]}, or name a --tau"
                )
        if BASELINE not in found:
            click.echo(f"note     no row of {BASELINE}: no trained model")
    except WsolbenchError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
