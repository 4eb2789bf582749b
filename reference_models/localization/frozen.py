"""Frozen features: the length of a pretrained network's feature vectors.

X.-S. Wei, J.-H. Luo, J. Wu, Z.-H. Zhou, "Selective convolutional descriptor aggregation for fine-grained
image retrieval", IEEE TIP 2017, find the main object where the sum of a pretrained network's activations is
high.

Idea. A network that was trained to classify responds to objects, and hardly to the background. Where its
last features are long, there is something. Nothing is trained and no class is known, so it is the floor for
every method that starts from the same weights. It also carries the post-processes that need only features:

    wsolbench eval --method frozen --post none,tokencut,lost,pca --dataset cub --backbone efficientnet_lite0

    symbol    name            shape
    F         stages[-1]      (B, D, h, w)     of a vision transformer: the normalised patches
    M         maps_of         (B, K, h, w)     the same for every class

    (1)  M(x, y) = |F(x, y)|

`--weights` chooses the network's weights: those of the backbone's file by default, or a checkpoint of any
method, whose backbone is taken. A backbone with tokens is opened with them, so that `keys` are known.

Departures from the paper. The length of the vector in place of the sum of its components, which have one sign
only after a ReLU. The protocol chooses the threshold; there it is the mean. There is one stage, not two.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.untrained import TrainingFree
from reference_models.core.backbone import has_tokens, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import ForwardPass

PAPER = "scda"
GROUP = "training-free"


class Frozen(TrainingFree):
    """See the module."""

    method_name = "frozen"
    map_kind = "nonneg"

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the variant with tokens for vision transformers, else the backbone's default."""
        return read_profile(backbone).grid(config.grid, "tokens") if has_tokens(backbone) else config.grid

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the map of each image for every class, the features, and no logits."""
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            lengths: Tensor = torch.linalg.vector_norm(features.float(), dim=1)  # (1)
            return lengths[:, None].expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(logits=None, maps_of=maps_of, stages=stages, penultimate=features)
