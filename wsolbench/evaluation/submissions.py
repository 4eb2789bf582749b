"""Make submissions, and check that record, per-image scores and data set of a submission agree.

The functions that made the numbers of a record compute them again from the per-image scores. Every number,
interval and threshold must be equal to the bit. Thresholds that were transferred from another split are taken
from the record, because a submission has no scores of that split.

The files may come from anyone. They are not read above a size, nothing is unpickled, and the sizes of arrays
are checked before memory is allocated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wsolbench.datasets.formats.tables import is_inner_path
from wsolbench.datasets.official import OfficialSplit, ids_digest, labels_digest, official_split
from wsolbench.evaluation.score_table import RECORD, SCORES, ScoreTable, are_scores_of
from wsolbench.evaluation.scores import ARRAYS, ImageScores, unreadable_scores
from wsolbench.evaluation.summary import StatedThresholds, summarize
from wsolbench.exceptions import DataError, UsageError, WsolbenchError
from wsolbench.maps.sources import RANKS
from wsolbench.metrics.pxap import number_of_bins
from wsolbench.protocol import DetectionProtocol, EvalProtocol
from wsolbench.records import MetricValue, RunRecord, read_record
from wsolbench.records.submission import (
    MAX_OUTCOMES,
    OUTCOMES,
    Metadata,
    Submission,
    check_badge,
    check_digest,
    check_plain_file,
    read_badges,
    read_submission,
)
from wsolbench.system.files import atomic_path, sha256_of_file, write_json
from wsolbench.system.listing import is_junk

SPLIT = "test"
"""The split that submissions are about."""
RESAMPLES = 1000
"""Resamples of the intervals of a submission, the default of `score` and `eval`."""

_LONGEST_ID = 1024
"""Longest image id in characters, for the limit of the size of all arrays."""
_SHOWN = 10
"""Number of faults of one kind that are listed."""
_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A submission that was checked. `submission` is None if the file is none. No fault means valid."""

    path: Path
    submission: Submission | None
    faults: tuple[str, ...]


def check_submission(path: Path, badges: Mapping[str, str]) -> Checked:
    """Check a submission and its scores, and return every fault.

    `badges` are those that maintainers gave. Another submission in the folder that this one repeats or
    replaces is a fault, too.
    """
    faults: list[str] = []
    try:
        submission = read_submission(path)
    except DataError as error:
        return Checked(path=path, submission=None, faults=(str(error),))
    for check in (partial(check_badge, path, submission, badges), partial(check_digest, path, submission)):
        try:
            check()
        except DataError as error:
            faults.append(str(error))
    faults += record_faults(submission.record)
    faults += _other_faults(path, submission)
    # A record of another kind or size has no scores that could be read safely.
    if not faults:
        faults += score_faults(path.with_name(f"{path.stem}{OUTCOMES}"), submission.record)
    return Checked(path=path, submission=submission, faults=tuple(faults))


# --- the record ---------------------------------------------------------------------------------------------


def record_faults(record: RunRecord) -> list[str]:
    """Return the faults of a record that can be found without its scores.

    Expected are all images of an official test split, unchanged, with the official annotations where they are
    known, and an unmodified protocol.
    """
    protocol, data = record.protocol, record.dataset
    if isinstance(protocol, DetectionProtocol):
        return ["the record is of a detector; expected one of scored maps"]
    faults = []
    if protocol.name not in EvalProtocol.presets() or protocol != EvalProtocol.preset(protocol.name):
        faults.append(
            f"the protocol {protocol.name!r} was modified or is not a preset; expected one of "
            f"{', '.join(EvalProtocol.presets())}, without --protocol-set"
        )
    # All images of an official split.
    name, split = str(data["name"]), str(data["split"])
    official = official_split(name, split)
    if split != SPLIT or official is None:
        return [*faults, f"{name}/{split} is not the official {SPLIT} split of a data set of wsolbench"]
    if data.get("images") != official.images:
        faults.append(
            f"{name}/{split} has {data.get('images')} images; expected all {official.images:,} of the "
            "official split"
        )
    for field in ("limit", "transform", "without_map", "without_file"):
        if data.get(field) is not None:
            faults.append(f"dataset.{field} is {data[field]!r}; expected all images of the split, unchanged")
    # The official annotations, of this split and of the one that thresholds come from.
    faults += _fingerprint_faults(name, split, str(data["fingerprint"]), official)
    source = data.get("transfer_from")
    if source is not None:
        other = str(source.get("split"))
        known = official_split(name, other)
        if "part_of" not in source and known is not None:
            faults += _fingerprint_faults(name, other, str(source.get("fingerprint")), known)
    return faults


