"""The evaluation protocol: every convention on which published evaluators differ, as data.

A protocol says how a raw score map becomes boxes and how boxes are compared with the truth. Two numbers are
comparable only when their protocols are equal, so every record stores its own. `EvalProtocol.preset(name)`
gives the conventions of a published evaluator; `dataclasses.replace(protocol, components="union")` gives a
variant.

Presets and what they follow: `wsoleval` (clovaai/wsolevaluation, the default), `spa` (Panxjia/SPA_CVPR2021),
`bas` (wpy1999/BAS), `tscam` (vasgaowei/TS-CAM), `psol` (tzzcl/PSOL), `lid` (the LID challenge's Peak-IoU).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.ranges import Count, PositiveShare, Range, Ranged, Share, Side, check_fields, is_number

MAX_TAUS = 10_000
"""Most thresholds of a protocol: every image keeps a score for each of them."""

_NORMALIZE_VERSION = 2
_FIRST_RULES = {"pas": "pas-relu", "ivr": "ivr-interpolated"}
"""What `normalize` meant before version 2, and the name that this rule has now."""


def tau_grid(step: float, stop: float = 1.0, start: float = 0.0) -> tuple[float, ...]:
    """Thresholds `numpy.arange(start, stop, step)`, bit for bit as evaluators that use `arange` have them.

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
            f"below {stop - start}, "
            "for instance 0.01. Single thresholds are written as a list: 0.2,0.5"
        )
    if (stop - start) / step > MAX_TAUS + 1:
        raise UsageError(
            f"a step of {step} makes more than {MAX_TAUS:,} thresholds; expected a step of "
            f"{(stop - start) / MAX_TAUS} or more"
        )
    return tuple(float(tau) for tau in np.arange(start, stop, step))


def crop_start(outer: int, inner: int) -> int:
    """First pixel of the central `inner` of `outer` pixels, rounded as torchvision rounds it (a half goes to
    the even side).
    """
    return round((outer - inner) / 2)


