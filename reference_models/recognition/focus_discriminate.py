"""Focus and Discriminate: classify the image with its strongest crops.

Z. Feng, K. Fu, Q. Zhao, "Learning to focus and discriminate for fine-grained classification", ICIP 2019.
There is no released code; equations (1) and (2) have the paper's numbers, the others those of this file.

Idea. The weights of a linear classifier on pooled features give class scores for each cell of the grid. A
cell with a high score for any class deserves a closer look. A square around it is cropped, enlarged, and
classified by the same network. One classifier learns from the image, one from every region alone, and a third
one from the image and its best regions together. The third one gives the prediction. All losses are
cross-entropies.

    paper      name                                    shape
    I          images                                  (B, 3, S, S)
    Z          features, the last stage                (B, n, h, w)
    F^I        whole                                   (B, n)
    W          image_classifier.weight                 (C, n)          no bias
    S_k        image_classifier(whole)                 (B, C)
    M_k        maps_of(class_ids)                      (B, K, h, w)
    M          extra_maps: M_raw; M when smoothed      (B, h, w)
    m, l       config.proposals, config.parts
    F^R_r      region_features(images, boxes)          (B, m, n)       the same network, its batch norm
                                                                       included
    F          hybrid_features(whole, parts)           (B, (l + 1) n)

    (1)  S_k = sum_i W_ki F^I_i
    (2)  M = max over k of M_k, cell by cell, with M_k = sum_i W_ki Z_i; then smoothed
    (3)  L = CE(S, y) + 1/m sum_r CE(region_classifier(F^R_r), y) + CE(hybrid_classifier(F), y)

Regions. Each cell has a square around its centre, whose score is M there. Of those that overlap by more than
`nms` the better one is kept. In training m of them are classified, at test the l that the hybrid classifier
needs. No gradient goes through the selection, and crops have the pixels of the input. Image and regions pass
the network one after the other. In training each has the statistics of its own batch. At test both have the
running ones, which they share, unless `norm_statistics=per_input`.

Rows of the paper's ablation: `hybrid=false` (image level only), `class_pool=single` (without max-pooling),
the defaults. Control: `class_pool=random`, as many regions of the same size anywhere in the image. The plain
network with this recipe is `baseline` with `recipe=fnd`. The paper's results are at 448 pixels, the default
on ResNet-50.

Open readings
    (2)        The paper gives no values for the smoothing: sigma 1 in 5x5 cells, with repeated borders.
               Scores of classes are compared as they are, although nothing makes them comparable.
    single     The true class in training, in evaluation the one that the image classifier predicts, as the
               paper says of others.
    Regions    The paper gives the size of one square and takes the rest from region proposal networks. Here
               there is one size, and squares at the border are moved into the image (`region_fit`). Sizes are
               scaled by S / 448.
    Ties       96 pixels apart, two squares of 160 overlap by exactly 0.25, and both stay (`nms_rule`).
    (3)        "Softmax losses" without weights: 1 each, the mean over the regions.
    Image      Image-level scores have no part in the prediction, but M needs their weights at test. (The
               paper says that image-level classification is used in training only.)
    Recipe     Batch 16, the crop 448 of 600 and the flip are NTS-Net's; momentum is Nesterov's, as in every
               recipe here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.norm_statistics import PartInputConfig, PartStatistics
from reference_models.layers.regions import CropMode, NmsRule, RegionFit, crop_resize, peak_regions, smooth
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Positive, Share, SideOrDefault, Sigma

PAPER = "focus-discriminate"

PAPER_SIZE = 448
"""Side of the paper's input, to which its sizes in pixels refer."""
KERNEL = 5
"""Side of the smoothing kernel in cells."""