def _fingerprint_faults(name: str, split: str, found: str, official: OfficialSplit) -> list[str]:
    if not official.fingerprint or found == official.fingerprint:
        return []
    return [
        f"{name}/{split} has the fingerprint {found[:32]!r}; the official annotations have "
        f"{official.fingerprint}. Score with the official data set"
    ]


def _other_faults(path: Path, submission: Submission) -> list[str]:
    """Return the faults of a submission that another one in its folder repeats, or that it should replace."""
    faults = []
    for other_path, other in read_others(path):
        if other.record.digest == submission.record.digest:
            faults.append(f"its record is also that of {other_path.name}; expected each record once")
        elif other.key == submission.key:
            faults.append(
                f"{other_path.name} is of the same method, authors, data set and protocol; a newer "
                "submission replaces the older one. Remove the older one"
            )
    return faults


def read_others(path: Path) -> Iterator[tuple[Path, Submission]]:
    """Yield the other submissions in the folder of `path`. Broken files are skipped."""
    for other in sorted(path.parent.glob("*.json")):
        if other.name != path.name:
            try:
                yield other, read_submission(other)
            except DataError:
                continue


# --- the scores ---------------------------------------------------------------------------------------------


def score_faults(path: Path, record: RunRecord) -> list[str]:
    """Return the faults of the per-image scores of a record whose own faults have been checked."""
    try:
        _check_archive(path, record)
        table = ScoreTable.read(path)
        faults = _image_faults(table.load(), record)
        if not are_scores_of(table, record):
            faults.append(f"{path.name} was written for another record, or changed after it was written")
        return faults + metric_faults(record.metrics, recompute(table, record), "the per-image scores give")
    except WsolbenchError as error:
        return [str(error)]
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        # Arrays of the right shape can still hold values that no program would write.
        return [f"{path.name} gives no metrics: {str(error) or type(error).__name__}"]


def fixed_tau_of(record: RunRecord) -> float | None:
    """Return the threshold of the policy `fixed`, or None if the record has no such policy."""
    policies = {metric.policy for metric in record.metrics if metric.policy}
    fixed = [float(policy.partition(":")[2]) for policy in policies if policy.startswith("fixed:")]
    return fixed[0] if fixed else None


def recompute(table: ScoreTable, record: RunRecord) -> tuple[MetricValue, ...]:
    """Compute the metrics of a record again from its per-image scores.

    Thresholds of the policy `transfer` are taken from the record.
    """
    taus = {
        metric.name: metric.tau for metric in record.metrics if metric.policy == "transfer" and metric.tau
    }
    return summarize(
        table,
        record.map_protocol,
        fixed_tau=fixed_tau_of(record),
        transfer_from=StatedThresholds(taus) if taus else None,
        resamples=RESAMPLES,
    )


def metric_faults(stated: Sequence[MetricValue], computed: Sequence[MetricValue], source: str) -> list[str]:
    """Return how stated metrics differ from those that were computed. `source` says from what."""
    own, expected = ({(m.name, m.policy): m for m in metrics} for metrics in (stated, computed))
    faults = [
        f"{_metric_name(key)} is in the record, and not in what {source}"
        for key in own
        if key not in expected
    ]
    faults += [f"{_metric_name(key)} is missing; {source} it" for key in expected if key not in own]
    for key, metric in own.items():
        other = expected.get(key)
        changed = (
            [] if other is None else [n for n in vars(metric) if getattr(metric, n) != getattr(other, n)]
        )
        faults += [
            f"{_metric_name(key)} has {name} {getattr(metric, name)!r}; {source} {getattr(other, name)!r}"
            for name in changed
        ]
    if len(faults) > _SHOWN:
        return [*faults[:_SHOWN], f"{len(faults) - _SHOWN} more numbers differ"]
    return faults


