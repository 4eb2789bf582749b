"""Mask R-CNN networks and their weights: torchvision's with a feature pyramid, and two more.

K. He, G. Gkioxari, P. Dollár, R. Girshick, "Mask R-CNN", ICCV 2017.

    tiny                    The backbone `tiny` at stride 8, one feature map, few regions, narrow heads.
    resnet50_c4             ResNet-50 cut after layer3 (stride 16); layer4 is the head of boxes and of masks,
                            which are 14x14.
    resnet50_fpn, resnext101_32x8d_fpn
                            Feature pyramids of 256 channels, as torchvision has them.

Batch normalisation of the ResNets is frozen: statistics and scale are those of the pretrained weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNeXt101_32X8D_Weights, resnet50
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from reference_models.core.backbone import load_backbone
from reference_models.core.weights import (
    NONE,
    Weights,
    drop_prefixes,
    load_strictly,
    read_weights,
    torchvision_file,
)
from reference_models.detection.lio_mask_rcnn.on_gpu import fit_to_gpu
from wsolbench.exceptions import UsageError

BACKBONES = ("tiny", "resnet50_c4", "resnet50_fpn", "resnext101_32x8d_fpn")
RATIOS = (0.5, 1.0, 2.0)
TINY_CHANNELS = 64


def build(backbone: str, outputs: int, *, min_size: int | None = None, max_size: int | None = None) -> Any:
    """Build a network of torchvision's class `MaskRCNN` with random weights.

    Args:
        backbone: one of `BACKBONES`.
        outputs: number of classes, including the background.
        min_size: length to which the shorter side is resized. None: 800, tiny 128.
        max_size: upper bound of the longer side. None: 1333, tiny 213.

    Raises `UsageError` on impossible sizes.
    """
    sizes = {"min_size": 128, "max_size": 213} if backbone == "tiny" else {"min_size": 800, "max_size": 1333}
    sizes.update(
        {name: size for name, size in (("min_size", min_size), ("max_size", max_size)) if size is not None}
    )
    if not 1 <= sizes["min_size"] <= sizes["max_size"]:
        raise UsageError(
            f"min_size is {sizes['min_size']} and max_size {sizes['max_size']}; expected 1 <= min_size <= "
            "max_size"
        )
    if backbone == "tiny":
        network = _tiny(outputs, sizes)
    elif backbone == "resnet50_c4":
        network = _c4(outputs, sizes)
    else:
        body = resnet_fpn_backbone(
            backbone_name=backbone.removesuffix("_fpn"), weights=None, trainable_layers=5
        )
        network = MaskRCNN(body, outputs, **sizes)
    fit_to_gpu(network)
    return network


def region_features(network: Any) -> tuple[nn.Module, int]:
    """Return the module whose output is the 7x7 features of the sampled regions, and its channels.

    Boxes are predicted from these features.
    """
    heads = network.roi_heads
    return (
        (heads.box_head.features, 2048)
        if hasattr(heads.box_head, "features")
        else (heads.box_roi_pool, network.backbone.out_channels)
    )


def freeze_stem(network: Any) -> None:
    """Freeze the first convolution and layer1 of a pretrained ResNet.

    Mmdetection and torchvision's default do the same.
    """
    for name, parameter in network.backbone.named_parameters():
        if name.removeprefix("body.").startswith(("conv1.", "layer1.")):
            parameter.requires_grad_(False)


def load_imagenet(network: Any, backbone: str) -> Weights:
    """Load torchvision's ImageNet weights into the ResNet.

    Raises `UsageError` if there are none or they cannot be downloaded.
    """
    if backbone == "tiny":
        raise UsageError(
            "there are no ImageNet weights of the backbone 'tiny'; use --weights none, or the path of a "
            "checkpoint"
        )
    # Read the file, without its classifier.
    kind = ResNeXt101_32X8D_Weights if backbone.startswith("resnext") else ResNet50_Weights
    file = read_weights(torchvision_file(kind.IMAGENET1K_V1.url, backbone))
    tensors = {
        name: tensor
        for name, tensor in drop_prefixes(file.tensors, "fc.").items()
        if not name.endswith("num_batches_tracked")
    }
    # C4 splits the network between body and box head.
    body, what = network.backbone, f"the weights of {backbone}"
    if backbone == "resnet50_c4":
        load_strictly(body, drop_prefixes(tensors, "layer4."), what=what)
        last = {
            name.removeprefix("layer4."): tensor
            for name, tensor in tensors.items()
            if name.startswith("layer4.")
        }
        load_strictly(network.roi_heads.box_head.layer4, last, what=what)
    else:
        load_strictly(body.body, tensors, what=what)
    return Weights("torchvision IMAGENET1K_V1", file.sha256)


def load_classifier(network: Any, path: Path) -> Weights:
    """Load the backbone of any method's checkpoint into the network `tiny`.

    Raises `DataError` if the checkpoint has another backbone.
    """
    backbone = load_backbone("tiny", weights=str(path))
    network.backbone.body.load_state_dict(backbone.state_dict(), strict=True)
    return backbone.weights


def load_coco_weights(
    network: Any, backbone: str, class_names: Sequence[str]
) -> tuple[dict[str, Tensor], Weights]:
    """Return tensors of torchvision's Mask R-CNN on COCO for `network`.

    Classes of the same name keep their outputs, others get those of `network`. Raises `UsageError` on another
    backbone than resnet50_fpn, and if the file cannot be downloaded.
    """
    if backbone != "resnet50_fpn":
        raise UsageError(f"there are COCO weights of the backbone 'resnet50_fpn' only, not of {backbone!r}")
    kind = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    file = read_weights(torchvision_file(kind.url, "maskrcnn_resnet50_fpn"))
    # Build the trained network with COCO's classes.
    known = kind.meta["categories"]
    trained = build(backbone, len(known))
    trained.load_state_dict(
        file.tensors, strict=True
    )  # knows the names that older versions gave, which the file has
    _with_epsilon(trained)
    # Match the outputs by class name; 0 is the background.
    places = [0, *(known.index(name) if name in known else None for name in class_names)]
    own, tensors = network.state_dict(), trained.state_dict()
    by_class = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    tensors.update(
        {
            name: match_rows(own[name], tensors[name], places)
            for name in tensors
            if name.startswith(by_class) and name in own
        }
    )
    return tensors, Weights("torchvision COCO_V1", file.sha256)


def match_rows(own: Tensor, theirs: Tensor, places: Sequence[int | None]) -> Tensor:
    """Return `own` with the rows of `theirs` at the given places. None keeps the class's own rows.

    `own` belongs to len(places) classes with equally many rows each.
    """
    rows = own.clone().view(len(places), -1, *own.shape[1:])
    known = theirs.view(-1, *rows.shape[1:])
    for row, place in zip(rows, places, strict=True):
        if place is not None:
            row.copy_(known[place])
    return rows.view_as(own)


def _with_epsilon(network: nn.Module) -> None:
    """Adapt frozen normalisation that was trained with an epsilon of 0 to torchvision's epsilon."""
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.mul_((1.0 + module.eps / module.running_var).sqrt())


