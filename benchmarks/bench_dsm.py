"""Benchmark of SSANET's scale mining: by the Fourier transform, and as a product with circulant matrices.

    python benchmarks/bench_dsm.py [--parts 64] [--classes 200] [--length 2048] [--length 12544] [--device
    auto] [--no-backward]

Prints milliseconds for the responses of all classes to a batch of parts, also with the backward pass, as the
best of several repeats. Prints the largest difference of the two forms, relative to the largest response. A
length of 2048 is a pooled part of ResNet-50 (`gap`). All 49 cells of it (`flatten`) are 100,352. For each
class and part, the product takes A^2 D multiplications. After the transforms, which parts and classes share,
the other form takes about 2 A D.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reference_models.recognition.ssanet.scale_alignment import circulant_responses, fourier_responses
from wsolbench.methods.device import pick_device

Form = Callable[[Tensor, Tensor], Tensor]


def milliseconds(form: Form, phi: Tensor, weight: Tensor, *, backward: bool, repeats: int) -> float:
    """Return the milliseconds of the fastest call."""
    times = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            responses = form(phi, weight)
        if backward:
            phi.grad = weight.grad = None
            responses.amax(dim=-1).sum().backward()
        if phi.device.type == "cuda":
            torch.cuda.synchronize(phi.device)
        if number:  # the first call is a warm-up
            times.append(time.perf_counter() - start)
    return 1000 * min(times)


@click.command()
@click.option("--parts", default=64, show_default=True, help="Parts in a batch: 16 images with 4 each.")
@click.option("--classes", default=200, show_default=True)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    default=(2048, 12544),
    show_default=True,
    help="Lengths of the vector of a candidate.",
)
@click.option("--scales", multiple=True, default=(3, 5, 7, 9), show_default=True)
@click.option("--backward/--no-backward", default=True, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
def main(
    parts: int,
    classes: int,
    lengths: tuple[int, ...],
    scales: tuple[int, ...],
    backward: bool,
    repeats: int,
    device_name: str,
) -> None:
    """Print the time of both forms."""
    device = pick_device(device_name)
    title = f"{parts} parts, {classes} classes, {'forward and backward' if backward else 'forward'}, {device}"
    table = Table("D", "A", "circulant, ms", "Fourier, ms", "Fourier / circulant", "difference", title=title)
    for length in lengths:
        for count in scales:
            phi = torch.randn(1, parts, count, length, device=device, requires_grad=backward)
            weight = torch.randn(1, classes, count, length, device=device, requires_grad=backward)
            with torch.no_grad():
                one, two = circulant_responses(phi, weight), fourier_responses(phi, weight)
                difference = float((one - two).abs().max() / one.abs().max())
            circulant, fourier = (
                milliseconds(form, phi, weight, backward=backward, repeats=repeats)
                for form in (circulant_responses, fourier_responses)
            )
            row = (
                f"{length:,}",
                str(count),
                f"{circulant:.1f}",
                f"{fourier:.1f}",
                f"{fourier / circulant:.2f}",
                f"{difference:.0e}",
            )
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