@dataclass(frozen=True, kw_only=True)
class EvalProtocol(Ranged):
    """How maps are turned into boxes and counted. Frozen; the defaults are `wsoleval`.

    Raises `UsageError` on a value outside its list or range, and on invalid combinations.
    """

    name: str = "wsoleval"
    """Preset it started from; a variant should get its own name, because boards group by it."""

    # --- from the image to the frame in which boxes are compared --------------------------------------------
    frame: Literal["squash", "center_crop", "original"] = "squash"
    """`squash`: the whole image resized to `frame_size` squared. `center_crop`: resized to `resize_size`
    squared, then the central `frame_size` squared; boxes are cut to the crop. `original`: the image's own
    size.
    """
    frame_size: Side = 224
    resize_size: Side = 256
    """Side before the centre crop (and before ten crops); at least `frame_size` where there is one of
    them.
    """

    # --- from the raw map to [0, 1] -------------------------------------------------------------------------
    relu: bool = False
    """Whether negative scores are set to 0 first."""
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    order: Literal["resize_then_normalize", "normalize_then_resize", "quantize_then_resize"] = (
        "resize_then_normalize"
    )
    """`quantize_then_resize`: normalised and made 8-bit at the map's own size, then resized as an 8-bit
    picture.
    """
    normalize: Literal["minmax", "max", "pas", "ivr", "pas-relu", "ivr-interpolated"] = "minmax"
    """`minmax`: to [0, 1]. `max`: relu, then / max. `pas`: x - min, then / its value of rank int(n percentile
    / 100), cut at 1. `ivr`: minus the value of that rank, relu, / max. Ranks count the n sorted values from
    0. Until version 2 of these two rules, `pas` was relu(x) / percentile (now `pas-relu`), and `ivr` took an
    interpolated percentile (now `ivr-interpolated`).
    """
    percentile: Annotated[float, Range(0, 100)] = 90.0
    """Percentile for the four rules above and `threshold_basis="percentile"`; above 0 for all but `ivr`."""
    normalize_eps: Share = 0.0
    """Added to the divisor. A constant map is all zeros, whatever this is."""
    quantize: Literal["uint8", "none"] = "uint8"
    """`uint8`: truncation of 255 x map, the product in float64. `none`: float32 compared with float32
    thresholds.
    """

    # --- thresholds -----------------------------------------------------------------------------------------
    taus: tuple[Share, ...] = field(default=tau_grid(0.001), repr=False)
    foreground: Literal[">", ">="] = ">"
    threshold_basis: Literal["max", "unit", "percentile"] = "max"
    """What `tau` is a fraction of: the map's maximum (`int(tau x max)` of the 8-bit map), the range [0, 1]
    itself, or the `percentile`-th percentile of the 8-bit map.
    """
    fixed_tau: Share | None = None
    """Threshold for the policy `fixed`; None: the policy is left out unless one is given."""

    # --- from the foreground to boxes -----------------------------------------------------------------------
    components: Literal["all", "largest", "union"] = "all"
    """Which regions give boxes: every one, the largest, or one box around the whole foreground."""
    single_box: Literal["largest", "union"] = "largest"
    """The rule for metrics that count one box an image: GT-known, Top-k Loc, MaxBoxAcc (V1), the error
    breakdown.
    """
    connectivity: Literal["contour", "4", "8"] = "contour"
    """What a region is: an OpenCV contour (`RETR_TREE`: the outlines of holes are regions too), or a
    4-/8-connected component of the foreground.
    """
    largest_by: Literal["contour_area", "pixel_count", "box_area"] = "contour_area"
    """What the largest region is largest by. Equal ones: the first that OpenCV (contours) or a row-wise scan
    (components) meets.
    """
    box_end: Literal["exclusive", "inclusive"] = "exclusive"
    """Whether a predicted box ends one past its last pixel or on it."""
    clip_boxes: bool = True
    """Whether predicted boxes are cut at (W-1, H-1), and true boxes too before they are scaled."""
    empty_box: Literal["zero", "unit", "image"] = "zero"
    """The box where nothing is foreground: (0, 0, 0, 0), (0, 0, 1, 1), or the whole frame."""

    # --- true boxes -----------------------------------------------------------------------------------------
    gt_boxes: Literal["any", "first"] = "any"
    gt_end: Literal["exclusive", "inclusive"] = "exclusive"
    """How the continuous true boxes are written for the comparison: (x, y, x + w, y + h), or one less at the
    end.
    """
    gt_truncate: bool = True
    """Whether scaled true boxes lose their fraction: `int(x * new / old)`."""

    # --- comparison -----------------------------------------------------------------------------------------
    iou_plus_one: bool = True
    """Whether widths are x1 - x0 + 1."""
    deltas: tuple[PositiveShare, ...] = (0.3, 0.5, 0.7)
    iou_test: Literal[">=", ">"] = ">="
    """Test of an IoU against `delta` for MaxBoxAcc, MaxBoxAccV2 and GT-known."""
    topk_iou_test: Literal[">=", ">"] = ">="
    """The same for Top-1/Top-5 Loc; one published evaluator uses two different tests in one file."""
    v2_tau: Literal["per_delta", "shared"] = "per_delta"
    """MaxBoxAccV2 with the best threshold of each delta, or of the mean over the deltas."""
    class_map: Literal["gt", "predicted"] = "gt"
    """Top-k Loc: the true class's map plus a label test, or each predicted class's own map."""
    averaging: Literal["image", "class"] = "image"
    classifier: Literal["single", "ten_crop", "external"] = "single"
    """Where the predicted labels come from: one view, the mean softmax of ten crops, or another network."""

    # --- error breakdown (SPA, CVPR 2021, Table 4) ----------------------------------------------------------
    error_iou: Share = 0.5
    error_multi_iog: Share = 0.3
    error_part_iob: Share = 0.5
    error_more_iog: Share = 0.7

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        if not self.taus or any(high <= low for low, high in zip(self.taus, self.taus[1:], strict=False)):
            raise UsageError("protocol field taus must be a non-empty, strictly increasing sequence")
        if len(self.taus) > MAX_TAUS:
            raise UsageError(
                f"protocol field taus has {len(self.taus):,} thresholds; expected at most {MAX_TAUS:,}"
            )
        if not self.deltas or len(set(self.deltas)) < len(self.deltas):
            raise UsageError(f"protocol field deltas={self.deltas}; expected one or more different numbers")
        if self.quantize == "none" and self.threshold_basis != "unit":
            raise UsageError(
                "threshold_basis 'max' and 'percentile' are defined on 8-bit maps; set quantize='uint8' or "
                "threshold_basis='unit'"
            )
        if (self.connectivity == "contour") != (self.largest_by == "contour_area"):
            raise UsageError("connectivity 'contour' goes with largest_by 'contour_area', and only with it")
        if self.percentile == 0 and not self.normalize.startswith("ivr"):
            raise UsageError(
                "protocol field percentile=0.0; expected a number in (0, 100], or normalize='ivr', where 0 "
                "is min-max"
            )
        if self.resize_size < self.frame_size and (
            self.frame == "center_crop" or self.classifier == "ten_crop"
        ):
            raise UsageError(
                f"protocol field resize_size={self.resize_size} is smaller than "
                f"frame_size={self.frame_size}, so nothing can be cropped "
                f"out of it; set resize_size to {self.frame_size} or more"
            )

    @property
    def network_frame(self) -> Literal["squash", "center_crop"]:
        """What a network sees of the image."""
        return "center_crop" if self.frame == "center_crop" else "squash"

    def view_of(self, side: int) -> tuple[int, int]:
        """How a network of input side `side` sees the image: the side that the whole image is resized to, and
        the first pixel seen.

        >>> EvalProtocol(frame="center_crop").view_of(448)
        (512, 32)
        """
        outer = round(self.resize_size * side / self.frame_size) if self.frame == "center_crop" else side
        return outer, crop_start(outer, side)

    @classmethod
    def preset(cls, name: str) -> EvalProtocol:
        """The conventions of a published evaluator. Raises `UsageError` naming the nearest preset.

        >>> EvalProtocol.preset("spa").single_box
        'union'
        """
        if name not in _PRESETS:
            raise unknown_name("protocol", name, _PRESETS)
        return cls(name=name, **_PRESETS[name])

    @staticmethod
    def presets() -> tuple[str, ...]:
        """Names that `preset` takes."""
        return tuple(_PRESETS)

    def to_json(self) -> dict[str, Any]:
        """All fields; a threshold grid made by `arange` is written as its start, stop and step.

        A rule of normalisation that has changed has its version next to it; without one a stored `pas` or
        `ivr` is the first version.
        """
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        values["taus"] = _grid_to_json(self.taus)
        first = {now: before for before, now in _FIRST_RULES.items()}
        if self.normalize in first:
            values["normalize"] = first[self.normalize]
        elif self.normalize in _FIRST_RULES:
            values["normalize_version"] = _NORMALIZE_VERSION
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalProtocol:
        """Read a stored protocol, also one of an older version: without `normalize_version`, `normalize`
        names the rules of the first version. Raises `UsageError` on unknown and missing fields.
        """
        values = dict(_stored_object(values))
        version = values.pop("normalize_version", 1)
        _check_names(set(values), {item.name for item in fields(cls)})
        if version not in (1, _NORMALIZE_VERSION):
            raise UsageError(
                f"protocol field normalize_version={version!r}; expected {_NORMALIZE_VERSION}, or none for "
                "the first version"
            )
        if version == 1 and isinstance(values["normalize"], str):
            values["normalize"] = _FIRST_RULES.get(values["normalize"], values["normalize"])
        if isinstance(grid := values["taus"], dict):
            _check_names(set(grid), {"start", "stop", "step"})
            values["taus"] = tau_grid(grid["step"], grid["stop"], grid["start"])
        arguments: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**arguments)


