"""The loop of an evaluation: load images, get maps from the source, score them, chunk by chunk.

Several requests can share the loop if they differ only in the protocol, or in what is read from one pass of
a network: its maps and post-processes. Each map is then computed once and scored for each request of its
source.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from wsolbench.evaluation.extra_metrics.base import ScoredImage, numbers_of
from wsolbench.evaluation.request import EvalRequest
from wsolbench.evaluation.runs import RunFolder, RunPlan, ScoredRun, Shard
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores, score_image
from wsolbench.maps.sources import MapSource, ModelSource, SourceOutput
from wsolbench.metrics.compilation import announced_compilation
from wsolbench.records import provenance
from wsolbench.system.files import remove_leftovers
from wsolbench.system.processes import JOB, WORTH_SECONDS, WorkerPool, is_sendable, map_list
from wsolbench.system.progress import Progress, track
from wsolbench.types import Dataset, Sample


def score_in_memory(plans: Sequence[RunPlan], requests: Sequence[EvalRequest]) -> list[ScoredRun]:
    """Score every image and keep the scores in memory. `plans` are those of the requests."""
    seconds: dict[str, float] = defaultdict(float)
    tables: list[dict[str, ScoreTable]] = [{} for _ in plans]
    for dataset in requests[0].splits:
        chunks = Shard().chunks(len(dataset))
        with _bar(dataset, 0, len(dataset)) as bar, announced_compilation(bar.print_line):
            parts = list(_scored_chunks(requests, dataset, chunks, seconds, bar))
        for place, own in enumerate(tables):
            own[dataset.split] = ScoreTable(tuple(part[place] for part in parts))
    made_by = provenance(seconds=dict(seconds), **requests[0].source.provenance())
    return [
        ScoredRun(plan=plan, tables=own, provenance=dict(made_by))
        for plan, own in zip(plans, tables, strict=True)
    ]


def score_chunks(
    folders: Sequence[RunFolder], shard: Shard, requests: Sequence[EvalRequest]
) -> dict[str, float]:
    """Write the chunks of a shard that are missing or damaged, and return the seconds of each stage.

    `folders` are those of the requests. A chunk that one of them lacks is written to all of them.
    """
    seconds: dict[str, float] = defaultdict(float)
    folders_of_maps = [request.options.save_maps for request in requests]
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder.opened(shard))
        for maps in folders_of_maps:
            if maps is not None:
                remove_leftovers(maps.root)
        for dataset in requests[0].splits:
            chunks = shard.chunks(len(dataset))
            todo = [
                chunk
                for chunk in chunks
                if not all(
                    folder.has([dataset[at].id for at in chunk], dataset.split, chunk.start, maps)
                    for folder, maps in zip(folders, folders_of_maps, strict=True)
                )
            ]
            total, left = sum(map(len, chunks)), sum(map(len, todo))
            with _bar(dataset, total - left, total) as bar, announced_compilation(bar.print_line):
                scored = _scored_chunks(requests, dataset, todo, seconds, bar)
                for chunk, parts in zip(todo, scored, strict=True):
                    for folder, scores in zip(folders, parts, strict=True):
                        folder.write_chunk(dataset.split, chunk.start, scores)
    return dict(seconds)


def _bar(dataset: Dataset, done: int, total: int) -> Progress:
    return track(description=f"{dataset.name} {dataset.split}", done=done, total=total)


def _scored_chunks(
    requests: Sequence[EvalRequest],
    dataset: Dataset,
    chunks: Sequence[range],
    seconds: dict[str, float],
    bar: Progress,
) -> Iterator[list[ImageScores]]:
    """Yield the scores of the images at these positions, chunk by chunk, one table per request.

    While the source works on one batch, threads or worker processes load the next two, and threads score the
    one before. No more batches are in memory. The main thread waits for the device only where a batch is
    needed that has not been scored.
    """
    # Cut the positions into batches, which ignore the borders of chunks.
    sources = _Sources(requests)
    source, options = requests[0].source, requests[0].options
    positions = [position for chunk in chunks for position in chunk]
    batches = [
        positions[start : start + options.batch_size]
        for start in range(0, len(positions), options.batch_size)
    ]
    sizes = deque(map(len, chunks))
    ready: list[list[ImageScores]] = []
    with (
        ThreadPoolExecutor(max(1, options.workers)) as pool,
        _Loader(source, dataset, positions, options.workers) as loader,
    ):

        def load(batch: Sequence[int]) -> tuple[list[Sample], Future[Any]]:
            samples = [dataset[position] for position in batch]
            loaded = loader.submit(samples, pool)
            # Threads take jobs in the order of submission. So the jobs that this one waits for are already
            # running or done, and it cannot block the pool. The same holds for scores below.
            return samples, pool.submit(
                lambda: source.collate([item for future in loaded for item in future.result()])
            )

        try:
            loading = deque(load(batch) for batch in batches[:2])
            scoring: deque[list[Future[list[ImageScores]]]] = deque()
            for number in range(len(batches) + 1):
                # Start the next batch: wait for its images, queue one more, run the source, queue the
                # scoring.
                if number < len(batches):
                    samples, collated = loading.popleft()
                    with _timed(seconds, "load"):
                        batch = collated.result()
                    loading.extend(load(batch) for batch in batches[number + 2 : number + 3])
                    with _timed(seconds, "model"):
                        outputs = pool.submit(sources.start(samples, batch))
                    scoring.append(
                        [
                            pool.submit(_score_one, requests, sample, outputs, place)
                            for place, sample in enumerate(samples)
                        ]
                    )
                # Collect the scores of the batch before.
                if number > 0:
                    with _timed(seconds, "score"):
                        ready += [future.result() for future in scoring.popleft()]
                    bar.advance(len(batches[number - 1]))
                # Hand out every chunk that is complete.
                while sizes and len(ready) >= sizes[0]:
                    size = sizes.popleft()
                    yield [ImageScores.concatenate(own) for own in zip(*ready[:size], strict=True)]
                    ready = ready[size:]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Loader:
    """Loads images for a source, in a `with` statement: in threads, or in worker processes if it is worth it.

    A source whose `loader` can be sent to processes offers that they load. They do if the images need more
    than `WORTH_SECONDS` of one core, judged by the first ones.
    """

    def __init__(self, source: MapSource, dataset: Dataset, positions: Sequence[int], workers: int) -> None:
        self._load, self._processes = source.load, None
        loader, first = getattr(source, "loader", None), [dataset[at] for at in positions[:JOB]]
        if loader is not None and workers > 1 and first and is_sendable((loader, first)):
            start = time.perf_counter()
            for sample in first:
                loader(sample)
            if (time.perf_counter() - start) / len(first) * len(positions) > WORTH_SECONDS:
                self._processes = WorkerPool(partial(map_list, loader), workers)
                self._threads = ThreadPoolExecutor(self._processes.count)

    def __enter__(self) -> _Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._processes is not None:
            self._threads.shutdown(cancel_futures=True)
            self._processes.close()

    def submit(self, samples: Sequence[Sample], pool: ThreadPoolExecutor) -> list[Future[list[Any]]]:
        """Start to load the samples of a batch, with threads of the pool or with processes."""
        if self._processes is None:
            return [pool.submit(map_list, self._load, [sample]) for sample in samples]
        return [
            self._threads.submit(self._processes.run, samples[start : start + JOB], copy.deepcopy)
            for start in range(0, len(samples), JOB)
        ]


class _Sources:
    """The sources of requests that share a loop. One pass gives the outputs of all of them."""

    def __init__(self, requests: Sequence[EvalRequest]) -> None:
        self._different = list({id(request.source): request.source for request in requests}.values())
        places = {id(source): place for place, source in enumerate(self._different)}
        self._places = [places[id(request.source)] for request in requests]

    def start(self, samples: Sequence[Sample], batch: Any) -> Callable[[], list[SourceOutput]]:
        """Start a batch on a source that can go on before the result is read, or compute it.

        The returned function gives one output per request.
        """
        first = self._different[0]
        if isinstance(first, ModelSource):
            finish = first.start(samples, batch, self._different)
            return lambda: self._of_requests(finish())
        outputs = self._of_requests([first.maps(samples, batch)])
        return lambda: outputs

    def _of_requests(self, outputs: Sequence[SourceOutput]) -> list[SourceOutput]:
        return [outputs[place] for place in self._places]


def _score_one(
    requests: Sequence[EvalRequest], sample: Sample, coming: Future[list[SourceOutput]], place: int
) -> list[ImageScores]:
    """Score the sample at this place of a batch for each request, and write its maps if requested."""
    scores = []
    for request, output in zip(requests, coming.result(), strict=True):
        if (maps := request.options.save_maps) is not None:
            maps.write(sample.id, output.maps[place])
        scores.append(
            score_image(
                sample,
                output.maps[place],
                output.ranked[place].tolist(),
                request.protocol,
                None if output.proposed is None else output.proposed[place],
                extra=partial(_numbers, request, sample, output, place) if request.extra_metrics else None,
            )
        )
    return scores


def _numbers(
    request: EvalRequest,
    sample: Sample,
    output: SourceOutput,
    place: int,
    framed: np.ndarray,
    boxes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the rows of the extra metrics for one image."""
    image = ScoredImage(sample=sample, map=framed, boxes=boxes, protocol=request.protocol)
    measured = {name: rows[place].tolist() for name, rows in output.extra.items()}
    return numbers_of(image, request.extra_metrics, measured)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start
