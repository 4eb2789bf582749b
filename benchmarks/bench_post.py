"""Benchmark of SCG and SEM on batches against their released procedures, in one run.

    python benchmarks/bench_post.py [--images 8] [--repeats 10] [--device auto]

The released procedures (SCG: Panxjia/SPA_CVPR2021; SEM: xiaomengyc/SEM) work image by image and class by
class. They are reimplemented here in NumPy from their description. Sizes are those of VGG-16 (14 x 14 pixels,
two stages of 512 channels) and Inception-V3 (28 x 28, 288 and 768 channels; 1024 in the head). Both must give
the same maps before anything is timed. NumPy and torch use their default number of threads.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from reference_models.core.outputs import ForwardPass
from reference_models.postprocess.scg import PUBLISHED, Scg
from reference_models.postprocess.sem import Sem
from wsolbench.methods.device import pick_device

SIZES = {"vgg16": (14, (512, 512), 1024), "inception_v3": (28, (288, 768), 1024)}
CUB = PUBLISHED["cub"]
DELTA_H, DELTA_L, SEEDS_OF_784 = 0.1, 0.05, 60


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
    count = round(SEEDS_OF_784 * len(pixels) / 784)
    maps = []
    for one in coarse:
        seeds = np.argsort(-one.ravel(), kind="stable")[:count]
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


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Return the time of the fastest call, because other work on the machine only adds time.

    The first call is a warm-up.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


@click.command()
@click.option("--images", default=8, show_default=True, help="Images in a batch.")
@click.option("--repeats", default=10, show_default=True)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Of the batches; the restated procedures use the processor.",
)
def main(images: int, repeats: int, device: str) -> None:
    """Print milliseconds per image and the ratio."""
    where = pick_device(device)
    table = Table(
        "post-process",
        "pixels",
        "classes",
        "released ms",
        "wsolbench ms",
        "ratio",
        title=f"batches of {images} on {where}",
    )
    for backbone in SIZES:
        for classes in (1, 6):
            result, asked = inputs(backbone, images, classes, where)
            coarse = result.score_maps(asked).cpu().numpy()
            stages = [stage.cpu().numpy() for stage in result.stages.values()]
            assert result.penultimate is not None
            penultimate = result.penultimate.cpu().numpy()
            rows = (
                (Scg.create({}), lambda i, s=stages, c=coarse: released_scg([stage[i] for stage in s], c[i])),
                (Sem.create({}), lambda i, p=penultimate, c=coarse: released_sem(p[i], c[i])),
            )
            for post, released in rows:

                def batched(
                    post: Scg | Sem = post, result: ForwardPass = result, asked: torch.Tensor = asked
                ) -> np.ndarray:
                    return post.maps(result, asked).cpu().numpy()

                def one_by_one(released: Callable[[int], np.ndarray] = released) -> np.ndarray:
                    return np.stack([released(number) for number in range(images)])

                np.testing.assert_allclose(batched(), one_by_one(), atol=5e-5)
                slow, fast = (milliseconds(function, repeats) / images for function in (one_by_one, batched))
                cells = SIZES[backbone][0] ** 2
                table.add_row(
                    post.method_name,
                    str(cells),
                    str(classes),
                    f"{slow:.2f}",
                    f"{fast:.2f}",
                    f"{slow / fast:.1f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
