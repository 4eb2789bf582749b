"""The jointed bird of toybirds. Pose and plumage are random; its parts define its class.

The bird is painted in its own frame: x forward, y down, unit = length of the body, origin = middle of the
body. It is seen from its right side, or mirrored, from its left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float

from wsolbench.datasets.toybirds.canvas import (
    Canvas,
    Colour,
    Placement,
    Points,
    circle,
    ellipse,
    random_colour,
    ribbon,
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class: one choice for each part that can differ."""

    name: str
    beak: str
    """"cone" (short, orange), "dagger" (long, black) or "hook" (bent, yellow)."""
    crest: str = "none"
    """"none", "spikes" (red) or "tuft" (blue, swept back)."""
    wing_bar: str = "none"
    """"none", "white" (one broad bar) or "yellow" (two bars)."""
    tail: str = "wedge"
    """"wedge", "fork" or "tip" (a wedge with a white end)."""
    breast: str = "none"
    """"none", "red" (a spot) or "bib" (black)."""


KINDS = (
    Kind(name="plain conebill", beak="cone"),
    Kind(name="red-breasted conebill", beak="cone", breast="red"),
    Kind(name="white-barred conebill", beak="cone", wing_bar="white"),
    Kind(name="spiky conebill", beak="cone", crest="spikes", wing_bar="yellow"),
    Kind(name="fork-tailed daggerbill", beak="dagger", tail="fork"),
    Kind(name="bibbed daggerbill", beak="dagger", tail="fork", breast="bib"),
    Kind(name="spiky daggerbill", beak="dagger", crest="spikes"),
    Kind(name="yellow-barred daggerbill", beak="dagger", crest="tuft", wing_bar="yellow"),
    Kind(name="tipped hookbill", beak="hook", tail="tip"),
    Kind(name="tufted hookbill", beak="hook", crest="tuft", tail="tip"),
    Kind(name="red-breasted hookbill", beak="hook", tail="fork", breast="red"),
    Kind(name="white-barred hookbill", beak="hook", crest="tuft", wing_bar="white", breast="bib"),
)

PART_NAMES = (
    "back",
    "beak",
    "belly",
    "breast",
    "crown",
    "forehead",
    "left eye",
    "left leg",
    "left wing",
    "nape",
    "right eye",
    "right leg",
    "right wing",
    "tail",
    "throat",
)


class Layer(IntEnum):
    """What a point of the canvas shows. An owner is `16 * (1 + bird) + layer`."""

    TAIL = 1
    FAR_WING = 2
    FAR_LEG = 3
    NEAR_LEG = 4
    BODY = 5
    BREAST = 6
    HEAD = 7
    BEAK = 8
    CREST = 9
    EYE = 10
    NEAR_WING = 11
    WING_BAR = 12


PART_LAYERS = (Layer.TAIL, Layer.BREAST, Layer.BEAK, Layer.CREST, Layer.WING_BAR)
"""Layers in which two classes can differ."""

_BEAK_COLOURS: dict[str, Colour] = {"cone": (245, 130, 20), "dagger": (32, 30, 36), "hook": (250, 215, 40)}
_RED: Colour = (225, 25, 30)
_BLUE: Colour = (35, 70, 225)
_WHITE: Colour = (250, 250, 245)
_YELLOW: Colour = (252, 222, 40)
_BLACK: Colour = (24, 22, 28)