class TinyFeatures(nn.Module):
    """The last stage of the backbone `tiny`."""

    out_channels = TINY_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.body = load_backbone("tiny", weights=NONE)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 64, H / 8, W / 8)."""
        return self.body.run(images)


class Borrowed(nn.Module):
    """A module that belongs to another one, which alone registers its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = (module,)

    def forward(self, features: Tensor) -> Tensor:
        """Run the borrowed module."""
        result: Tensor = self.module[0](features)
        return result


class _RoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign of one stage of known stride.

    Torchvision guesses the stride from the first batch, incorrectly for small images, and keeps the guess.
    """

    def __init__(self, output_size: int, *, stride: int, sampling_ratio: int) -> None:
        super().__init__(["0"], output_size, sampling_ratio)
        self.scales, self.map_levels = [1 / stride], initLevelMapper(0, 0)  # one stage: nothing is mapped


def _tiny(outputs: int, sizes: Mapping[str, int]) -> Any:
    return MaskRCNN(
        TinyFeatures(),
        None,
        **sizes,
        rpn_anchor_generator=AnchorGenerator(((24, 40, 64, 96),), (RATIOS,)),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_roi_pool=_RoIAlign(7, stride=8, sampling_ratio=1),
        box_head=TwoMLPHead(TINY_CHANNELS * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, outputs),
        box_batch_size_per_image=32,
        mask_roi_pool=_RoIAlign(14, stride=8, sampling_ratio=1),
        mask_head=MaskRCNNHeads(TINY_CHANNELS, (64,), 1),
        mask_predictor=MaskRCNNPredictor(64, 32, outputs),
    )


def _c4(outputs: int, sizes: Mapping[str, int]) -> Any:
    net = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    steps = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    body: Any = nn.Sequential(OrderedDict((name, getattr(net, name)) for name in steps))
    body.out_channels = 1024
    # `features` marks the output of layer4 in the pass for boxes: the same layer4 serves masks, too.
    box_head = nn.Sequential(
        OrderedDict(
            layer4=net.layer4, features=nn.Identity(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(1)
        )
    )
    return MaskRCNN(
        body,
        None,
        **sizes,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), (RATIOS,)),
        rpn_pre_nms_top_n_train=12000,
        rpn_post_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=1000,
        box_roi_pool=_RoIAlign(14, stride=16, sampling_ratio=2),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(2048, outputs),
        mask_roi_pool=_RoIAlign(14, stride=16, sampling_ratio=2),
        mask_head=Borrowed(net.layer4),
        mask_predictor=MaskRCNNPredictor(2048, 256, outputs),
    )
