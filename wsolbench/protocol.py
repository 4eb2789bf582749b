"""The evaluation protocol: every convention on which published evaluators differ, as a dataclass.

A protocol specifies how a raw score map becomes boxes and how boxes are compared with the ground truth. Two
numbers are comparable only if their protocols are equal, so every record stores its own.
`EvalProtocol.preset(name)` gives the conventions of a published evaluator. Use
`dataclasses.replace(protocol, components="union")` for a variant.

Presets and their sources: `wsoleval` (clovaai/wsolevaluation, the default), `spa` (Panxjia/SPA_CVPR2021),
`bas` (wpy1999/BAS), `tscam` (vasgaowei/TS-CAM), `psol` (tzzcl/PSOL), `lid` (the LID challenge's Peak-IoU).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.ranges import (
    Count,
    PositiveShare,
    Range,
    Ranged,
    Share,
    Side,
    check_fields,
    format_value,
    is_number,
)
from wsolbench.system.json_values import lists_to_tuples, tuples_to_lists

MAX_TAUS = 10_000
"""Largest number of thresholds of a protocol. Every image keeps a score for each of them."""

_NORMALIZE_VERSION = 2
_FIRST_RULES = {"pas": "pas-relu", "ivr": "ivr-interpolated"}
"""Names of the rules of `normalize` before version 2, mapped to their names now."""


def tau_grid(step: float, stop: float = 1.0, start: float = 0.0) -> tuple[float, ...]:
    """Return the thresholds `numpy.arange(start, stop, step)`, bit-identical to evaluators that use `arange`.

    Raises `UsageError` unless 0 < step < stop - start, and for more than 10,000 thresholds.

    >>> len(tau_grid(0.001)), tau_grid(0.25)
    (1000, (0.0, 0.25, 0.5, 0.75))
    """
    if not all(is_number(value) and math.isfinite(value) for value in (step, stop, start)):
        raise UsageError(
            f"grid of thresholds from {start!r} to {stop!r} in steps of {step!r}; expected three finite "
            "numbers"
        )
    if not 0 < step < stop - start:
        raise UsageError(
            f"grid of thresholds from {start} to {stop} in steps of {step}; expected a step above 0 and "
            f"below {stop - start}, for instance 0.01. Single thresholds are written as a list: 0.2,0.5"
        )
    if (stop - start) / step > MAX_TAUS + 1:
        raise UsageError(
            f"a step of {step} makes more than {MAX_TAUS:,} thresholds; expected a step of "
            f"{(stop - start) / MAX_TAUS} or more"
        )
    return tuple(float(tau) for tau in np.arange(start, stop, step))


def crop_start(outer: int, inner: int) -> int:
    """Return the first pixel of the central `inner` of `outer` pixels. Halves round to even (torchvision)."""
    return round((outer - inner) / 2)


DELTA = 0.5
"""IoU threshold delta of the metrics with one box per image: GT-known, Top-k Loc and MaxBoxAcc."""


@dataclass(frozen=True, kw_only=True)
class EvalProtocol(Ranged):
    """How maps are turned into boxes and counted. Frozen. The defaults are `wsoleval`.

    Raises `UsageError` for a value outside its list or range and for invalid combinations.
    """

    name: str = "wsoleval"
    """Name of the preset. Give a variant its own name, because the leaderboard groups by it."""

    # --- from the image to the frame in which boxes are compared --------------------------------------------
    frame: Literal["squash", "center_crop", "original"] = "squash"
    """The frame. `squash`: the whole image, resized to `frame_size` squared. `center_crop`: resized to
    `resize_size` squared, then the central `frame_size` squared; boxes are cut to the crop. `original`: the
    image's own size.
    """
    frame_size: Side = 224
    resize_size: Side = 256
    """Side before the centre crop and before ten crops. With either of them, at least `frame_size`."""

    # --- from the raw map to [0, 1] -------------------------------------------------------------------------
    relu: bool = False
    """Whether negative scores are first set to 0."""
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    order: Literal["resize_then_normalize", "normalize_then_resize", "quantize_then_resize"] = (
        "resize_then_normalize"
    )
    """Order of the steps.

    `quantize_then_resize`: the map is normalised and quantised to 8 bits at its own size, then resized as an
    8-bit image.
    """
    normalize: Literal["minmax", "max", "pas", "ivr", "pas-relu", "ivr-interpolated"] = "minmax"
    """Normalisation of a map x. Ranks count the n sorted values of the map from 0.

    `minmax`: to [0, 1].
    `max`: ReLU, then divided by the maximum.
    `pas`: x - min, then divided by its value of rank int(n percentile / 100), cut at 1.
    `ivr`: x minus its value of that rank, then ReLU, then divided by the maximum.

    Version 1 of `pas` was relu(x) / percentile (now `pas-relu`). Version 1 of `ivr` took an interpolated
    percentile (now `ivr-interpolated`).
    """
    percentile: Annotated[float, Range(0, 100)] = 90.0
    """Percentile for `pas`, `ivr`, their first versions and `threshold_basis="percentile"`.

    0 is valid for `ivr` and `ivr-interpolated` only.
    """
    normalize_eps: Share = 0.0
    """Value added to the divisor. A constant map becomes all zeros for any value."""
    quantize: Literal["uint8", "none"] = "uint8"
    """`uint8`: 255 x map in float64, truncated. `none`: float32 compared with float32 thresholds."""

    # --- thresholds -----------------------------------------------------------------------------------------
    taus: tuple[Share, ...] = field(default=tau_grid(0.001), repr=False)
    foreground: Literal[">", ">="] = ">"
    threshold_basis: Literal["max", "unit", "percentile"] = "max"
    """What `tau` is a fraction of. `max`: the map's maximum (`int(tau x max)` of the 8-bit map). `unit`: the
    range [0, 1]. `percentile`: the `percentile`-th percentile of the 8-bit map.
    """
    fixed_tau: Share | None = None
    """Threshold of the policy `fixed`. If None, the policy is skipped unless a threshold is given."""

    # --- from the foreground to boxes -----------------------------------------------------------------------
    components: Literal["all", "largest", "union"] = "all"
    """Regions that give boxes: all, the largest, or one box around the whole foreground."""
    single_box: Literal["largest", "union"] = "largest"
    """Region for metrics with one box per image: GT-known, Top-k Loc, MaxBoxAcc (V1), the error breakdown."""
    connectivity: Literal["contour", "4", "8"] = "contour"
    """Definition of a region: an OpenCV contour (`RETR_TREE`, so the outlines of holes are regions too), or a
    4- or 8-connected component of the foreground.
    """
    largest_by: Literal["contour_area", "pixel_count", "box_area"] = "contour_area"
    """Size by which the largest region is chosen. Among equal regions, the first in the order of OpenCV
    (contours) or of a row-wise scan (components) is taken.
    """
    box_end: Literal["exclusive", "inclusive"] = "exclusive"
    """Whether a predicted box ends one past its last pixel or on it."""
    clip_boxes: bool = True
    """Whether predicted boxes, and ground-truth boxes before scaling, are clipped at (W-1, H-1)."""
    empty_box: Literal["zero", "unit", "image"] = "zero"
    """Box for an empty foreground: (0, 0, 0, 0), (0, 0, 1, 1), or the whole frame."""

    # --- ground-truth boxes ---------------------------------------------------------------------------------
    gt_boxes: Literal["any", "first"] = "any"
    gt_end: Literal["exclusive", "inclusive"] = "exclusive"
    """End of a ground-truth box in the comparison: (x, y, x + w, y + h), or one less at the end."""
    gt_truncate: bool = True
    """Whether scaled ground-truth boxes are truncated to whole numbers: `int(x * new / old)`."""

    # --- comparison -----------------------------------------------------------------------------------------
    iou_plus_one: bool = True
    """Whether widths are x1 - x0 + 1 instead of x1 - x0."""
    deltas: tuple[PositiveShare, ...] = (0.3, 0.5, 0.7)
    iou_test: Literal[">=", ">"] = ">="
    """Comparison of an IoU with `delta` for MaxBoxAcc, MaxBoxAccV2 and GT-known."""
    topk_iou_test: Literal[">=", ">"] = ">="
    """The same for Top-1/Top-5 Loc. One published evaluator uses two different comparisons in one file."""
    v2_tau: Literal["per_delta", "shared"] = "per_delta"
    """Threshold of MaxBoxAccV2: the best for each delta, or the best for the mean over the deltas."""
    class_map: Literal["gt", "predicted"] = "gt"
    """Map for Top-k Loc: the true class's map plus a label test, or each predicted class's own map."""
    averaging: Literal["image", "class"] = "image"
    classifier: Literal["single", "ten_crop", "external"] = "single"
    """Source of the predicted labels: one view, the mean softmax of ten crops, or another network."""

    # --- error breakdown (SPA, CVPR 2021, Table 4) ----------------------------------------------------------
    error_iou: Share = 0.5
    error_multi_iog: Share = 0.3
    error_part_iob: Share = 0.5
    error_more_iog: Share = 0.7

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        # Lists of numbers.
        if not self.taus or any(high <= low for low, high in zip(self.taus, self.taus[1:], strict=False)):
            raise UsageError(
                f"protocol field taus={format_value(self.taus)}; expected one or more strictly increasing "
                "numbers"
            )
        if self.taus[-1] == 1 and self.foreground == ">" and self.threshold_basis != "percentile":
            raise UsageError(
                "protocol field taus ends with 1.0, but nothing is above the maximum of a map; expected "
                "thresholds in [0, 1), or foreground='>='"
            )
        if len(self.taus) > MAX_TAUS:
            raise UsageError(
                f"protocol field taus has {len(self.taus):,} thresholds; expected at most {MAX_TAUS:,}"
            )
        if not self.deltas or len(set(self.deltas)) < len(self.deltas):
            raise UsageError(f"protocol field deltas={self.deltas}; expected one or more different numbers")
        # Combinations of fields.
        if self.quantize == "none" and self.threshold_basis != "unit":
            raise UsageError(
                f"protocol field threshold_basis={self.threshold_basis!r} with quantize='none'; expected an "
                "8-bit map. Set quantize='uint8' or threshold_basis='unit'"
            )
        if (self.connectivity == "contour") != (self.largest_by == "contour_area"):
            raise UsageError(
                f"protocol field connectivity={self.connectivity!r} with largest_by={self.largest_by!r}; "
                "expected 'contour' with 'contour_area', or neither of them"
            )
        if self.percentile == 0 and not self.normalize.startswith("ivr"):
            raise UsageError(
                "protocol field percentile=0.0; expected a number in (0, 100], or normalize='ivr', where 0 "
                "is min-max"
            )
        if self.resize_size < self.frame_size and (
            self.frame == "center_crop" or self.classifier == "ten_crop"
        ):
            raise UsageError(
                f"protocol field resize_size={self.resize_size}; expected at least "
                f"frame_size={self.frame_size}, to crop the frame from. Set it to {self.frame_size} or more"
            )

    @property
    def network_frame(self) -> Literal["squash", "center_crop"]:
        """Part of the image that a network sees: the whole image or the centre crop."""
        return "center_crop" if self.frame == "center_crop" else "squash"

    @property
    def network_view(self) -> tuple[str, str, tuple[int, int] | None]:
        """What maps and predicted labels of a network depend on. Protocols with equal views share both."""
        cropped = self.frame == "center_crop" or self.classifier == "ten_crop"
        sizes = (self.frame_size, self.resize_size) if cropped else None
        return self.network_frame, self.classifier, sizes

    def view_of(self, side: int) -> tuple[int, int]:
        """Return the side of the resized image and the first pixel that a network of input side `side` sees.

        >>> EvalProtocol(frame="center_crop").view_of(448)
        (512, 32)
        """
        outer = round(self.resize_size * side / self.frame_size) if self.frame == "center_crop" else side
        return outer, crop_start(outer, side)

    @classmethod
    def preset(cls, name: str) -> EvalProtocol:
        """Return the conventions of a published evaluator. Raises `UsageError` naming the closest preset.

        >>> EvalProtocol.preset("spa").single_box
        'union'
        """
        if name not in _PRESETS:
            raise unknown_name("protocol", name, _PRESETS)
        return cls(name=name, **_PRESETS[name])

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Return the names that `preset` accepts."""
        return tuple(_PRESETS)

    def to_json(self) -> dict[str, Any]:
        """Return all fields. A threshold grid made by `arange` is stored as start, stop and step.

        A normalisation rule that has changed is stored with its version. Without a version, a stored `pas` or
        `ivr` is version 1.
        """
        # Not `asdict`: it copies each threshold, which takes most of the time of reading a folder of records.
        values = tuples_to_lists({item.name: getattr(self, item.name) for item in fields(self)})
        values["taus"] = _grid_to_json(self.taus)
        first = {now: before for before, now in _FIRST_RULES.items()}
        if self.normalize in first:
            values["normalize"] = first[self.normalize]
        elif self.normalize in _FIRST_RULES:
            values["normalize_version"] = _NORMALIZE_VERSION
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalProtocol:
        """Read a stored protocol of any version. Without `normalize_version`, `normalize` means version 1.

        Raises `UsageError` for unknown and missing fields.
        """
        values = dict(_check_stored(values))
        version = values.pop("normalize_version", 1)
        _check_names(set(values), {item.name for item in fields(cls)})
        if version not in (1, _NORMALIZE_VERSION):
            raise UsageError(
                f"protocol field normalize_version={version!r}; expected {_NORMALIZE_VERSION}, or no such "
                "field for version 1"
            )
        if version == 1 and isinstance(values["normalize"], str):
            values["normalize"] = _FIRST_RULES.get(values["normalize"], values["normalize"])
        if isinstance(grid := values["taus"], dict):
            _check_names(set(grid), {"start", "stop", "step"})
            values["taus"] = tau_grid(grid["step"], grid["stop"], grid["start"])
        return cls(**lists_to_tuples(values))


