"""Soft masks of ellipses and rectangles from numbers in (0, 1), by a formula or by a trained network.

W. Lu, X. Jia, W. Xie, L. Shen, Y. Zhou, J. Duan, "Geometry constrained weakly supervised object
localization", ECCV 2020. Released code: lwzeng/GC-Net.

    u            numbers           (B, 4 or 5)    centre x and y, full width and height as fractions of the
                                                  image; a number of the angle
    theta        angle             (B,)           pi (u_5 - 1/2); 0 for `rect`, which has four numbers
    rho          shape_distance    (B, H, W)      0 in the middle, 1 on the outline
    m            shape_mask        (B, H, W)      1 inside, 0 outside, 1/2 on the outline

    a = (dx cos theta + dy sin theta) / (w / 2),  b = (dx sin theta - dy cos theta) / (h / 2)
         (dx, dy): pixel - centre
    (1)  rho = a^2 + b^2 of an ellipse, max(|a|, |b|) of a rectangle
    (2)  m = 1/2 - atan(s (rho - 1)) / pi
    (3)  half width of the box = sqrt((w/2 cos theta)^2 + (h/2 sin theta)^2) of an ellipse,
         w/2 |cos theta| + h/2 |sin theta| of a rectangle; half height: sin and cos swapped

The numbers of the equations are those of this file, and the formulas those of the released code. It writes
max(|a|, |b|) as the sum of |a + b| / 2 and |a - b| / 2.

Departures. Pixels are taken at their centres (the code: from 0 to 1, both ends included). u_5 turns
`rot_rect` in the same direction as the ellipse. In the code's formula it is the other direction, in its
drawing network this one. Boxes are the same.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wsolbench.methods.device import constants
from wsolbench.system.progress import track

Shape = Literal["ellipse", "rect", "rot_rect"]

SMALLEST = 1e-3
"""Lower bound of width and height as fractions of the image, because (1) diverges at 0."""

EXTENT = (0.05, 0.95)
"""Smallest and largest side of a shape that the generator learns to draw; released code."""

SHRINK = 0.98
"""Factor of its sides, applied until the shape lies inside the image; released code."""

FALLS = (1 / 6, 1 / 3, 2 / 3, 5 / 6)
"""Fractions of the generator's training after which its rate falls.

In the released code: steps 20,000, 40,000, 80,000 and 100,000.
"""


def count_numbers(shape: Shape) -> int:
    """Return the number of parameters of a shape."""
    return 4 if shape == "rect" else 5


def _angle(numbers: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    return torch.pi * (numbers[:, 4] - 0.5) if numbers.shape[1] > 4 else torch.zeros_like(numbers[:, 0])


def shape_distance(
    numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """Return rho at the pixel centres of an image of `size` (height, width), eq. (1)."""
    (height, width), device = size, numbers.device
    centre_x, centre_y, wide, high = (column[:, None, None] for column in numbers[:, :4].unbind(dim=1))
    theta = _angle(numbers)[:, None, None]
    dx = (torch.arange(width, device=device) + 0.5) / width - centre_x  # (B, 1, W)
    dy = ((torch.arange(height, device=device) + 0.5) / height)[:, None] - centre_y  # (B, H, 1)
    a = (dx * theta.cos() + dy * theta.sin()) / (wide.clamp_min(SMALLEST) / 2)
    b = (dx * theta.sin() - dy * theta.cos()) / (high.clamp_min(SMALLEST) / 2)
    return a.square() + b.square() if shape == "ellipse" else torch.maximum(a.abs(), b.abs())


def shape_mask(
    numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int], sharpness: Float[Tensor, ""] | float
) -> Float[Tensor, "b h w"]:
    """Return the soft mask m, with s the `sharpness`, eq. (2)."""
    steep = sharpness * (shape_distance(numbers, shape, size) - 1)
    # The same angle as in (2), without the difference of two nearly equal numbers far outside.
    return torch.atan2(torch.ones_like(steep), steep) / torch.pi


def half_extents(numbers: Float[Tensor, "b n"], shape: Shape) -> Float[Tensor, "b 2"]:
    """Return half width and half height of the smallest upright box around the shape, eq. (3)."""
    theta = _angle(numbers)
    cos, sin = theta.cos(), theta.sin()
    half = numbers[:, 2:4] / 2
    along, across = torch.stack([cos, sin], dim=1) * half[:, :1], torch.stack([sin, cos], dim=1) * half[:, 1:]
    return torch.hypot(along, across) if shape == "ellipse" else along.abs() + across.abs()


def shape_boxes(numbers: Float[Tensor, "b n"], shape: Shape, size: tuple[int, int]) -> Float[Tensor, "b 4"]:
    """Return the boxes, xyxy in pixels of an image of `size` (height, width), clipped to it."""
    extents = half_extents(numbers, shape)
    corners = torch.cat([numbers[:, :2] - extents, numbers[:, :2] + extents], dim=1).clamp(0, 1)
    return corners * constants([size[1], size[0]] * 2, numbers.device, torch.float32)


def dice_loss(drawn: Float[Tensor, "b h w"], wanted: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the dice loss 1 - (2 sum p t + 1) / (sum p^2 + sum t^2 + 1); released code.

    Sums are over all pixels of the batch. It is 0 for empty masks.
    """
    both, squares = (drawn * wanted).sum(), drawn.square().sum() + wanted.square().sum()
    return 1 - (2 * both + 1) / (squares + 1)


