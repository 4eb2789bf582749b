"""Convert stored pixels to the input of a network: resize, crop, flip, normalise.

Needs only numpy and Pillow, no torch. Resizing is Pillow's bilinear filter, which antialiases when it
shrinks. `torchvision.transforms.Resize` does the same to Pillow images. So images equal those of published
recipes bit for bit, before normalisation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from wsolbench.exceptions import UsageError
from wsolbench.methods.contracts import InputSpec
from wsolbench.protocol import crop_start

Pixels = UInt8[np.ndarray, "h w 3"]
RotationFilter = Literal["bilinear", "nearest"]


def resized(image: Pixels, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Resize the whole image to a square of `size` pixels. The aspect ratio is lost ("squash")."""
    from PIL import Image

    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_short_side(image: Pixels, size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize the image so that its shorter side has `size` pixels.

    The aspect ratio stays; the longer side is rounded down. Equal to `torchvision.transforms.Resize(size)` on
    Pillow images.
    """
    from PIL import Image

    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter == size:
        return image
    target = (int(size * width / shorter), int(size * height / shorter))
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR))


def normalized(image: UInt8[np.ndarray, "... h w 3"], spec: InputSpec) -> Float32[np.ndarray, "... 3 h w"]:
    """Return (x / 255 - mean) / std per channel, channels first."""
    mean, std = np.asarray(spec.mean, dtype=np.float32), np.asarray(spec.std, dtype=np.float32)
    values = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def to_view(
    image: Pixels, size: int, *, frame: Literal["squash", "center_crop"] = "squash", resize_size: int = 256
) -> UInt8[np.ndarray, "s s 3"]:
    """Return the part of an image that a network of input side `size` sees.

    `squash`: the whole image, resized to size x size. `center_crop`: the central size x size of the image
    resized to `resize_size` squared. Raises `UsageError` if the crop is larger than `resize_size`. `squash`
    ignores `resize_size`.
    """
    if frame == "squash":
        return resized(image, size)
    pixels = resized(image, _at_least(resize_size, size))
    start = crop_start(resize_size, size)
    return pixels[start : start + size, start : start + size]


def to_input(
    image: Pixels,
    spec: InputSpec,
    *,
    frame: Literal["squash", "center_crop"] = "squash",
    resize_size: int = 256,
) -> Float32[np.ndarray, "3 s s"]:
    """Return the normalised `to_view` of one image: the input of a network.

    >>> to_input(np.zeros((40, 30, 3), np.uint8), InputSpec(size=32)).shape
    (3, 32, 32)
    """
    return normalized(to_view(image, spec.size, frame=frame, resize_size=resize_size), spec)


def ten_crops(image: Pixels, size: int, *, resize_size: int = 256) -> UInt8[np.ndarray, "10 s s 3"]:
    """Return ten views: the four corners, the centre, then the same five mirrored.

    They are cut from the image resized to `resize_size` squared. The order is that of
    `torchvision.transforms.TenCrop`. Raises `UsageError` if the crops are larger than `resize_size`.
    """
    pixels = resized(image, _at_least(resize_size, size))
    far = resize_size - size
    center = crop_start(resize_size, size)
    # torchvision mirrors the whole image and then crops it, so the mirrored corners are the corners of the
    # mirror image.
    views = [
        view[top : top + size, left : left + size]
        for view in (pixels, pixels[:, ::-1])
        for top, left in ((0, 0), (0, far), (far, 0), (far, far), (center, center))
    ]
    return np.stack(views)


def training_view(
    image: UInt8[np.ndarray, "h w c"],
    size: int,
    rng: np.random.Generator,
    *,
    flip: float = 0.5,
    rotation: float = 0.0,
    rotation_filter: RotationFilter = "bilinear",
) -> UInt8[np.ndarray, "s s c"]:
    """Return a random view for training: rotate, crop `size` x `size`, mirror. Draws come from `rng` only.

    Args:
        image: resized image, both sides at least `size`. A fourth channel, a mask, moves with the others.
        size: side of the crop.
        rng: source of all randomness.
        flip: probability of the mirror image.
        rotation: the angle is uniform in [-rotation, rotation] degrees; pixels from outside are black.
        rotation_filter: how a rotated image is sampled; `nearest` copies the nearest pixel.
    """
    _at_least(min(image.shape[:2]), size)
    down, right = image.shape[0] - size, image.shape[1] - size
    angle, row, column, coin = rng.random(4)
    if rotation > 0:
        from PIL import Image

        # Pillow treats a fourth channel as transparency and would blend the colours, so it is rotated alone.
        parts = [image[..., :3], *np.moveaxis(image[..., 3:], -1, 0)]
        degrees, resample = (2 * angle - 1) * rotation, Image.Resampling[rotation_filter.upper()]
        image = np.dstack(
            [np.asarray(Image.fromarray(part).rotate(degrees, resample=resample)) for part in parts]
        )
    top, left = int(row * (down + 1)), int(column * (right + 1))
    view = image[top : top + size, left : left + size]
    return view[:, ::-1] if coin < flip else view


def _at_least(outer: int, inner: int) -> int:
    if outer < inner:
        raise UsageError(
            f"cannot cut {inner} x {inner} pixels from an image of {outer} x {outer}; the size before the "
            f"crop must be at least {inner}"
        )
    return outer