def _check_stored(values: object) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UsageError(
            f"a stored protocol is {type(values).__name__}; expected an object with the fields of the "
            "protocol"
        )
    return values


def _check_names(found: set[str], known: set[str]) -> None:
    """Raise `UsageError` for the first unknown field of a stored protocol, or for missing fields."""
    if unknown := sorted(found - known):
        raise unknown_name("protocol field", unknown[0], known)
    if absent := sorted(known - found):
        raise UsageError(
            f"a stored protocol lacks {len(absent)} of its {len(known)} fields: {', '.join(absent[:5])}"
        )


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol(Ranged):
    """How detections are counted: COCO's average precision (AP), the mean over classes.

    Frozen. The defaults are COCO's.
    A detection is correct if it overlaps a ground-truth object of its class by at least the IoU threshold
    and no better detection has matched this object. Precision is made monotone and averaged over
    equidistant recalls.
    """

    name: str = "coco"
    ious: tuple[PositiveShare, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """IoU thresholds. AP is the mean over them."""
    recalls: Annotated[int, Range(2, 10_001)] = 101
    """Number of points of the precision-recall curve, including 0 and 1."""
    max_detections: Count = 100
    """Number of best detections that are counted for each image and class."""
    small_below: Annotated[float, Range(0, 1e12)] = 32.0**2
    large_above: Annotated[float, Range(0, 1e12)] = 96.0**2
    """Areas in pixels that separate small, medium and large objects."""

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        if not self.ious or len(set(self.ious)) < len(self.ious):
            raise UsageError(f"protocol field ious={self.ious}; expected one or more different numbers")
        if self.small_below > self.large_above:
            raise UsageError(
                f"protocol field small_below={self.small_below} exceeds large_above={self.large_above}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return all fields under the key `detection`, which is not a field of `EvalProtocol`."""
        values = tuples_to_lists(asdict(self))
        return {"name": values.pop("name"), "detection": values}


def protocol_from_json(values: dict[str, Any]) -> EvalProtocol | DetectionProtocol:
    """Read a stored protocol of either class. Raises `UsageError` for unknown and missing fields."""
    return _parse_protocol(json.dumps(values))


@lru_cache(maxsize=256)  # many records share few protocols, and checking thousands of thresholds takes long
def _parse_protocol(text: str) -> EvalProtocol | DetectionProtocol:
    values = json.loads(text)
    if "detection" not in _check_stored(values):
        return EvalProtocol.from_json(values)
    _check_names(set(values), {"name", "detection"})
    own = _check_stored(values["detection"])
    _check_names(set(own), {item.name for item in fields(DetectionProtocol)} - {"name"})
    return DetectionProtocol(name=values["name"], **lists_to_tuples(own))


def _grid_to_json(taus: tuple[float, ...]) -> Any:
    grid = _find_grid(taus)
    return list(taus) if grid is None else dict(zip(("start", "stop", "step"), grid, strict=True))


@lru_cache(maxsize=256)
def _find_grid(taus: tuple[float, ...]) -> tuple[float, float, float] | None:
    """Return start, stop and step with which `tau_grid` gives these thresholds, or None."""
    if len(taus) > 2:
        step = round(taus[1] - taus[0], 6)
        stop = round(taus[-1] + step, 6)
        if step > 0 and (stop - taus[0]) / step < len(taus) + 1 and tau_grid(step, stop, taus[0]) == taus:
            return taus[0], stop, step
    return None


_COMPONENT_8 = {
    "components": "largest",
    "single_box": "largest",
    "connectivity": "8",
    "largest_by": "pixel_count",
}

_PRESETS: dict[str, dict[str, Any]] = {
    "wsoleval": {},
    "spa": {
        "frame": "original",
        "relu": True,
        "resize": "bilinear",
        "order": "normalize_then_resize",
        "normalize_eps": 1e-10,
        "quantize": "none",
        "threshold_basis": "unit",
        "taus": tau_grid(0.05, 0.95, 0.05),
        "foreground": ">=",
        "components": "union",
        "single_box": "union",
        "connectivity": "4",
        "largest_by": "box_area",
        "box_end": "inclusive",
        "clip_boxes": False,
        "gt_end": "inclusive",
        "gt_truncate": False,
        "iou_test": ">",
        "topk_iou_test": ">",
        "class_map": "predicted",
        "classifier": "ten_crop",
    },
    "bas": {
        "frame": "center_crop",
        "resize": "bilinear",
        "order": "normalize_then_resize",
        "quantize": "none",
        "threshold_basis": "unit",
        "taus": tau_grid(0.01),
        **_COMPONENT_8,
        "clip_boxes": False,
        "empty_box": "image",
        "gt_truncate": False,
        "iou_test": ">",
        "topk_iou_test": ">",
        "averaging": "class",
        "classifier": "ten_crop",
    },
    "tscam": {
        "resize": "bilinear",
        "taus": tau_grid(0.01),
        "components": "largest",
        "clip_boxes": False,
        "empty_box": "unit",
        "topk_iou_test": ">",
        "class_map": "predicted",
    },
    "psol": {
        "frame": "center_crop",
        "resize": "bilinear",
        "quantize": "none",
        "threshold_basis": "unit",
        "taus": tau_grid(0.01),
        **_COMPONENT_8,
        "clip_boxes": False,
        "gt_truncate": False,
        "iou_test": ">",
        "topk_iou_test": ">",
        "v2_tau": "shared",
        "averaging": "class",
        "classifier": "external",
    },
    "lid": {
        "frame": "original",
        "resize": "bilinear",
        "order": "quantize_then_resize",
        "normalize_eps": 1e-10,
        "threshold_basis": "unit",
        "taus": tuple(level / 255 for level in range(256)),
        "foreground": ">=",
        "components": "largest",
        "gt_truncate": False,
    },
}
