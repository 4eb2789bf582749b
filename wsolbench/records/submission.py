"""Submissions: results from outside, as files that name their sources.

    SUBMITTED/<data set>/<id>.json           the record, its metadata, and digests
    SUBMITTED/<data set>/<id>.outcomes.npz   per-image scores of the record
    SUBMITTED/badges.json                    how far maintainers checked each submission: {id: badge}

    {"schema": 1, "id": ...,
     "metadata": {...},                                     `Metadata`
     "record":   {...},                                     as `wsolbench score` or `eval` wrote it
     "digests":  {"outcomes", "maps", "predictions"},       SHA-256, null if not stated
     "badge":    ...}                                       only after `verify-submission --rescore`

An id is made from the method's name and a digest of metadata, record and digests. So a badge, which is given
to an id, ends with the first change of the submission. This module reads files without computing scores;
`wsolbench.evaluation.submissions` checks that scores, record and data set agree.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError
from wsolbench.records.record import RunRecord, parse_record
from wsolbench.system.files import canonical_json, file_name, sha256_of_file, sha256_of_json
from wsolbench.system.stored import read_json

SCHEMA = 1
OUTCOMES = ".outcomes.npz"
"""Suffix of the per-image scores of a submission."""
BADGES = "badges.json"
"""Name of the maintainers' file of badges, in the folder above those of the data sets."""
README = "README.md"

TRAINED, RESCORED, REPORTED = "trained here", "re-scored here", "reported"
"""Badges: a run of this project; numbers of maps that were scored again; numbers as they were sent."""

MAX_JSON = 1 << 20
MAX_OUTCOMES = 32 << 20
"""Limits of the size of a submission's files, in bytes. Larger files are not read."""