def _metric_name(key: tuple[str, str | None]) -> str:
    name, policy = key
    return name if policy is None else f"{name} ({policy})"


def _check_archive(path: Path, record: RunRecord) -> None:
    """Raise `DataError` unless a file holds scores of this record's size. Reads no scores."""
    check_plain_file(path, MAX_OUTCOMES, "per-image scores")
    with unreadable_scores(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        wanted = {f"{name}.npy" for name in (*ARRAYS, RECORD)}
        if set(names) != wanted or len(names) != len(wanted):
            odd = sorted({*names} ^ wanted)
            raise ValueError(
                f"it does not hold the {len(wanted)} arrays of a record without extra metrics, each once"
                + (f": {', '.join(repr(name[:40]) for name in odd[:5])}" if odd else "")
            )
        if any(member.compress_type not in _COMPRESSION or member.flag_bits & 1 for member in members):
            raise ValueError("it is encrypted, or compressed by another method than DEFLATE and LZMA")
        # A small file can claim, and expand to, any size.
        images, protocol = int(record.dataset["images"]), record.map_protocol
        bins, taus = number_of_bins(protocol), len(protocol.taus)
        numbers = 3 * taus + 2 * bins + 2 * 256 + RANKS + 32
        limit = images * (8 * numbers + 4 * _LONGEST_ID) + (1 << 20)
        size = sum(member.file_size for member in members)
        if size > limit:
            raise ValueError(
                f"it expands to {size:,} bytes; expected at most {limit:,} for {images:,} images"
            )
    axes = ScoreTable.axes_in(path)
    for what, found, expected in (
        ("images", axes["n"], images),
        ("thresholds", axes["t"], taus),
        ("histogram bins", axes["b"], bins),
        ("labels", axes["k"], min(axes["k"], RANKS)),
    ):
        if found != expected:
            raise DataError(f"{path.name} has {found:,} {what}; expected {expected:,}")


def _image_faults(scores: ImageScores, record: RunRecord) -> list[str]:
    """Return the faults of image ids, labels and annotations that the scores state."""
    faults = []
    name, split = str(record.dataset["name"]), str(record.dataset["split"])
    official = official_split(name, split)
    assert official is not None  # `record_faults` has refused others
    ids, labels = [str(image_id) for image_id in scores.ids], scores.labels.tolist()
    if odd := [image_id for image_id in ids if not is_inner_path(image_id)]:
        faults.append(
            f"{len(odd)} image ids are no plain relative paths, {odd[0][:80]!r} for instance; expected those "
            "of the data set"
        )
    known_ids, known_labels = official.ids, official.labels
    if known_ids and ids_digest(ids) != known_ids:
        faults.append(f"the scored images are not those of {name}/{split}: their ids differ")
    elif known_labels and labels_digest(ids, labels) != known_labels:
        faults.append(f"the labels of the images are not those of {name}/{split}")
    for what, has in (("boxes", scores.has_boxes), ("masks", scores.has_mask)):
        if what in official.annotated and not has.all():
            faults.append(
                f"{int((~has).sum()):,} images have no {what}; expected {what} for all images of "
                f"{name}/{split}"
            )
    return faults


def image_differences(stated: ScoreTable, scored: ScoreTable, protocol: EvalProtocol) -> list[str]:
    """Return how the outcomes of a submission differ from scores that were computed from its maps."""
    own, new = stated.load().arrays(), scored.load().outcomes(protocol).arrays()
    faults = []
    for name in ARRAYS:
        if own[name].shape != new[name].shape:
            faults.append(f"{name} has the shape {own[name].shape}; the maps give {new[name].shape}")
        elif rows := int((own[name] != new[name]).reshape(len(own[name]), -1).any(axis=1).sum()):
            faults.append(f"{name} of {rows:,} images differs from what the maps give")
    return faults


# --- making one ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Written:
    """A submission that was written, and the older ones that it replaced."""

    path: Path
    submission: Submission
    replaced: tuple[Path, ...]


def write_submission(
    record_path: Path,
    metadata: Metadata,
    out: Path,
    *,
    maps: Path | None = None,
    predictions: Path | None = None,
) -> Written:
    """Write the submission of a record and its per-image scores below `out`, after all checks.

    `maps` and `predictions` are the folder and the file that the record was scored from, for their digests.
    An older submission of the same method, authors, data set and protocol is removed. Raises `DataError` with
    every fault, and `UsageError` for an exact duplicate; nothing is written then.
    """
    record = read_record(record_path)
    if faults := record_faults(record):
        raise DataError(f"record {record_path} cannot be submitted: " + "; ".join(faults))
    digests = {
        "maps": None if maps is None else folder_digest(maps),
        "predictions": None if predictions is None else sha256_of_file(predictions),
    }
    with tempfile.TemporaryDirectory(prefix="wsolbench-") as made:
        # Copy the scores, or shorten them.
        copied = Path(made) / f"scores{OUTCOMES}"
        _copy_scores(record_path, record, copied)
        submission = Submission(
            metadata=metadata, record=record, digests={"outcomes": sha256_of_file(copied), **digests}
        )
        folder = out / submission.folder
        path = folder / f"{submission.id}.json"
        # Compare with the submissions that are there, and check everything.
        others = list(read_others(path)) + ([(path, submission)] if path.exists() else [])
        for other_path, other in others:
            if submission.repeats(other):
                raise UsageError(f"{other_path} is this submission already; nothing was written")
            if other.record.digest == record.digest and other.key != submission.key:
                raise UsageError(
                    f"{other_path} has this record already, of {', '.join(other.metadata.authors[:3])}; "
                    "expected a record that was not submitted yet"
                )
        replaced = tuple(place for place, other in others if other.key == submission.key)
        draft = Path(made) / submission.folder / path.name
        draft.parent.mkdir()
        write_json(draft, submission.to_json())
        copied.rename(draft.with_name(f"{draft.stem}{OUTCOMES}"))
        checked = check_submission(draft, {})
        if checked.faults:
            # The user knows the file next to the record, and not the copy that was checked.
            scores, copy = record_path.with_suffix(OUTCOMES), draft.with_name(f"{draft.stem}{OUTCOMES}")
            faults = [fault.replace(str(copy), str(scores)) for fault in checked.faults]
            raise DataError(f"record {record_path} cannot be submitted: " + "; ".join(faults))
        # The scores first: a submission without scores would be broken.
        for suffix in (OUTCOMES, ".json"):
            with atomic_path(path.with_name(f"{path.stem}{suffix}")) as temporary:
                shutil.copyfile(draft.with_name(f"{draft.stem}{suffix}"), temporary)
    for old in replaced:
        old.unlink()
        old.with_name(f"{old.stem}{OUTCOMES}").unlink(missing_ok=True)
    return Written(path=path, submission=submission, replaced=replaced)


def _copy_scores(record_path: Path, record: RunRecord, target: Path) -> None:
    """Copy the outcomes next to a record, or make them of all scores."""
    outcomes, scores = (record_path.with_suffix(suffix) for suffix in (OUTCOMES, SCORES))
    if outcomes.is_file():
        check_plain_file(outcomes, MAX_OUTCOMES, "per-image scores")
        shutil.copyfile(outcomes, target)
    elif scores.is_file():
        ScoreTable.read(scores).write(target, record, outcomes=record.map_protocol)
    else:
        raise DataError(
            f"there are no per-image scores next to {record_path}; expected {outcomes.name}. Run `wsolbench "
            "score` or `eval` again with --save-outcomes"
        )


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the sorted relative names of all files in a folder and their SHA-256.

    Junk of other programs does not count. Raises `DataError` for a link, and for a folder without files.
    """
    names = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in (*folders, *files):
            if Path(top, name).is_symlink():
                raise DataError(f"{Path(top, name)} is a symbolic link; expected a folder of plain files")
        names += [Path(top, name).relative_to(folder).as_posix() for name in files if not is_junk(name)]
    if not names:
        raise DataError(f"there is no file in the folder of maps {folder}; expected the maps of the record")
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{sha256_of_file(folder / name)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def set_badge(path: Path, submission: Submission, badges_path: Path, badge: str) -> None:
    """Write a badge into the maintainers' file and into the submission."""
    write_json(badges_path, {**read_badges(badges_path), submission.id: badge})
    write_json(path, replace(submission, badge=badge).to_json())
