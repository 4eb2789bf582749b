"""Mask R-CNN with LIO's auxiliary loss on the layout of each region.

M. Zhou, Y. Bai, W. Zhang, T. Zhao, T. Mei, "Look-into-Object: Self-supervised structure modeling for object
recognition", CVPR 2020, sections 3.2 and 4.3; equations have the paper's numbers. Released code: JDAI-CV/LIO
(on mmdetection). K. He, G. Gkioxari, P. Dollár, R. Girshick, "Mask R-CNN", ICCV 2017; here torchvision's.

Idea. A region of interest is an image of one object, so spatial-context learning (SCL, `layers/polar.py`)
applies to its 7x7 features: each cell has to predict its position relative to the strongest one. There is no
object-extent learning, because the region is the extent. The head is used in training only; detection does
not depend on it.

    paper           name                        shape
    f               features of the tap         (R, C, 7, 7)    all sampled regions of a batch, objects and
                                                                background
    h               SpatialContext.structure    (R, D, 7, 7)    D = structure_dim
    L_dis, L_ang    Context.distance, .angle    (R,)            (7), (8) with equal weights

    (9)   L_scl = mean over regions of L_dis + L_ang
    (10)  L = losses of Mask R-CNN + scl_weight L_scl

Backbones
    tiny                  The small network of this project, stride 8, narrow heads; C = 64. For generated
                          data, minutes on a CPU.
    resnet50_c4           conv1 to layer3, RoIAlign 14x14, layer4 as head of boxes and masks; C = 2048. The
                          paper's basic baseline.
    resnet50_fpn          Feature pyramid, RoIAlign 7x7, C = 256; the network of torchvision's COCO weights.
                          Not in the paper.
    resnext101_32x8d_fpn  As resnet50_fpn; the paper's has 32x4d, for which torchvision has no weights.

`scl_weight=0` is torchvision's Mask R-CNN. `variant=official` (default) has the form of the released
detection code: plain squares, all regions, reference where h is strongest, 128 channels, a ReLU before SCL,
because features of pyramids can be negative. `variant=paper` has (5), (7), (8) as printed, and no such ReLU.

Departures from the paper's setting (mmdetection). Smooth L1 of boxes has torchvision's beta (1/9, there 1).
Bottlenecks stride in the 3x3 convolution, as torchvision's weights require. The RPN is as wide as its
features. Images of a batch are not grouped by shape. The paper's ResNeXt starts from a Mask R-CNN trained on
COCO: `weights=PATH` of a run with `scl_weight=0`. The released detection code has the conventions of its
classification code: `gamma_norm`, `axis`, `ref_cell`, `head_relu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from reference_models.base.detector import Detector
from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.weights import IMAGENET, Weights, drop_prefixes, load_strictly, read_weights
from reference_models.detection.lio_mask_rcnn.networks import (
    BACKBONES,
    build,
    freeze_stem,
    load_classifier,
    load_coco_weights,
    load_imagenet,
    region_features,
)
from reference_models.layers.polar import Axis, GammaNorm, PolarConfig, SpatialContext
from reference_models.training.checkpoint import read_header, read_header_of
from wsolbench.exceptions import DataError, UsageError
from wsolbench.ranges import Channels, Side, Weight

PAPER = "lio"

COCO = "coco"
SCL = "roi_heads.scl."


@dataclass(frozen=True, kw_only=True)
class LioMaskRcnnConfig(PolarConfig):
    """Settings of `lio-mask-rcnn`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "official": MappingProxyType({}),
            "paper": MappingProxyType(
                {
                    "scl_form": "paper",
                    "gamma_norm": "diagonal",
                    "axis": "column",
                    "ref_cell": "excluded",
                    "head_relu": False,
                }
            ),
        }
    )

    variant: Literal["official", "paper"] = "official"
    """`official`: the released code's form of SCL; `paper`: equations as printed."""
    scl_form: Literal["paper", "official"] = "official"
    """As for `lio`."""
    gamma_norm: GammaNorm = "side"
    """As for `lio`."""
    axis: Axis = "row"
    """As for `lio`."""
    ref_cell: Literal["excluded", "forced"] = "forced"
    """As for `lio`."""
    head_relu: bool = True
    """Whether f passes a ReLU before SCL (released code).

    It affects only features that can be negative: those of feature pyramids.
    """
    recipe: str = "default"
    """Name of the training recipe. `default`: `tiny` for the backbone tiny, else `lio_coco`."""
    scl_weight: Weight = 0.1
    """Weight of L_scl: 0.1 in the paper and in the released code. 0: plain Mask R-CNN."""
    structure_dim: Channels = 128
    """Channels of h: released code."""
    masks: bool = True
    """False: only boxes (Faster R-CNN), for data without masks."""
    min_size: Side | None = None
    """Length in pixels to which the shorter side is resized.

    None: 800 (default of mmdetection), tiny 128.
    """
    max_size: Side | None = None
    """Upper bound of the longer side. None: 1333 (default of mmdetection), tiny 213."""