_URL = re.compile(
    r"https?://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?([/?#][A-Za-z0-9._~:/?#@!$&*+,;=%-]*)?"
)
_LONGEST_URL = 300
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 80
_MOST_AUTHORS = 100
_DIGESTS = ("outcomes", "maps", "predictions")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a submission says of itself. Texts have one line; None means not stated.

    Attributes:
        authors: names of the authors.
        paper: title of the paper, or "unpublished".
        backbone: backbone of the localizer.
        training_data: images and annotations of the training.
        extra_data: data besides the training split of the data set, or "none".
        licence: licence of the record, the scores and the maps.
        venue: place and year of the publication.
        url: address of the paper.
        code: address of the code.
        maps_url: address of an archive of the maps and predictions.
    """

    authors: tuple[str, ...]
    paper: str
    backbone: str
    training_data: str
    extra_data: str
    licence: str
    venue: str | None = None
    url: str | None = None
    code: str | None = None
    maps_url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return {**vars(self), "authors": list(self.authors)}


_LIMITS = {
    "paper": 300,
    "backbone": 100,
    "training_data": 400,
    "extra_data": 400,
    "licence": 100,
    "venue": 100,
}
"""Longest text of each field, in characters."""
LINKS = ("url", "code", "maps_url")
REQUIRED = ("authors", "paper", "backbone", "training_data", "extra_data", "licence")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A result from outside. `badge` is what the file itself says, and no proof."""

    metadata: Metadata
    record: RunRecord
    digests: Mapping[str, str | None]
    badge: str | None = None

    @cached_property
    def id(self) -> str:
        """Name of the files: the method's name in plain letters, and a digest of the content."""
        name = re.sub(r"[^a-z0-9]+", "-", str(self.record.method["name"]).lower()).strip("-")[:60].strip("-")
        content = [self.metadata.to_json(), self.record.to_json(), dict(self.digests)]
        return f"{name or 'method'}-{sha256_of_json(content)[:16]}"

    @property
    def folder(self) -> str:
        """Name of the folder of its data set."""
        return file_name(self.record.dataset["name"])

    @property
    def key(self) -> tuple[Any, ...]:
        """Key that a newer submission shares: method, authors, data set, split and protocol."""
        record = self.record
        authors = tuple(sorted(name.casefold() for name in self.metadata.authors))
        data = (record.dataset["name"], record.dataset["split"])
        return (str(record.method["name"]).casefold(), authors, *data, record.protocol.name)

    def repeats(self, other: Submission) -> bool:
        """Whether both state the same, whatever the bytes of their files of scores."""
        return (self.metadata, self.record.digest, *map(self.digests.get, _DIGESTS[1:])) == (
            other.metadata,
            other.record.digest,
            *map(other.digests.get, _DIGESTS[1:]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        stored = {
            "schema": SCHEMA,
            "id": self.id,
            "metadata": self.metadata.to_json(),
            "record": self.record.to_json(),
            "digests": dict(self.digests),
        }
        return stored if self.badge is None else {**stored, "badge": self.badge}


# --- reading ------------------------------------------------------------------------------------------------


def read_submission(path: Path) -> Submission:
    """Read and validate a submission, without its scores.

    Raises `DataError` naming the file and every fault: a link, a file above `MAX_JSON`, fields that are
    missing, unknown, too long or of another kind, and a name that is not its id.
    """
    check_plain_file(path, MAX_JSON, "submission")
    submission, faults = _parse(read_json(path, "submission"))
    if submission is not None:
        if path.name != f"{submission.id}.json":
            faults.append(
                f"its content has the id {submission.id!r}; the file must be named {submission.id}.json"
            )
        if path.absolute().parent.name != submission.folder:
            faults.append(
                f"it is in the folder {path.absolute().parent.name!r}; expected {submission.folder!r}"
            )
    if faults or submission is None:
        raise DataError(f"submission {path}: {'; '.join(faults)}")
    return submission


def check_plain_file(path: Path, limit: int, what: str) -> None:
    """Raise `DataError` for a file that is missing, a link, no regular file, or larger than `limit` bytes."""
    try:
        found = path.lstat()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise DataError(f"{what} {path} is {kind}; expected a regular file")
    if found.st_size > limit:
        raise DataError(f"{what} {path} has {found.st_size:,} bytes; expected at most {limit:,}")


def parse_metadata(values: Any) -> tuple[Metadata | None, list[str]]:
    """Return the metadata in a stored object, or None, and every fault."""
    if not isinstance(values, dict):
        return None, ["metadata is not an object; expected names and values"]
    known = [item.name for item in fields(Metadata)]
    faults = [
        f"metadata has the unknown field {name[:40]!r}; expected {', '.join(known)}"
        for name in values.keys() - set(known)
    ]
    given = {name: value for name, value in values.items() if name in known and value is not None}
    faults += [f"metadata lacks {name}" for name in REQUIRED if name not in given]
    # Authors: a list of names.
    authors = given.get("authors", [])
    if not isinstance(authors, list) or not 1 <= len(authors) <= _MOST_AUTHORS:
        if "authors" in given:
            faults.append(f"metadata.authors is not a list of 1 to {_MOST_AUTHORS} names")
        authors = []
    faults += filter(None, (text_fault("metadata.authors", name, 100) for name in authors))
    # Texts, and addresses.
    for name, limit in _LIMITS.items():
        if name in given and (fault := text_fault(f"metadata.{name}", given[name], limit)):
            faults.append(fault)
    for name in LINKS:
        text = given.get(name)
        if name in given and not (
            isinstance(text, str) and len(text) <= _LONGEST_URL and _URL.fullmatch(text)
        ):
            faults.append(
                f"metadata.{name} is {str(text)[:60]!r}; expected an address that begins with http:// or "
                f"https://, has at most {_LONGEST_URL} characters, and no spaces, quotes or brackets"
            )
    return (None, faults) if faults else (Metadata(**{**given, "authors": tuple(authors)}), [])


def text_fault(what: str, text: Any, limit: int) -> str | None:
    """Return the fault of a text of one line, or None.

    >>> text_fault("paper", "<script>", 300)
    "paper is '<script>'; expected printable characters without < and >"
    """
    if not isinstance(text, str) or not text.strip():
        return f"{what} is {str(text)[:40]!r}; expected a text"
    if len(text) > limit:
        return f"{what} has {len(text):,} characters; expected at most {limit}"
    if not text.isprintable() or "<" in text or ">" in text:
        return f"{what} is {text[:60]!r}; expected printable characters without < and >"
    if text != " ".join(text.split()):
        return f"{what} is {text[:60]!r}; expected single spaces between words, and none at the ends"
    return None


def _parse(values: Any) -> tuple[Submission | None, list[str]]:
    if (
        not isinstance(values, dict)
        or values.get("schema") != SCHEMA
        or type(values.get("schema")) is not int
    ):
        return None, [f"it is not a submission of schema {SCHEMA}, the one that this version reads"]
    names = {"schema", "id", "metadata", "record", "digests"}
    faults = [f"it lacks {name}" for name in sorted(names - values.keys())]
    faults += [
        f"it has the unknown field {name[:40]!r}" for name in sorted(values.keys() - names - {"badge"})
    ]
    metadata, more = parse_metadata(values.get("metadata"))
    faults += more
    # Digests.
    digests = values.get("digests")
    if not isinstance(digests, dict) or set(digests) != set(_DIGESTS):
        faults.append(f"digests is not an object with {', '.join(_DIGESTS)}")
        digests = {}
    for name, digest in digests.items():
        optional = name != "outcomes" and digest is None
        if not optional and not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
            faults.append(f"digests.{name} is {str(digest)[:70]!r}; expected a SHA-256, 64 hex digits")
    if "badge" in values and values["badge"] not in (TRAINED, RESCORED, REPORTED):
        faults.append(f"badge is {str(values['badge'])[:40]!r}; expected {TRAINED}, {RESCORED} or {REPORTED}")
    # The record, as the program wrote it.
    try:
        record = parse_record(values.get("record"), "its record")
    except DataError as error:
        return None, [*faults, str(error)]
    if canonical_json(record.to_json()) != canonical_json(values["record"]):
        faults.append("its record is not as this version writes it: it has other fields. Score again")
    faults += _name_faults(record)
    if faults or metadata is None:
        return None, faults
    submission = Submission(metadata=metadata, record=record, digests=digests, badge=values.get("badge"))
    if values["id"] != submission.id:
        faults.append(
            f"id is {str(values['id'])[:80]!r}, but its content gives {submission.id!r}: it was changed "
            "after it was written. Submit again"
        )
    return submission, faults


def _name_faults(record: RunRecord) -> list[str]:
    """Return the faults of names that tables show and files are named by."""
    name = record.method["name"]
    fault = text_fault("the method's name", name, _LONGEST_NAME)
    if fault is None and (".." in name or "/" in name or "\\" in name):
        fault = f"the method's name is {name!r}; expected no '/', '\\' and '..'"
    return [] if fault is None else [fault]


# --- folders of submissions ---------------------------------------------------------------------------------


def read_badges(path: Path) -> dict[str, str]:
    """Return the badge of each id in the maintainers' file. Empty if there is no file.

    Raises `DataError` naming the file for another content.
    """
    if not path.is_symlink() and not path.exists():
        return {}
    check_plain_file(path, MAX_JSON, "file of badges")
    badges = read_json(path, "file of badges")
    kinds = (TRAINED, RESCORED, REPORTED)
    if not isinstance(badges, dict) or not all(badge in kinds for badge in badges.values()):
        raise DataError(
            f"{path} is not a file of badges; expected an object: id to one of {', '.join(kinds)}"
        )
    return badges


@dataclass(frozen=True, kw_only=True)
class FoundSubmissions:
    """The submissions of a folder, sorted by path, with their badges, and a message per skipped file."""

    found: tuple[tuple[Path, Submission, str], ...]
    problems: tuple[str, ...]


def find_submissions(folder: Path) -> FoundSubmissions:
    """Read every submission below `folder`. Files that are broken, or not what they name, are skipped.

    Scores are compared with their digest, and not computed again.
    """
    found, problems = [], []
    try:
        badges = read_badges(folder / BADGES)
    except DataError as error:
        badges, problems = {}, [str(error)]
    for path in sorted(folder.glob("*/*.json")):
        try:
            if path.parent.is_symlink():
                raise DataError(f"submission {path} is in a symbolic link; expected a folder")
            submission = read_submission(path)
            check_digest(path, submission)
            badge = badges.get(submission.id, REPORTED)
            check_badge(path, submission, badges)
            found.append((path, submission, badge))
        except DataError as error:
            problems.append(str(error))
    for scores in sorted(folder.glob(f"*/*{OUTCOMES}")):
        path = scores.with_name(f"{scores.name.removesuffix(OUTCOMES)}.json")
        if not path.exists() and not path.is_symlink():
            problems.append(
                f"per-image scores {scores} belong to no submission; expected {path.name} next to them"
            )
    return FoundSubmissions(found=tuple(found), problems=tuple(problems))


def check_digest(path: Path, submission: Submission) -> None:
    """Raise `DataError` unless the scores next to a submission are the file that it names."""
    scores = path.with_name(f"{path.stem}{OUTCOMES}")
    check_plain_file(scores, MAX_OUTCOMES, "per-image scores")
    if sha256_of_file(scores) != submission.digests["outcomes"]:
        raise DataError(
            f"per-image scores {scores} were changed: their SHA-256 is not the one in {path.name}. "
            "Submit again"
        )


def check_badge(path: Path, submission: Submission, badges: Mapping[str, str]) -> None:
    """Raise `DataError` for a submission that gives itself a badge."""
    if submission.badge is not None and submission.badge != badges.get(submission.id):
        raise DataError(
            f"submission {path} sets the badge {submission.badge!r}, but {BADGES} gives it "
            f"{badges.get(submission.id, 'none')!r}; only maintainers set badges. Remove the field"
        )
