"""Copies of a backbone that end at an inner stage."""

from __future__ import annotations

import copy

from reference_models.core.backbone import Backbone


def copy_trunk(backbone: Backbone, stride: int) -> Backbone:
    """Return a copy of a backbone that ends with its deepest stage of at most `stride` pixels per cell.

    A network that cannot be cut between its stages, or has no such stage, is copied as a whole.
    """
    trunk = copy.deepcopy(backbone)
    names = list(trunk.steps)
    fine = [stage for stage in trunk.layout if stage.stride <= stride and stage.name in names]
    if fine:
        last = fine[-1]
        for name in names[names.index(last.name) + 1 :]:
            del trunk.steps[name]
        trunk.layout = trunk.layout[: trunk.layout.index(last) + 1]
    return trunk