@dataclass(frozen=True, kw_only=True)
class FocusDiscriminateConfig(PartInputConfig):
    """Settings of `focus-discriminate`. If no source is named, the paper does not give the value."""

    proposals: Channels = 6
    """m, regions of an image that are classified in training: the paper, as NTS-Net. 0: none."""
    parts: Channels = 4
    """l, the best of them, which the hybrid classifier uses: the paper, as NTS-Net."""
    class_pool: Literal["max", "single", "random"] = "max"
    """M: the maximum over all classes (the paper), or the map of one class.

    One class is the paper's ablation "without max-pooling". `random`, a control: noise, so that regions are
    anywhere in the image. At test it is the same for all images.
    """
    hybrid: bool = True
    """False: no hybrid classifier, the image classifier predicts.

    This is the paper's ablation "image level only". Regions are still trained on.
    """
    sigma: Sigma = 1.0
    """Sigma of the smoothing, in cells. 0: no smoothing."""
    region_side: Positive = 160.0
    """Side of a region at an input of 448: the paper."""
    part_size: SideOrDefault = 0
    """Side to which regions are enlarged. 0: half of the input, 224 of 448 in the paper."""
    region_fit: RegionFit = "shift"
    """Regions that reach beyond the image: moved into it, or padded with the mean colour (`pad`)."""
    nms: Share = 0.25
    """IoU above which the worse of two regions is dropped: the paper."""
    nms_rule: NmsRule = "gt"
    """Whether a region is also dropped at exactly this IoU (`ge`, NTS-Net's code)."""
    crop_mode: CropMode = "half_pixel"
    """Sampling of an enlarged region. `align_corners` is NTS-Net's code, which crops whole pixels."""
    region_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the losses of an image's regions. `sum` weighs them m times as much."""


def attention_map(
    features: Float[Tensor, "b n h w"], weight: Float[Tensor, "c n"], class_ids: Int[Tensor, " b"] | None
) -> Float[Tensor, "b h w"]:
    """Return M before it is smoothed, eq. (2), or with `class_ids` the map of one class per image.

    It is computed in float32, because half precision makes ties.
    """
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        z, w = features.float(), weight.float()
        if class_ids is None:
            return torch.einsum("kn,bnhw->bkhw", w, z).amax(dim=1)
        return class_activation_maps(z, w, class_ids[:, None])[:, 0]


def hybrid_features(whole: Float[Tensor, "b n"], parts: Float[Tensor, "b l n"]) -> Float[Tensor, "b d"]:
    """Return F: the image's features, then those of its regions, the best one first."""
    return torch.cat([whole[:, None], parts], dim=1).flatten(1)


def noise_map(
    features: Float[Tensor, "b n h w"], generator: torch.Generator | None
) -> Float[Tensor, "b h w"]:
    """Return M of the control: noise for each image, or without a generator the same for all images."""
    shape = (len(features), *features.shape[2:])
    if generator is not None:
        return torch.rand(shape, generator=generator, device=generator.device).to(features.device)
    fixed = torch.rand(shape[1:], generator=torch.Generator().manual_seed(0))
    return fixed.to(features.device).expand(shape)


