"""The settings of RA-CNN.

J. Fu, H. Zheng, T. Mei, "Look closer to see better: recurrent attention convolutional neural network for
fine-grained image recognition", CVPR 2017. See `method.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from reference_models.base.staged_recognizer import StagedConfig
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count, Positive, Range, SideOrDefault

LENGTHS = (30, 5, 55, 10)
OFFICIAL: Mapping[str, Any] = MappingProxyType(
    {
        "k": 0.05,
        "k_unit": "pixel",
        "offset": "released",
        "weighting": "absolute",
        "crop": "whole_pixels",
        "least_half_side": 0.01,
        "inside": False,
    }
)


@dataclass(frozen=True, kw_only=True)
class RaCnnConfig(StagedConfig):
    """Settings of `ra-cnn`. If no source is named, the value is ours."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"paper": MappingProxyType({}), "official": OFFICIAL}
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: constants, bounds and crops of the released layer."""
    scales: Annotated[int, Range(2, 3)] = 3
    """Views of an image: the paper has up to 3."""
    shared: bool = False
    """Whether one network sees all scales. The paper has three. Each scale has a classifier of its own."""
    predict: Literal["fusion", "sum", "scale1", "scale2", "scale3"] = "fusion"
    """Source of the logits: stage D (the paper), the mean probability of all scales, or one scale."""
    crop_grad: Literal["surrogate", "mask", "sampler", "none"] = "surrogate"
    """How a square learns from the ranking: eq. (10), as the paper.

    `mask`: the exact derivative of a view that is multiplied by M, in which the crop is fixed. `sampler`: the
    exact derivative of bilinear sampling. `none`, a control: it keeps the weak label of stage B.
    """
    k: Positive = 10.0
    """Slope of the mask's edges: the paper, which gives no unit."""
    k_unit: Literal["side", "pixel"] = "side"
    """Unit of k: a side of the view, or a pixel of the view (released layer, k = 0.05)."""
    offset: Literal["mean", "released"] = "mean"
    """b_l of eq. (10): the mean of dM/dt_l over the pixels of the crop, or k / 10 (released layer)."""
    weighting: Literal["squared", "absolute"] = "squared"
    """w of eq. (10): a pixel's squared gradient norm, or the absolute values of each channel (released)."""
    crop: Literal["exact", "whole_pixels"] = "exact"
    """Corners of a crop; the released layer truncates them to whole pixels."""
    least_half_side: Annotated[float, Range(0.01, 0.5)] = 1 / 6
    """Smallest half side, in sides of the view."""
    inside: bool = True
    """Whether squares are kept inside the view. If not, what lies outside is cut off (released layer)."""
    margin: Annotated[float, Range(0, 1)] = 0.05
    """Margin of the ranking, in probability: re-implementations."""
    alternate: Literal["epoch", "joint"] = "epoch"
    """Stage C: by turns (the paper), or both losses in each step."""
    stage_epochs: tuple[Count, ...] = LENGTHS
    """Relative lengths of the four stages."""
    part_size: SideOrDefault = 0
    """Side of the finer views. 0: half of the image's, 224 of 448 in the paper."""
    apn_width: Count = 1024
    """Hidden width of g: released code."""
    apn_pool: Annotated[int, Range(0, 64)] = 0
    """Side to which g max-pools its features.

    0: half of the grid at scale 1, the whole grid at the others (released code): 103 million weights each on
    ResNet-50 at 448.
    """
    fusion_length: Positive = 10.0
    """Length of each scale's vector in stage D. The paper has unit vectors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predict == "scale3" and self.scales < 3:
            raise UsageError(
                f"settings predict=scale3 and scales={self.scales} of method 'ra-cnn': expected a scale that "
                "exists; use scales=3 or predict=scale2"
            )
        if self.crop == "whole_pixels" and self.crop_grad == "sampler":
            raise UsageError(
                "settings crop=whole_pixels and crop_grad=sampler of method 'ra-cnn': corners in whole "
                "pixels have no derivative; use crop=exact or another crop_grad"
            )