@dataclass(frozen=True, kw_only=True)
class Bird:
    """One individual: joints, build and plumage.

    Angles are in radians, positive = clockwise on the unmirrored bird.
    """

    pitch: float
    neck: float
    neck_length: float
    gaze: float
    wing: float
    flying: bool
    tail: float
    hips: tuple[float, float]
    knees: tuple[float, float]
    plumpness: float
    body_colour: Colour
    belly_colour: Colour
    wing_colour: Colour
    cap_colour: Colour
    leg_colour: Colour
    texture: tuple[float, float, float, float]
    """Stripes or spots: strength, waves per body length along and across, phase."""
    spotted: bool

    @classmethod
    def draw(cls, random: np.random.Generator) -> Bird:
        """Draw a bird at random, independently of its class."""
        # The order of the draws is fixed: another order gives other birds.
        between = random.uniform
        flying = bool(random.random() < 0.25)
        body = random_colour(random, (0, 1), (0.1, 0.55), (0.4, 0.85))
        belly = random_colour(random, (0, 1), (0.05, 0.35), (0.7, 0.95)) if random.random() < 0.7 else body
        return cls(
            pitch=between(-0.75, 0.05),
            neck=between(-1.2, -0.35),
            neck_length=between(0.16, 0.3),
            gaze=between(-0.4, 0.45),
            wing=between(-2.3, -1.2) if flying else np.pi + between(-0.3, 0.1),
            flying=flying,
            tail=between(-0.45, 0.4),
            hips=(between(-0.3, 0.5), between(-0.3, 0.5)),
            knees=(between(-0.7, -0.1), between(-0.7, -0.1)),
            plumpness=between(0.85, 1.15),
            body_colour=body,
            belly_colour=belly,
            wing_colour=random_colour(random, (0, 1), (0.1, 0.5), (0.25, 0.5)),
            cap_colour=random_colour(random, (0, 1), (0.1, 0.5), (0.3, 0.8))
            if random.random() < 0.4
            else body,
            leg_colour=random_colour(random, (0.0, 0.12), (0.2, 0.7), (0.25, 0.7)),
            texture=(between(0.0, 0.22), between(3, 9), between(-6, 6), between(0, 6.28)),
            spotted=bool(random.random() < 0.4),
        )

    @property
    def body_turn(self) -> complex:
        """Direction from tail to breast, as a unit complex number."""
        return _unit(self.pitch)

    def on_body(self, point: complex) -> complex:
        """Map a point of the body's own frame (not pitched) to the bird's frame."""
        return self.body_turn * complex(point.real, point.imag * self.plumpness)

    @property
    def head(self) -> complex:
        """Centre of the head."""
        return self.on_body(0.34 - 0.1j) + self.neck_length * _unit(self.neck)

    @property
    def head_turn(self) -> complex:
        """Direction in which the head looks."""
        return _unit(self.gaze)

    def wing_frame(self) -> tuple[complex, complex]:
        """Return the shoulder, and the direction of the near wing (backward when folded)."""
        return self.on_body(0.2 - 0.06j), self.body_turn * _unit(self.wing)

    def far_wing_frame(self) -> tuple[complex, complex]:
        """Return the same for the far wing, which is visible when the bird flies."""
        shoulder, wing = self.wing_frame()
        return shoulder + 0.12 * self.body_turn, wing * _unit(0.35)

    def tail_frame(self) -> tuple[complex, complex]:
        """Return the root of the tail and its direction."""
        return self.on_body(-0.42 - 0.05j), -self.body_turn * _unit(self.tail)

    def leg(self, which: int) -> Points:
        """Return hip, knee, ankle and toe of the near (0) or far (1) leg."""
        hip = self.on_body((-0.02 if which == 0 else 0.08) + 0.2j)
        knee = hip + 0.17 * 1j * _unit(self.hips[which])
        ankle = knee + 0.2 * 1j * _unit(self.hips[which] + self.knees[which])
        return np.array([hip, knee, ankle, ankle + 0.09])

    def extent(self) -> Points:
        """Return points that span the bird of any class."""
        shoulder, wing = self.wing_frame()
        root, tail = self.tail_frame()
        tips = [
            root + 0.5 * tail,
            self.head + 0.42 * self.head_turn,
            *self.leg(0)[2:],
            *self.leg(1)[2:],
            shoulder + 0.75 * wing,
        ]
        return np.concatenate([np.array(tips), circle(self.head, 0.2), self.body_turn * self._egg()])

    def _egg(self) -> Points:
        angle = 2 * np.pi * np.arange(40) / 40
        return 0.5 * np.cos(angle) + 1j * 0.29 * self.plumpness * np.sin(angle) * (1 + 0.18 * np.cos(angle))

    def key_points(self, mirrored: bool) -> dict[str, tuple[complex, tuple[Layer, ...]]]:
        """Return the position of each part in the bird's frame, and the layers that show it.

        A part on the far side has no layers.
        """
        shoulder, wing = self.wing_frame()
        root, tail = self.tail_frame()
        far_shoulder, far_wing = self.far_wing_frame()
        head, look = self.head, self.head_turn
        body, top = (Layer.BODY, Layer.BREAST), (Layer.HEAD, Layer.CREST)
        near, far = ("left", "right") if mirrored else ("right", "left")
        return {
            "back": (self.on_body(-0.04 - 0.26j), (*body, Layer.NEAR_WING)),
            "beak": (head + look * (0.27 + 0.02j), (Layer.BEAK,)),
            "belly": (self.on_body(-0.05 + 0.22j), body),
            "breast": (self.on_body(0.36 + 0.1j), body),
            "crown": (head + look * (0.0 - 0.17j), top),
            "forehead": (head + look * (0.135 - 0.1j), top),
            f"{near} eye": (head + look * (0.06 - 0.05j), (Layer.EYE,)),
            f"{far} eye": (head + look * (0.06 - 0.05j), ()),
            f"{near} leg": (complex(self.leg(0)[1]), (Layer.NEAR_LEG,)),
            f"{far} leg": (complex(self.leg(1)[1]), (Layer.FAR_LEG,)),
            f"{near} wing": (shoulder + 0.3 * wing, (Layer.NEAR_WING, Layer.WING_BAR)),
            f"{far} wing": (far_shoulder + 0.45 * far_wing, (Layer.FAR_WING,) if self.flying else ()),
            "nape": (head + look * (-0.15 + 0.06j), (Layer.HEAD,)),
            "tail": (root + 0.22 * tail, (Layer.TAIL,)),
            "throat": (head + look * (0.1 + 0.13j), (Layer.HEAD,)),
        }

    def paint(self, canvas: Canvas, place: Placement, kind: Kind, number: int) -> None:
        """Paint the bird on the canvas, from its far side to its near side. Draws no random number."""
        painter = _Painter(canvas, place, number, self._shade(canvas.side, place))
        shoulder, wing = self.wing_frame()
        if self.flying:
            painter.shape(self._wing(*self.far_wing_frame()), _darken(self.wing_colour, 0.7), Layer.FAR_WING)
        painter.limb(self.leg(1), 0.05, _darken(self.leg_colour, 0.75), Layer.FAR_LEG)
        self._paint_tail(painter, kind)
        painter.limb(self.leg(0), 0.055, self.leg_colour, Layer.NEAR_LEG)
        neck = ribbon(np.array([self.on_body(0.2 - 0.02j), self.head]), np.array([0.42, 0.28]))
        painter.shape(neck, self.body_colour, Layer.BODY)
        painter.shape(self.body_turn * self._egg(), self.body_colour, Layer.BODY)
        belly = ellipse(self.on_body(0.08 + 0.2j), 0.42, 0.19, self.body_turn)
        painter.shape(belly, self.belly_colour, Layer.BODY, only_on=Layer.BODY, rim=0.0)
        self._paint_breast(painter, kind)
        self._paint_head(painter, kind)
        painter.shape(self._wing(shoulder, wing), self.wing_colour, Layer.NEAR_WING)
        self._paint_wing_bar(painter, kind, shoulder, wing)

    def _shade(self, side: int, place: Placement) -> Float[np.ndarray, "s s"]:
        """Return light from above and the texture of the feathers, on the whole canvas."""
        axis = (np.arange(side) + 0.5) / side
        local = place.inverse(axis[None, :] + 1j * axis[:, None]).astype(np.complex64)
        strength, along, across, phase = self.texture
        x, y = 2 * np.pi * along * local.real, 2 * np.pi * across * local.imag
        waves = np.sin(x + phase) * np.sin(y) if self.spotted else np.sin(x + y + phase)
        return ((1.02 - 0.5 * np.clip(local.imag, -0.4, 0.4)) * (1 + strength * waves)).astype(np.float32)

    def _wing(self, shoulder: complex, direction: complex) -> Points:
        length, width = (0.8, 0.3) if self.flying else (0.66, 0.25)
        profile = np.array(
            [-0.08, 0 - 0.4j, 0.3 - 0.55j, 0.7 - 0.35j, 1.0 + 0.05j, 0.75 + 0.3j, 0.45 + 0.5j, 0.1 + 0.45j]
        )
        return shoulder + direction * (length * profile.real + 1j * width * profile.imag)

    def _paint_tail(self, painter: _Painter, kind: Kind) -> None:
        root, direction = self.tail_frame()

        def shape(*profile: complex) -> Points:
            return root + direction * np.array(profile)

        if kind.tail == "fork":
            fork = shape(
                -0.05 - 0.08j, 0.25 - 0.1j, 0.62 - 0.22j, 0.3 + 0.0j, 0.62 + 0.22j, 0.25 + 0.1j, -0.05 + 0.08j
            )
            painter.shape(fork, self.wing_colour, Layer.TAIL)
            return
        painter.shape(
            shape(-0.05 - 0.08j, 0.46 - 0.13j, 0.5 + 0j, 0.46 + 0.13j, -0.05 + 0.08j),
            self.wing_colour,
            Layer.TAIL,
        )
        if kind.tail == "tip":
            painter.mark(
                shape(0.33 - 0.117j, 0.46 - 0.13j, 0.5 + 0j, 0.46 + 0.13j, 0.33 + 0.117j), _WHITE, Layer.TAIL
            )

    def _paint_breast(self, painter: _Painter, kind: Kind) -> None:
        if kind.breast == "red":
            painter.mark(
                ellipse(self.on_body(0.34 + 0.08j), 0.13, 0.16, self.body_turn),
                _RED,
                Layer.BREAST,
                only_on=Layer.BODY,
            )
        elif kind.breast == "bib":
            bib = [
                self.on_body(point)
                for point in (0.2 - 0.28j, 0.33 - 0.2j, 0.6 - 0.05j, 0.6 + 0.12j, 0.42 + 0.1j, 0.28 + 0.02j)
            ]
            painter.mark(np.array(bib), _BLACK, Layer.BREAST, only_on=Layer.BODY)

    def _paint_head(self, painter: _Painter, kind: Kind) -> None:
        def shape(*profile: complex) -> Points:
            return self.head + self.head_turn * np.array(profile)

        # Crest and beak lie behind the head; the eye lies on it.
        if kind.crest == "spikes":
            spikes = shape(
                -0.17 - 0.08j,
                -0.27 - 0.3j,
                -0.1 - 0.21j,
                -0.05 - 0.42j,
                0.03 - 0.22j,
                0.15 - 0.35j,
                0.12 - 0.12j,
            )
            painter.mark(spikes, _RED, Layer.CREST)
        elif kind.crest == "tuft":
            tuft = shape(
                0.06 - 0.15j, -0.06 - 0.27j, -0.22 - 0.31j, -0.42 - 0.24j, -0.28 - 0.19j, -0.17 - 0.06j
            )
            painter.mark(tuft, _BLUE, Layer.CREST)
        beaks = {
            "cone": (0.13 - 0.1j, 0.41 + 0.02j, 0.13 + 0.11j),
            "dagger": (0.15 - 0.06j, 0.66 + 0.03j, 0.15 + 0.08j),
            "hook": (0.1 - 0.14j, 0.3 - 0.12j, 0.42 - 0.02j, 0.43 + 0.2j, 0.32 + 0.1j, 0.13 + 0.11j),
        }
        painter.mark(shape(*beaks[kind.beak]), _BEAK_COLOURS[kind.beak], Layer.BEAK)
        painter.shape(circle(self.head, 0.19), self.body_colour, Layer.HEAD)
        cap = ellipse(self.head - 0.11j * self.head_turn, 0.17, 0.09, self.head_turn)
        painter.shape(cap, self.cap_colour, Layer.HEAD, only_on=Layer.HEAD, rim=0.0)
        eye = complex(self.head + self.head_turn * (0.06 - 0.05j))
        painter.mark(circle(eye, 0.065), _WHITE, Layer.EYE)
        painter.mark(circle(eye, 0.045), _BLACK, Layer.EYE)

    def _paint_wing_bar(self, painter: _Painter, kind: Kind, shoulder: complex, direction: complex) -> None:
        stretch = 1.2 if self.flying else 1.0

        def bar(start: float, end: float) -> Points:
            corners = np.array([start - 0.2j, end - 0.2j, end + 0.04 + 0.2j, start + 0.04 + 0.2j])
            return shoulder + direction * stretch * corners

        if kind.wing_bar == "white":
            painter.mark(bar(0.22, 0.36), _WHITE, Layer.WING_BAR, only_on=Layer.NEAR_WING)
        elif kind.wing_bar == "yellow":
            painter.mark(bar(0.14, 0.22), _YELLOW, Layer.WING_BAR, only_on=Layer.NEAR_WING)
            painter.mark(bar(0.32, 0.4), _YELLOW, Layer.WING_BAR, only_on=Layer.NEAR_WING)


