"""Counts of a method: parameters, multiply-adds of an image, and the inputs of its classifier.

    python benchmarks/count_costs.py [--backbone vgg16] [--size 448] [--method b-cnn --method hbp]

Multiply-adds are those of logits and the map of one class, counted in convolutions and products of matrices.
Eigenvalues, Fourier transforms and elementwise operations are not counted. The inputs of the classifier are
the numbers that represent an image; in float32 they take four bytes each.
"""

from __future__ import annotations

import click
import torch
from bench_methods import CLASSES, trained_methods
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method


def count(name: str, backbone: str, size: int) -> tuple[float, float, int | None]:
    """Return million parameters, billion multiply-adds of an image, and the classifier's inputs, if one."""
    model = (
        load_method(name)
        .create(backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=size)
        .eval()
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.localize(torch.randn(1, 3, size, size)).score_maps(torch.zeros(1, 1, dtype=torch.int64))
    classifier = getattr(model, "classifier", None)
    return (
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        counter.get_total_flops() / 2e9,
        classifier.in_features if isinstance(classifier, nn.Linear) else None,
    )


@click.command()
@click.option("--backbone", default="vgg16", show_default=True)
@click.option("--size", default=448, show_default=True, help="Side of the image.")
@click.option("--method", "names", multiple=True, help="Default: all classifiers that train.")
def main(backbone: str, size: int, names: tuple[str, ...]) -> None:
    """Print the counts of classifiers with 200 classes."""
    table = Table("method", "million parameters", "billion multiply-adds", "classifier inputs")
    for name in names or trained_methods("recognition"):
        try:
            parameters, operations, inputs = count(name, backbone, size)
        except UsageError as error:  # the method does not take this backbone
            table.add_row(name, str(error), "", "")
            continue
        table.add_row(name, f"{parameters:.1f}", f"{operations:.1f}", "" if inputs is None else f"{inputs:,}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
