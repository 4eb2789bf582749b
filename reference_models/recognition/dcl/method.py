"""DCL: learn from images whose patches are shuffled locally.

Y. Chen, Y. Bai, W. Zhang, T. Mei, "Destruction and construction learning for fine-grained image recognition",
CVPR 2019; equations have the paper's numbers. Released code: JDAI-CV/DCL.

Idea. Each image is also shown with its patches shuffled locally (region confusion), so that the classifier
has to find the class without the global shape. Two auxiliary tasks accompany it. One head tells shuffled
images from whole ones. The other one predicts where each patch came from. At test only the classifier is
left, so the network is that of the baseline. "Adversarial" is only a name: all losses are minimised together.

    paper       name                            shape
    I           images                          (B, 3, S, S)
    phi(I)      shuffled                        (B, 3, S, S)
    sigma       source                          (B, N, N)       row * N + column of the patch that lies there;
                                                                N = 7
    q           keys                            (B, N, N)
    f           features, their mean: pooled    (B, D, h, w), (B, D)
    C           classifier                      (Y, D)          no bias (released code)
    D           swap_classifier                 (2, D)          no bias (released code)
    M           place_head                      (B, 2, N, N)

    (1)  q_ji = i + r, r uniform in (-k, k); row j of patches is sorted by q_j
    (2)  the same for columns
    (3)  sigma(i, j) = (sigma_row(i), sigma_col(j))
    (4)  L_cls = CE(C f(I), l) + CE(C f(phi(I)), l)
    (6)  L_adv = CE(D f, whole or shuffled), with D of (5)
    (8)  M = mean over N x N cells of relu(1x1 convolution of f)
    (9)  L_loc = sum over i, j of |M_ij(I) - (i, j)|_1 + |M_sigma(i,j)(phi(I)) - (i, j)|_1
    (10) L = L_cls + beta L_adv + gamma L_loc

Printed permutation. In (3) as it is printed, each patch draws its row order and its column order from its own
column and row. That is no permutation: patches get lost and others appear twice. Here the rows are sorted
first, and then the columns of the result. Both steps are permutations, so their composition is one. A patch
moves by less than 2 k places along each axis (docs/decisions/recognizers_that_look_for_parts.md).

Views. Whole and shuffled images pass the network as one batch of 2 B, as in the released code. Losses are
means over these 2 B views, which halves (4), (6) and (9) alike. An epoch shows every image twice, so a step
costs two of the baseline's. With `norm_statistics=per_input` the views pass one after the other, and shuffled
ones have running statistics of their own.

Maps. The class map is that of the classifier: its mean is the score. The method proposes no regions.

Variants. `official` is the released code, by the command of its README.
    shuffle     10 of 448 pixels are cut off at each side, so the grid moves. Patches are exchanged with their
                predecessor, by chance, one after the other; then whole rows are. A patch can move up to N - 1
                places to the right and down, and only one back.
    swap head   2 Y ways: the class, whole or shuffled. At test both are added to the classifier's logits.
    places      One channel and tanh in place of (8). The target is (index - 24) / 49.
    labels      The source of a patch is guessed by its mean colour, by the nearest patch of the whole image.
                Most of these labels are wrong, because the grid has moved.
Here all patches have the same number of pixels (the code resamples those of 62 pixels to 61). The result is
enlarged by repeating pixels, as with Pillow 5.1, which the code names.

Controls: `swap_weight=0`, `place_weight=0`, or both. With `neighbourhood=0` as well, nothing is shuffled.
Then both views are the same image, and their gradient is that of one: the baseline with twice the
computation, except for the bias and the initial weights of its classifier.

Measured. On generated birds, the accuracy after 12 epochs is 60.5 (one seed). The baseline has 62.8 and 70.3
in two trainings with this seed, so nothing is decided. Reasons why no gain can be expected there are in
docs/decisions/recognizers_that_look_for_parts.md. The place loss falls from 0.24, that of a guess, to 0.11.
That is no reconstruction: the place of each cell itself, without a look at the image, has 0.047.

Open readings
    k          2. The paper's value is not verified; the released code exchanges neighbours.
    (9)        Places are (i, j) / N, in (0, 1], and the loss is a mean over places and coordinates. The
               printed sum, in units of cells, is `loc_reduction=sum`: 2 N^3 times as much, 686 for N = 7.
    (8)        The initial bias is the mean of the targets, so that no ReLU is dead at the start.
    S          If N does not divide S, the pixels outside the central N floor(S / N) stay in place.
    recipe     Rate, batch, sizes and rotation are those of the released code, and 180 epochs those of
               Hawkeye. The released command has 360 (`dcl_official`, whose loop ends one epoch earlier).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.cells import pool_cells
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.norm_statistics import PartInputConfig, PartStatistics
from reference_models.recognition.dcl.region_confusion import (
    border_of,
    colour_source,
    draw_keys,
    exchanged_source,
    move_patches,
    move_patches_as_released,
    sorted_source,
)
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Range, Weight

PAPER = "dcl"


@dataclass(frozen=True, kw_only=True)
class DclConfig(PartInputConfig):
    """Settings of `dcl`. If no source is named, the paper does not give the value."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": MappingProxyType({}),
            "official": MappingProxyType(
                {
                    "shuffle": "released",
                    "swap_head": "classes",
                    "places": "index",
                    "place_labels": "colour",
                }
            ),
        }
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: as the released code runs, with its recipe on ResNet-50."""
    cells: Annotated[int, Range(1, 64)] = 7
    """N, patches along a side: the paper.

    A grid of features with fewer cells cannot tell all places apart.
    """
    neighbourhood: Annotated[float, Range(0, 64)] = 2.0
    """k of (1). 0: nothing is shuffled. `shuffle=released` does not use it."""
    swap_weight: Weight = 1.0
    """beta: released code. 0: no swap head."""
    place_weight: Weight = 1.0
    """gamma: released code on CUB. It has 0.01 on Cars and Aircraft. 0: no location head."""
    shuffle: Literal["sorted", "released"] = "sorted"
    """Rows, then columns, sorted by their keys; or the exchanges of the released code."""
    swap_head: Literal["views", "classes"] = "views"
    """Classes of D: whole and shuffled; or each class whole and shuffled, also used at test (released)."""
    places: Literal["coordinates", "index"] = "coordinates"
    """Output of M: row and column (8); or one index (released code)."""
    place_labels: Literal["true", "colour"] = "true"
    """Source of a patch: where it was taken from; or a guess by its mean colour (released code)."""
    loc_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of (9): the mean with places in (0, 1]; or the printed sum in units of cells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.places == "index" and self.loc_reduction == "sum":
            raise UsageError(
                "settings places=index and loc_reduction=sum of method 'dcl': the sum is defined for "
                "coordinates in units of cells; use loc_reduction=mean or places=coordinates"
            )


# --- the location head --------------------------------------------------------------------------------------


def place_targets(
    source: Int[Tensor, "b n n"], places: Literal["coordinates", "index"], *, in_cells: bool = False
) -> Float[Tensor, "b d n n"]:
    """Return the targets of M: row and column in (0, 1] or in cells from 1, or the index of the code."""
    cells = source.shape[2]
    if places == "index":
        return (source[:, None] - cells**2 // 2) / cells**2
    both = torch.stack([source // cells, source % cells], dim=1) + 1
    return both.float() if in_cells else both / cells


def place_loss(
    found: Float[Tensor, "b d n n"], targets: Float[Tensor, "b d n n"], reduction: Literal["mean", "sum"]
) -> Float[Tensor, ""]:
    """Return L_loc of (9) for views whose patches have these targets, the mean over the views."""
    error = (found - targets).abs()
    return error.mean() if reduction == "mean" else error.sum(dim=(1, 2, 3)).mean()


class PlaceHead(nn.Module):
    """M: the predicted places of all patches, eq. (8), or the released code's indices."""

    def __init__(self, channels: int, config: DclConfig) -> None:
        super().__init__()
        self.cells, self.places = config.cells, config.places
        self.conv = nn.Conv2d(channels, 2 if config.places == "coordinates" else 1, 1)
        if config.places == "coordinates":
            middle = (config.cells + 1) / 2 / (1 if config.loc_reduction == "sum" else config.cells)
            nn.init.normal_(self.conv.weight, std=0.01)
            nn.init.constant_(self.conv.bias, middle)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d n n"]:
        """Return M."""
        values = self.conv(features)
        if self.places == "index":
            return pool_cells(values, self.cells).tanh()
        return pool_cells(values.relu(), self.cells)