def _stored_object(values: object) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UsageError(
            f"a stored protocol is {type(values).__name__}; expected an object with the fields of the "
            "protocol"
        )
    return values


def _check_names(found: set[str], known: set[str]) -> None:
    """Raise `UsageError` for the first field of a stored protocol that is unknown or missing."""
    if unknown := sorted(found - known):
        raise unknown_name("protocol field", unknown[0], known)
    if absent := sorted(known - found):
        raise UsageError(
            f"a stored protocol lacks {len(absent)} of its {len(known)} fields: {', '.join(absent[:5])}"
        )


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol(Ranged):
    """How detections are counted: average precision as COCO defines it, the mean over classes. Frozen; the
    defaults are COCO's.

    Of each class a detection is right when it overlaps a true object, which no better one has taken, by at
    least the IoU. Precision is made monotone and averaged over equidistant recalls.
    """

    name: str = "coco"
    ious: tuple[PositiveShare, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """Overlaps that AP is the mean over."""
    recalls: Annotated[int, Range(2, 10_001)] = 101
    """Points of the precision-recall curve, 0 and 1 included."""
    max_detections: Count = 100
    """Best detections of an image and class that are counted."""
    small_below: Annotated[float, Range(0, 1e12)] = 32.0**2
    large_above: Annotated[float, Range(0, 1e12)] = 96.0**2
    """Areas in pixels that bound small, medium and large objects."""

    def __post_init__(self) -> None:
        check_fields(self, "protocol")
        if not self.ious or len(set(self.ious)) < len(self.ious):
            raise UsageError(f"protocol field ious={self.ious}; expected one or more different numbers")
        if self.small_below > self.large_above:
            raise UsageError(
                f"protocol field small_below={self.small_below} exceeds large_above={self.large_above}"
            )

    def to_json(self) -> dict[str, Any]:
        """All fields, under `detection`: no field of an `EvalProtocol` has this name."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {"name": values.pop("name"), "detection": values}


def protocol_from_json(values: dict[str, Any]) -> EvalProtocol | DetectionProtocol:
    """The inverse of `to_json` of either protocol. Raises `UsageError` on unknown and missing fields."""
    if "detection" not in _stored_object(values):
        return EvalProtocol.from_json(values)
    _check_names(set(values), {"name", "detection"})
    own = _stored_object(values["detection"])
    _check_names(set(own), {item.name for item in fields(DetectionProtocol)} - {"name"})
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in own.items()
    }
    return DetectionProtocol(name=values["name"], **arguments)


def _grid_to_json(taus: tuple[float, ...]) -> Any:
    if len(taus) > 2:
        step = round(taus[1] - taus[0], 6)
        stop = round(taus[-1] + step, 6)
        if step > 0 and (stop - taus[0]) / step < len(taus) + 1 and tau_grid(step, stop, taus[0]) == taus:
            return {"start": taus[0], "stop": stop, "step": step}
    return list(taus)


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
