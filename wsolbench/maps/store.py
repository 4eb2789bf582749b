"""Folders of score maps: one file per image, named by the image id; `.npy`, `.npz` or 8-/16-bit `.png`.

    DIR/maps.json                               description of the maps (optional for other programs)
    DIR/maps.sha256                             digest of each map that wsolbench wrote, as `sha256sum` has it
    DIR/predictions.csv                         image,rank1,rank2,... predicted labels (optional)
    DIR/001.Black_footed_Albatross/x.jpg.npy    the map of image 001.Black_footed_Albatross/x.jpg
    DIR/001.Black_footed_Albatross/x.npy        the same, without the image suffix

A folder without maps.json is read as it is. A folder that `wsolbench.maps.writer` has written contains the
maps of one run and nothing else.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.maps.formats import describe_kind, read_bytes, read_map
from wsolbench.maps.frame import check_map
from wsolbench.maps.predictions import PREDICTIONS, read_predictions, write_predictions
from wsolbench.system.files import atomic_path, canonical_json, sha256_of_file, write_json
from wsolbench.types import ScoreMap

SUFFIXES = (".npy", ".npz", ".png")
MANIFEST = "maps.json"
LISTING = "maps.sha256"
JOURNAL = "maps.part-*.sha256"
"""Digests of the maps that a process has written, until the run is finished."""


@dataclass(frozen=True)
class MapFolder:
    """A folder of maps. Files are found by the image id with or without the image suffix."""

    root: Path

    def find(self, image_id: str) -> Path | None:
        """Return the file of the map of `image_id`, or None.

        Raises `DataError` if there are several files, and if it is not a file that can be read.
        """
        found = [path for name in _names_of(image_id) if _is_file(path := self.root / name)]
        return _require_single(image_id, found)

    def locate(self, image_ids: Iterable[str]) -> dict[str, Path]:
        """Return the file of each image that has one. Lists each folder once, so it is fast for many images.

        Raises `DataError` as `find` does, if one file would be the map of two images, and if the folder
        does not exist.
        """
        if not self.root.is_dir():
            raise DataError(f"no folder of maps {self.root}; expected an existing folder")
        names: dict[str, frozenset[str]] = {}
        located: dict[str, Path] = {}
        for image_id in image_ids:
            place, slash, _ = image_id.rpartition("/")
            if place not in names:
                names[place] = _list_folder(self.root / place)
            candidates = [
                name for name in _names_of(image_id) if name[len(place) + len(slash) :] in names[place]
            ]
            path = _require_single(
                image_id, [path for name in candidates if _is_file(path := self.root / name)]
            )
            if path is not None:
                located[image_id] = path
        _refuse_shared(located)
        return located

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Return the ids without a map, in order. Raises `DataError` as `locate` does."""
        ids = list(image_ids)
        located = self.locate(ids)
        return [image_id for image_id in ids if image_id not in located]

    def read(self, image_id: str) -> ScoreMap:
        """Return the map (h, w) of an image: float64 stays, other types become float32.

        PNG levels become fractions of full scale. Raises `DataError` naming the file if it is missing,
        unreadable, pickled, too large, of another rank or not finite.
        """
        path = self.find(image_id)
        if path is None:
            raise DataError(
                f"no map for image {image_id!r} in {self.root}; expected "
                f"{image_id}{{{','.join(SUFFIXES)}}}, or without the image suffix"
            )
        return decode_map(read_bytes(path, "map"), path)

    def write(self, image_id: str, score_map: ScoreMap) -> None:
        """Store a raw map as float32 `.npy`, atomically."""
        with atomic_path(self.root / f"{image_id}.npy", tidy=False) as temporary:
            np.save(temporary, np.asarray(score_map, dtype=np.float32), allow_pickle=False)

    def write_manifest(self, metadata: Mapping[str, Any]) -> None:
        """Write maps.json, the description of the maps: method, data set, fingerprint, frame."""
        write_json(self.root / MANIFEST, dict(metadata))

    def manifest(self) -> dict[str, Any]:
        """Return the content of maps.json, or an empty dict if there is none.

        Raises `DataError` for a file that is not a manifest.
        """
        path = self.root / MANIFEST
        if not os.path.lexists(path):
            return {}
        try:
            content = json.loads(
                read_bytes(path, "description of maps").decode("utf-8"), parse_constant=_refuse_constant
            )
            canonical_json(content).encode("utf-8")
        except RecursionError as error:
            raise DataError(
                f"{path} is not JSON that can be read: it is nested too deeply. Remove it, or write the "
                "maps again."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not JSON: it is not UTF-8 text. Remove it, or write the maps again."
            ) from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); remove it, or write the maps again") from error
        # The fields that are read elsewhere have the expected types.
        objects = ("method", "fingerprints", "run", "sha256")
        if not isinstance(content, dict) or not all(
            isinstance(content.get(name, {}), dict) for name in objects
        ):
            raise DataError(
                f"{path} is not a manifest; expected an object whose "
                f"{', '.join(map(repr, objects[:-1]))} and {objects[-1]!r} are objects. Correct or remove it"
            )
        texts = {
            "view": content.get("view"),
            "dataset": content.get("dataset"),
            "transform": content.get("transform"),
        }
        texts |= {
            f"method.{name}": content.get("method", {}).get(name) for name in ("name", "backbone", "variant")
        }
        for name, text in texts.items():
            if not isinstance(text, str | None):
                raise DataError(
                    f"{path} has {name} {str(text)[:60]!r}; expected a text. Correct or remove it."
                )
        if (named := texts["method.name"]) is not None and not named.strip():
            raise DataError(
                f"{path} has method.name {named!r}; expected the name of a method. Correct or remove it."
            )
        return content

    def digests(self) -> dict[str, str]:
        """Return the digest of each map that wsolbench wrote here, by its path below the folder.

        Maps of an unfinished run are included. Raises `DataError` for a list that is damaged, or not the
        one that maps.json names.
        """
        listed: dict[str, str] = {}
        path = self.root / LISTING
        if path.exists():
            manifest = self.manifest()
            named = manifest.get("sha256", {}).get(LISTING)
            if named is not None and not manifest.get("unfinished") and sha256_of_file(path) != named:
                raise DataError(
                    f"{path} was changed; expected the list that {MANIFEST} names. Write the maps again "
                    "into an empty folder."
                )
            listed |= _read_digests(path)
        for journal in sorted(self.root.glob(JOURNAL), key=lambda each: each.stat().st_mtime_ns):
            listed |= _read_digests(journal, cut=True)
        return listed

    def check_digests(self, found: Mapping[Path, str]) -> None:
        """Raise `DataError` if a file's digest is not the one that the run of maps.json has listed.

        Without a run in maps.json, all files pass.
        """
        if "run" not in self.manifest():
            return
        listed = self.digests()
        wrong = [
            (path, name)
            for path, digest in found.items()
            if listed.get(name := path.relative_to(self.root).as_posix()) != digest
        ]
        if wrong:
            path, name = wrong[0]
            reason = "was changed since" if name in listed else "was not written by it"
            raise DataError(
                f"{len(wrong)} of {len(found)} maps in {self.root} are not those of the run that "
                f"{MANIFEST} names: {path} {reason}. "
                "Write the maps again into an empty folder; maps of another program need a folder without "
                f"{MANIFEST}."
            )

    def predictions(self, num_classes: int, known: Collection[str] = ()) -> dict[str, list[int]]:
        """Return the predicted labels stored with the maps, or an empty dict. See `read_predictions`.

        Raises `DataError` if they are not those of the run that wrote the maps.
        """
        path = self.root / PREDICTIONS
        there = os.path.lexists(path)
        manifest = self.manifest()
        if "run" in manifest:
            named = manifest.get("sha256", {}).get(PREDICTIONS)
            if not there and named is not None:
                raise DataError(
                    f"{path} is missing; expected it, because {MANIFEST} names it. Write the maps again, or "
                    "give a file with --predictions"
                )
            if there and (named is None or sha256_of_file(path) != named):
                raise DataError(
                    f"{path} was not written by the run of the maps, or was changed since. Remove it to "
                    "score without predicted labels; "
                    "to use labels of another classifier, move it elsewhere and name it with --predictions."
                )
        return read_predictions(path, num_classes, known) if there else {}

    def write_predictions(self, ranked: Mapping[str, Iterable[int]]) -> None:
        """Store predicted labels, best first, one row per image."""
        write_predictions(self.root / PREDICTIONS, ranked)