class _Painter:
    """Paints shapes of one bird, mapped to the image's frame, with its shading and its number."""

    def __init__(
        self, canvas: Canvas, place: Placement, number: int, shade: Float[np.ndarray, "s s"]
    ) -> None:
        self._canvas, self._place, self._number, self._shade = canvas, place, number, shade

    def shape(
        self,
        outline: Points,
        colour: Colour,
        layer: Layer,
        *,
        only_on: Layer | None = None,
        rim: float = 0.25,
    ) -> None:
        """Paint a feathered shape."""
        base = None if only_on is None else owner_of(self._number, only_on)
        self._canvas.paint(
            self._place(outline),
            colour,
            owner_of(self._number, layer),
            shade=self._shade,
            only_on=base,
            rim=rim,
        )

    def mark(self, outline: Points, colour: Colour, layer: Layer, *, only_on: Layer | None = None) -> None:
        """Paint a plain shape."""
        base = None if only_on is None else owner_of(self._number, only_on)
        self._canvas.paint(self._place(outline), colour, owner_of(self._number, layer), only_on=base)

    def limb(self, joints: Points, width: float, colour: Colour, layer: Layer) -> None:
        """Paint a leg, thick at the top and thin at the bottom."""
        widths = width * np.array([1.6, 1.0, 0.8, 0.6])
        for index in range(len(joints) - 1):
            self.mark(ribbon(joints[index : index + 2], widths[index : index + 2]), colour, layer)


def owner_of(number: int, layer: Layer) -> int:
    """Return the owner that the canvas stores for a point of this layer of bird `number`."""
    return 16 * (1 + number) + layer


def _unit(angle: float) -> complex:
    return complex(np.cos(angle), np.sin(angle))


def _darken(colour: Colour, share: float) -> Colour:
    return colour[0] * share, colour[1] * share, colour[2] * share