class FocusDiscriminate(Recognizer):
    """See the module. `logits` are those of the hybrid classifier.

    `penultimate` and `maps_of` are those of the image classifier.
    """

    method_name = "focus-discriminate"
    Config = FocusDiscriminateConfig
    config: FocusDiscriminateConfig
    recipes = MappingProxyType({"fnd": FINE_GRAINED["fnd"]})

    def __init__(self, backbone: Backbone, num_classes: int, config: FocusDiscriminateConfig) -> None:
        _check(config, (backbone.input_spec.size // backbone.layout[-1].stride) ** 2)
        super().__init__(backbone, num_classes, config)
        width = backbone.channels[-1]
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.image_classifier = _linear(width, num_classes, bias=False)
        self.region_classifier = _linear(width, num_classes) if config.proposals > 0 else None
        self.hybrid_classifier = _linear((config.parts + 1) * width, num_classes) if config.hybrid else None

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the paper's recipe."""
        return "fnd"

    def regions(
        self, focus: Float[Tensor, "b h w"], images: Float[Tensor, "b 3 H W"], count: int
    ) -> Proposals:
        """Return the `count` best regions of smoothed maps."""
        size, config = images.shape[-1], self.config
        side = config.region_side * size / PAPER_SIZE
        return peak_regions(
            focus, size, side=side, k=count, iou=config.nms, rule=config.nms_rule, fit=config.region_fit
        )

    def region_features(
        self, images: Float[Tensor, "b 3 H W"], boxes: Float[Tensor, "b k 4"]
    ) -> Float[Tensor, "b k n"]:
        """Return F^R, the pooled features of each region."""
        if boxes.shape[1] == 0:
            return images.new_zeros(len(boxes), 0, self.backbone.channels[-1])
        crops = crop_resize(
            images, boxes, self.config.part_size or images.shape[-1] // 2, self.config.crop_mode
        )
        with self.part_statistics.in_use(self.backbone):
            return self.backbone.run(crops).mean(dim=(2, 3)).view(*boxes.shape[:2], -1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return scores of the hybrid classifier, maps of the image classifier, and the l best regions.

        Without the hybrid classifier, the scores are those of the image classifier.
        """
        # Image level: logits, and M on the grid (B, h, w).
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        whole = features.mean(dim=(2, 3))
        logits, weight = self.image_classifier(whole), self.image_classifier.weight
        if self.config.class_pool == "random":
            raw = noise_map(features, None)
        else:
            raw = attention_map(
                features, weight, logits.argmax(dim=1) if self.config.class_pool == "single" else None
            )
        focus = smooth(raw, sigma=self.config.sigma, size=KERNEL)
        # Regions (B, l, 4), and the hybrid classifier.
        regions = self.regions(focus, images, self.config.parts)
        if self.hybrid_classifier is not None:
            logits = self.hybrid_classifier(
                hybrid_features(whole, self.region_features(images, regions.boxes))
            )
        return ForwardPass(
            logits=logits,
            maps_of=lambda class_ids: class_activation_maps(features, weight, class_ids),
            stages=stages,
            penultimate=features,
            propose=lambda: regions,
            extra_maps={"M": focus, "M_raw": raw},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropies of image, regions and hybrid, eq. (3)."""
        config, images, labels = self.config, batch.images, batch.labels
        features = self.backbone.run(images)
        whole = features.mean(dim=(2, 3))
        terms = {"image": cross_entropy(self.image_classifier(whole), labels)}
        if config.class_pool == "random":
            raw = noise_map(features, batch.generator)
        else:
            raw = attention_map(
                features, self.image_classifier.weight, labels if config.class_pool == "single" else None
            )
        focus = smooth(raw, sigma=config.sigma, size=KERNEL)
        parts = self.region_features(images, self.regions(focus, images, config.proposals).boxes)
        if self.region_classifier is not None:
            regions = cross_entropy(
                self.region_classifier(parts.flatten(0, 1)), labels.repeat_interleave(config.proposals)
            )
            terms["region"] = regions * (config.proposals if config.region_reduction == "sum" else 1)
        if self.hybrid_classifier is not None:
            hybrid = self.hybrid_classifier(hybrid_features(whole, parts[:, : config.parts]))
            terms["hybrid"] = cross_entropy(hybrid, labels)
        return terms


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=0.01)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _check(config: FocusDiscriminateConfig, cells: int) -> None:
    """Raise `UsageError` on settings that are invalid for a grid of `cells` cells."""
    who = "of method 'focus-discriminate'"
    if not 0 <= config.parts <= config.proposals:
        raise UsageError(
            f"settings proposals={config.proposals} and parts={config.parts} {who}: "
            "expected numbers that are not negative, the second at most the first"
        )
    if config.proposals > cells:
        raise UsageError(
            f"setting proposals={config.proposals} {who}: the grid has only {cells} cells, one for each "
            "region; "
            "use a larger image, another grid or fewer regions"
        )
    if not 0 < config.region_side <= PAPER_SIZE:
        raise UsageError(
            f"setting region_side={config.region_side} {who}: expected pixels of an image of {PAPER_SIZE}"
        )
    if config.part_size < 0 or config.part_size == 1:
        raise UsageError(
            f"setting part_size={config.part_size} {who}: expected at least 2 pixels, or 0: half of the image"
        )
    if not 0 <= config.nms <= 1:
        raise UsageError(f"setting nms={config.nms} {who}: expected a number from 0 to 1")
    if not 0 <= config.sigma < float("inf"):
        raise UsageError(
            f"setting sigma={config.sigma} {who}: expected a number of cells, or 0: not smoothed"
        )
