"""How many labels of DCL's released location loss are wrong.

    python benchmarks/count_dcl_labels.py --dataset toybirds-v2 --size 128
    python benchmarks/count_dcl_labels.py --dataset cub --data-root /data/CUB_200_2011 --size 448

The released code guesses where a patch came from by its mean colour. Three numbers are printed, percentages
of the patches of 200 training images: with the released shuffle, with its cut of the border alone (nothing is
shuffled), and without the cut.
"""

from __future__ import annotations

from dataclasses import replace

import click
import torch

from reference_models.recognition.dcl.method import Dcl
from reference_models.recognition.dcl.region_confusion import (
    colour_source,
    move_patches,
    move_patches_as_released,
)
from reference_models.training.passes import Passes
from wsolbench.datasets import load_dataset

IMAGES = 200


@click.command()
@click.option("--dataset", default="toybirds-v2", show_default=True)
@click.option("--data-root", default=None, help="Folder of the data set; generated data need none.")
@click.option("--size", default=128, show_default=True, help="Side of the input in pixels.")
def main(dataset: str, data_root: str | None, size: int) -> None:
    """Print the three percentages."""
    data = load_dataset(dataset, "train", data_root)
    data = replace(data, samples=data.samples[:: max(1, len(data) // IMAGES)][:IMAGES])
    model = Dcl.create(
        backbone="tiny",
        num_classes=len(data.class_names),
        weights="none",
        settings={"variant": "official"},
        image_size=size,
    )
    cells, generator = model.config.cells, torch.Generator().manual_seed(0)
    wrong, patches = torch.zeros(3), 0
    for batch in Passes(train=data, model=model, device=torch.device("cpu"))():
        images = batch.images
        source = model.draw_source(len(images), generator)
        own = torch.arange(cells**2).view(1, cells, cells).expand_as(source)
        for number, (shuffled, label) in enumerate(
            [
                (move_patches_as_released(images, source), source),
                (move_patches_as_released(images, own), own),
                (move_patches(images, source), source),
            ]
        ):
            found = colour_source(images, shuffled, cells, model.input_spec)
            wrong[number] += (found != label).sum()
        patches += source.numel()
    shares = (100 * wrong / patches).tolist()
    print(f"{len(data)} images of {data.name} at {size} pixels, wrong labels in percent:")
    for name, share in zip(("released", "cut alone", "no cut"), shares, strict=True):
        print(f"  {name:10} {share:5.1f}")


if __name__ == "__main__":
    main()
