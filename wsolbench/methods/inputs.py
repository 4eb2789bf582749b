"""Convert stored pixels to the input of a network: resize, crop, flip, normalise.

Needs only numpy and Pillow, no torch. Resizing is Pillow's bilinear filter, which antialiases when it
shrinks. `torchvision.transforms.Resize` does the same to Pillow images. So images equal those of published
recipes bit for bit, before normalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Union

import numpy as np
from jaxtyping import Float32, UInt8

from wsolbench.exceptions import UsageError
from wsolbench.methods.contracts import InputSpec
from wsolbench.protocol import EvalProtocol, crop_start
from wsolbench.types import Sample

if TYPE_CHECKING:
    import PIL.Image

Pixels = UInt8[np.ndarray, "h w 3"]
Picture = Union[Pixels, "PIL.Image.Image"]
"""Pixels as an array, or as Pillow holds them (`Sample.picture`), which saves copies."""
RotationFilter = Literal["bilinear", "nearest"]


def resized(image: Picture, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Resize the whole image to a square of `size` pixels. The aspect ratio is lost ("squash")."""
    return np.asarray(image if _size(image) == (size, size) else resize_picture(image, size))


def resize_short_side(image: Picture, size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize the image so that its shorter side has `size` pixels.

    The aspect ratio stays; the longer side is rounded down. Equal to `torchvision.transforms.Resize(size)` on
    Pillow images.
    """
    return np.asarray(image if min(_size(image)) == size else resize_picture(image, size, short_side=True))


def resize_picture(image: Picture, size: int, *, short_side: bool = False) -> PIL.Image.Image:
    """Return the image as `resized` or, with `short_side`, as `resize_short_side`, as Pillow holds it."""
    from PIL import Image

    (width, height), target = _size(image), (size, size)
    if short_side:
        shorter = min(height, width)
        target = (int(size * width / shorter), int(size * height / shorter))
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return picture if picture.size == target else picture.resize(target, Image.Resampling.BILINEAR)


def _size(image: Picture) -> tuple[int, int]:
    """Return (width, height)."""
    return image.shape[1::-1] if isinstance(image, np.ndarray) else image.size


def normalized(image: UInt8[np.ndarray, "... h w 3"], spec: InputSpec) -> Float32[np.ndarray, "... 3 h w"]:
    """Return (x / 255 - mean) / std per channel, channels first."""
    mean, std = np.asarray(spec.mean, dtype=np.float32), np.asarray(spec.std, dtype=np.float32)
    values = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, -3))


def to_view(
    image: Picture, size: int, *, frame: Literal["squash", "center_crop"] = "squash", resize_size: int = 256
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
    image: Picture,
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


def ten_crops(image: Picture, size: int, *, resize_size: int = 256) -> UInt8[np.ndarray, "10 s s 3"]:
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


@dataclass(frozen=True)
class ViewLoader:
    """Callable that loads what a network of this input side sees of an image under a protocol."""

    size: int
    protocol: EvalProtocol

    def __call__(self, sample: Sample) -> dict[str, UInt8[np.ndarray, "... s s 3"]]:
        """Return the `image`, and the ten `crops` if the protocol classifies them."""
        pixels, size, protocol = sample.picture(), self.size, self.protocol
        outer = protocol.view_of(size)[0]
        loaded = {"image": to_view(pixels, size, frame=protocol.network_frame, resize_size=outer)}
        if protocol.classifier == "ten_crop":
            outer = round(protocol.resize_size * size / protocol.frame_size)
            loaded["crops"] = ten_crops(pixels, size, resize_size=outer)
        return loaded


def training_view(
    image: UInt8[np.ndarray, "h w c"] | PIL.Image.Image,
    size: int,
    rng: np.random.Generator,
    *,
    flip: float = 0.5,
    rotation: float = 0.0,
    rotation_filter: RotationFilter = "bilinear",
) -> UInt8[np.ndarray, "s s c"]:
    """Return a random view for training: rotate, crop `size` x `size`, mirror. Draws come from `rng` only.

    Args:
        image: resized image, both sides at least `size`. A fourth channel of an array, a mask, moves with the
            others.
        size: side of the crop.
        rng: source of all randomness.
        flip: probability of the mirror image.
        rotation: the angle is uniform in [-rotation, rotation] degrees; pixels from outside are black.
        rotation_filter: how a rotated image is sampled; `nearest` copies the nearest pixel.
    """
    width, height = _size(image)
    _at_least(min(width, height), size)
    angle, row, column, coin = rng.random(4)
    top, left = int(row * (height - size + 1)), int(column * (width - size + 1))
    box, degrees = (left, top, left + size, top + size), (2 * angle - 1) * rotation
    if isinstance(image, np.ndarray) and rotation == 0:
        view = image[top : top + size, left : left + size]
    elif isinstance(image, np.ndarray):
        from PIL import Image

        # Pillow treats a fourth channel as transparency and would blend the colours, so it is rotated alone.
        parts = [image[..., :3], *np.moveaxis(image[..., 3:], -1, 0)]
        views = [_rotated_crop(Image.fromarray(part), degrees, box, rotation_filter) for part in parts]
        view = views[0] if len(views) == 1 else np.dstack(views)
    elif rotation == 0:
        view = np.asarray(image.crop(box))
    else:
        view = _rotated_crop(image, degrees, box, rotation_filter)
    return view[:, ::-1] if coin < flip else view


def _rotated_crop(
    picture: PIL.Image.Image,
    degrees: float,
    box: tuple[int, int, int, int],
    sampling: RotationFilter,
) -> UInt8[np.ndarray, "s s ..."]:
    """Rotate the image about its centre as `PIL.Image.Image.rotate` does, and crop it to the box.

    What is right of and below the box is not computed. What is left of and above it is: Pillow counts pixels
    from the corner, and another corner would round differently.
    """
    from PIL import Image

    resample = Image.Resampling[sampling.upper()]
    if degrees % 90 == 0:  # Pillow copies these exactly
        return np.asarray(picture.rotate(degrees, resample=resample).crop(box))
    # The transform of `rotate`, operation by operation: from a pixel of the result to one of the image.
    radians, (x, y) = -math.radians(degrees % 360.0), (picture.width / 2.0, picture.height / 2.0)
    cosine, sine = round(math.cos(radians), 15), round(math.sin(radians), 15)
    matrix = (
        cosine,
        sine,
        cosine * -x + sine * -y + 0.0 + x,
        round(-math.sin(radians), 15),
        cosine,
        round(-math.sin(radians), 15) * -x + cosine * -y + 0.0 + y,
    )
    rotated = picture.transform(box[2:], Image.Transform.AFFINE, matrix, resample)
    return np.asarray(rotated.crop(box))


def _at_least(outer: int, inner: int) -> int:
    if outer < inner:
        raise UsageError(
            f"cannot cut {inner} x {inner} pixels from an image of {outer} x {outer}; the size before the "
            f"crop must be at least {inner}"
        )
    return outer
