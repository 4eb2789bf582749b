"""Base of all post-processes, which compute other maps from the features of any localizer.

Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.core.config import check_settings, parse_settings, to_json
from wsolbench.methods import Localization
from wsolbench.ranges import Ranged

P = TypeVar("P", bound="PostProcess")


@dataclass(frozen=True, kw_only=True)
class PostConfig(Ranged):
    """Settings of a post-process. Its own dataclass inherits from this one."""

    def __post_init__(self) -> None:
        check_settings(self, "post-process")


class PostProcess:
    """Base of all post-processes. A file of `postprocess/` defines one subclass.

    Class attributes:
        method_name: the file's name with dashes.
        Config: dataclass of the settings.
        needs_gradients: whether `maps` differentiates the logits. The forward pass then keeps its graph, and
            gradients are enabled.
        needs_reruns: whether `maps` runs the method again on changed images, by `ForwardPass.rerun`.
        map_kind: range of the maps, as `Model.map_kind`: `signed`, `nonneg`, or `unit`.
    """

    method_name: ClassVar[str]
    Config: ClassVar[type[PostConfig]] = PostConfig
    needs_gradients: ClassVar[bool] = False
    needs_reruns: ClassVar[bool] = False
    map_kind: ClassVar[Literal["signed", "nonneg", "unit"]] = "unit"

    def __init__(self, config: PostConfig) -> None:
        self.config = config

    @classmethod
    def create(cls: type[P], settings: Mapping[str, str]) -> P:
        """Create a post-process; see `wsolbench.methods.contracts.PostProcessor.create`."""
        return cls(parse_settings(cls.Config, settings, what=f"post-process {cls.method_name!r}"))

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, float32 in the range of `map_kind`, without a graph.

        They are on the grid of the features that the post-process uses: not resized or thresholded.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return name and settings for the record."""
        return {"name": self.method_name, "config": to_json(self.config)}
