"""Classification heads whose weights also give a map of every class.

B. Zhou, A. Khosla, A. Lapedriza, A. Oliva, A. Torralba, "Learning deep features for discriminative
localization", CVPR 2016 (fully connected form); X. Zhang, Y. Wei, J. Feng, Y. Yang, T. Huang, "Adversarial
complementary learning for weakly supervised object localization", CVPR 2018 (convolutional form).

    f       features        (B, D, h, w)   input of the last linear layer
    w, b    weight, bias    (C, D), (C,)
    S_c     logits          (B, C)
    M_c     maps            (B, K, h, w)   one for each requested class
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.core.backbone import Backbone

HeadKind = Literal["conv", "fc", "conv1x1"]


def class_activation_maps(
    features: Float[Tensor, "b d h w"], weight: Float[Tensor, "c d"], class_ids: Int[Tensor, "b k"]
) -> Float[Tensor, "b k h w"]:
    """Return class activation maps without the bias, CVPR 2016, eq. 2: M_c(x, y) = sum_k w_ck f_k(x, y).

    Only the weights of the requested classes are used.
    """
    return torch.einsum("bkd,bdhw->bkhw", weight[class_ids], features)


def pick_maps(maps: Float[Tensor, "b c h w"], class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
    """Select the maps of the requested classes from those of all classes."""
    return maps.take_along_dim(class_ids[:, :, None, None], dim=1)


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """Result of a head on a batch.

    Attributes:
        logits: (B, C) class scores before softmax.
        penultimate: (B, D, h, w) input of the last linear layer.
        maps_of: (B, K) class indices -> (B, K, h, w) raw maps, with the graph.
        weights_of: (B, K) class indices -> (B, K, D) weights of the last linear layer. None if that layer
            looks at more than one pixel.
    """

    logits: Tensor
    penultimate: Tensor
    maps_of: Callable[[Tensor], Tensor]
    weights_of: Callable[[Tensor], Tensor] | None = None


class FcHead(nn.Module):
    """GAP, then a linear layer.

    `hidden` adds a 3x3 convolution and a ReLU before it (the conv6 of CAM on VGG).
    """

    def __init__(self, channels: int, num_classes: int, *, hidden: int | None = None) -> None:
        super().__init__()
        self.conv6: nn.Module = (
            nn.Identity()
            if hidden is None
            else nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU())
        )
        self.classifier = nn.Linear(hidden or channels, num_classes)
        if hidden is not None:
            nn.init.kaiming_normal_(self.conv6[0].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[index,arg-type]
            nn.init.zeros_(self.conv6[0].bias)  # type: ignore[index,arg-type]
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.pretrained = False
        """Whether the classifier came with the backbone."""

    def forward(self, features: Float[Tensor, "b c h w"]) -> HeadOutput:
        """Return logits and maps of (B, C_in, h, w) features."""
        f = self.conv6(features)
        logits = self.classifier(
            f.mean(dim=(2, 3))
        )  # CVPR 2016, Eq. 1: S_c = sum_k w_ck sum_xy f_k, here with mean and bias
        return HeadOutput(
            logits,
            f,
            lambda class_ids: class_activation_maps(f, self.classifier.weight, class_ids),
            lambda class_ids: self.classifier.weight[class_ids],
        )


class ConvHead(nn.Module):
    """3x3 convolutions with ReLU, a 1x1 convolution to the classes, then GAP.

    The class maps are the last layer's output. With dropout before each convolution it is the head of SPG,
    I2C and SEM. `depth` is the number of 3x3 convolutions; 0 leaves the 1x1 convolution alone.
    """

    pretrained = False
    """No backbone has pretrained weights for this classifier."""

    def __init__(
        self, channels: int, num_classes: int, *, width: int = 1024, depth: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Dropout(dropout), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.trunk = nn.Sequential(*layers, nn.Dropout(dropout))
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for layer in [*self.trunk, self.classifier]:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "b c h w"]) -> HeadOutput:
        """Return logits and maps of (B, C_in, h, w) features."""
        return self.classify(self.trunk(features))

    def classify(self, f: Float[Tensor, "b d h w"]) -> HeadOutput:
        """Return logits and maps of the trunk's output, for methods that change it."""
        maps = self.classifier(f)  # (B, C, h, w), bias included
        logits = maps.mean(dim=(2, 3))
        return HeadOutput(
            logits,
            f,
            lambda class_ids: pick_maps(maps, class_ids),
            lambda class_ids: self.classifier.weight[class_ids, :, 0, 0],
        )


def make_head(
    kind: HeadKind, backbone: Backbone, num_classes: int, *, width: int = 0, dropout: float = 0.0
) -> FcHead | ConvHead:
    """Build the head that papers use on a backbone.

    Args:
        kind: `conv`: two 3x3 convolutions and a 1x1. `conv1x1`: only the 1x1. `fc`: GAP and a linear layer,
            after a 3x3 convolution on VGG. If the backbone has a pretrained classifier for this number of
            classes (ImageNet), the linear layer starts from it.
        width: channels of the hidden layers. 0: the backbone's `head_width` (1024 in the papers).
        dropout: probability, before each convolution of `conv`.
    """
    channels, width = backbone.channels[-1], width or backbone.head_width
    if kind == "conv":
        return ConvHead(channels, num_classes, width=width, dropout=dropout)
    if kind == "conv1x1":
        return ConvHead(channels, num_classes, depth=0, dropout=dropout)
    head = FcHead(channels, num_classes, hidden=width if backbone.profile.convolution_before_linear else None)
    if backbone.classifier is not None and backbone.classifier[0].shape == head.classifier.weight.shape:
        with torch.no_grad():
            head.classifier.weight.copy_(backbone.classifier[0])
            head.classifier.bias.copy_(backbone.classifier[1])
        head.pretrained = True
    return head


def cross_entropy(logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the batch, in float32 for logits of any precision."""
    return F.cross_entropy(logits.float(), labels)
