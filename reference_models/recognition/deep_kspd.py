"""DeepKSPD: classify the root of a kernel matrix of the channels.

M. Engin, L. Wang, L. Zhou, X. Liu, "DeepKSPD: learning kernel-matrix-based SPD representation for
fine-grained image recognition", ECCV 2018 (arXiv:1711.04047). There is no released code.

Idea. A covariance compares two channels by the inner product of their maps. A Gaussian kernel of the maps is
a nonlinear comparison of the same size. Its matrix is symmetric and positive semidefinite, also if there are
fewer locations than channels. A function of the matrix flattens its spectrum: the root (rootm) or the
logarithm (logm).

    paper       name                    shape
    X           features                (B, C, L)       row i: the map of channel i, after `reduce`
    theta       theta()                 ()              learnt: exp(log_theta) / scale
    D, K        kernel_matrix(..)       (B, C, C)       distances and kernel
    R           function_of(..)         (B, C, C)
    z           vector                  (B, F)          F = C (C + 1) / 2; 131,328 with 512 channels
    W, b        classifier              (Y, F), (Y,)

    (1)  D_ij = (1 / L) sum_l (x_i(l) - x_j(l))^2
    (2)  K_ij = exp(-theta D_ij)
    (3)  K = V diag(lambda) V^T, R = V diag(sqrt(lambda + eps)) V^T
    (4)  z = unit(signed_sqrt(upper triangle of R)), L = CE(W z + b)

The gradient of (3) is in closed form (`spd_root`, `spd_log`), because autograd through `eigh` is not finite
where eigenvalues repeat: channels without any activation have equal maps, and K is the identity if theta is
large. Eigenvalues 0 have the slope 1 / (2 sqrt(eps)) of the root, which is 16, and 1 / eps of the logarithm.

Maps. K is a product over the locations, so no map adds up to the score. The class map is the derivative of
the score by the weight of each location in (1): with W_c = dscore_c / dK o K, M_c(l) = -theta sum_ij W_c,ij
(x_i(l) - x_j(l))^2. Its mean is the derivative of the score by log theta. It is L / 2 times features times
gradient, summed over the channels.

Departures and open readings
    (1)        The mean over the locations, not the sum, so theta does not depend on the size of the image.
    theta      `scale` is the mean distance of two channels, measured on 64 training images before the first
               epoch, and log_theta starts at 0: then the mean of K off the diagonal is near 0.4. The paper's
               start is not known. theta has the rate of new layers and no weight decay. On generated birds it
               grows several-fold in a short run.
    stages     A third of a short run trains the head alone.
    (3)        eps = 1e-3, so that gradients of dead channels are not large. Rounding makes some eigenvalues
               negative; they count as 0.
    (4)        Signed root and unit norm are those of the bilinear family; `vector_norm=false` omits them.
    reduce     Networks with more than 512 channels get a 1x1 convolution to 256. VGG-16 needs none.
    root       `newton_schulz` has products of matrices alone. It is for GPUs, where eigenvalues are slow and
               make the host wait. It is approximate: 12 steps from the trace multiply eigenvalues by 2.25^12
               at most, which leaves those near eps below their root (`layers/second_order.py`).
    recipe     `bcnn`. The paper's is not known here, nor its network.
    budget     On 50 classes of CUB, 10,800 training images are too few: the cross-entropy ends at 1.14,
               that of the baseline at 0.28, and the accuracy is 4 points lower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import (
    Features,
    PooledConfig,
    PooledRecognizer,
    reduce_channels,
    take_out,
)
from reference_models.core.backbone import Backbone
from reference_models.core.recipes import Recipe
from reference_models.layers.second_order import (
    TINY,
    Representation,
    half_vector,
    in_full_precision,
    newton_schulz,
    signed_sqrt,
    spd_log,
    spd_root,
    unit,
)
from reference_models.training.passes import Passes
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Positive, Range
from wsolbench.types import Dataset

PAPER = "deep-kspd"

MEASURED = 64
"""Training images whose distances are measured."""


@dataclass(frozen=True, kw_only=True)
class DeepKspdConfig(PooledConfig):
    """Settings of `deep-kspd`."""

    power: Literal["root", "log", "none"] = "root"
    """Function of the kernel matrix: DeepKSPD-rootm, DeepKSPD-logm, or the matrix itself."""
    root: Literal["eigen", "newton_schulz"] = "eigen"
    """How the root is computed. The logarithm has eigenvalues alone."""
    iterations: Annotated[int, Range(1, 20)] = 12
    """Steps of `root=newton_schulz`."""
    eps: Positive = 1e-3
    """Added to the eigenvalues. This value is ours."""
    theta: Positive = 1.0
    """Initial theta, in units of 1 / (mean distance of two channels)."""
    vector_norm: bool = True
    """Whether the triangle has signed root and unit norm."""
    reduce: Annotated[int, Range(0, 2048)] = 0
    """Channels after a 1x1 convolution without bias.

    0: none for up to 512 channels, else 256. This default is ours.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root == "newton_schulz" and self.power != "root":
            raise UsageError(
                f"settings root=newton_schulz and power={self.power} of method 'deep-kspd': Newton-Schulz "
                "steps give a root only; use power=root or root=eigen"
            )


