"""Rendered scenes: image, masks, and named keypoints with their visibility.

Pixel coordinates: the centre of the top left pixel is (0, 0), so normalised u is at ``u * size - 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gate_lightning.data.scenes.homography import project
from gate_lightning.data.scenes.shapes import KEYPOINT_NAMES, keypoint_positions
from gate_lightning.data.scenes.world import PART_TO_MERGED, SceneSpec


@dataclass(frozen=True)
class Keypoints:
    """Named points of one object.

    Attributes:
        kind: kind of the object.
        names: K names, in the order of ``KEYPOINT_NAMES[kind]``.
        xy: float32 (K, 2) pixel coordinates; may lie outside the image.
        visible: bool (K,), in the image and not behind another object.
    """

    kind: str
    names: tuple[str, ...]
    xy: np.ndarray
    visible: np.ndarray

    def as_dict(self) -> dict[str, tuple[float, float, bool]]:
        """name -> (x, y, visible)."""
        points = zip(self.names, self.xy, self.visible, strict=True)
        return {name: (float(x), float(y), bool(seen)) for name, (x, y), seen in points}


@dataclass(frozen=True)
class Rendering:
    """A rendered scene with its label maps and keypoints.

    Attributes:
        image: uint8 (S, S, 3) RGB.
        parts: uint8 (S, S), index into ``PARTS``.
        instances: uint8 (S, S), 0 for sky and ground, i + 1 for object i of the scene.
        keypoints: one entry per object of the scene.
    """

    image: np.ndarray
    parts: np.ndarray
    instances: np.ndarray
    keypoints: tuple[Keypoints, ...]

    @property
    def merged(self) -> np.ndarray:
        """uint8 (S, S), index into ``MERGED``."""
        return PART_TO_MERGED[self.parts]


def _is_visible(x: float, y: float, instances: np.ndarray, own: int) -> bool:
    """In the image, on the object itself, or on background right beside it (rounding at thin tips)."""
    size = len(instances)
    if not (-0.5 <= x < size - 0.5 and -0.5 <= y < size - 0.5):
        return False
    column, row = int(x + 0.5), int(y + 0.5)
    label = instances[row, column]
    if label != 0:
        return bool(label == own)
    return bool((instances[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] == own).any())


def find_keypoints(
    spec: SceneSpec, instances: np.ndarray, transform: np.ndarray | None = None
) -> tuple[Keypoints, ...]:
    """Keypoints of every object, with visibility read off the instance mask uint8 (S, S) of the same scene."""
    size = len(instances)
    result = []
    for index, obj in enumerate(spec.objects):
        xy = project(keypoint_positions(obj), transform) * size - 0.5
        visible = np.array([_is_visible(x, y, instances, index + 1) for x, y in xy], dtype=bool)
        result.append(Keypoints(obj.kind, KEYPOINT_NAMES[obj.kind], xy.astype(np.float32), visible))
    return tuple(result)
