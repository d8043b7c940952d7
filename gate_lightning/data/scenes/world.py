"""Description of scenes: names, colours, labels, and frozen dataclasses.

Coordinates here are *normalised*: x runs from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom) of the image.
Nothing in this module draws or samples; a scene is plain data so that the same description can be rendered at any
size, in either domain, through any homography, and one frame after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gate_lightning.data.card import RGB
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, number

KINDS: tuple[str, ...] = ("tree", "house", "horse", "car", "ball", "lamp")
"""Kinds of object, in the order of their merged class ids (2 .. 7)."""

LEAK_FREE_KINDS: tuple[str, ...] = ("tree", "house", "horse", "car")
"""Kinds of the leak-free set: one of each in every image, so naming the kinds says nothing about the image."""

DOMAINS: tuple[str, ...] = ("source", "target")

COLORS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (246, 138, 24),
    "yellow": (246, 220, 50),
    "green": (34, 146, 60),
    "blue": (36, 74, 214),
    "purple": (142, 52, 176),
    "white": (250, 250, 250),
    "black": (26, 26, 30),
}
"""Colour of an object's dominant part; chosen independently of the kind."""

SKIES: dict[str, tuple[RGB, RGB]] = {
    "day": ((112, 178, 236), (192, 224, 246)),
    "evening": ((196, 112, 98), (250, 206, 158)),
    "night": ((30, 38, 88), (84, 88, 142)),
}
"""Sky name -> colour at the top of the image and at its bottom (the gradient runs behind the ground)."""

GROUNDS: dict[str, RGB] = {
    "grass": (148, 186, 98),
    "sand": (222, 202, 152),
    "snow": (222, 230, 240),
    "road": (134, 132, 136),
    "water": (92, 156, 176),
}

PARTS: tuple[str, ...] = (
    "sky",
    "ground",
    "tree crown",
    "tree trunk",
    "house wall",
    "house roof",
    "house door",
    "horse head",
    "horse body",
    "horse legs",
    "car body",
    "car window",
    "car wheel",
    "ball",
    "lamp head",
    "lamp pole",
)
"""The 16 part labels; the index is the value in ``Rendering.parts``. "horse head" includes the neck."""

MERGED: tuple[str, ...] = ("sky", "ground", *KINDS)
"""The 8 merged classes: sky, ground and the six kinds."""

PART_TO_MERGED: np.ndarray = np.array([MERGED.index(name.split()[0]) for name in PARTS], dtype=np.uint8)
"""uint8 (16,) lookup table: ``PART_TO_MERGED[parts]`` is the merged mask."""

PART_PALETTE: np.ndarray = np.array(
    [
        (135, 190, 235),
        (170, 170, 120),
        (40, 150, 60),
        (120, 80, 40),
        (230, 180, 120),
        (180, 50, 50),
        (90, 40, 90),
        (250, 160, 200),
        (200, 90, 150),
        (120, 40, 100),
        (60, 90, 210),
        (150, 220, 255),
        (30, 30, 60),
        (250, 220, 40),
        (255, 140, 0),
        (110, 110, 110),
    ],
    dtype=np.uint8,
)
"""uint8 (16, 3) RGB for showing part masks."""

MERGED_PALETTE: np.ndarray = PART_PALETTE[[0, 1, 2, 4, 8, 10, 13, 14]]
"""uint8 (8, 3) RGB for showing merged masks."""

# read-only: writing to a mask or palette must not change the labels of later images
for _table in (PART_TO_MERGED, PART_PALETTE, MERGED_PALETTE):
    _table.setflags(write=False)

SCALES: dict[str, tuple[float, float]] = {
    "tree": (0.38, 0.65),
    "house": (0.34, 0.62),
    "horse": (0.34, 0.60),
    "car": (0.25, 0.42),
    "ball": (0.25, 0.46),
    "lamp": (0.42, 0.65),
}
"""Kind -> sampled heights relative to the image. "small" and "large" in captions are relative to this range."""


@dataclass(frozen=True)
class ObjectSpec:
    """One object, standing on its foot point.

    Attributes:
        kind: one of ``KINDS``.
        color: one of ``COLORS``; the colour of the dominant part (crown, wall, body, ball, lamp head).
        x, y: foot point in normalised coordinates (may lie outside the image, for video), in [-4, 4].
        scale: height relative to the image height, in (0, 4].
        flip: mirror left to right.
        tilt: rotation about the foot point in radians, positive clockwise on screen, in [-pi, pi].
        stretch: factor on the width, in [0.25, 4].

    Raises:
        ConfigError: unknown kind or colour, or a number outside its range.
    """

    kind: str
    color: str
    x: float
    y: float
    scale: float
    flip: bool = False
    tilt: float = 0.0
    stretch: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.kind, "kind", KINDS)
        check_choice(self.color, "color", COLORS)
        number(self.x, "x", -4.0, 4.0)
        number(self.y, "y", -4.0, 4.0)
        number(self.scale, "scale", 1e-3, 4.0)
        number(self.tilt, "tilt", -math.pi, math.pi)
        number(self.stretch, "stretch", 0.25, 4.0)

    @property
    def size_fraction(self) -> float:
        """Position of ``scale`` in the sampled range of the kind, from 0 (smallest) to 1 (largest), clipped."""
        low, high = SCALES[self.kind]
        return min(1.0, max(0.0, (self.scale - low) / (high - low)))


@dataclass(frozen=True)
class SceneSpec:
    """A whole scene as plain data; rendering is a pure function of it.

    Attributes:
        seed: the seed the scene was sampled from; also decides the wording and the errors of captions.
        domain: "source" or "target"; changes the look only, never the geometry.
        sky, ground: names from ``SKIES`` and ``GROUNDS``.
        horizon: normalised y of the line between sky and ground, in [0, 1].
        objects: drawn back to front by foot ``y`` (ties in tuple order); object i has instance id i + 1.
        texture_seed: non-negative integer deciding texture, stripes and grain.

    Raises:
        ConfigError: an unknown name or a number outside its range.
    """

    seed: int
    domain: str
    sky: str
    ground: str
    horizon: float
    objects: tuple[ObjectSpec, ...] = field(default_factory=tuple)
    texture_seed: int = 0

    def __post_init__(self) -> None:
        check_choice(self.domain, "domain", DOMAINS)
        check_choice(self.sky, "sky", SKIES)
        check_choice(self.ground, "ground", GROUNDS)
        number(self.horizon, "horizon", 0.0, 1.0)
        if self.seed < 0 or self.texture_seed < 0:
            raise ConfigError(f"seeds must not be negative, got {self.seed} and {self.texture_seed}")
        object.__setattr__(self, "objects", tuple(self.objects))
