"""Benchmark of SCG and SEM on batches against their released procedures, in one run.

    python benchmarks/bench_post.py [--images 8] [--repeats 10] [--device auto]

The released procedures (SCG: Panxjia/SPA_CVPR2021; SEM: xiaomengyc/SEM) work image by image and class by
class. They are reimplemented here in NumPy from their description. Sizes are those of VGG-16 (14 x 14 pixels,
two stages of 512 channels) and Inception-V3 (28 x 28, 288 and 768 channels; 1024 in the head). Both must give
the same maps before anything is timed. NumPy and torch use their default number of threads.

`full products` is SCG with all blocks of its symmetric products. A second table has the correlations of one
point, against a column of the full matrix.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from reference_models.core.outputs import ForwardPass
from reference_models.layers import correlation
from reference_models.layers.correlation import unit_pixels
from reference_models.postprocess.scg.method import (
    PUBLISHED,
    Scg,
    ScgConfig,
    correlations,
    point_correlations,
)
from reference_models.postprocess.sem import Sem
from wsolbench.methods.device import pick_device

Row = dict[str, Any]
SIZES = {"vgg16": (14, (512, 512), 1024), "inception_v3": (28, (288, 768), 1024)}
CUB = PUBLISHED["cub"]
DELTA_H, DELTA_L, SEEDS = 0.1, 0.05, 60


def stretched(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min() + 1e-10)


def unit_rows(features: np.ndarray) -> np.ndarray:
    pixels = features.reshape(len(features), -1).T
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-12)


def released_hsc(features: np.ndarray) -> np.ndarray:
    """Return the high-order self-correlation of one stage of one image."""
    pixels = unit_rows(features)
    cosines = np.maximum(pixels @ pixels.T, 0)
    cosines[cosines < CUB["fo_th"]] = 0
    first = cosines / (cosines.sum(axis=0) + 1e-5)
    np.fill_diagonal(cosines, 0)
    steps = cosines / (cosines.sum(axis=0) + 1e-5)
    second = steps @ steps
    second /= second.sum(axis=0) + 1e-10
    second[second < CUB["so_th"] / len(pixels)] = 0
    both = np.maximum(first, CUB["so_weight"] * second)
    return both / (both.sum(axis=0) + 1e-10)


def released_scg(stages: list[np.ndarray], coarse: np.ndarray) -> np.ndarray:
    """Return the maps (K, h, w) of one image."""
    hsc = released_hsc(stages[0]) + released_hsc(stages[1])
    maps = []
    for one in coarse:
        m = stretched(np.maximum(one, 0)).ravel()
        sides = []
        for chosen in (m >= DELTA_H, m <= DELTA_L):
            columns = hsc[:, chosen]
            low, high = columns.min(axis=0), columns.max(axis=0)
            sides.append(
                stretched(((columns - low) / (high - low + 1e-10)).sum(axis=1))
                if chosen.any()
                else np.zeros(len(m))
            )
        maps.append(stretched(np.maximum(sides[0] - sides[1], 0)).reshape(one.shape))
    return np.stack(maps)


def released_sem(features: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Return the maps (K, h, w) of one image."""
    pixels = unit_rows(features)
    maps = []
    for one in coarse:
        seeds = np.argsort(-one.ravel(), kind="stable")[:SEEDS]
        maps.append(stretched((pixels @ pixels[seeds].T).max(axis=1)).reshape(one.shape))
    return np.stack(maps)


