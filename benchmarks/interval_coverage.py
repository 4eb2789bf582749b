"""Coverage of the intervals: how often they hold the true value, on splits from known populations.

    python benchmarks/interval_coverage.py [SCORES.scores.npz ...] [--nested]
    python benchmarks/interval_coverage.py --seeds

A population is a table of per-image hits, so its best rate is known. Some are constructed. Others are the
per-image scores of `wsolbench eval --save-scores`: GT-known at IoU 0.5. Prints a Markdown table: the share of
splits whose 95 % interval holds the population's value, by kind of interval.

With `--seeds` it measures the intervals of a difference of two methods with several seeds each. A replication
draws other images and other trainings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.metrics.best_threshold import best_value, correct_for_choice
from wsolbench.metrics.confidence import Bootstrap, resampling_weights
from wsolbench.metrics.seed_intervals import (
    SeedSpread,
    crossed_interval,
    independent_spread,
    paired_spread,
)

LEVEL = 0.95
TAILS = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
SPLITS = {100: 400, 500: 300, 2000: 100}
"""Images of a split -> number of splits drawn."""

CROSSED = {"images": 1389, "replications": 2000, "resamples": 500, "rate": 0.6, "difficulty": 1.5}
"""Numbers of test images, replications and resamples; hit rate, and spread of the difficulty in logits."""
SEED_SD = (0.0, 0.01, 0.02, 0.03)
"""Standard deviations of a run's hit rate over seeds."""


