"""The backbone adapter: one way to ask any network for its feature stages.

A backbone is a row of named steps. Methods look at the outputs of its stages (`stages`), change what flows
between two steps (`edit`, for layers that are inserted), or run a part of it (`run`, for branches that fork
in the middle).
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from reference_models.core.profile import ROLES, Profile, Role, Stage, default_roles
from reference_models.core.weights import IMAGENET, NONE, Weights, WeightsFile, load_strictly, read_weights
from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.methods import InputSpec, list_backbones

Edit = Callable[[str, Tensor], Tensor]
"""`edit(step name, its output) -> what the next step gets`."""

TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """Named steps in a row.

    Attributes:
        name, grid: which network, and which variant of it.
        layout: stages in order; the last two have the same stride except in the variant `stock`.
        input_spec: how it wants its images.
        head_width: width of the hidden layers of a head on top of it.
        profile: what its file states about it.
        roles: steps by role, see `reference_models.core.profile`.
        weights: where the parameters come from.
        classifier: (weight (1000, C), bias (1000,)) of the pretrained ImageNet classifier where that is a
            linear layer on the spatial mean of the last stage; else None. Not a parameter.
    """

    def __init__(
        self,
        name: str,
        steps: Mapping[str, nn.Module] | Sequence[tuple[str, nn.Module]],
        layout: Sequence[Stage],
        *,
        grid: str,
        input_spec: InputSpec,
        head_width: int = 1024,
        profile: Profile | None = None,
        roles: Mapping[Role, Sequence[Stage]] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.grid, self.input_spec, self.head_width = name, grid, input_spec, head_width
        self.layout, self.profile = tuple(layout), profile or Profile()
        self.roles = {
            **self.roles_of_layout(),
            **{role: tuple(steps) for role, steps in (roles or {}).items()},
        }
        self.steps = nn.ModuleDict(OrderedDict(steps))
        self.weights = Weights(NONE)
        self.classifier: tuple[Tensor, Tensor] | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(stage.channels for stage in self.layout)

    def roles_of_layout(self) -> dict[Role, tuple[Stage, ...]]:
        """Roles that follow from the stages. A network that cannot be edited overrides this."""
        return default_roles(self.layout)

    def role(self, role: Role, who: str, way_out: str = "") -> tuple[Stage, ...]:
        """The steps with a role. `who` is the method that asks for them (`method 'adl'`).

        Raises `UsageError` with the roles that there are, if the backbone does not have this one.
        """
        if role not in self.roles:
            raise UsageError(
                f"{who} needs the role {role!r} of its backbone ({ROLES[role]}), and {self.name} has no such "
                f"role; its roles are: {', '.join(sorted(self.roles)) or 'none'}. "
                f"Use {way_out}one of `wsolbench list backbones`"
            )
        return self.roles[role]

    def stages(self, images: Float[Tensor, "b 3 H W"], edit: Edit | None = None) -> OrderedDict[str, Tensor]:
        """Outputs of all stages by name, in order; the last one is what a head gets."""
        ends = {stage.name for stage in self.layout}
        found: OrderedDict[str, Tensor] = OrderedDict()
        x = images
        for name, step in self.steps.items():
            x = step(x)
            if edit is not None:
                x = edit(name, x)
            if name in ends:
                found[name] = x
        return found

    def run(
        self, x: Tensor, *, after: str | None = None, until: str | None = None, edit: Edit | None = None
    ) -> Tensor:
        """The steps from the one following `after` (None: the first) to `until` (None: the last), both by
        name.
        """
        names = list(self.steps)
        for name in (after, until):
            if name is not None and name not in names:
                raise unknown_name(f"step of {self.name}", name, names)
        first = 0 if after is None else names.index(after) + 1
        last = len(names) if until is None else names.index(until) + 1
        for name in names[first:last]:
            x = self.steps[name](x)
            if edit is not None:
                x = edit(name, x)
        return x

    def describe(self) -> dict[str, Any]:
        """For records."""
        return {
            "name": self.name,
            "grid": self.grid,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
        }


def load_backbone(
    name: str, *, weights: str = IMAGENET, grid: str = "default", image_size: int | None = None
) -> Backbone:
    """A backbone by name.

    A file of the package `backbones` offers `build(weights: WeightsFile | str, grid: str) -> Backbone`, where
    `weights` is `imagenet`, `none` or the tensors of the user's file in the naming of the library the network
    comes from, and states a `PROFILE`; so does a module that another package offers through the entry points
    `wsolbench.backbones`.

    Args:
        name: a row of `wsolbench list backbones`, or `timm:<name>`.
        weights: `imagenet`, `none`, or the path of a file: a state_dict in the naming of the network's
            library, or a checkpoint of any method with this backbone.
        grid: variant of the network; `default` is the one of the file.
        image_size: side of the input; None: what the network was trained with.

    Raises `UsageError` on an unknown name or variant and on weights that are not there; `DataError` on a file
    that does not fit.
    """
    build = _module_of(name).build
    options = {"grid": grid, **({"name": name} if name.startswith(TIMM_PREFIX) else {})}
    if weights in (IMAGENET, NONE):
        backbone: Backbone = build(weights=weights, **options)
    else:
        backbone = _from_file(build, read_weights(Path(weights)), weights, options)
    if image_size is not None:
        if image_size < 32:
            raise UsageError(f"image size {image_size} is too small for {name}; expected at least 32 pixels")
        backbone.input_spec = replace(backbone.input_spec, size=image_size)
    return backbone


def no_backbone(image_size: int | None = None) -> Backbone:
    """In place of a backbone, for methods that have none: it has no steps, stages or parameters."""
    spec = InputSpec() if image_size is None else InputSpec(size=image_size)
    return Backbone("none", {}, (), grid="default", input_spec=spec)


def profile_of(name: str) -> Profile:
    """The `PROFILE` of a backbone's file, without building the network. `UsageError` on an unknown name."""
    profile: Profile = getattr(_module_of(name), "PROFILE", Profile())
    return profile


def _module_of(name: str) -> ModuleType:
    rows = {row.name: row for row in list_backbones()}
    row = rows.get("timm" if name.startswith(TIMM_PREFIX) else name)
    if row is None or name == "timm":
        raise unknown_name("backbone", name, [*(known for known in rows if known != "timm"), "timm:<name>"])
    return importlib.import_module(row.module)


def _from_file(
    build: Callable[..., Backbone], file: WeightsFile, path: str, options: dict[str, str]
) -> Backbone:
    if file.metadata is None:
        backbone = build(weights=file, **options)
    else:
        backbone = build(weights=NONE, **options)
        prefix = "backbone."
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in file.tensors.items()
            if name.startswith(prefix)
        }
        if not tensors:
            raise DataError(
                f"checkpoint {path} contains no backbone; expected one of a method trained on {backbone.name}"
            )
        load_strictly(backbone, tensors, what=f"the backbone of checkpoint {path}")
    backbone.weights = Weights(Path(path).name, file.sha256)
    return backbone


def pick_grid(backbone: str, grid: str, known: Sequence[str]) -> str:
    """`grid`, or the first of `known` for `default`; `UsageError` on one that is not known."""
    if grid == "default":
        return known[0]
    if grid not in known:
        raise unknown_name(f"grid of {backbone}", grid, known)
    return grid