class SclRoIHeads(RoIHeads):  # type: ignore[misc]
    """Torchvision's RoI heads with the term `loss_scl` in training. Evaluation does not change.

    Args:
        heads: the heads that torchvision has built.
        tap: the module in them whose output in the pass over sampled regions is f, (R, C, n, n).
        channels: C.
        config: settings.
    """

    def __init__(self, heads: RoIHeads, tap: nn.Module, channels: int, config: LioMaskRcnnConfig) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(heads))
        self.scl = SpatialContext(channels, config.structure_dim, config)
        self.enter = nn.ReLU() if config.head_relu else nn.Identity()
        self.scl_weight = config.scl_weight
        self.tap = (tap,)  # in a tuple, so that its parameters are not registered twice

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Run torchvision's heads, and add `loss_scl` in training."""
        seen: list[Tensor] = []
        hook = self.tap[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            found, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        if self.training:
            context = self.scl(self.enter(seen[0]))
            losses["loss_scl"] = self.scl_weight * (context.distance + context.angle).mean()  # (9)
        return found, losses


class LioMaskRcnn(Detector):
    """Mask R-CNN with SCL on its regions; see the module."""

    method_name = "lio-mask-rcnn"
    Config = LioMaskRcnnConfig
    backbones = BACKBONES
    recipes = MappingProxyType(
        {
            "lio_coco": DetectionRecipe(
                source="JDAI-CV/LIO, mmdetection's 1x schedule",
                epochs=12,
                batch_size=8,
                lr=0.01,
                milestones=(8 / 12, 11 / 12),
                warmup_steps=500,
                clip_norm=35.0,
            ),
            "tiny": DetectionRecipe(
                source=(
                    "this project: a small network from random weights on exported toybirds, minutes on "
                    "two cores"
                ),
                epochs=12,
                batch_size=8,
                lr=1e-3,
                optimizer="adamw",
                weight_decay=0.01,
                schedule="cosine",
                warmup_steps=100,
                clip_norm=5.0,
            ),
        }
    )
    config: LioMaskRcnnConfig

    def build(self) -> Any:
        """Build Mask R-CNN. Its RoI heads have SCL unless the weight of SCL is 0.

        SCL is built last, so that the other layers draw the same initial values without it.
        """
        config = self.config
        if config.scl_weight < 0 or config.structure_dim < 1:
            raise UsageError(
                f"scl_weight is {config.scl_weight}, structure_dim {config.structure_dim}; expected at "
                "least 0 and at least 1"
            )
        network = build(
            self.backbone, len(self.class_names) + 1, min_size=config.min_size, max_size=config.max_size
        )
        heads = network.roi_heads
        if not config.masks:
            heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
        if config.scl_weight > 0:
            network.roi_heads = SclRoIHeads(heads, *region_features(network), config)
        return network

    def start_from(self, weights: str) -> Weights:
        """Load pretrained weights.

        They are ImageNet's for the ResNets, `coco` for resnet50_fpn, or a checkpoint of this detector, except
        its SCL. The backbone tiny can also start from that of any method's checkpoint, a trained classifier.
        """
        if weights == IMAGENET:
            source = load_imagenet(self.network, self.backbone)
        elif weights == COCO:
            tensors, source = load_coco_weights(self.network, self.backbone, self.class_names)
            self._load(tensors, "torchvision's COCO weights")
        else:
            source = self._load_file(Path(weights))
        freeze_stem(self.network)
        return source

    @classmethod
    def recipe_name(cls, backbone: str) -> str:
        """Return `tiny` for the backbone tiny, else `lio_coco`."""
        return "tiny" if backbone == "tiny" else "lio_coco"

    @property
    def wants_masks(self) -> bool:
        """Whether masks are learned."""
        return self.config.masks

    def describe(self) -> dict[str, Any]:
        """Describe the detector for the record.

        `parameters` counts those used in detection. Without SCL the variant is `plain`.
        """
        count = sum(
            parameter.numel()
            for name, parameter in self.network.named_parameters()
            if not name.startswith(SCL)
        )
        return {
            **super().describe(),
            "parameters": count,
            **({} if self.config.scl_weight > 0 else {"variant": "plain"}),
        }

    def _load_file(self, path: Path) -> Weights:
        file = read_weights(path)
        tensors: Mapping[str, Tensor] = file.tensors
        if file.metadata is not None:
            if self.backbone == "tiny" and read_header(path)["method"] != self.method_name:
                return load_classifier(self.network, path)
            names = read_header_of(path, self.method_name)["class_names"]
            if tuple(names) != self.class_names:
                raise DataError(
                    f"checkpoint {path} has other classes ({len(names)}) than the data "
                    f"({len(self.class_names)})"
                )
            tensors = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        self._load(tensors, f"weights file {path}")
        return Weights(path.name, file.sha256)

    def _load(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Load all of the network except SCL, which keeps its new weights, and except unused mask heads."""
        unused = (SCL,) if self.config.masks else (SCL, "roi_heads.mask_")
        new = {name: tensor for name, tensor in self.network.state_dict().items() if name.startswith(SCL)}
        load_strictly(self.network, {**new, **drop_prefixes(tensors, *unused)}, what=what)
