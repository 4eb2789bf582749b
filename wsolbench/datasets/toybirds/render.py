"""Rendering of one image of toybirds: scenery, birds, occluders, light.

A scene is drawn from random numbers independently of the class, so the same scene can be rendered with any
class. Two such images differ only in the birds' parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Int16, UInt8

from wsolbench.datasets.toybirds.bird import KINDS, PART_LAYERS, PART_NAMES, Bird, Kind, owner_of
from wsolbench.datasets.toybirds.canvas import (
    SUPERSAMPLING,
    Canvas,
    Colour,
    Placement,
    Points,
    circle,
    ellipse,
    random_colour,
    ribbon,
    smooth_noise,
)
from wsolbench.datasets.toybirds.versions import SPLITS, Range, Version
from wsolbench.types import KeyPoints

TWO_BIRDS = 1 / 7
"""Share of images with two birds."""
_OCCLUDED = 0.45
"""Share of birds with something in front of them."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """An image and its ground truth. The bird with the most visible pixels comes first."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: tuple[Bool[np.ndarray, "h w"], ...]
    """Visible pixels of each bird: those of which it covers at least half.

    Two birds that touch share a pixel if each covers half.
    """
    key_points: KeyPoints
    """Key points of the first bird, in the order of `PART_NAMES`."""
    parts: Bool[np.ndarray, "h w"]
    """Pixels that show, at least partly, a part by which classes differ."""


