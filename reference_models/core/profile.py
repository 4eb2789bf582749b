"""Properties of a backbone that are known before the network is built, and the roles of its steps.

Methods never compare the name of a backbone. They read its `Profile`, the constant `PROFILE` of the
backbone's file, and ask the built network for a role (`Backbone.role`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Kin = Literal["vgg", "resnet", "inception", "other"]
RecipeFamily = Literal["published", "finetune", "tiny"]
GridPurpose = Literal[
    "fine-grained", "small", "padded", "overlapping-pools", "overlapping-pools-small", "tokens"
]
StepGroup = Literal["last-stage", "deep"]
Role = Literal[
    "early-branch",
    "branch",
    "drop",
    "drop-after-pool",
    "attend",
    "guides",
    "last-layers",
    "patches",
    "generator",
    "skips",
]

ROLES: Mapping[Role, str] = MappingProxyType(
    {
        "early-branch": "the step after which an early branch forks",
        "branch": "the step after which a branch forks",
        "drop": "the steps after which a layer drops attended features",
        "drop-after-pool": "the same steps, with the second one after its pool",
        "attend": "the steps after which an attention block is inserted",
        "guides": "the two steps whose features feed guiding branches",
        "last-layers": "two or three last steps of one grid whose features are multiplied with each other",
        "patches": "the inner step whose cells are compared with patch filters",
        "generator": "the step in front of the last stage, whose features a generator of maps reads",
        "skips": "the steps in front of the last stage, from fine to coarse, whose features a decoder joins",
    }
)


@dataclass(frozen=True)
class Stage:
    """The output of a step: its name, stride (input pixels per cell) and channels."""

    name: str
    stride: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Properties of a backbone that its file states."""

    grids: tuple[str, ...] = ()
    """Variants of the network. The first one is the default."""
    grid_for: Mapping[GridPurpose, str] = field(default_factory=dict)
    """Variant for each purpose that needs another one than the default.

    `fine-grained`: fine-grained classifiers. `small`: methods whose cost grows with the square of the number
    of cells. `padded`: torchvision's strides with a padded first convolution. `overlapping-pools`: the pools
    of ACoL's released code. `overlapping-pools-small`: those of wsolevaluation's ACoL. `tokens`: a vision
    transformer as steps.
    """
    kin: Kin = "other"
    """The network of the WSOL papers that is most similar. Methods use the values published for it."""
    recipe_family: RecipeFamily = "finetune"
    """Default training recipe: the published one for the data set, or one of this project."""
    fine_grained_recipes: bool = False
    """Whether fine-grained classifiers are trained with their published recipes."""
    fine_grained_size: int | None = None
    """Default input side of fine-grained classifiers, except on ImageNet. None: that of the backbone."""
    convolution_before_linear: bool = False
    """Whether a linear head gets a 3x3 convolution first, in place of the original hidden layers."""
    step_groups: Mapping[StepGroup, tuple[str, ...]] = field(default_factory=dict)
    """Prefixes of the names of steps that some recipes train at the rate of new layers.

    `last-stage`, and `deep`: the stages that SPG trains at that rate.
    """
    default_weights: str = "imagenet"
    """Weights if the user names none: `imagenet` or `none`."""

    def grid(self, asked: str, purpose: GridPurpose) -> str:
        """Return the requested variant. `default` becomes the one for this purpose, if there is one."""
        return self.grid_for.get(purpose, asked) if asked == "default" else asked

    def in_group(self, parameter: str, group: StepGroup) -> bool:
        """Return whether a parameter of a model (`backbone.steps.<step>...`) belongs to a group of steps."""
        return parameter.startswith(
            tuple(f"backbone.steps.{start}" for start in self.step_groups.get(group, ()))
        )


def default_roles(layout: Sequence[Stage]) -> dict[Role, tuple[Stage, ...]]:
    """Return the roles of a network whose steps can be edited: the ends of its last stages.

    A backbone file states only those that differ.
    """
    roles: dict[Role, Sequence[Stage]] = {
        "early-branch": layout[-3:-2],
        "branch": layout[-2:-1],
        "drop": layout[-3:],
        "attend": layout[-3:],
        "guides": layout[-2:] if len(layout) > 1 else (),
        "last-layers": layout[-2:] if len({stage.stride for stage in layout[-2:]}) == 1 < len(layout) else (),
        "patches": layout[-2:-1],
        "generator": layout[-2:-1],
        "skips": layout[:-1],
    }
    return {role: tuple(steps) for role, steps in roles.items() if steps}
