"""The automatic split of the user's own images: by class, from a seed, the same on every machine."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wsolbench.exceptions import UsageError

SPLITS = ("train", "val", "test")
FRACTIONS = (0.7, 0.1, 0.2)
"""Default shares of train, val and test in each class."""
SEED = 0


@dataclass(frozen=True)
class AutomaticSplit:
    """How images are assigned to train, val and test.

    In each class, images are sorted by the SHA-256 of the seed and their id. The first ones are `test`, the
    next ones `val`, the others `train`. So the split depends on ids, seed and fractions alone. A class of n
    images has round(fraction * n) in `test` and in `val`, at least 1 if the fraction is above 0 and n
    suffices: a class of one image has it in `train`, a class of two has no `val`.
    """

    seed: int = SEED
    fractions: tuple[float, float, float] = FRACTIONS

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise UsageError(f"split seed {self.seed!r}; expected a whole number from 0")
        shares = self.fractions
        sound = all(math.isfinite(share) and share >= 0 for share in shares)
        if not sound or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise UsageError(
                f"split fractions {','.join(f'{share:g}' for share in shares)}; expected three, of train, "
                "val and test, from 0, train above 0, with the sum 1: for instance 0.7,0.1,0.2"
            )

    @classmethod
    def parse(cls, seed: int | None = None, fractions: str | None = None) -> AutomaticSplit:
        """Return the split of these options. None: the default.

        >>> AutomaticSplit.parse(3, "0.5,0,0.5")
        AutomaticSplit(seed=3, fractions=(0.5, 0.0, 0.5))
        """
        seed = SEED if seed is None else seed
        if fractions is None:
            return cls(seed)
        try:
            train, val, test = map(float, fractions.split(","))
        except ValueError:
            raise UsageError(
                f"split fractions {fractions[:40]!r}; expected three numbers with the sum 1: 0.7,0.1,0.2"
            ) from None
        return cls(seed, (train, val, test))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that get images."""
        return tuple(name for name, share in zip(SPLITS, self.fractions, strict=True) if share)

    def assign(self, labels: Mapping[str, int]) -> dict[str, str]:
        """Return the split of each image, from its label by id."""
        members: dict[int, list[str]] = defaultdict(list)
        for image_id, label in labels.items():
            members[label].append(image_id)
        assigned = {}
        for ids in members.values():
            ordered = sorted(ids, key=self._key)
            test = self._count(self.fractions[2], len(ids), spare=1)
            val = self._count(self.fractions[1], len(ids), spare=1 + test)
            for place, image_id in enumerate(ordered):
                assigned[image_id] = "test" if place < test else "val" if place < test + val else "train"
        return assigned

    def describe(self) -> dict[str, Any]:
        """Return the description for the record."""
        return {"automatic_split": {"seed": self.seed, "fractions": list(self.fractions)}}

    def _key(self, image_id: str) -> tuple[str, str]:
        return hashlib.sha256(f"{self.seed}\t{image_id}".encode()).hexdigest(), image_id

    @staticmethod
    def _count(share: float, images: int, *, spare: int) -> int:
        """Return how many of a class's images get this share, if `spare` are needed elsewhere."""
        return min(max(1, round(share * images)), max(0, images - spare)) if share else 0


def small_classes(labels: Iterable[int]) -> list[int]:
    """Return the classes with fewer images than splits."""
    counts: dict[int, int] = defaultdict(int)
    for label in labels:
        counts[label] += 1
    return sorted(label for label, count in counts.items() if count < len(SPLITS))