def smooth(shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    """Return realistic features: neighbours are similar, and none is negative."""
    noise = torch.randn(*shape[:2], 4, 4, generator=source)
    return torch.nn.functional.interpolate(noise, shape[2:], mode="bicubic").relu()


def inputs(
    backbone: str, images: int, classes: int, device: torch.device
) -> tuple[ForwardPass, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    side, channels, width = SIZES[backbone]
    coarse = torch.nn.functional.interpolate(
        torch.randn(images, classes, 5, 5, generator=source), (side, side), mode="bicubic"
    ).to(device)
    result = ForwardPass(
        logits=torch.zeros(images, 200, device=device),
        maps_of=lambda class_ids: coarse.take_along_dim(class_ids[:, :, None, None], dim=1),
        stages=OrderedDict(
            (str(number), smooth((images, each, side, side), source).to(device))
            for number, each in enumerate(channels)
        ),
        penultimate=smooth((images, width, side, side), source).to(device),
    )
    return result, torch.arange(classes, device=device).expand(images, classes)


def milliseconds(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the time of the fastest call of each, because other work on the machine only adds time.

    They take turns, and the first turn is a warm-up.
    """
    fastest = [float("inf")] * len(functions)
    for turn in range(repeats + 1):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if turn:
                fastest[number] = min(fastest[number], time.perf_counter() - start)
    return [1000 * seconds for seconds in fastest]


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    """Compute all blocks of symmetric products, as without `symmetric_product`."""
    before, correlation.BLOCK_ROWS = correlation.BLOCK_ROWS, 10**9
    try:
        yield
    finally:
        correlation.BLOCK_ROWS = before


def compare_maps(backbones: Sequence[str], images: int, repeats: int, where: torch.device) -> Iterator[Row]:
    """Yield milliseconds per image of the maps of each post-process, by the released procedure and here."""
    for backbone in backbones:
        for classes in (1, 6):
            result, asked = inputs(backbone, images, classes, where)
            coarse = result.score_maps(asked).cpu().numpy()
            stages = [stage.cpu().numpy() for stage in result.stages.values()]
            assert result.penultimate is not None
            penultimate = result.penultimate.cpu().numpy()
            posts: tuple[tuple[Scg | Sem, Callable[[int], np.ndarray]], ...] = (
                (Scg.create({}), lambda i, s=stages, c=coarse: released_scg([stage[i] for stage in s], c[i])),
                (Sem.create({}), lambda i, p=penultimate, c=coarse: released_sem(p[i], c[i])),
            )
            for post, released in posts:

                def batched(
                    post: Scg | Sem = post, result: ForwardPass = result, asked: torch.Tensor = asked
                ) -> np.ndarray:
                    return post.maps(result, asked).cpu().numpy()

                def one_by_one(released: Callable[[int], np.ndarray] = released) -> np.ndarray:
                    return np.stack([released(number) for number in range(images)])

                def unsaved(batched: Callable[[], np.ndarray] = batched) -> np.ndarray:
                    with full_products():
                        return batched()

                np.testing.assert_allclose(batched(), one_by_one(), atol=5e-5)
                slow, full, fast = (
                    each / images for each in milliseconds((one_by_one, unsaved, batched), repeats)
                )
                yield {
                    "post-process": post.method_name.upper(),
                    "pixels": SIZES[backbone][0] ** 2,
                    "classes": classes,
                    "NumPy ms": slow,
                    "full products ms": full,
                    "wsolbench ms": fast,
                    "NumPy / wsolbench": slow / fast,
                }


def full_column(features: torch.Tensor, flat: int, config: ScgConfig, order: int) -> np.ndarray:
    """Return the correlations of one pixel, taken from the matrices of all pixels."""
    first, high = correlations(unit_pixels(features), replace(config, order=max(2, order)))
    seeds = first if order == 1 else high
    return (seeds[..., flat] if config.seed_axis == "column" else seeds[:, flat]).cpu().numpy()


def compare_points(backbones: Sequence[str], repeats: int, where: torch.device) -> Iterator[Row]:
    """Yield milliseconds of the correlations of one point, by full matrices and by products with vectors."""
    for backbone in backbones:
        result, _ = inputs(backbone, 1, 1, where)
        features, point = next(reversed(result.stages.values())), torch.tensor([[3, 4]], device=where)
        for variant, order in (("official", 1), ("official", 2), ("official", 3), ("paper", 2)):
            config = Scg.create({"variant": variant}).config.published(None)
            full = partial(full_column, features, 3 * features.shape[3] + 4, config, order)

            def by_vectors(
                features: torch.Tensor = features,
                point: torch.Tensor = point,
                config: ScgConfig = config,
                order: int = order,
            ) -> np.ndarray:
                return point_correlations(features, point, config, (order,)).flatten(1).cpu().numpy()

            np.testing.assert_allclose(by_vectors(), full(), atol=5e-5)
            slow, fast = milliseconds((full, by_vectors), repeats)
            yield {
                "variant": variant,
                "order": order,
                "pixels": features.shape[2] * features.shape[3],
                "full matrices ms": slow,
                "wsolbench ms": fast,
                "ratio": slow / fast,
            }


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """Print rows of equal keys as a table."""
    found = list(rows)
    table = Table(*found[0], title=title)
    for row in found:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=110).print(table)


@click.command()
@click.option("--images", default=8, show_default=True, help="Images in a batch.")
@click.option("--repeats", default=10, show_default=True)
@click.option(
    "--device", default="auto", show_default=True, help="Of wsolbench; the reimplementations use the CPU."
)
def main(images: int, repeats: int, device: str) -> None:
    """Print milliseconds per image and the ratio."""
    where = pick_device(device)
    print_rows(f"batches of {images} on {where}", compare_maps(tuple(SIZES), images, repeats, where))
    print_rows(f"one point of one image on {where}", compare_points(tuple(SIZES), repeats, where))


if __name__ == "__main__":
    main()