class Dcl(Recognizer):
    """See the module."""

    method_name = "dcl"
    Config = DclConfig
    config: DclConfig
    recipes = MappingProxyType({name: FINE_GRAINED[name] for name in ("dcl", "dcl_official")})
    official_recipes = MappingProxyType({"dcl": "dcl_official"})

    def __init__(self, backbone: Backbone, num_classes: int, config: DclConfig) -> None:
        _check(config, backbone.input_spec.size)
        super().__init__(backbone, num_classes, config)
        width = backbone.channels[-1]
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.classifier = _linear(width, num_classes)
        ways = 2 * num_classes if config.swap_head == "classes" else 2
        self.swap_classifier = _linear(width, ways) if config.swap_weight > 0 else None
        self.place_head = PlaceHead(width, config) if config.place_weight > 0 else None

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the paper's recipe."""
        return "dcl"

    def test_weight(self) -> Float[Tensor, "y d"]:
        """Return the weights of the logits: C, or C and both halves of D if it knows the classes."""
        weight = self.classifier.weight
        if self.swap_classifier is None or self.config.swap_head == "views":
            return weight
        whole, shuffled = self.swap_classifier.weight.chunk(2)
        return weight + whole + shuffled

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the logits of the classifier and its class maps."""
        stages = self.backbone.stages(images)
        features, weight = next(reversed(stages.values())), self.test_weight()
        return ForwardPass(
            logits=F.linear(features.mean(dim=(2, 3)), weight),
            maps_of=lambda class_ids: class_activation_maps(features, weight, class_ids),
            stages=stages,
            penultimate=features,
        )

    def draw_source(self, count: int, generator: torch.Generator) -> Int[Tensor, "b n n"]:
        """Draw sigma for each image."""
        cells = self.config.cells
        if self.config.shuffle == "sorted":
            return sorted_source(
                *(draw_keys(count, cells, float(self.config.neighbourhood), generator) for _ in range(2))
            )
        shape = (count, cells + 1, cells)
        coins = torch.rand(shape, generator=generator, device=generator.device) < 0.5
        return exchanged_source(coins[:, :cells], coins[:, cells])

    def read_views(
        self, images: Float[Tensor, "b 3 H W"], shuffled: Float[Tensor, "b 3 H W"]
    ) -> Float[Tensor, "v d h w"]:
        """Return the features of whole and then of shuffled images."""
        if self.config.norm_statistics == "shared":
            return self.backbone.run(torch.cat([images, shuffled]))
        whole = self.backbone.run(images)
        with self.part_statistics.in_use(self.backbone):
            return torch.cat([whole, self.backbone.run(shuffled)])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_cls, and the weighted L_adv and L_loc, eq. (10)."""
        config, images, count = self.config, batch.images, len(batch.images)
        # Destruction: shuffled images, and the patch that lies at each place.
        with torch.no_grad():
            source = self.draw_source(count, batch.generator)
            move = move_patches if config.shuffle == "sorted" else move_patches_as_released
            shuffled = move(images, source)
            if config.place_labels == "colour":
                source = colour_source(images, shuffled, config.cells, self.input_spec)
        features = self.read_views(images, shuffled)
        pooled = features.mean(dim=(2, 3))
        # (4) and (6) over both views.
        labels = batch.labels.repeat(2)
        terms = {"cross_entropy": cross_entropy(self.classifier(pooled), labels)}
        if self.swap_classifier is not None:
            view = (torch.arange(2 * count, device=images.device) >= count).long()
            target = view if config.swap_head == "views" else labels + self.num_classes * view
            terms["swap"] = config.swap_weight * cross_entropy(self.swap_classifier(pooled), target)
        # Construction (9), in float32.
        if self.place_head is not None:
            with torch.autocast(images.device.type, enabled=False):
                own = torch.arange(config.cells**2, device=images.device).view(1, config.cells, -1)
                both = torch.cat([own.expand_as(source), source])
                targets = place_targets(both, config.places, in_cells=config.loc_reduction == "sum")
                found = self.place_head(features.float())
                terms["place"] = config.place_weight * place_loss(found, targets, config.loc_reduction)
        return terms


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.01)
    return layer


def _check(config: DclConfig, size: int) -> None:
    """Raise `UsageError` if a patch has no pixel."""
    most = size - (2 * border_of(size) if config.shuffle == "released" else 0)
    if config.cells > most:
        raise UsageError(
            f"setting cells of method 'dcl' is {config.cells}, but images have {most} pixels along a side to "
            f"be shuffled; expected at most {most}; use fewer cells or larger images"
        )
