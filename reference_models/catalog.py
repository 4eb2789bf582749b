"""Rows that this package offers to `wsolbench list`.

They are found by reading files, so that nothing heavy is imported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wsolbench.methods import MethodInfo, methods_in

if TYPE_CHECKING:  # the type checker holds the base classes to the contracts
    from reference_models.base.detector import Detector
    from reference_models.base.localizer import Localizer
    from reference_models.base.post import PostProcess
    from wsolbench.methods import Method, ObjectDetector, PostProcessor

    _METHOD: type[Method] = Localizer
    _POST: type[PostProcessor] = PostProcess
    _DETECTOR: type[ObjectDetector] = Detector


def methods() -> list[MethodInfo]:
    """Return one row for each file in `localization/` and `recognition/`."""
    return [
        *methods_in("reference_models.localization", "localization"),
        *methods_in("reference_models.recognition", "recognition"),
    ]


def posts() -> list[MethodInfo]:
    """Return one row for each file in `postprocess/`."""
    return methods_in("reference_models.postprocess", "post-process")


def detectors() -> list[MethodInfo]:
    """Return one row for each file in `detection/`."""
    return methods_in("reference_models.detection", "detection")


def backbones() -> list[MethodInfo]:
    """Return one row for each file in `backbones/`; `timm` stands for every `timm:<name>`."""
    # Networks keep the underscores of the libraries they come from.
    return [
        replace(row, name=row.module.rpartition(".")[2])
        for row in methods_in("reference_models.backbones", "backbone")
    ]
