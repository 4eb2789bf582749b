"""SCM: attention diffused over similar neighbours, in training only.

H. Bai, R. Zhang, J. Wang, X. Wan, "Weakly supervised object localization via transformer with implicit
spatial calibration", ECCV 2022. Released code: hbai98/SCM.

Idea. Maps of TS-CAM lack the outline of the object. In training, modules spread the attention to neighbouring
patches with similar scores, and feed it back into the class maps. So the transformer learns maps that need no
spreading, and the modules are dropped for the test.

    paper      name                                    shape
    S          scores                                  (B, C, h, w)   class maps of patch tokens, as TS-CAM
    F          flow                                    (B, h, w)      sum over blocks of attention, as TS-CAM
    A, Dg      grid_laplacian                          (N, N)         neighbours of patches, their number
    E          similarity                              (B, N, N)
    L          weighted laplacian                      (B, N, N)
    R          diffusion                               (B, N, N)
    lambda     Calibration.strength                    (1,)           learned, one for each module
    beta       Calibration.threshold                   (1,)           learned, one for each module

    mm is min-max over the patches of an image. At first F <- mm(F). Then each module:

    (1)  L_0 = Dg - A, of the 4 neighbours of each patch
    (2)  E = cosines between the patches of S, over the classes
    (3)  L = L_0 * (lambda E - 1), entry by entry
    (4)  R = k steps of X <- X (2 I - L X) from X = 0.002 L^T, transposed; k is 16 in the first module, then 4
    (5)  F' = mm(tanhshrink(R F / (beta max F)))
    (6)  S <- S + S * F';  F <- F + F'

    (7)  Loss = CE(mean over patches of S, y), after the last module
    (8)  Test: s = mean S and M_c = mm(F) * S_c, without any module

Unlike in TS-CAM, the loss has a gradient through the attention.

(4) is called an inverse and is none: where L has the singular value g, R has (1 - (1 - 0.002 g^2)^(2^k)) / g.
For small g this is 0.002 g 2^k, so at k = 4 R is about 0.032 L. At the first lambda, 1, the diagonal of L is
0, because a patch's similarity to itself is 1. The start of (4) is a constant for the gradient: as released.

Weights that each published number needs, by their names in timm: `deit_small_patch16_224` (.fb_in1k), the
classifier for 1,000 classes dropped. On ILSVRC the training starts from a TS-CAM model: `--weights` with the
checkpoint of `ts-cam`, which gives the transformer but not the convolution. Published box thresholds are the
best of 100 on the test images.

Departures. The code divides a constant map by 0 in (5) and in mm; here it is 0. It is fixed to 14 x 14
patches; here any grid works. It keeps the epoch with the best GT-known of the test images (or of CUBV2); here
the last one counts. The text of the paper was not read. The recipes are in `core/token_recipes.py`.

Not checked: any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.token_localizer import TokenLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.token_recipes import TOKEN_RECIPES
from reference_models.layers.heads import cross_entropy
from reference_models.layers.maps import min_max
from reference_models.layers.token_maps import TokenHead, read_attention, sum_attention
from wsolbench.ranges import Positive, Range

PAPER = "scm"

START = 0.002
"""Factor of the start of eq. (4): released code."""
TINY = 1e-12
"""Smallest divisor of eq. (5)."""


@dataclass(frozen=True, kw_only=True)
class ScmConfig(MethodConfig):
    """Settings of `scm`."""

    iterations: tuple[Annotated[int, Range(1, 64)], ...] = (16, 4, 4, 4)
    """k of each module: released code. Their number is that of the modules; none is TS-CAM with mm(F)."""
    strength: Positive = 1.0
    """First value of lambda: released code."""
    threshold: Positive = 0.5
    """First value of beta: released code."""


def grid_laplacian(height: int, width: int, device: torch.device) -> Float[Tensor, "n n"]:
    """Return L_0 of a grid of patches, row by row, eq. (1). Rows and columns add up to 0."""
    chains = []
    for side in (height, width):
        ones = torch.ones(side - 1, device=device)
        chains.append(torch.diag(ones, 1) + torch.diag(ones, -1))  # neighbours on a line
    rows, columns = (torch.eye(side, device=device) for side in (height, width))
    neighbours = torch.kron(chains[0], columns) + torch.kron(rows, chains[1])  # A
    return torch.diag(neighbours.sum(dim=1)) - neighbours  # (1)


def patch_similarity(scores: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n n"]:
    """Return E, the cosines between the score vectors of all patches, eq. (2)."""
    vectors = F.normalize(scores.flatten(2), dim=1)
    return vectors.mT @ vectors  # (2)


def newton_schulz(matrix: Float[Tensor, "b n n"], steps: int) -> Float[Tensor, "b n n"]:
    """Return R, eq. (4), for the matrix L."""
    twice = 2 * torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    found = START * matrix.detach().mT
    for _ in range(steps):
        found = found @ (twice - matrix @ found)
    return found.mT  # (4)


def diffuse(
    diffusion: Float[Tensor, "b n n"], flow: Float[Tensor, "b h w"], threshold: Float[Tensor, " 1"]
) -> Float[Tensor, "b h w"]:
    """Return F' in [0, 1], eq. (5). It is 0 if F is."""
    spread = (diffusion @ flow.flatten(1)[..., None])[..., 0]
    highest = flow.flatten(1).amax(dim=1, keepdim=True)
    shrunk = F.tanhshrink(spread / (threshold * highest).clamp(min=TINY))
    return min_max(shrunk.reshape(flow.shape))  # (5)


