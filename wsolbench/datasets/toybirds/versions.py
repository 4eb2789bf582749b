"""The versions of toybirds: the same birds and scenery, with other ranges of size and position.

A version never changes once records name it. Other images are another version with another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Range = tuple[float, float]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Ranges of the area of a bird's box, as a share of the image.

    It is the box of `Bird.extent`. The box of the visible pixels is about a quarter larger, unless the
    image's edge or leaves hide a part.
    """

    single: Range
    pair: tuple[Range, Range]
    """The ranges for an image with two birds."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """What distinguishes one version from another."""

    name: str
    number: int
    """Part of the name of the cache folder."""
    summary: str
    counts: Mapping[str, int]
    """Number of images per split."""
    strata: tuple[Stratum, ...]
    """Each n consecutive images have one of each of the n strata, in random order."""
    beyond_image: float
    """By how much a bird's box may exceed the image, as a share of the image's side."""
    beyond_box: float
    """The same as a share of the box's own side. The two are added."""
    border: float
    """Factor of the distance to the nearer border, along one of the axes. 1 keeps positions uniform."""
    stream: tuple[int, ...]
    """Appended to the seed, so that no two versions have the same scenes."""


_SMALL, _MEDIUM, _LARGE = (0.025, 0.09), (0.095, 0.23), (0.25, 0.48)
"""The visible boxes cover 3 to 12, 12 to 30 and 30 to 60 percent of the image, except about one in twenty."""

V1 = Version(
    name="toybirds",
    number=1,
    summary="generated: 12 kinds of bird that differ in small parts; boxes, masks, key points",
    counts=MappingProxyType({"train": 1500, "val": 300, "test": 600}),
    strata=(Stratum(single=(0.12, 0.52), pair=((0.06, 0.26), (0.06, 0.26))),),
    beyond_image=0.05,
    beyond_box=0.0,
    border=1.0,
    stream=(),
)
V2 = Version(
    name="toybirds-v2",
    number=2,
    summary="generated: the 12 kinds of toybirds in all sizes and off centre; boxes, masks, key points",
    counts=MappingProxyType({"train": 3000, "val": 300, "test": 600}),
    strata=tuple(Stratum(single=area, pair=(area, _SMALL)) for area in (_SMALL, _MEDIUM, _LARGE)),
    beyond_image=0.0,
    beyond_box=0.03,
    border=0.5,
    stream=(2,),
)

VERSIONS = {version.number: version for version in (V1, V2)}
