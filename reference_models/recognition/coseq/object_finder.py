"""Step 6 of CoSeq, the object's box at test: by a class map, by a layer that learns boxes, or the image."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.recognition.coseq.transfer import box_of_map, valid_boxes, whole_images

ObjectBox = Literal["cam", "regress", "image"]
CELLS = 4
"""Side of the grid of features that the boxes are learnt from."""


class ObjectFinder(nn.Module):
    """Finds the object's box in the features of the whole image."""

    def __init__(self, kind: ObjectBox, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, num_classes) if kind == "cam" else None
        self.box_layer = nn.Linear(channels * CELLS**2, 4) if kind == "regress" else None

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return self.classifier is not None or self.box_layer is not None

    def forward(self, features: Float[Tensor, "b d h w"], size: int) -> Float[Tensor, "b 4"]:
        """Return the box in pixels of an image of side `size`."""
        if self.classifier is not None:
            best = self.classifier(features.mean(dim=(2, 3))).argmax(dim=1, keepdim=True)
            return box_of_map(class_activation_maps(features, self.classifier.weight, best)[:, 0], size)
        if self.box_layer is not None:
            return valid_boxes(self.regress(features) * size, size)
        return whole_images(len(features), features).float() * size

    def regress(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 4"]:
        """Return the learnt box, relative to the image, in float32."""
        assert self.box_layer is not None
        box: Tensor = self.box_layer(F.adaptive_avg_pool2d(features, CELLS).flatten(1))
        return box.float().sigmoid()

    def losses(
        self, features: Float[Tensor, "b d h w"], boxes: Float[Tensor, "b 4"], labels: Int[Tensor, " b"]
    ) -> dict[str, Tensor]:
        """Return the loss by name. `boxes` are relative to the image."""
        if self.classifier is not None:
            return {"image": cross_entropy(self.classifier(features.mean(dim=(2, 3))), labels)}
        if self.box_layer is not None:
            return {"box": F.smooth_l1_loss(self.regress(features), boxes.float(), beta=0.1)}
        return {}
