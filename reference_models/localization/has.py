"""Hide-and-Seek: train CAM on images with randomly hidden patches.

K. K. Singh, Y. J. Lee, "Hide-and-Seek: Forcing a network to be meticulous for weakly-supervised object and
action localization", ICCV 2017. Written from the re-implementation in clovaai/wsolevaluation, and from the
description in S. Babar, S. Das, "Where to look?: Mining complementary image regions for weakly supervised
object localization", WACV 2021.

Idea. If the most discriminative part is hidden, the network has to find the class in the other parts. Since
patches are hidden at random, each part is sometimes the best visible one. At test the whole image is shown.

    paper      name                                    shape
    I          batch.images                            (B, 3, H, W)
    s          one of config.patch, scaled             side of a patch in pixels
    p          config.p                                probability that a patch is hidden
    mu         config.fill                             value of hidden pixels
    M_c        maps_of(class_ids)                      (B, K, h, w), the map of CAM

    (1)  I'(x) = mu where the patch of x is hidden, else I(x)
    (2)  L = CE(S(I'), y)

The patches are drawn in `layers/hide_patches.py`. Sides are pixels of a 224 x 224 image. At another size they
are scaled by size / 224 and rounded, so that an image has the same number of patches.

Departures from the paper. Head and recipe are those of `cam`. Equations are numbered here, not in the paper.
Departures from released code. wsolevaluation's default side is 4 pixels (`--set patch=4`), and it searched
one for each backbone and data set.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from reference_models.layers.heads import cross_entropy
from reference_models.layers.hide_patches import Fill, check_patches, fill_hidden, hidden_pixels, scaled_sides
from wsolbench.ranges import Share

PAPER = "has"


@dataclass(frozen=True, kw_only=True)
class HasConfig(HeadConfig):
    """Settings of `has`."""

    patch: tuple[int, ...] = (32,)
    """Sides of a patch at an input of 224. One of them is drawn for each image; 0 shows it whole.

    32 is HaS-32. The paper's others are 16, 44, 56, and `0,16,32,44,56` for its mix, which WACV 2021 says
    contains whole images.
    """
    p: Share = 0.5
    """Probability that a patch is hidden: 0.5 in the paper and wsolevaluation."""
    fill: Fill = "mean"
    """Value of hidden pixels: `mean` (paper, wsolevaluation) or `black`.

    The mean is that of the data set the backbone was trained on.
    """


class Has(HeadLocalizer):
    """See the module. Network and maps are those of `head_localizer.py`."""

    method_name = "has"
    Config = HasConfig
    config: HasConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: HasConfig) -> None:
        super().__init__(backbone, num_classes, config)
        check_patches(self.method_name, config.patch, config.p, smallest=0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of images with hidden patches."""
        sides = scaled_sides(self.config.patch, batch.images.shape[-1])
        hidden = hidden_pixels(batch.images, sides, self.config.p, batch.generator)
        images = fill_hidden(batch.images, hidden, self.config.fill, self.input_spec)  # (1)
        return {"cross_entropy": cross_entropy(self(images).logits, batch.labels)}  # (2)