def decode_map(content: bytes, path: Path) -> ScoreMap:
    """Decode the bytes of the file `path` into a map, as `MapFolder.read` does."""
    values = read_map(content, path)
    is_double = values.dtype.kind == "f" and values.dtype.itemsize >= 8
    with np.errstate(over="ignore"):  # values that overflow become infinite and are rejected below
        values = (
            np.array(values, dtype=np.float64 if is_double else np.float32, order="C")
            if values.dtype.kind in "fiu"
            else values
        )
    check_map(values, f"map {path}")
    return values


def _names_of(image_id: str) -> list[str]:
    stems = dict.fromkeys((image_id, os.path.splitext(image_id)[0]))  # noqa: PTH122 - a string, often
    return [f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]


def _require_single(image_id: str, found: Sequence[Path]) -> Path | None:
    if len(found) > 1:
        raise DataError(f"image {image_id!r} has several maps: {', '.join(map(str, found))}; expected one")
    return found[0] if found else None


def _list_folder(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names, many of them
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        if _is_too_long(error):
            return frozenset()
        raise DataError(f"the folder of maps {folder} cannot be read: {error.strerror or error}") from error


def _is_file(path: Path) -> bool:
    """Whether there is a file at `path`.

    Raises `DataError` for a folder, a named pipe, a dangling link, and a path that cannot be accessed.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - often
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise DataError(
                f"map {path} is a dangling link to {str(path.readlink())!r}; expected a file"
            ) from error
        return False
    except ValueError:  # a zero byte in the name
        return False
    except OSError as error:
        if _is_too_long(error):
            return False
        raise DataError(f"map {path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"map {path} is {describe_kind(mode)}; expected a file")
    return True


def _is_too_long(error: OSError) -> bool:
    return error.errno == errno.ENAMETOOLONG


def _refuse_shared(located: Mapping[str, Path]) -> None:
    """Raise `DataError` if two images share one file."""
    owners: dict[str, str] = {}
    folded: dict[str, list[str]] = defaultdict(list)
    for image_id, path in located.items():
        name = str(path)
        if name in owners:
            raise DataError(
                f"{path} would be the map of two images, {owners[name]!r} and {image_id!r}; expected one map "
                f"each. Name maps by the whole id, {owners[name]}{path.suffix} and {image_id}{path.suffix}"
            )
        owners[name] = image_id
        folded[fold_name(name)].append(name)
    for names in folded.values():  # names that differ only in case are one file on some file systems
        for first, second in itertools.pairwise(names):
            if os.path.samefile(first, second):  # noqa: PTH121 - strings
                raise DataError(
                    f"{first} would be the map of two images, {owners[first]!r} and {owners[second]!r}: "
                    "their names differ only in the case of letters, which this file system ignores. Score "
                    "them on another file system, or rename the images."
                )


def fold_name(name: str) -> str:
    """Return a form that is equal for names that some file systems treat as the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def format_digest(name: str, digest: str) -> str:
    """Format a line of `LISTING`."""
    return f"{digest}  {name}\n"


def _read_digests(path: Path, *, cut: bool = False) -> dict[str, str]:
    """Read lines of `format_digest`. With `cut`, the last line may be incomplete after a killed process."""
    lines = read_bytes(path, "list of digests", 1 << 30).decode("utf-8", "surrogateescape").split("\n")
    last = lines.pop()
    if last and not cut:
        raise DataError(f"{path} is truncated. Write the maps again into an empty folder.")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        digest, gap, name = line[:64], line[64:66], line[66:]
        if gap != "  " or not name or set(digest) - set("0123456789abcdef"):
            raise DataError(
                f"{path}:{number} is damaged: {line[:80]!r}; expected a SHA-256 and a name. Write the maps "
                "again."
            )
        found[name] = digest
    return found
