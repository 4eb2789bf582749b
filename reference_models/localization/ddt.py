"""DDT: the direction in which the features of a class's images vary most.

X.-S. Wei, C.-L. Zhang, J. Wu, C. Shen, Z.-H. Zhou, "Unsupervised object discovery and co-localization by deep
descriptor transformation", Pattern Recognition 2019.

Idea. The images of a class share their object and not their background. So the strongest direction of
variation over all cells of all these images is object against background. The map is the coordinate of each
cell along it. Nothing is trained: two statistics of a pretrained network's features are enough.

    symbol    name                        shape
    F         descriptors                 (n, D, h, w)    of the n training images of a class
    m         mean                        (C, D)          buffer
    v         axis                        (C, D)          buffer, unit vectors
    M         maps_of                     (B, K, h, w)

    (1)  m_c = mean of F over all cells of the images of class c
    (2)  v_c = first eigenvector of the covariance of these cells
    (3)  M_c = v_c^T (F - m_c)

The sign of v is that with which inner cells have the higher map, in the mean over the images of the class
(`layers/descriptors.py`). M is 0 for a class without images, and where (2) has no single solution.

`pca` is the same direction of a single image. `psol` learns from the boxes of these maps. There are no class
scores, so evaluate GT-known and MaxBoxAcc.

Departures
    set        The paper also finds objects in images without labels, and rejects images without the object.
    m, v       The paper takes them from the images that it localizes. Here they come from the training
               images, so a test image does not change the map of another one.
    features   The last stage, max-pooled to at most 14x14 cells. On VGG-16 at 448 pixels these are those of
               pool 5. The further layer that the paper may use is not here.
    threshold  The largest component of M > 0 in PSOL's code; here the protocol chooses the threshold.

The paper's text was not at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import ForwardPass, ImagePasses
from reference_models.layers.descriptors import check_inner_cells, pool_descriptors, principal_direction
from wsolbench.ranges import Range
from wsolbench.system.progress import track
from wsolbench.types import Dataset

PAPER = "ddt"
GROUP = "training-free"


@dataclass(frozen=True, kw_only=True)
class DdtConfig(MethodConfig):
    """Settings of `ddt`."""

    cells: Annotated[int, Range(3, 112)] = 14
    """Most cells of a side. A finer grid is max-pooled to it."""


class Ddt(Localizer):
    """See the module."""

    method_name = "ddt"
    Config = DdtConfig
    config: DdtConfig
    learns_from = "statistics"
    map_kind = "signed"
    mean: Tensor
    axis: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: DdtConfig) -> None:
        super().__init__(backbone, num_classes, config)
        for name in ("mean", "axis"):
            self.register_buffer(name, torch.zeros(num_classes, backbone.channels[-1], dtype=torch.float64))

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the network as it was pretrained, where the backbone has it."""
        return read_profile(backbone).grid(config.grid, "fine-grained")

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:  # noqa: ARG003 - the signature of all methods
        """Return 448 on the networks of the papers, with which they have 14x14 cells."""
        return 448 if read_profile(backbone).kin in ("vgg", "resnet") else None

    def measure(self, train: Dataset, passes: ImagePasses) -> None:
        """Fill m and v of each class, in one pass.

        Raises `UsageError` if the grid is too small for the rule of the sign.
        """
        labels = np.array([sample.label for sample in train.samples])
        for label in track(np.unique(labels), "finding directions", unit="classes"):
            chosen = passes(np.flatnonzero(labels == label))
            found = principal_direction(
                check_inner_cells(self.descriptors(batch.images)[1], who=self.method_name) for batch in chosen
            )
            self.mean[label], self.axis[label] = found.mean, found.axis  # (1), (2)

    def descriptors(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b d h w"]]:
        """Return the stages, and F."""
        stages = self.backbone.stages(images)
        last = next(reversed(stages.values()))
        return stages, pool_descriptors(last, self.config.cells)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return M for every class, the features, and no logits."""
        stages, features = self.descriptors(images)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            with torch.autocast(images.device.type, enabled=False):
                axis, mean = self.axis[class_ids], self.mean[class_ids]  # (B, K, D)
                along = torch.einsum("bkd,bdhw->bkhw", axis, features.double())
                return along - (axis * mean).sum(dim=2)[..., None, None]  # (3)

        return ForwardPass(logits=None, maps_of=maps_of, stages=stages, penultimate=features)