def draw_labels(version: Version, seed: int, split: str, count: int) -> Int[np.ndarray, " n"]:
    """Draw the class of each image of a split: every 12 consecutive images show every class once.

    Their order is random, so that a sample of every n-th image has all classes.
    """
    random = _generator(version, seed, split, 2**32 - 1)  # no image has this index
    blocks = [random.permutation(len(KINDS)) for _ in range(-(-count // len(KINDS)))]
    return np.concatenate(blocks)[:count]


def draw_stratum(version: Version, seed: int, split: str, index: int) -> int:
    """Draw the number of an image's stratum of sizes."""
    block, place = divmod(index, len(version.strata))
    random = _generator(version, seed, split, block, 1)  # no image has this key
    return int(random.permutation(len(version.strata))[place])


def render(version: Version, seed: int, split: str, index: int, kind: Kind, size: int) -> Rendering:
    """Render image `index` of a split with birds of this class. Depends only on the arguments."""
    random = _generator(version, seed, split, index)
    canvas = Canvas(size)
    _paint_scenery(canvas, random)
    birds = [Bird.draw(random) for _ in range(2 if random.random() < TWO_BIRDS else 1)]
    stratum = version.strata[draw_stratum(version, seed, split, index)]
    areas = stratum.pair if len(birds) == 2 else (stratum.single,)
    places = _places(version, birds, areas, random)
    for number, (bird, place) in enumerate(zip(birds, places, strict=True)):
        if not bird.flying and random.random() < 0.6:
            _paint_perch(canvas, random, bird, place)
        bird.paint(canvas, place, kind, number)
    for bird, place in zip(birds, places, strict=True):
        if random.random() < _OCCLUDED:
            _paint_occluder(canvas, random, bird, place)
    return _finish(canvas, random, birds, places)


def _generator(version: Version, seed: int, split: str, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), *index, *version.stream])


# --- birds --------------------------------------------------------------------------------------------------


def _places(
    version: Version, birds: list[Bird], areas: tuple[Range, ...], random: np.random.Generator
) -> list[Placement]:
    """Draw a place in the image for each bird, the second next to the first."""
    while True:
        places = [_place(version, bird, area, random) for bird, area in zip(birds, areas, strict=True)]
        if len(places) == 1:
            return places
        apart = abs(places[0].centre - places[1].centre)
        if apart > 0.55 * (places[0].scale + places[1].scale):
            return places


def _place(version: Version, bird: Bird, area: Range, random: np.random.Generator) -> Placement:
    # Rotation, side and scale.
    turn = np.exp(1j * random.uniform(-0.45, 0.45))
    mirrored = bool(random.random() < 0.5)
    at_origin = Placement(centre=0j, scale=1.0, turn=turn, mirrored=mirrored)(bird.extent())
    low = complex(at_origin.real.min(), at_origin.imag.min())
    high = complex(at_origin.real.max(), at_origin.imag.max())
    width, height = (high - low).real, (high - low).imag
    scale = np.sqrt(random.uniform(*area) / (width * height))
    scale = min(scale, 0.98 / width, 0.98 / height)
    # The upper left corner of the box.
    ranges = []
    for side in (scale * width, scale * height):
        beyond = version.beyond_image + version.beyond_box * side
        ranges.append((-beyond, 1 + beyond - side))
    corner = [random.uniform(*limits) for limits in ranges]
    if version.border < 1:
        axis = int(random.integers(2))
        border = min(ranges[axis], key=lambda limit: abs(limit - corner[axis]))
        corner[axis] = border + version.border * (corner[axis] - border)
    centre = complex(*corner) - scale * low
    return Placement(centre=centre, scale=float(scale), turn=turn, mirrored=mirrored)


# --- scenery ------------------------------------------------------------------------------------------------

_MOODS: tuple[tuple[tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ((0.22, 0.42), (0.25, 0.65), (0.3, 0.7)),  # leaves
    ((0.52, 0.62), (0.1, 0.5), (0.6, 0.95)),  # sky
    ((0.05, 0.14), (0.2, 0.6), (0.3, 0.75)),  # earth, dry grass
    ((0.0, 1.0), (0.0, 0.12), (0.3, 0.8)),  # rock, fog
)


def _mood_colour(random: np.random.Generator) -> Colour:
    return random_colour(random, *_MOODS[int(random.integers(len(_MOODS)))])


def _paint_scenery(canvas: Canvas, random: np.random.Generator) -> None:
    side = canvas.side
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    angle = random.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.6 * ((axis[None, :] - 0.5) * np.cos(angle) + (axis[:, None] - 0.5) * np.sin(angle))
    ramp = np.clip(ramp + 0.3 * smooth_noise(random, 4, side), 0, 1)[..., None]
    near, far = np.array(_mood_colour(random)), np.array(_mood_colour(random))
    grain = (
        1
        + random.uniform(0.05, 0.2) * smooth_noise(random, 12, side)
        + random.uniform(0.05, 0.2) * smooth_noise(random, 40, side)
    )
    canvas.rgb[:] = (ramp * near + (1 - ramp) * far) * grain[..., None]
    clutter = [_paint_rock] * int(random.integers(0, 6)) + [_paint_branch] * int(random.integers(0, 5))
    clutter += [_paint_foliage] * int(random.integers(1, 6)) + [_paint_distractor] * int(
        random.integers(2, 8)
    )
    for index in random.permutation(len(clutter)):
        clutter[index](canvas, random)


def _anywhere(random: np.random.Generator) -> complex:
    return complex(random.uniform(-0.05, 1.05), random.uniform(-0.05, 1.05))


def _any_turn(random: np.random.Generator) -> complex:
    return complex(np.exp(1j * random.uniform(0, 2 * np.pi)))


def _bumps(
    canvas: Canvas, random: np.random.Generator, strength: float, cells: int
) -> Float[np.ndarray, "s s"]:
    """Return a shade that makes a flat shape look rough."""
    return (1 + strength * smooth_noise(random, cells, canvas.side)).astype(np.float32)


def _paint_rock(canvas: Canvas, random: np.random.Generator) -> None:
    corners = int(random.integers(6, 11))
    radius = random.uniform(0.04, 0.17)
    angle = np.sort(random.uniform(0, 2 * np.pi, corners))
    rock = _anywhere(random) + radius * np.exp(1j * angle) * random.uniform(0.7, 1.2, corners)
    colour = random_colour(random, (0.02, 0.15), (0.02, 0.25), (0.3, 0.75))
    canvas.paint(rock, colour, shade=_bumps(canvas, random, 0.35, 14), rim=0.35)


def _branch(random: np.random.Generator, start: complex, end: complex) -> Points:
    share = np.linspace(0, 1, 6)
    bend = np.concatenate([[0], random.uniform(-0.05, 0.05, 4), [0]])
    return start + (end - start) * (share + 1j * bend)


def _paint_branch(canvas: Canvas, random: np.random.Generator) -> None:
    start = _anywhere(random)
    middle = _branch(random, start, start + random.uniform(0.3, 1.0) * _any_turn(random))
    _paint_wood(canvas, random, middle, random.uniform(0.012, 0.05))


def _paint_wood(canvas: Canvas, random: np.random.Generator, middle: Points, width: float) -> None:
    colour = random_colour(random, (0.03, 0.1), (0.15, 0.6), (0.2, 0.55))
    canvas.paint(
        ribbon(middle, np.linspace(width, 0.5 * width, len(middle))),
        colour,
        shade=_bumps(canvas, random, 0.3, 30),
        rim=0.3,
    )


def _leaf(base: complex, direction: complex, length: float, width: float) -> Points:
    profile = np.array([0, 0.25 - 0.8j, 0.5 - 1j, 0.8 - 0.5j, 1, 0.8 + 0.5j, 0.5 + 1j, 0.25 + 0.8j])
    return base + direction * (length * profile.real + 0.5j * width * profile.imag)


def _paint_leaf(
    canvas: Canvas,
    random: np.random.Generator,
    base: complex,
    direction: complex,
    length: float,
    colour: Colour,
) -> None:
    glow = random.uniform(0.75, 1.2)
    bright = (colour[0] * glow, colour[1] * glow, colour[2] * glow)
    canvas.paint(_leaf(base, direction, length, length * random.uniform(0.3, 0.6)), bright, rim=0.3)
    vein = ribbon(base + direction * length * np.array([0.05, 0.95]), np.array([0.04, 0.02]) * length)
    canvas.paint(vein, (bright[0] * 0.7, bright[1] * 0.75, bright[2] * 0.7))


def _leaf_colour(random: np.random.Generator) -> Colour:
    if random.random() < 0.7:
        return random_colour(random, (0.2, 0.4), (0.3, 0.8), (0.25, 0.75))
    return random_colour(random, (-0.02, 0.15), (0.4, 0.9), (0.35, 0.85))


def _paint_foliage(canvas: Canvas, random: np.random.Generator) -> None:
    colour, centre, spread = _leaf_colour(random), _anywhere(random), random.uniform(0.05, 0.2)
    for _ in range(int(random.integers(3, 12))):
        base = centre + spread * complex(random.normal(), random.normal())
        _paint_leaf(canvas, random, base, _any_turn(random), random.uniform(0.05, 0.16), colour)


def _paint_distractor(canvas: Canvas, random: np.random.Generator) -> None:
    """Paint an object in the colours of birds and their parts: a gourd, berries, a flower or a stick."""
    # Its place and colours, then one of four shapes.
    centre, turn, size = _anywhere(random), _any_turn(random), random.uniform(0.03, 0.08)
    bright = (
        random_colour(random, (-0.02, 0.02), (0.8, 0.95), (0.8, 0.95)),
        random_colour(random, (0.06, 0.15), (0.8, 0.95), (0.9, 1.0)),
        random_colour(random, (0.6, 0.66), (0.7, 0.9), (0.7, 0.95)),
        random_colour(random, (0.0, 1.0), (0.0, 0.05), (0.9, 1.0)),
        random_colour(random, (0.0, 1.0), (0.0, 0.2), (0.05, 0.2)),
    )[int(random.integers(5))]
    plumage = random_colour(random, (0, 1), (0.1, 0.55), (0.3, 0.85))
    match int(random.integers(4)):
        case 0:
            gourd = ellipse(centre, 2.4 * size, 1.5 * size, turn)
            canvas.paint(gourd, plumage, shade=_bumps(canvas, random, 0.25, 24), rim=0.25)
            pale = random_colour(random, (0, 1), (0.05, 0.35), (0.6, 0.95))
            canvas.paint(ellipse(centre + 0.4 * size * turn, 1.4 * size, 0.8 * size, turn), pale, rim=0.1)
        case 1:
            for _ in range(int(random.integers(2, 6))):
                berry = centre + 1.2 * size * complex(random.normal(), random.normal())
                canvas.paint(circle(berry, 0.5 * size), bright, rim=0.35)
                canvas.paint(circle(berry - (0.15 + 0.15j) * size, 0.14 * size), (255, 250, 245))
        case 2:
            for petal in range(5):
                direction = turn * np.exp(2j * np.pi * petal / 5)
                canvas.paint(_leaf(centre, direction, 1.3 * size, 0.9 * size), bright, rim=0.25)
            canvas.paint(circle(centre, 0.3 * size), plumage)
        case _:
            stick = centre + turn * size * np.linspace(-2, 2, 8)
            for index in range(7):
                canvas.paint(
                    ribbon(stick[index : index + 2], np.array([0.8, 0.8]) * size),
                    bright if index % 3 == 1 else plumage,
                )


def _paint_perch(canvas: Canvas, random: np.random.Generator, bird: Bird, place: Placement) -> None:
    """Paint a branch under the feet."""
    feet = complex(np.mean([place(bird.leg(which)[2]) for which in (0, 1)]))
    direction = np.exp(1j * random.uniform(-0.25, 0.25))
    width = place.scale * random.uniform(0.06, 0.12)
    centre = feet + 0.5j * width
    middle = _branch(random, centre - direction * random.uniform(0.3, 1.2), centre) + 0j
    beyond = _branch(random, centre, centre + direction * random.uniform(0.3, 1.2))
    _paint_wood(canvas, random, np.concatenate([middle, beyond[1:]]), width)


def _paint_occluder(canvas: Canvas, random: np.random.Generator, bird: Bird, place: Placement) -> None:
    """Paint a branch or some leaves over a point of the bird."""
    target = complex(place(random.choice(bird.extent())) * 0.7 + place.centre * 0.3)
    if random.random() < 0.35:
        reach = random.uniform(0.4, 1.0) * _any_turn(random)
        _paint_wood(
            canvas,
            random,
            _branch(random, target - reach, target + reach),
            place.scale * random.uniform(0.05, 0.12),
        )
        return
    colour = _leaf_colour(random)
    for _ in range(int(random.integers(1, 4))):
        length, direction = place.scale * random.uniform(0.35, 0.7), _any_turn(random)
        base = (
            target - 0.5 * length * direction + 0.12 * place.scale * complex(random.normal(), random.normal())
        )
        _paint_leaf(canvas, random, base, direction, length, colour)


# --- from canvas to image -----------------------------------------------------------------------------------


def _finish(
    canvas: Canvas, random: np.random.Generator, birds: list[Bird], places: list[Placement]
) -> Rendering:
    size = canvas.side // SUPERSAMPLING
    image = cv2.resize(canvas.rgb, (size, size), interpolation=cv2.INTER_AREA)
    masks = [_share(canvas.owner // 16 == 1 + number) >= 0.5 for number in range(len(birds))]
    order = sorted(range(len(birds)), key=lambda number: -int(masks[number].sum()))
    parts = np.isin(
        canvas.owner, [owner_of(number, layer) for number in range(len(birds)) for layer in PART_LAYERS]
    )
    first = order[0]
    return Rendering(
        image=_add_light(image, random),
        masks=tuple(masks[number] for number in order),
        key_points=_key_points(canvas.owner, birds[first], places[first], first, masks[first]),
        parts=_share(parts) > 0,
    )


def _share(flags: Bool[np.ndarray, "s s"]) -> Float[np.ndarray, "h w"]:
    """Return the share of the canvas points of each pixel for which a flag is set, (h, w)."""
    size = flags.shape[0] // SUPERSAMPLING
    share: Float[np.ndarray, "h w"] = flags.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(
        axis=(1, 3)
    )
    return share


def _add_light(image: Float[np.ndarray, "h w 3"], random: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Apply brightness, tint, a light gradient, shadows and sensor noise to each pixel."""
    size = image.shape[0]
    axis = (np.arange(size) + 0.5) / size - 0.5
    angle = random.uniform(0, 2 * np.pi)
    slope = random.uniform(0, 0.5) * (axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle))
    shadow = random.uniform(0, 0.3) * smooth_noise(random, 5, size)
    light = random.uniform(0.75, 1.15) * (1 + slope + shadow)
    tint = random.uniform(0.9, 1.08, 3)
    noise = random.normal(0, random.uniform(1, 6), (size, size, 1))
    lit: UInt8[np.ndarray, "h w 3"] = np.clip(
        np.round(image * light[..., None] * tint + noise), 0, 255
    ).astype(np.uint8)
    return lit


def _key_points(
    owner: Int16[np.ndarray, "s s"], bird: Bird, place: Placement, number: int, mask: Bool[np.ndarray, "h w"]
) -> KeyPoints:
    """Return key points in pixels. A part is visible if the canvas shows one of its layers there."""
    side, size = owner.shape[0], mask.shape[0]
    rows = np.zeros((len(PART_NAMES), 3), dtype=np.float64)
    for part, (local, layers) in bird.key_points(place.mirrored).items():
        point = complex(place(local))
        inside = 0 <= point.real < 1 and 0 <= point.imag < 1
        if not inside or not layers:
            continue
        shown = int(owner[int(point.imag * side), int(point.real * side)])
        if (
            shown in [owner_of(number, layer) for layer in layers]
            and mask[int(point.imag * size), int(point.real * size)]
        ):
            rows[PART_NAMES.index(part)] = point.real * size, point.imag * size, 1.0
    return rows
