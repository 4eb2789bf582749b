"""Soft masks of ellipses and rectangles, from numbers in (0, 1): as a formula, or by a network that was trained to draw them.

W. Lu, X. Jia, W. Xie, L. Shen, Y. Zhou, J. Duan, "Geometry constrained weakly supervised object localization", ECCV 2020. Released
code: lwzeng/GC-Net.

    u            numbers           (B, 4 or 5)    centre x and y, full width and height as parts of the image; a number of the angle
    theta        angle             (B,)           pi (u_5 - 1/2); 0 for `rect`, which has four numbers
    rho          shape_distance    (B, H, W)      0 in the middle, 1 on the outline
    m            shape_mask        (B, H, W)      1 inside, 0 outside, 1/2 on the outline

    a = (dx cos theta + dy sin theta) / (w / 2),  b = (dx sin theta - dy cos theta) / (h / 2)     (dx, dy): pixel - centre
    (1)  rho = a^2 + b^2 of an ellipse, max(a^2, b^2) of a rectangle
    (2)  m = 1/2 - atan(s (rho - 1)) / pi
    (3)  half width of the box = sqrt((w/2 cos theta)^2 + (h/2 sin theta)^2) of an ellipse, w/2 |cos theta| + h/2 |sin theta| of a
         rectangle; half height: sin and cos swapped

The numbers of the equations are those of this file. Only the ellipse's rho is known from the released code; that of a rectangle
is this project's, with the same outline value.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wsolbench.progress import track

Shape = Literal["ellipse", "rect", "rot_rect"]

SMALLEST = 1e-3
"""Width and height below this part of the image count as this: the distance has no bound there."""


def count_numbers(shape: Shape) -> int:
    """How many numbers a shape has."""
    return 4 if shape == "rect" else 5


def _angle(numbers: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    return torch.pi * (numbers[:, 4] - 0.5) if numbers.shape[1] > 4 else torch.zeros_like(numbers[:, 0])


def shape_distance(numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """(1) at the centres of the pixels of an image of `size` (height, width)."""
    (height, width), device = size, numbers.device
    centre_x, centre_y, wide, high = (column[:, None, None] for column in numbers[:, :4].unbind(dim=1))
    theta = _angle(numbers)[:, None, None]
    dx = (torch.arange(width, device=device) + 0.5) / width - centre_x  # (B, 1, W)
    dy = ((torch.arange(height, device=device) + 0.5) / height)[:, None] - centre_y  # (B, H, 1)
    a = (dx * theta.cos() + dy * theta.sin()) / (wide.clamp_min(SMALLEST) / 2)
    b = (dx * theta.sin() - dy * theta.cos()) / (high.clamp_min(SMALLEST) / 2)
    return a.square() + b.square() if shape == "ellipse" else torch.maximum(a.square(), b.square())


def shape_mask(
    numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int], sharpness: Float[Tensor, ""] | float
) -> Float[Tensor, "b h w"]:
    """(2), with s the `sharpness`."""
    steep = sharpness * (shape_distance(numbers, shape, size) - 1)
    # The same angle as in (2), without the difference of two nearly equal numbers far outside.
    return torch.atan2(torch.ones_like(steep), steep) / torch.pi


def half_extents(numbers: Float[Tensor, "b n"], shape: Shape) -> Float[Tensor, "b 2"]:
    """(3): half width and half height of the smallest upright box around the shape."""
    theta = _angle(numbers)
    cos, sin = theta.cos(), theta.sin()
    half = numbers[:, 2:4] / 2
    along, across = torch.stack([cos, sin], dim=1) * half[:, :1], torch.stack([sin, cos], dim=1) * half[:, 1:]
    return torch.hypot(along, across) if shape == "ellipse" else along.abs() + across.abs()


def shape_boxes(numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int]) -> Float[Tensor, "b 4"]:
    """xyxy in pixels of an image of `size` (height, width), cut off at its border."""
    extents = half_extents(numbers, shape)
    corners = torch.cat([numbers[:, :2] - extents, numbers[:, :2] + extents], dim=1).clamp(0, 1)
    return corners * torch.tensor([size[1], size[0]] * 2, device=numbers.device)


def dice_loss(drawn: Float[Tensor, "b h w"], wanted: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """1 - 2 |drawn and wanted| / (|drawn| + |wanted|), mean over the batch; 0 for two empty masks."""
    both, sums = (drawn * wanted).sum(dim=(1, 2)), drawn.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2))
    return (1 - (2 * both + 1) / (sums + 1)).mean()


class ShapeNet(nn.Module):
    """The paper's generator: numbers -> a 12x12 image -> transposed convolutions -> mask of 224x224.

    What follows the 56x56 grid is known only as two doublings of the size by the nearest pixel; here each is followed by a 3x3
    convolution, the second of which has one channel.
    """

    SIDE = 224
    steps_done: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.expand = nn.Linear(numbers, 144)
        self.draw = nn.Sequential(
            nn.ConvTranspose2d(1, 256, 3),  # 14
            nn.ReLU(),
            nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1),  # 28
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),  # 56
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def forward(self, numbers: Float[Tensor, "b n"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """m, resized from 224x224 where `size` (height, width) is another."""
        grid = self.expand(numbers).relu().reshape(-1, 1, 12, 12)
        mask = self.draw(grid).float().sigmoid()
        if size != (self.SIDE, self.SIDE):
            mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False, antialias=True)
        drawn: Tensor = mask[:, 0]
        return drawn


def train_shape_net(net: ShapeNet, shape: Shape, *, steps: int, batch_size: int, lr: float) -> None:
    """Teach the net to draw shapes whose numbers are drawn evenly from (0, 1), by the dice loss; always the same shapes.

    Its parameters get no gradient afterwards. A net that has had its steps is left as it is.
    """
    if int(net.steps_done) >= steps:
        return
    device = next(net.parameters()).device
    generator = torch.Generator(device=device).manual_seed(0)
    size = (net.SIDE, net.SIDE)
    net.requires_grad_(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with track(description="training the generator of shapes", total=steps, unit="steps") as bar:
        for step in range(steps):
            numbers = torch.rand(batch_size, count_numbers(shape), generator=generator, device=device)
            wanted = (shape_distance(numbers, shape, size) <= 1).float()
            loss = dice_loss(net(numbers, size), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.advance(note="" if step % 100 else f"loss {loss.item():.3f}")
    net.requires_grad_(False).zero_grad(set_to_none=True)
    net.steps_done.fill_(steps)
