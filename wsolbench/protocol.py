"""The evaluation protocol: every convention on which published evaluators differ, as data.

A protocol says how a raw score map becomes boxes and how boxes are compared with the truth. Two numbers are comparable
only when their protocols are equal, so every record stores its own. `EvalProtocol.preset(name)` gives the conventions of
a published evaluator; `dataclasses.replace(protocol, components="union")` gives a variant.

Presets and what they follow: `wsoleval` (clovaai/wsolevaluation, the default), `spa` (Panxjia/SPA_CVPR2021), `bas`
(wpy1999/BAS), `tscam` (vasgaowei/TS-CAM), `psol` (tzzcl/PSOL), `lid` (the LID challenge's Peak-IoU).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from wsolbench.exceptions import UsageError, unknown_name


def tau_grid(step: float, stop: float = 1.0, start: float = 0.0) -> tuple[float, ...]:
    """Thresholds `numpy.arange(start, stop, step)`, bit for bit as evaluators that use `arange` have them.

    >>> len(tau_grid(0.001)), tau_grid(0.25)
    (1000, (0.0, 0.25, 0.5, 0.75))
    """
    return tuple(float(tau) for tau in np.arange(start, stop, step))


def crop_start(outer: int, inner: int) -> int:
    """First pixel of the central `inner` of `outer` pixels, rounded as torchvision rounds it (a half goes to the even side)."""
    return round((outer - inner) / 2)


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """How maps are turned into boxes and counted. Frozen; the defaults are `wsoleval`.

    Raises `UsageError` on a value outside its list and on combinations that mean nothing.
    """

    name: str = "wsoleval"
    """Preset it started from; a variant should get its own name, because boards group by it."""

    # --- from the image to the frame in which boxes are compared -------------------------------------------------------
    frame: Literal["squash", "center_crop", "original"] = "squash"
    """`squash`: the whole image resized to `frame_size` squared. `center_crop`: resized to `resize_size` squared, then the
    central `frame_size` squared; boxes are cut to the crop. `original`: the image's own size."""
    frame_size: int = 224
    resize_size: int = 256
    """Side before the centre crop (and before ten crops)."""

    # --- from the raw map to [0, 1] ------------------------------------------------------------------------------------
    relu: bool = False
    """Whether negative scores are set to 0 first."""
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    order: Literal["resize_then_normalize", "normalize_then_resize", "quantize_then_resize"] = "resize_then_normalize"
    """`quantize_then_resize`: normalised and made 8-bit at the map's own size, then resized as an 8-bit picture."""
    normalize: Literal["minmax", "max", "pas", "ivr"] = "minmax"
    """`minmax`: to [0, 1]. `max`: relu, then / max. `pas`: relu, then / `percentile`-th percentile, cut at 1.
    `ivr`: minus the `percentile`-th percentile, relu, / max."""
    percentile: float = 90.0
    """Percentile for `pas`, `ivr` and `threshold_basis="percentile"`."""
    normalize_eps: float = 0.0
    """Added to the divisor. A constant map is all zeros, whatever this is."""
    quantize: Literal["uint8", "none"] = "uint8"
    """`uint8`: truncation of 255 x map, the product in float64. `none`: float32 compared with float32 thresholds."""

    # --- thresholds ----------------------------------------------------------------------------------------------------
    taus: tuple[float, ...] = field(default=tau_grid(0.001), repr=False)
    foreground: Literal[">", ">="] = ">"
    threshold_basis: Literal["max", "unit", "percentile"] = "max"
    """What `tau` is a fraction of: the map's maximum (`int(tau x max)` of the 8-bit map), the range [0, 1] itself, or the
    `percentile`-th percentile of the 8-bit map."""
    fixed_tau: float | None = None
    """Threshold for the policy `fixed`; None: the policy is left out unless one is given."""

    # --- from the foreground to boxes ----------------------------------------------------------------------------------
    components: Literal["all", "largest", "union"] = "all"
    """Which regions give boxes: every one, the largest, or one box around the whole foreground."""
    single_box: Literal["largest", "union"] = "largest"
    """The rule for metrics that count one box an image: GT-known, Top-k Loc, MaxBoxAcc (V1), the error breakdown."""
    connectivity: Literal["contour", "4", "8"] = "contour"
    """What a region is: an OpenCV contour (`RETR_TREE`: the outlines of holes are regions too), or a 4-/8-connected
    component of the foreground."""
    largest_by: Literal["contour_area", "pixel_count", "box_area"] = "contour_area"
    """What the largest region is largest by. Equal ones: the first that OpenCV (contours) or a row-wise scan (components) meets."""
    box_end: Literal["exclusive", "inclusive"] = "exclusive"
    """Whether a predicted box ends one past its last pixel or on it."""
    clip_boxes: bool = True
    """Whether predicted boxes are cut at (W-1, H-1), and true boxes too before they are scaled."""
    empty_box: Literal["zero", "unit", "image"] = "zero"
    """The box where nothing is foreground: (0, 0, 0, 0), (0, 0, 1, 1), or the whole frame."""

    # --- true boxes ----------------------------------------------------------------------------------------------------
    gt_boxes: Literal["any", "first"] = "any"
    gt_end: Literal["exclusive", "inclusive"] = "exclusive"
    """How the continuous true boxes are written for the comparison: (x, y, x + w, y + h), or one less at the end."""
    gt_truncate: bool = True
    """Whether scaled true boxes lose their fraction: `int(x * new / old)`."""

    # --- comparison ----------------------------------------------------------------------------------------------------
    iou_plus_one: bool = True
    """Whether widths are x1 - x0 + 1."""
    deltas: tuple[float, ...] = (0.3, 0.5, 0.7)
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

    # --- error breakdown (SPA, CVPR 2021, Table 4) -----------------------------------------------------------------------
    error_iou: float = 0.5
    error_multi_iog: float = 0.3
    error_part_iob: float = 0.5
    error_more_iog: float = 0.7

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            allowed = get_args(hints[item.name])
            value = getattr(self, item.name)
            if allowed and all(isinstance(choice, str) for choice in allowed) and value not in allowed:
                raise UsageError(f"protocol field {item.name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
        if not self.taus or list(self.taus) != sorted(set(self.taus)):
            raise UsageError("protocol field taus must be a non-empty, strictly increasing sequence")
        if not all(0.0 <= tau <= 1.0 for tau in self.taus):
            raise UsageError(f"protocol field taus must lie in [0, 1]; got {self.taus[0]} to {self.taus[-1]}")
        if not self.deltas or not all(0.0 < delta <= 1.0 for delta in self.deltas):
            raise UsageError(f"protocol field deltas must lie in (0, 1]; got {self.deltas}")
        if self.quantize == "none" and self.threshold_basis != "unit":
            raise UsageError(
                "threshold_basis 'max' and 'percentile' are defined on 8-bit maps; set quantize='uint8' or threshold_basis='unit'"
            )
        if (self.connectivity == "contour") != (self.largest_by == "contour_area"):
            raise UsageError("connectivity 'contour' goes with largest_by 'contour_area', and only with it")
        if not 0.0 < self.percentile <= 100.0:
            raise UsageError(f"protocol field percentile must lie in (0, 100]; got {self.percentile}")

    @property
    def network_frame(self) -> Literal["squash", "center_crop"]:
        """What a network sees of the image."""
        return "center_crop" if self.frame == "center_crop" else "squash"

    def view_of(self, side: int) -> tuple[int, int]:
        """How a network of input side `side` sees the image: the side that the whole image is resized to, and the first pixel seen.

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
        """All fields; a threshold grid made by `arange` is written as its start, stop and step."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        values["taus"] = _grid_to_json(self.taus)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EvalProtocol:
        """The inverse of `to_json`. Raises `UsageError` on unknown fields."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise unknown_name("protocol field", unknown[0], known)
        values = dict(values)
        grid = values.get("taus")
        if isinstance(grid, dict):
            values["taus"] = tau_grid(grid["step"], grid["stop"], grid["start"])
        arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**arguments)


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """How detections are counted: average precision as COCO defines it, the mean over classes. Frozen; the defaults are COCO's.

    Of each class a detection is right when it overlaps a true object, which no better one has taken, by at least the IoU.
    Precision is made monotone and averaged over equidistant recalls.
    """

    name: str = "coco"
    ious: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """Overlaps that AP is the mean over."""
    recalls: int = 101
    """Points of the precision-recall curve, 0 and 1 included."""
    max_detections: int = 100
    """Best detections of an image and class that are counted."""
    small_below: float = 32.0**2
    large_above: float = 96.0**2
    """Areas in pixels that bound small, medium and large objects."""

    def to_json(self) -> dict[str, Any]:
        """All fields, under `detection`: no field of an `EvalProtocol` has this name."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"name": values.pop("name"), "detection": values}


def protocol_from_json(values: dict[str, Any]) -> EvalProtocol | DetectionProtocol:
    """The inverse of `to_json` of either protocol. Raises `UsageError` on unknown fields."""
    if "detection" not in values:
        return EvalProtocol.from_json(values)
    own = values["detection"]
    known = {item.name for item in fields(DetectionProtocol)}
    if unknown := sorted(set(own) - known):
        raise unknown_name("protocol field", unknown[0], known)
    arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    return DetectionProtocol(name=values["name"], **arguments)


def _grid_to_json(taus: tuple[float, ...]) -> Any:
    if len(taus) > 2:
        step = round(taus[1] - taus[0], 6)
        stop = round(taus[-1] + step, 6)
        if tau_grid(step, stop, taus[0]) == taus:
            return {"start": taus[0], "stop": stop, "step": step}
    return list(taus)


_COMPONENT_8 = {"components": "largest", "single_box": "largest", "connectivity": "8", "largest_by": "pixel_count"}

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