@in_full_precision
def squared_distances(features: Float[Tensor, "b c l"]) -> Float[Tensor, "b c c"]:
    """Return D, the mean squared difference of the maps of any two channels, eq. (1)."""
    centred = features - features.mean(dim=1, keepdim=True)  # the same distances, smaller rounding errors
    products = centred @ centred.mT / features.shape[2]
    squares = products.diagonal(dim1=1, dim2=2)
    return (squares[:, :, None] + squares[:, None] - 2 * products).clamp_min(0)


@in_full_precision
def kernel_matrix(features: Float[Tensor, "b c l"], theta: Float[Tensor, ""]) -> Float[Tensor, "b c c"]:
    """Return K, the Gaussian kernel of the maps of any two channels, eqs. (1) and (2)."""
    return (-theta * squared_distances(features)).exp()


@in_full_precision
def kernel_maps(
    gradients: Float[Tensor, "b k c c"],
    kernel: Float[Tensor, "b c c"],
    features: Float[Tensor, "b c l"],
    theta: Float[Tensor, ""],
) -> Float[Tensor, "b k l"]:
    """Return the derivatives of scores by the weight of each location, times L.

    `gradients` are those of K scores by `kernel`. With the graph Laplacian, sum_ij W_ij (x_i - x_j)^2 is
    2 sum_i x_i (rowsum_i x_i - (W x)_i) for every location.
    """
    weights = (gradients + gradients.mT) / 2 * kernel[:, None]  # W
    x = (features - features.mean(dim=1, keepdim=True))[:, None]  # (B, 1, C, L)
    return 2 * theta * (x * (weights @ x - weights.sum(dim=3, keepdim=True) * x)).sum(dim=2)


class DeepKspd(PooledRecognizer):
    """See the module."""

    method_name = "deep-kspd"
    Config = DeepKspdConfig
    config: DeepKspdConfig
    published_recipe = "bcnn"
    scale: Tensor
    """Mean distance of two channels, (), or 0 if it was not measured: 1 is used then."""

    def __init__(self, backbone: Backbone, num_classes: int, config: DeepKspdConfig) -> None:
        super().__init__(backbone, num_classes, config)
        if not config.vector_norm:  # on vectors that are not of unit norm a rate near 1 diverges
            rate = config.head_rate or 1.0
            factor = min(10.0, self.head_stage.head_factor)
            self.head_stage = replace(self.head_stage, rate=rate, head_factor=factor)
        self.reduce, width = reduce_channels(backbone.channels[-1], config.reduce)
        self.log_theta = nn.Parameter(torch.tensor(config.theta).log())
        self.register_buffer("scale", torch.zeros(()))
        self.add_classifier(width * (width + 1) // 2)

    def before_training(self, train: Dataset) -> None:
        """Measure the mean distance of two channels on some images, unless a resumed run has it."""
        if self.scale > 0:
            return
        some = train.samples[:: max(1, len(train) // MEASURED)][:MEASURED]
        passes = Passes(train=replace(train, samples=some), model=self, device=self.scale.device)
        self.eval()
        with torch.no_grad():
            means = []
            for batch in passes():
                distances = squared_distances(self.reduce(self.read(batch.images)[1][0].float()).flatten(2))
                pairs = distances.shape[1] * (distances.shape[1] - 1)
                means.append(distances.sum(dim=(1, 2)) / max(pairs, 1))
        self.scale.copy_(torch.cat(means).mean().clamp_min(TINY))

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of the base, and log_theta without decay."""
        groups = super().parameter_groups(recipe)
        factor = self.new_factor(recipe)
        take_out(groups, "theta", [self.log_theta], factor=factor, weight_decay=0.0, steady=True)
        return groups

    def theta(self) -> Float[Tensor, ""]:
        """Return theta, in units of the features."""
        return self.log_theta.exp() / torch.where(self.scale > 0, self.scale, 1.0)

    def function_of(self, kernel: Float[Tensor, "b c c"]) -> Float[Tensor, "b c c"]:
        """Return R, the function of the kernel matrix that `power` names, eq. (3)."""
        config = self.config
        if config.power == "none":
            return kernel
        if config.power == "log":
            return spd_log(kernel, config.eps)
        if config.root == "eigen":
            return spd_root(kernel, config.eps)
        ridge = config.eps * torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
        return newton_schulz(kernel + ridge, config.iterations)[0]

    def vector_of(self, kernel: Float[Tensor, "b c c"]) -> Float[Tensor, "b f"]:
        """Return z, eqs. (3) and (4)."""
        vector = half_vector(self.function_of(kernel))
        return unit(signed_sqrt(vector)) if self.config.vector_norm else vector

    def represent(self, features: Features) -> Representation:
        """Return z, eq. (4), and the maps, which need a backward pass of the head for each class."""
        x, theta = self.reduce(features[0]).flatten(2), self.theta()
        kernel = kernel_matrix(x, theta)

        def maps_of(weights: Float[Tensor, "b k f"]) -> Float[Tensor, "b k h w"]:
            with torch.enable_grad():
                start = kernel.detach().requires_grad_()
                scores = (weights.detach() @ self.vector_of(start)[:, :, None])[:, :, 0].sum(dim=0)  # (K,)
                gradients = [torch.autograd.grad(score, start, retain_graph=True)[0] for score in scores]
            maps = kernel_maps(torch.stack(gradients, dim=1), kernel, x, theta)
            return maps.view(*maps.shape[:2], *features[0].shape[2:])

        return Representation(self.vector_of(kernel), maps_of)
