"""The settings of MA-CNN.

H. Zheng, J. Fu, T. Mei, J. Luo, "Learning multi-attention convolutional neural network for fine-grained image
recognition", ICCV 2017. See `method.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from reference_models.base.staged_recognizer import StagedConfig
from wsolbench.ranges import Channels, Count, Range, ShareBelow1, SideOrDefault, Weight

LENGTHS = (30, 5, 40, 25)
PAPER_SIZE = 448
"""Side of the paper's input, to which the side of a part refers."""


@dataclass(frozen=True, kw_only=True)
class MaCnnConfig(StagedConfig):
    """Settings of `ma-cnn`. If no source is named, the value is ours."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": MappingProxyType({}),
            "official": MappingProxyType({"map_form": "official", "dis": "cauchy", "part_side": 128.0}),
        }
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: the maps, the compactness loss and the parts' side on CUB of the released program."""
    parts: Annotated[int, Range(2, 8)] = 4
    """N, the number of groups and parts: released code."""
    shared: bool = False
    """Whether one network sees image and parts. In released code each part has a network of its own."""
    predict: Literal["part_cnn", "maps"] = "part_cnn"
    """Logits: those of stage D, from crops of the parts, or the sum of the classifiers of the maps."""
    map_form: Literal["paper", "official"] = "paper"
    """Eq. (3), a sigmoid whose maps cannot become compact, or eq. (3') of the released code."""
    dis: Literal["printed", "cauchy"] = "printed"
    """Loss of compactness: eq. (7), or a fit to k / (k + r^2) with k = 1 (note of the released code)."""
    dis_unit: Literal["side", "cell"] = "side"
    """Unit of distances in eq. (7). With cells it is five orders of magnitude above eq. (8) on 28x28."""
    div_weight: Weight = 2.0
    """lambda, the weight of Div: re-implementations."""
    margin: Annotated[float, Range(0, 1)] = 0.02
    """mrg of eq. (8): re-implementations. It has no gradient, because each map has the sum 1."""
    group_start: Literal["clusters", "random"] = "clusters"
    """Target of stage B: clusters of peaks (the paper), or a random partition, a control."""
    group_width: Channels = 0
    """Hidden width of the grouping layers. 0: as many as channels (released code)."""
    cluster_images: Count = 10_000
    """Most training images whose peaks are clustered, evenly spread. The paper has all."""
    part_side: Annotated[float, Range(8, PAPER_SIZE)] = 96.0
    """Side of a part at an input of 448: released code for Cars and Aircraft; 128 for CUB."""
    part_size: SideOrDefault = 0
    """Side to which parts are enlarged. 0: half of the image's, 224 of 448 in the released code."""
    dropout: ShareBelow1 = 0.5
    """Dropout in front of the last layer of stage D. The authors speak of strong dropout."""
    stage_epochs: tuple[Count, ...] = LENGTHS
    """Relative lengths of the four stages."""
