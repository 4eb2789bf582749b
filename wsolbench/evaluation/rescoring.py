"""Score the maps of a submission again, and compare what they give with what it states."""

from __future__ import annotations

from pathlib import Path

from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.submissions import (
    RESAMPLES,
    fixed_tau_of,
    folder_digest,
    image_differences,
    metric_faults,
)
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.records.submission import OUTCOMES, Submission
from wsolbench.system.files import sha256_of_file
from wsolbench.types import Dataset


def rescore(
    path: Path,
    submission: Submission,
    dataset: Dataset,
    maps: Path,
    *,
    predictions: Path | None,
    ranked: dict[str, list[int]],
    val: Dataset | None,
    crop: bool,
    workers: int,
) -> list[str]:
    """Return how a valid submission differs from its maps: in digests, images, per-image scores and numbers.

    Args:
        path: file of the submission.
        submission: its content.
        dataset: the test split.
        maps: folder of maps.
        predictions: file of predicted labels, or None.
        ranked: the labels in it.
        val: the split that thresholds are transferred from, or None.
        crop: whether maps of the whole image are cut to their centre.
        workers: number of threads.

    Raises as `wsolbench.evaluation.evaluate.evaluate`.
    """
    record, digests = submission.record, submission.digests
    # The same maps, predictions and data?
    faults = []
    if digests["maps"] is not None and folder_digest(maps) != digests["maps"]:
        faults.append(f"the maps in {maps} are not those of the submission: their SHA-256 differs")
    if digests["predictions"] is not None and (
        predictions is None or sha256_of_file(predictions) != digests["predictions"]
    ):
        faults.append("the predictions are not those of the submission: their SHA-256 differs")
    if dataset.fingerprint != record.dataset["fingerprint"]:
        faults.append(
            f"{dataset.name}/{dataset.split} has the fingerprint {dataset.fingerprint} here; the submission "
            f"has {record.dataset['fingerprint']}: other images or annotations"
        )
    source = record.dataset.get("transfer_from")
    if source is not None and (val is None or MapFolder(maps).missing(val.ids)):
        faults.append("thresholds are transferred from val, whose maps are missing; score with --no-transfer")
    if faults:
        return faults
    # The same scores and numbers?
    folder = FolderSource(
        MapFolder(maps),
        name=str(record.method["name"]),
        ranked=ranked,
        crop=record.map_protocol if crop else None,
    )
    for split in (dataset, *(() if val is None else (val,))):
        folder.check(split, record.map_protocol)
    scored = evaluate(
        dataset,
        folder,
        record.map_protocol,
        fixed_tau=fixed_tau_of(record),
        transfer_from=val,
        options=RunOptions(workers=workers, resamples=RESAMPLES),
    )
    stated = ScoreTable.read(path.with_name(f"{path.stem}{OUTCOMES}"))
    return [
        *image_differences(stated, scored.scores, record.map_protocol),
        *metric_faults(record.metrics, scored.record.metrics, "the maps give"),
    ]
