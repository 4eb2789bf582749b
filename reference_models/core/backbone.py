"""The backbone adapter: one interface to the feature stages of any network.

A backbone is a sequence of named steps. A method can read the outputs of its stages (`stages`), insert layers
between two steps (`edit`), or run a range of steps (`run`), for branches that fork in the middle.
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
"""Signature `edit(step name, output of the step) -> input of the next step`."""

TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """A sequence of named steps.

    Attributes:
        name, grid: the network, and its variant.
        layout: stages in order. The last two have the same stride, except in the variant `stock`.
        input_spec: size and normalisation of the input.
        head_width: width of the hidden layers of a head on top of it.
        profile: properties that its file states.
        roles: steps by role, see `reference_models.core.profile`.
        weights: source of the parameters.
        frozen: names of the steps that do not train, see `freeze`.
        classifier: (weight (1000, C), bias (1000,)) of the pretrained ImageNet classifier, or None. It is set
            if that classifier is a linear layer on the spatial mean of the last stage. Not a parameter.
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
        self.frozen: tuple[str, ...] = ()
        self.weights = Weights(NONE)
        self.classifier: tuple[Tensor, Tensor] | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        """Return the number of channels of each stage."""
        return tuple(stage.channels for stage in self.layout)

    def roles_of_layout(self) -> dict[Role, tuple[Stage, ...]]:
        """Return the roles that follow from the stages. A network that cannot be edited overrides this."""
        return default_roles(self.layout)

    def role(self, role: Role, who: str, way_out: str = "") -> tuple[Stage, ...]:
        """Return the steps with a role. `who` is the method that asks for them (`method 'adl'`).

        Raises `UsageError` with the available roles if the backbone does not have this one.
        """
        if role not in self.roles:
            raise UsageError(
                f"{who} needs the role {role!r} of its backbone ({ROLES[role]}), and {self.name} has no such "
                f"role; its roles are: {', '.join(sorted(self.roles)) or 'none'}. "
                f"Use {way_out}one of `wsolbench list backbones`"
            )
        return self.roles[role]

    def stages(self, images: Float[Tensor, "b 3 H W"], edit: Edit | None = None) -> OrderedDict[str, Tensor]:
        """Return the outputs of all stages by name, in order. The last one is the input of a head."""
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
        """Run the steps after `after` up to and including `until`.

        None stands for the first step and for the last step. Raises `UsageError` on an unknown name.
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

    def freeze(self, stages: int) -> None:
        """Exclude the first feature stages from training.

        Their parameters get no gradient, and their batch norm uses the stored statistics. Methods that switch
        training of the whole backbone on or off do not change that.

        Raises `UsageError` if there are fewer stages, or if their weights are not pretrained.
        """
        if stages > len(self.layout):
            raise UsageError(
                f"recipe.frozen_stages={stages}: {self.name} has {len(self.layout)} stages; expected at most "
                f"{len(self.layout)}"
            )
        if stages and self.weights.sha256 is None:
            raise UsageError(
                f"recipe.frozen_stages={stages} would keep random weights of {self.name}; use pretrained "
                "--weights, or recipe.frozen_stages=0"
            )
        names = list(self.steps)
        self.frozen = tuple(names[: names.index(self.layout[stages - 1].name) + 1]) if stages else ()
        self.requires_grad_(True).train(self.training)

    def set_drop_path(self, rate: float) -> None:
        """Set the probability of skipping a block in training; see `Recipe.drop_path`.

        Raises `UsageError` if it is not 0: only vision transformers have blocks that can be skipped.
        """
        if rate:
            raise UsageError(
                f"recipe.drop_path={rate:g}: {self.name} ({self.grid}) has no blocks that can be skipped; "
                "expected recipe.drop_path=0, or a ViT of timm in its variant 'tokens'"
            )

    def train(self, mode: bool = True) -> Backbone:
        """Switch training mode on or off. Frozen steps stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.steps[name].eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Backbone:
        """Switch gradients of the parameters on or off. Those of frozen steps stay off."""
        super().requires_grad_(requires_grad)
        for name in self.frozen:
            self.steps[name].requires_grad_(False)
        return self

    def describe(self) -> dict[str, Any]:
        """Return name, variant and weights for records."""
        return {
            "name": self.name,
            "grid": self.grid,
            "weights": {"name": self.weights.name, "sha256": self.weights.sha256},
        }


def load_backbone(
    name: str, *, weights: str = IMAGENET, grid: str = "default", image_size: int | None = None
) -> Backbone:
    """Load a backbone by name.

    A file of the package `backbones` offers `build(weights: WeightsFile | str, grid: str) -> Backbone` and a
    `PROFILE`. Here `weights` is `imagenet`, `none`, or the tensors of the user's file, named as in the
    library that the network comes from. A module that another package offers through the entry points
    `wsolbench.backbones` has the same interface. A file of vision transformers also offers
    `has_tokens(name)`.

    Args:
        name: a row of `wsolbench list backbones`, or `timm:<name>`.
        weights: `imagenet`, `none`, or the path of a file. The file is a state_dict in the naming of the
            network's library, or a checkpoint of any method with this backbone.
        grid: variant of the network. `default` is the default of its file.
        image_size: side of the input. None: the size that the network was trained with.

    Raises `UsageError` on an unknown name or variant and on missing weights, and `DataError` on a file that
    does not fit.
    """
    build = _import_module(name).build
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


def make_empty_backbone(image_size: int | None = None) -> Backbone:
    """Return a backbone without steps, stages or parameters, for methods that need none."""
    spec = InputSpec() if image_size is None else InputSpec(size=image_size)
    return Backbone("none", {}, (), grid="default", input_spec=spec)


def read_profile(name: str) -> Profile:
    """Return the `PROFILE` of a backbone's file without building the network.

    Raises `UsageError` on an unknown name.
    """
    profile: Profile = getattr(_import_module(name), "PROFILE", Profile())
    return profile


def has_tokens(name: str) -> bool:
    """Return whether a backbone is a vision transformer with a variant `tokens`, without building it.

    Raises `UsageError` on an unknown name.
    """
    answer: Callable[[str], bool] = getattr(_import_module(name), "has_tokens", lambda _: False)
    return answer(name)


def _import_module(name: str) -> ModuleType:
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
    """Return `grid`, with `default` replaced by the first of `known`.

    Raises `UsageError` on an unknown variant.
    """
    if grid == "default":
        return known[0]
    if grid not in known:
        raise unknown_name(f"grid of {backbone}", grid, known)
    return grid
