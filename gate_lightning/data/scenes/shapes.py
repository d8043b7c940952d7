"""Outlines and keypoints of the six kinds, as polygons in an object's own frame.

Frame of an object: the foot point is (0, 0), the object is one unit high, y points down (so the top is at y = -1) and
x points to the right; horse and car look to the right. Everything is a polygon (circles too): a homography maps
polygons exactly, whereas a circle would stop being one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gate_lightning.data.card import RGB
from gate_lightning.data.scenes.world import PARTS, ObjectSpec

CIRCLE_CORNERS = 24

BROWN: RGB = (122, 82, 48)
DARK_BROWN: RGB = (84, 52, 36)
GLASS: RGB = (190, 222, 236)
RUBBER: RGB = (52, 52, 58)
STEEL: RGB = (104, 108, 120)


@dataclass(frozen=True)
class Shape:
    """One polygon of an object.

    Attributes:
        part: index into ``PARTS``.
        points: float64 (N, 2) corners in the object's frame.
        paint: fixed RGB, or None for the object's own colour.
        tone: shade in [-1, 1]; negative darkens and positive lightens.
    """

    part: int
    points: np.ndarray
    paint: RGB | None = None
    tone: float = 0.0


def _disc(cx: float, cy: float, rx: float, ry: float | None = None) -> np.ndarray:
    angle = np.arange(CIRCLE_CORNERS) * (2 * np.pi / CIRCLE_CORNERS)
    return np.stack([cx + rx * np.cos(angle), cy + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _shape(part: str, points: ArrayLike, paint: RGB | None = None, tone: float = 0.0) -> Shape:
    return Shape(PARTS.index(part), np.asarray(points, dtype=np.float64), paint, tone)


def _tree() -> list[Shape]:
    return [
        _shape("tree trunk", [(-0.07, -0.45), (0.07, -0.45), (0.10, 0.0), (-0.10, 0.0)], BROWN),
        _shape("tree crown", _disc(-0.19, -0.53, 0.20), tone=-0.14),
        _shape("tree crown", _disc(0.19, -0.53, 0.20), tone=-0.14),
        _shape("tree crown", _disc(0.0, -0.69, 0.30, 0.31)),
    ]


def _house() -> list[Shape]:
    return [
        _shape("house wall", _box(-0.43, -0.58, 0.43, 0.0)),
        _shape("house roof", [(-0.54, -0.53), (0.0, -1.0), (0.54, -0.53)], tone=-0.42),
        _shape("house door", _box(0.08, -0.36, 0.28, 0.0), DARK_BROWN),
    ]


def _horse() -> list[Shape]:
    far = -0.45
    near = -0.26
    neck = [(0.08, -0.60), (0.30, -0.42), (0.50, -0.76), (0.42, -0.92), (0.30, -0.92)]
    muzzle = [(0.30, -0.93), (0.43, -0.95), (0.65, -0.76), (0.63, -0.65), (0.53, -0.64), (0.36, -0.74)]
    tail = [(-0.34, -0.60), (-0.46, -0.58), (-0.55, -0.40), (-0.54, -0.22)]
    tail += [(-0.47, -0.24), (-0.43, -0.44), (-0.34, -0.50)]
    return [
        _shape("horse legs", _box(-0.24, -0.45, -0.14, -0.01), tone=far),
        _shape("horse legs", _box(0.08, -0.45, 0.18, -0.01), tone=far),
        _shape("horse legs", _box(-0.38, -0.50, -0.27, 0.0), tone=near),
        _shape("horse legs", _box(0.20, -0.46, 0.31, 0.0), tone=near),
        _shape("horse body", tail, tone=-0.40),
        _shape("horse head", [(0.33, -0.90), (0.37, -1.0), (0.43, -0.92)], tone=-0.30),
        _shape("horse head", neck, tone=0.16),
        _shape("horse head", muzzle, tone=0.16),
        _shape("horse head", [(0.08, -0.62), (0.30, -0.95), (0.36, -0.90), (0.17, -0.58)], tone=-0.40),
        _shape("horse body", _disc(-0.04, -0.50, 0.37, 0.19)),
    ]


def _car() -> list[Shape]:
    hull = [(-0.90, -0.20), (-0.92, -0.50), (-0.86, -0.58), (0.50, -0.58), (0.84, -0.50), (0.93, -0.38), (0.93, -0.20)]
    return [
        _shape("car body", [(-0.78, -0.54), (-0.62, -1.0), (0.10, -1.0), (0.46, -0.54)]),
        _shape("car body", hull),
        _shape("car window", [(-0.62, -0.58), (-0.52, -0.89), (-0.28, -0.89), (-0.28, -0.58)], GLASS),
        _shape("car window", [(-0.17, -0.58), (-0.17, -0.89), (0.06, -0.89), (0.31, -0.58)], GLASS),
        _shape("car wheel", _disc(-0.52, -0.21, 0.21), RUBBER),
        _shape("car wheel", _disc(0.54, -0.21, 0.21), RUBBER),
    ]


def _ball() -> list[Shape]:
    return [
        _shape("ball", _disc(0.0, -0.5, 0.5), tone=-0.16),
        _shape("ball", _disc(-0.05, -0.55, 0.41)),
        _shape("ball", _disc(-0.16, -0.68, 0.13), tone=0.40),
    ]


def _lamp() -> list[Shape]:
    return [
        _shape("lamp pole", _box(-0.045, -0.70, 0.045, -0.02), STEEL),
        _shape("lamp pole", [(-0.10, -0.07), (0.10, -0.07), (0.15, 0.0), (-0.15, 0.0)], STEEL),
        _shape("lamp head", [(-0.15, -0.60), (0.15, -0.60), (0.25, -0.90), (-0.25, -0.90)]),
        _shape("lamp head", [(-0.29, -0.88), (0.29, -0.88), (0.12, -1.0), (-0.12, -1.0)], tone=-0.30),
    ]


SHAPES: dict[str, tuple[Shape, ...]] = {
    "tree": tuple(_tree()),
    "house": tuple(_house()),
    "horse": tuple(_horse()),
    "car": tuple(_car()),
    "ball": tuple(_ball()),
    "lamp": tuple(_lamp()),
}
"""Kind -> polygons, back to front."""

# Points sit a little inside the outline, so that at 64 pixels they still fall on the object after rounding.
KEYPOINTS: dict[str, dict[str, tuple[float, float]]] = {
    "tree": {
        "top": (0.0, -0.97),
        "trunk_base": (0.0, -0.03),
        "crown_left": (-0.35, -0.54),
        "crown_right": (0.35, -0.54),
    },
    "house": {
        "roof_apex": (0.0, -0.96),
        "wall_left": (-0.40, -0.03),
        "wall_right": (0.40, -0.03),
        "door_top": (0.18, -0.34),
    },
    "horse": {
        "nose": (0.61, -0.71),
        "ear": (0.375, -0.96),
        "front_hoof": (0.255, -0.03),
        "back_hoof": (-0.325, -0.03),
        "tail_base": (-0.385, -0.55),
    },
    "car": {
        "front": (0.90, -0.33),
        "back": (-0.87, -0.42),
        "roof_top": (-0.26, -0.96),
        "front_wheel": (0.54, -0.21),
        "back_wheel": (-0.52, -0.21),
    },
    "ball": {"centre": (0.0, -0.5), "top": (0.0, -0.97)},
    "lamp": {"head_centre": (0.0, -0.80), "pole_base": (0.0, -0.04)},
}
"""Kind -> name -> point in the object's frame."""

