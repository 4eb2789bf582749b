"""The settings of CoSeq.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015. See
`method.py`; those of the parts are in `preparation.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from reference_models.recognition.coseq.object_finder import ObjectBox
from reference_models.recognition.coseq.preparation import PartConfig
from wsolbench.ranges import Range, SideOrDefault


@dataclass(frozen=True, kw_only=True)
class CoseqConfig(PartConfig):
    """Settings of `coseq`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"neighbours", "test_box"})
    later: ClassVar[frozenset[str]] = PartConfig.later | {"test_box"}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"paper": {}})

    variant: Literal["paper"] = "paper"
    """The released code depends on programs that are not available; its constants are used."""
    object_box: ObjectBox = "regress"
    """Object's box at test: of a layer that learns the boxes, of the class map, or the whole image.

    With `image`, the whole image is the box in training, too: no ground-truth boxes are read.
    """
    test_box: Literal["found", "truth"] = "found"
    """Object's box of an evaluated image: found as `object_box` says, or the ground-truth box, as in CoSeq
    (+BBox).
    """
    object_size: SideOrDefault = 0
    """Side to which the object is resized. 0: that of the input."""
    part_size: SideOrDefault = 0
    """Side to which a part is resized. 0: half that of the input, 224 as in the paper at 448."""
    neighbours: Annotated[int, Range(1, 1000)] = 5
    """Training images whose parts are transferred."""