def populations(files: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and hits (images, thresholds) of each population."""
    rng = np.random.default_rng(5)
    place = rng.random(20_000)[:, None]
    for path in files:
        hits = ScoreTable.read(path).load().single_iou >= 0.5
        yield path.name.split("_")[0], np.unique(hits, axis=1)
    yield "one threshold, rate 0.5", np.arange(1000)[:, None] < 500
    yield "one threshold, rate 0.95", np.arange(1000)[:, None] < 950
    yield "flat curve, 200 thresholds", np.abs(place - np.linspace(0, 1, 200)) % 1 < 0.3
    yield "200 unrelated equal thresholds", rng.random((20_000, 200)) < 0.6


def bca(rows: np.ndarray, values: np.ndarray, value: float) -> np.ndarray:
    """Return the bias-corrected and accelerated interval of the best rate.

    Efron and Tibshirani, 1993, chapter 14.
    """
    n = len(rows)
    share = np.mean(values < value) + np.mean(values == value) / 2
    bias = norm.ppf(np.clip(share, 0.5 / len(values), 1 - 0.5 / len(values)))
    left_out = ((n * rows.mean(axis=0) - rows) / (n - 1)).max(axis=1)
    distance = left_out.mean() - left_out
    spread = (distance**2).sum()
    acceleration = (distance**3).sum() / (6 * spread**1.5) if spread else 0.0
    z = bias + norm.ppf(TAILS)
    return np.quantile(values, norm.cdf(bias + z / (1 - acceleration * z)))


def nested(rows: np.ndarray, rng: np.random.Generator, outer: int = 200, inner: int = 100) -> np.ndarray:
    """Return a percentile interval with calibrated tails.

    The tails are set so that intervals of nested resamples hold the split's own value.
    """
    n, value = len(rows), rows.mean(axis=0).max()
    best, place = np.empty(outer), np.empty(outer)
    table = rows.astype(np.float32)
    for index, drawn in enumerate(rng.multinomial(n, np.full(n, 1 / n), size=outer)):
        best[index] = (drawn @ table / n).max()
        again = (rng.multinomial(n, drawn / n, size=inner).astype(np.float32) @ table / n).max(axis=1)
        place[index] = np.mean(again <= value)
    return np.quantile(best, np.quantile(place, TAILS))


def measure(
    population: np.ndarray, n: int, splits: int, *, with_nested: bool
) -> dict[str, tuple[float, float]]:
    """Return for each kind of interval the share of splits that hold the true value, and the mean width."""
    rates = population.mean(axis=0)
    truth, tau = rates.max(), int(rates.argmax())
    rng = np.random.default_rng(1)
    found: dict[str, list[tuple[bool, float]]] = {}

    def note(kind: str, ends: np.ndarray, target: float) -> None:
        held = bool(ends[0] - 1e-9 <= target <= ends[1] + 1e-9)
        found.setdefault(kind, []).append((held, float(ends[1] - ends[0])))

    for split in range(splits):
        rows = population[rng.integers(0, len(population), n)]
        bootstrap = Bootstrap(n, level=LEVEL, seed=split)
        (resampled,) = bootstrap.rates([[rows]], [None])
        own = rows.mean(axis=0)
        values = best_value(resampled[:, None])
        plain = bootstrap.interval(values)
        note("oracle: percentile", np.array([plain.low, plain.high]), truth)
        note("oracle: BCa", bca(rows, values, own.max()), truth)
        if with_nested and n <= 100 and split < 100:
            note("oracle: nested", nested(rows, rng), truth)
        corrected = correct_for_choice(bootstrap, own[None], resampled[:, None])
        note("oracle: corrected", np.array([corrected.low, corrected.high]), truth)
        fixed = bootstrap.interval(resampled[:, tau])
        note("fixed: percentile", np.array([fixed.low, fixed.high]), rates[tau])
        chosen = int(population[rng.integers(0, len(population), n)].mean(axis=0).argmax())
        transfer = bootstrap.interval(resampled[:, chosen])
        note("transfer: percentile", np.array([transfer.low, transfer.high]), rates[chosen])
    return {
        kind: (float(np.mean([held for held, _ in each])), float(np.mean([width for _, width in each])))
        for kind, each in found.items()
    }


def draw_hits(rng: np.random.Generator, seeds: int, sd: float) -> np.ndarray:
    """Return the hits (images, 2 x seeds) of two equally good methods, method A first.

    Images are easy or difficult for both methods, more or less so for each method and run. A seed shifts the
    rate of its run.
    """
    n, logits = int(CROSSED["images"]), np.log(CROSSED["rate"] / (1 - CROSSED["rate"]))
    slope = 0.135  # change of the rate per logit, at this rate and difficulty
    image = rng.normal(logits, CROSSED["difficulty"], (n, 1))
    method = np.repeat(rng.normal(0, 0.7, (n, 2)), seeds, axis=1)
    run = rng.normal(0, 0.7, (n, 2 * seeds)) + rng.normal(0, sd / slope, 2 * seeds)
    return rng.random((n, 2 * seeds)) < 1 / (1 + np.exp(-(image + method + run)))


def satterthwaite(width: float, spread: SeedSpread) -> float:
    """Return half the width of the t-interval with Satterthwaite's degrees of freedom.

    `width` is that of the interval over images. Satterthwaite, Biometrics Bulletin 2, 1946.
    """
    over_images, over_seeds = (width / (2 * norm.ppf(TAILS[1]))) ** 2, spread.error**2
    degrees = (over_images + over_seeds) ** 2 / (
        over_images**2 / (CROSSED["images"] - 1) + over_seeds**2 / spread.degrees
    )
    return float(t.ppf(TAILS[1], degrees) * np.sqrt(over_images + over_seeds))


def measure_crossed(seeds: int, sd: float) -> dict[str, tuple[float, float]]:
    """Return for each kind of interval the share that holds the true difference, 0, and the mean width."""
    rng, n = np.random.default_rng(3), int(CROSSED["images"])
    found: dict[str, list[tuple[bool, float]]] = {}

    def note(kind: str, low: float, high: float) -> None:
        found.setdefault(kind, []).append((low <= 0 <= high, high - low))

    bootstrap = Bootstrap(n, n_resamples=int(CROSSED["resamples"]), level=LEVEL)
    # The images are new in each replication, so all can share the draws.
    weights = np.concatenate([*resampling_weights(n, bootstrap.n_resamples)], axis=1, dtype=np.float32)
    for _ in range(int(CROSSED["replications"])):
        hits = draw_hits(rng, seeds, sd)
        rates = weights @ hits.astype(np.float32) / n  # (resamples, runs)
        own = hits.mean(axis=0)
        pairs, resampled = own[seeds:] - own[:seeds], rates[:, seeds:] - rates[:, :seeds]
        images = bootstrap.interval(resampled.mean(axis=1))
        note("images", images.low, images.high)
        # Bootstrap over images and seeds: each resample of the images also draws the pairs.
        drawn = rng.integers(0, seeds, (len(resampled), seeds))
        both = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
        plain = bootstrap.interval(both)
        note("crossed bootstrap", plain.low, plain.high)
        # The same, with the deviations of the pairs enlarged.
        centre = resampled.mean(axis=1, keepdims=True)
        larger = centre + np.sqrt(seeds / (seeds - 1)) * (resampled - centre)
        inflated = bootstrap.interval(np.take_along_axis(larger, drawn, axis=1).mean(axis=1))
        note("inflated", inflated.low, inflated.high)
        # Sums of the variances over images and over seeds.
        middle = float(pairs.mean())
        paired = paired_spread(pairs.tolist())
        independent = independent_spread(own[:seeds].tolist(), own[seeds:].tolist())
        assert paired is not None
        assert independent is not None
        for suffix, spread in (("", paired), (", unpaired", independent)):
            reach = satterthwaite(images.high - images.low, spread)
            note(f"Satterthwaite{suffix}", middle - reach, middle + reach)
            ends = crossed_interval(middle, images.low, images.high, spread=spread)
            note(f"Cochran-Cox{suffix}", ends.low, ends.high)
    return {
        kind: (float(np.mean([held for held, _ in each])), float(np.mean([width for _, width in each])))
        for kind, each in found.items()
    }


def print_crossed() -> None:
    """Print the table of `--seeds`."""
    start = time.perf_counter()
    for seeds in (2, 3, 5):
        for sd in SEED_SD:
            measured = measure_crossed(seeds, sd)
            if (seeds, sd) == (2, SEED_SD[0]):
                print(f"| seeds | sd over seeds | {' | '.join(measured)} |")
                print(f"|{'---|' * (len(measured) + 2)}", flush=True)
            cells = [f"{held:.3f} ({100 * width:.1f})" for held, width in measured.values()]
            print(f"| {seeds} | {100 * sd:.0f} | {' | '.join(cells)} |", flush=True)
    print(
        "\nShare of intervals that hold the truth, and in brackets their mean width in points. "
        f"{time.perf_counter() - start:.0f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", nargs="*", type=Path)
    parser.add_argument("--nested", action="store_true", help="also the nested bootstrap, at 100 images")
    parser.add_argument("--seeds", action="store_true", help="differences of groups of seeds")
    arguments = parser.parse_args()
    if arguments.seeds:
        print_crossed()
        return
    kinds = [
        f"oracle: {kind}"
        for kind in ("percentile", "BCa", *(["nested"] if arguments.nested else []), "corrected")
    ]
    kinds += ["fixed: percentile", "transfer: percentile"]
    print(f"| population | images | splits | {' | '.join(kinds)} |")
    print(f"|{'---|' * (len(kinds) + 3)}", flush=True)
    start = time.perf_counter()
    for name, population in populations(arguments.scores):
        for n, splits in SPLITS.items():
            measured = measure(population, n, splits, with_nested=arguments.nested)
            cells = [
                f"{measured[kind][0]:.3f} ({measured[kind][1]:.3f})" if kind in measured else ""
                for kind in kinds
            ]
            print(f"| {name} | {n:,} | {splits:,} | {' | '.join(cells)} |", flush=True)
    print(
        "\nShare of intervals that hold the truth, and in brackets their mean width. "
        f"{time.perf_counter() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
