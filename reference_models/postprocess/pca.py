"""PCA: the strongest direction in which the features of an image vary.

M. Oquab et al., "DINOv2: Learning robust visual features without supervision", TMLR 2024, shows such maps of
patch features. Their use as object maps goes back to X.-S. Wei, C.-L. Zhang, J. Wu, C. Shen, Z.-H. Zhou,
"Unsupervised object discovery and co-localization by deep descriptor transforming", Pattern Recognition 2019,
which takes the direction of a set of images.

Idea. In good features the strongest direction of variation inside an image is object against background. The
map is each pixel's coordinate along it. No class, no map of the method and no training is needed.

    symbol    name            shape
    F         features        (B, D, N)     N = h w
    X         rows            (B, D, N)     centred
    v         -               (B, D)        first principal direction of the pixels
    p         pattern         (B, N)

    (1)  X = F - mean of F over the pixels
    (2)  p = v^T X, v the first left singular vector of X

The sign of v is arbitrary, so a rule gives p its sign (`polarity`). Without one, a map is as often the
background as the object. `border`: objects touch the image's border less than the background does. `largest`:
the object is smaller, hence further from the mean. `cam`: the method's own map says where the object is.

The map is p. It is 0 where v is arbitrary: where the features are equal up to rounding, or the two largest
singular values are equal.

Departures. The direction is that of one image, as in the pictures of DINOv2, not of all images of a class.
The papers threshold p at 0 and leave its sign to the reader or to the set of images; here the protocol
chooses the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.correlation import FeatureName, apply_in_chunks, select_features
from reference_models.layers.principal import Polarity, check_grid, orient, principal_pattern
from wsolbench.methods import Localization

PAPER = "dinov2"


@dataclass(frozen=True, kw_only=True)
class PcaConfig(PostConfig):
    """Settings of `pca`."""

    features: FeatureName = "-1"
    """Features; DINOv2: the normalised patches, which are the last stage if the backbone has tokens."""
    polarity: Polarity = "border"
    """Rule for the sign; this project's, see the module."""


def pixel_pattern(features: Float[Tensor, "b d n"]) -> Float[Tensor, "b n"]:
    """Return p, eqs. (1) and (2), in float64 and with any sign."""
    vectors = features.double()
    rows = vectors - vectors.mean(dim=2, keepdim=True)  # (1)
    return principal_pattern(rows, vectors.square().sum(dim=(1, 2)))  # (2)


class Pca(PostProcess):
    """See the module."""

    method_name = "pca"
    Config = PcaConfig
    map_kind = "signed"
    config: PcaConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the features.

        They are equal for all classes unless `polarity=cam`.

        Raises `UsageError` for `polarity=border` on a grid without inner cells.
        """
        (features,) = select_features(result, (self.config.features,), who=self.method_name)
        height, width = features.shape[2:]
        check_grid(height, width, self.config.polarity, who=self.method_name)
        cells, smaller = height * width, min(features.shape[1], height * width)
        floats = 3 * smaller**2 + 3 * cells * features.shape[1]

        def compute(some: Tensor) -> Tensor:
            return pixel_pattern(some.flatten(2)).reshape(len(some), 1, height, width)

        pattern = apply_in_chunks(compute, [features], bytes_per_image=8 * floats)
        coarse = result.score_maps(class_ids) if self.config.polarity == "cam" else None
        pattern = pattern.expand(-1, class_ids.shape[1], -1, -1)
        return orient(pattern, self.config.polarity, coarse).float()
