"""Torchvision's Mask R-CNN with exact boxes under mixed precision, and fewer waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision.models.detection._utils import BoxCoder, encode_boxes
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from wsolbench.methods.device import constants


def fit_to_gpu(network: Any) -> None:
    """Replace the parts of a network that lose precision or wait on a GPU. Results are equal, to the bit."""
    _keep_boxes_exact(network)
    network.transform = HostTransform(network.transform)
    for part in (network.rpn, network.roi_heads):
        part.box_coder = HostBoxCoder(part.box_coder.weights, part.box_coder.bbox_xform_clip)


def _keep_boxes_exact(network: Any) -> None:
    """Compute anchors, boxes and scores in float32 also under mixed precision.

    In bfloat16 the corners of anchors move by pixels: it has 8 bits for numbers up to 1333.
    """

    def to_float32(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return tree_map(lambda item: item.float() if isinstance(item, Tensor) else item, output)

    def of_float32(_module: nn.Module, inputs: tuple[Any, list[Tensor]]) -> tuple[Any, list[Tensor]]:
        images, features = inputs
        return images, [stage.float() for stage in features]  # whose dtype anchors take

    network.rpn.anchor_generator.register_forward_pre_hook(of_float32)
    network.rpn.head.register_forward_hook(to_float32)
    network.roi_heads.box_predictor.register_forward_hook(to_float32)
    network.roi_heads.mask_predictor.register_forward_hook(to_float32)


class HostTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Torchvision's transform with fewer waits for the device. Results are equal, to the bit.

    Masks are pasted on the host: one by one, each would wait. Constants are numbers or made on the device,
    where torchvision copies them in each step.
    """

    def __init__(self, made: GeneralizedRCNNTransform) -> None:
        super().__init__(made.min_size, made.max_size, made.image_mean, made.image_std)

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean of each channel of an image (3, h, w), and divide by its standard deviation."""
        mean, std = (
            constants(values, image.device, image.dtype)[:, None, None]
            for values in (self.image_mean, self.image_std)
        )
        return (image - mean) / std

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image (3, h, w), and the boxes and masks of its objects."""
        if target is None:
            resized: tuple[Tensor, None] = super().resize(image, None)
            return resized
        boxes, before = target["boxes"], image.shape[-2:]
        image, target = super().resize(image, {**target, "boxes": torch.zeros(0, 4)})  # only masks
        scale = [new / old for new, old in zip(image.shape[-2:], before, strict=True)]
        columns = [
            side * scale[(number + 1) % 2] for number, side in enumerate(boxes.unbind(1))
        ]  # x0, y0, x1, y1
        return image, {**target, "boxes": torch.stack(columns, dim=1)}

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks in the pixels of the original images, on the host."""
        if self.training:
            return result
        on_host = [{name: value.cpu() for name, value in found.items()} for found in result]
        moved: list[dict[str, Tensor]] = super().postprocess(on_host, image_shapes, original_image_sizes)
        return moved


class HostBoxCoder(BoxCoder):  # type: ignore[misc]
    """Torchvision's coder of boxes, without its copies of constants to the device. Results are equal."""

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Return the offsets (N, 4) of boxes (N, 4) from their proposals (N, 4)."""
        weights = constants(self.weights, reference_boxes.device, reference_boxes.dtype)
        offsets: Tensor = encode_boxes(reference_boxes, proposals, weights)
        return offsets

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes (N, 4 C) at the offsets (N, 4 C) from boxes (N, 4)."""
        boxes = boxes.to(rel_codes.dtype)
        sizes = boxes[:, None, 2:] - boxes[:, None, :2]  # (N, 1, 2)
        centres = boxes[:, None, :2] + 0.5 * sizes
        offsets = rel_codes.reshape(
            len(boxes), rel_codes.shape[1] // 4, 2, 2
        )  # (N, C, centre or size, x or y)
        (wx, wy, ww, wh) = self.weights
        moved, grown = (
            torch.stack([part[..., 0] / x, part[..., 1] / y], dim=-1)
            for part, x, y in ((offsets[:, :, 0], wx, wy), (offsets[:, :, 1], ww, wh))
        )
        middle = moved * sizes + centres
        half = 0.5 * (grown.clamp(max=self.bbox_xform_clip).exp() * sizes)
        return torch.cat([middle - half, middle + half], dim=-1).flatten(1)
