"""The canvas of toybirds: polygons of shaded colour, with a record of what each point belongs to.

Points of the plane are complex numbers x + iy with y downward, so that rotation and scaling are one
multiplication. The frame of an image is [0, 1] x [0, 1] for every size in pixels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Complex, Float, Int16

Points = Complex[np.ndarray, " _"]
Colour = tuple[float, float, float]
"""RGB, 0 to 255 each."""

SUPERSAMPLING = 2
"""Canvas points per pixel, in each direction."""
_SUBPIXEL_BITS = 4


class Canvas:
    """A picture that is being painted, `SUPERSAMPLING` times the size of the image.

    `owner` stores for each point the number of what was painted there last; 0 is scenery.
    """

    def __init__(self, size: int) -> None:
        self.side = size * SUPERSAMPLING
        self.rgb: Float[np.ndarray, "s s 3"] = np.zeros((self.side, self.side, 3), dtype=np.float32)
        self.owner: Int16[np.ndarray, "s s"] = np.zeros((self.side, self.side), dtype=np.int16)

    def paint(
        self,
        outline: Points,
        colour: Colour,
        owner: int = 0,
        *,
        shade: Float[np.ndarray, "s s"] | None = None,
        only_on: int | None = None,
        rim: float = 0.0,
    ) -> None:
        """Fill a polygon given in the frame of the image.

        `shade` multiplies the colour point by point. `only_on` restricts painting to points of this owner.
        `rim` darkens the edge by this share.
        """
        # The polygon's window on the canvas.
        corners = np.stack([outline.real, outline.imag], axis=1) * self.side  # (n, 2)
        x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
        x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, self.side)
        if x0 >= x1 or y0 >= y1:
            return
        # A stencil of the window: 2 inside, 1 on the rim.
        fixed = np.round((corners - (x0, y0) - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        stencil = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        cv2.fillPoly(stencil, [fixed], 2, cv2.LINE_8, _SUBPIXEL_BITS)
        if rim:
            cv2.polylines(
                stencil,
                [fixed],
                isClosed=True,
                color=1,
                thickness=1,
                lineType=cv2.LINE_8,
                shift=_SUBPIXEL_BITS,
            )
        window = (slice(y0, y1), slice(x0, x1))
        if only_on is not None:
            stencil[self.owner[window] != only_on] = 0
        # Colour and owner of the points inside.
        inside = stencil > 0
        values = np.where(stencil == 1, 1.0 - rim, 1.0).astype(np.float32)
        if shade is not None:
            values = values * shade[window]
        self.rgb[window][inside] = values[inside, None] * np.asarray(colour, dtype=np.float32)
        self.owner[window][inside] = owner


def circle(centre: complex, radius: float, corners: int = 24) -> Points:
    """Return a regular polygon that approximates a circle."""
    outline: Points = centre + radius * np.exp(2j * np.pi * np.arange(corners) / corners)
    return outline


def ellipse(
    centre: complex, half_length: float, half_width: float, turn: complex = 1.0, corners: int = 32
) -> Points:
    """Return an ellipse whose length is along the unit complex number `turn`."""
    angle = 2 * np.pi * np.arange(corners) / corners
    return centre + turn * (half_length * np.cos(angle) + 1j * half_width * np.sin(angle))


def ribbon(middle: Points, widths: Float[np.ndarray, " k"]) -> Points:
    """Return the outline of a band of varying width along a line."""
    along = np.gradient(middle)
    across = 1j * along / np.maximum(np.abs(along), 1e-9) * widths / 2
    return np.concatenate([middle + across, (middle - across)[::-1]])


def smooth_noise(random: np.random.Generator, cells: int, side: int) -> Float[np.ndarray, "s s"]:
    """Draw random hills about `side / cells` points wide, in [-1, 1], the same landscape at every `side`."""
    coarse = random.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), -1, 1)


def random_colour(
    random: np.random.Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Colour:
    """Draw a colour from ranges of hue (turns, may exceed [0, 1]), saturation and value."""
    red, green, blue = colorsys.hsv_to_rgb(
        random.uniform(*hue) % 1.0, random.uniform(*saturation), random.uniform(*value)
    )
    return 255 * red, 255 * green, 255 * blue


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A map from an object's frame to the image's frame: mirrored or not, then rotated, scaled and moved."""

    centre: complex
    scale: float
    turn: complex = 1.0
    mirrored: bool = False

    def __call__(self, points: Points | complex) -> Points:
        """Map points to the frame of the image."""
        points = np.asarray(points, dtype=np.complex128)
        return self.centre + self.scale * self.turn * (-points.conj() if self.mirrored else points)

    def inverse(self, points: Complex[np.ndarray, "*shape"]) -> Complex[np.ndarray, "*shape"]:
        """Map points from the frame of the image back to that of the object."""
        local = (points - self.centre) / (self.scale * self.turn)
        return -local.conj() if self.mirrored else local