class ShapeNet(nn.Module):
    """The paper's generator, as in the released code.

    Numbers -> a 12x12 image -> transposed convolutions -> mask of 224x224. It gets the corners of an upright
    rectangle, or the numbers of another shape with the angle as u_5 - 1/2.
    """

    SIDE = 224
    steps_done: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.expand = nn.Linear(numbers, 144)
        self.draw = nn.Sequential(
            *_make_block(1, 256, 3),  # 14
            *_make_block(256, 128, 4, stride=2, padding=1),  # 28
            *_make_block(128, 64, 4, stride=2, padding=1),  # 56
            nn.Upsample(scale_factor=2),  # 112, the nearest pixel
            nn.ConvTranspose2d(64, 1, 4, stride=2, padding=1, bias=False),  # 224
        )
        for layer in self.draw:
            if isinstance(layer, (nn.ConvTranspose2d, nn.BatchNorm2d)):
                nn.init.normal_(layer.weight, 0.0 if isinstance(layer, nn.ConvTranspose2d) else 1.0, 0.02)

    def forward(self, numbers: Float[Tensor, "b n"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """Return m, resized from 224x224 if `size` (height, width) differs."""
        centre, sides = numbers[:, :2], numbers[:, 2:4]
        parts = (
            [centre, sides, numbers[:, 4:] - 0.5]
            if numbers.shape[1] > 4
            else [centre - sides / 2, centre + sides / 2]
        )
        grid = self.expand(torch.cat(parts, dim=1)).relu().reshape(-1, 1, 12, 12)
        mask = self.draw(grid).float().sigmoid()
        if size != (self.SIDE, self.SIDE):
            mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False, antialias=True)
        drawn: Tensor = mask[:, 0]
        return drawn


def _make_block(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    convolution = nn.ConvTranspose2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def draw_shapes(shape: Shape, count: int, generator: torch.Generator) -> Float[Tensor, "{count} n"]:
    """Draw random shapes inside the image, from the distribution of the released code."""

    def normal(mean: float, std: float, low: float, high: float) -> Float[Tensor, " b"]:
        return (mean + std * torch.randn(count, generator=generator, device=generator.device)).clamp(
            low, high
        )

    def uniform(columns: int) -> Float[Tensor, "b {columns}"]:
        return torch.rand(count, columns, generator=generator, device=generator.device)

    # Sides within `EXTENT`.
    size, ratio = normal(0.5, 0.25, *EXTENT), normal(1.0, 0.5 if shape == "rect" else 0.9, 0.2, 1.8)
    sides = torch.stack([size, size * ratio], dim=1)  # (B, 2): width, height
    sides = (sides * (EXTENT[1] / sides.amax(dim=1, keepdim=True)).clamp_max(1)).clamp_min(EXTENT[0])
    if shape == "rect":
        return torch.cat([uniform(2) * (1 - sides) + sides / 2, sides], dim=1)
    # Exchange the sides of half of the shapes, and draw position and angle.
    sides = torch.where(uniform(1) < 0.5, sides, sides.flip(1))
    numbers = torch.cat([uniform(2) * (1 - sides) + sides / 2, sides, uniform(1)], dim=1)
    # Steps of 2 % until the turned box is inside.
    room = (
        (torch.minimum(numbers[:, :2], 1 - numbers[:, :2]) / half_extents(numbers, "rot_rect"))
        .amin(dim=1)
        .clamp_max(1)
    )
    numbers[:, 2:4] *= (SHRINK ** (room.log() / math.log(SHRINK) - 1e-4).ceil())[:, None]
    return numbers


def train_shape_net(net: ShapeNet, shape: Shape, *, steps: int, batch_size: int, lr: float) -> None:
    """Train the network to draw random shapes by the dice loss, as the released code does.

    The shapes are the same in every run. SGD with momentum, whose rate falls to a tenth after each of
    `FALLS`. The parameters get no gradient afterwards. A network that has had its steps is not trained again.
    """
    if int(net.steps_done) >= steps:
        return
    device, was_training = next(net.parameters()).device, net.training
    generator = torch.Generator(device=device).manual_seed(0)
    size = (net.SIDE, net.SIDE)
    net.requires_grad_(True).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    with track(description="training the generator of shapes", total=steps, unit="steps") as bar:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * 0.1 ** sum(step > fall * steps for fall in FALLS)
            numbers = draw_shapes(shape, batch_size, generator)
            wanted = (shape_distance(numbers, shape, size) <= 1).float()
            loss = dice_loss(net(numbers, size), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            bar.advance(note="" if step % 100 else f"loss {loss.item():.3f}")
    net.requires_grad_(False).train(was_training).zero_grad(set_to_none=True)
    net.steps_done.fill_(steps)