KEYPOINT_NAMES: dict[str, tuple[str, ...]] = {kind: tuple(points) for kind, points in KEYPOINTS.items()}

# "left" and "right" mean the side seen in the image; a mirrored object therefore swaps the two points.
_MIRROR = {
    "crown_left": "crown_right",
    "crown_right": "crown_left",
    "wall_left": "wall_right",
    "wall_right": "wall_left",
}

# Corners of a kind in one array: one matrix product places a whole object, which matters at 600 images a second.
_ALL_POINTS = {kind: np.concatenate([shape.points for shape in shapes]) for kind, shapes in SHAPES.items()}
_SPLITS = {kind: np.cumsum([len(shape.points) for shape in shapes])[:-1].tolist() for kind, shapes in SHAPES.items()}
_KEYPOINT_ARRAYS = {kind: np.array(list(points.values())) for kind, points in KEYPOINTS.items()}
_MIRRORED_ARRAYS = {
    kind: np.array([points[_MIRROR.get(name, name)] for name in points]) for kind, points in KEYPOINTS.items()
}

HALF_WIDTH: dict[str, float] = {kind: float(np.abs(points[:, 0]).max()) for kind, points in _ALL_POINTS.items()}
"""Kind -> largest |x| of the outline, in units of the object's height."""


def _place(obj: ObjectSpec, points: np.ndarray) -> np.ndarray:
    """Object's frame -> normalised image coordinates, (N, 2) -> (N, 2)."""
    width = obj.scale * obj.stretch * (-1.0 if obj.flip else 1.0)
    cos, sin = np.cos(obj.tilt), np.sin(obj.tilt)
    matrix = np.array([[width * cos, width * sin], [-obj.scale * sin, obj.scale * cos]])
    return points @ matrix + (obj.x, obj.y)


def outline_points(obj: ObjectSpec) -> tuple[np.ndarray, list[int]]:
    """All polygon corners of an object in normalised coordinates.

    Returns:
        float64 (N, 2) corners of all polygons one after the other, and the indices at which to split them.
    """
    return _place(obj, _ALL_POINTS[obj.kind]), _SPLITS[obj.kind]


def keypoint_positions(obj: ObjectSpec) -> np.ndarray:
    """Keypoints of an object in normalised coordinates, float64 (K, 2), in the order of ``KEYPOINT_NAMES``."""
    return _place(obj, (_MIRRORED_ARRAYS if obj.flip else _KEYPOINT_ARRAYS)[obj.kind])