class Calibration(nn.Module):
    """A module with its lambda and beta, eqs. (1) to (6). It runs in float32."""

    def __init__(self, steps: int, strength: float, threshold: float) -> None:
        super().__init__()
        self.steps = steps
        self.strength, self.threshold = (
            nn.Parameter(torch.tensor([value])) for value in (strength, threshold)
        )

    def forward(
        self, scores: Float[Tensor, "b c h w"], flow: Float[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h w"]]:
        """Return the next S and F."""
        with torch.autocast(scores.device.type, enabled=False):
            scores, flow = scores.float(), flow.float()
            height, width = flow.shape[1:]
            laplacian = grid_laplacian(height, width, flow.device)
            weighted = laplacian * (self.strength * patch_similarity(scores) - 1)  # (3)
            more = diffuse(newton_schulz(weighted, self.steps), flow, self.threshold)
            return scores + scores * more[:, None], flow + more  # (6)


class Scm(TokenLocalizer):
    """See the module."""

    method_name = "scm"
    Config = ScmConfig
    config: ScmConfig
    recipes = MappingProxyType({name: TOKEN_RECIPES[name] for name in ("scm_cub", "scm_ilsvrc")})

    def __init__(self, backbone: Backbone, num_classes: int, config: ScmConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.head = TokenHead(backbone.channels[-1], num_classes)
        self.calibrations = nn.ModuleList(
            Calibration(steps, config.strength, config.threshold) for steps in config.iterations
        )

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits and maps without the modules, eq. (8)."""
        stages, attention = read_attention(self.backbone, images)
        head, flow = self.head(stages["patches"]), min_max(sum_attention(attention))
        return ForwardPass(
            logits=head.logits,
            maps_of=lambda class_ids: flow * head.maps_of(class_ids),  # (8)
            stages=stages,
            penultimate=head.penultimate,
            extra_maps={"attention": flow[:, 0]},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy behind the modules, eq. (7)."""
        stages, attention = read_attention(self.backbone, batch.images)
        scores = self.head.classifier(stages["patches"])
        flow = min_max(sum_attention(attention))[:, 0]
        for calibration in self.calibrations:
            scores, flow = calibration(scores, flow)
        return {"cross_entropy": cross_entropy(scores.mean(dim=(2, 3)), batch.labels)}  # (7)
