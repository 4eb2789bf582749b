"""What CoSeq keeps of its training images, and the classifiers of its regions: buffers of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.core.backbone import Backbone
from reference_models.core.profile import Stage
from reference_models.recognition.coseq.scorers import fit_scorer
from wsolbench.system.progress import track

POSE_CELLS, POSE_SIZE = 7, 512
"""Side of the grid of pose features, and their length after a random projection."""


class Memory(nn.Module):
    """The training images: empty before a training, afterwards as many rows as images.

    Attributes:
        objects: (N, 4) boxes of the objects, relative to the images.
        parts: (N, K, 4) boxes of the parts, relative to the objects.
        poses: (N, 512) unit vectors in half precision.
    """

    objects: Tensor
    parts: Tensor
    poses: Tensor

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.register_buffer("objects", torch.zeros(0, 4))
        self.register_buffer("parts", torch.zeros(0, parts, 4))
        self.register_buffer("poses", torch.zeros(0, POSE_SIZE, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.objects)

    def resize(self, count: int) -> None:
        """Make room for another number of images. Values are 0."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.new_zeros(count, *buffer.shape[1:]))

    def fit_to(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Make room for the images of a checkpoint, whose tensors have names that begin with `prefix`."""
        found = tensors.get(f"{prefix}objects")
        if found is not None and found.ndim > 0:
            self.resize(len(found))


class PoseProjection(nn.Module):
    """A random projection of features on a 7x7 grid to unit vectors of length 512, always the same."""

    matrix: Tensor

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(channels * POSE_CELLS**2, POSE_SIZE, generator=generator) / POSE_SIZE**0.5
        self.register_buffer("matrix", drawn, persistent=False)

    def project(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
        """Return the projected unit vectors, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = F.adaptive_avg_pool2d(features.float(), POSE_CELLS).flatten(1)
            return F.normalize(pooled @ self.matrix, dim=1)


class RegionScorers(nn.Module):
    """A linear classifier for each region, and the weight of each region.

    Attributes:
        weight, bias: (R, Y, D), (R, Y). Region 0 is the object.
        combination: (R,), v.
        fitted: 1 once `weight` and `bias` are fitted. Until then the classifiers of the training are used.
    """

    weight: Tensor
    bias: Tensor
    combination: Tensor
    fitted: Tensor

    def __init__(self, regions: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(regions, num_classes, channels))
        self.register_buffer("bias", torch.zeros(regions, num_classes))
        self.register_buffer("combination", torch.full((regions,), 1 / regions))
        self.register_buffer("fitted", torch.zeros(()))

    def fit(self, features: Float[Tensor, "n r d"], labels: Int[Tensor, " n"], num_classes: int) -> None:
        """Fit the classifier of each region, step 8."""
        for region in track(range(features.shape[1]), "classifying regions", unit="regions"):
            scorer = fit_scorer(features[:, region], labels, num_classes)
            self.weight[region].copy_(scorer.weight)
            self.bias[region].copy_(scorer.bias)
        self.fitted.fill_(1)

    def scores(
        self, features: Float[Tensor, "b r d"], object_layer: nn.Linear, part_layer: nn.Linear | None
    ) -> Float[Tensor, "b r y"]:
        """Return s, the scores of each region less their mean over the classes, in float32."""
        layers = [object_layer, *([part_layer] * (len(self.weight) - 1) if part_layer is not None else [])]
        trained = torch.stack([layer.weight for layer in layers])
        biases = torch.stack([layer.bias for layer in layers])
        weight = torch.where(self.fitted > 0, self.weight, trained)
        bias = torch.where(self.fitted > 0, self.bias, biases)
        with torch.autocast(features.device.type, enabled=False):
            found = torch.einsum("brd,ryd->bry", features.float(), weight.float()) + bias.float()
            return found - found.mean(dim=2, keepdim=True)


def pose_stage(backbone: Backbone) -> Stage:
    """Return the first stage of stride 16, or of the greatest stride below that."""
    strides = [stage.stride for stage in backbone.layout]
    wanted = max([stride for stride in strides if stride <= 16], default=min(strides))
    return backbone.layout[strides.index(wanted)]
