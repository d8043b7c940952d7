"""Homographies between scene and image, both in normalised coordinates."""

from __future__ import annotations

import numpy as np

from gate_lightning.errors import ConfigError, first_line

# Smallest homogeneous weight that still counts as "in front of the camera".
_NEAREST = 1e-6
_FOLDS = "transform sends part of the scene to infinity; use a weaker perspective"


def check_transform(transform: np.ndarray | None) -> np.ndarray | None:
    """The homography scaled to a lower right entry of 1, float64 (3, 3), or None when it is the identity.

    Raises:
        ConfigError: not a finite, invertible (3, 3) matrix.
    """
    if transform is None:
        return None
    try:
        matrix = np.asarray(transform, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"transform must be a finite (3, 3) matrix: {first_line(error)}") from error
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ConfigError(f"transform must be a finite (3, 3) matrix, got shape {matrix.shape}: {matrix.tolist()}")
    corner = abs(matrix[2, 2])
    # beside entries that are larger by far, the division leaves no finite number
    if corner < max(1e-9, np.abs(matrix).max() * 1e-15) or abs(np.linalg.det(matrix / matrix[2, 2])) < 1e-9:
        raise ConfigError(f"transform must be invertible with a non-zero lower right entry, got {matrix.tolist()}")
    matrix = matrix / matrix[2, 2]
    return None if np.array_equal(matrix, np.eye(3)) else matrix


def project(points: np.ndarray, transform: np.ndarray | None) -> np.ndarray:
    """Map (N, 2) points by a 3x3 homography (None: unchanged).

    Raises:
        ConfigError: a point falls on or behind the line that the homography sends to infinity.
    """
    if transform is None or not len(points):
        return points
    mapped = points @ transform[:, :2].T + transform[:, 2]
    if mapped[:, 2].min() <= _NEAREST:
        raise ConfigError(_FOLDS)
    return mapped[:, :2] / mapped[:, 2:]


def scene_coordinates(size: int, transform: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Scene point seen by every pixel centre of a ``size`` by ``size`` image.

    Returns:
        u and v, float32, normalised, that broadcast to (size, size).

    Raises:
        ConfigError: part of the image looks behind the line that the homography sends to infinity.
    """
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    if transform is None:
        return x, y
    inverse = np.linalg.inv(transform).astype(np.float32)
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in inverse)
    # The sign of the inverse matters: it is that of points in front of the camera mapped back.
    if w.min() <= _NEAREST:
        raise ConfigError(_FOLDS)
    return u / w, v / w


def pixel_matrix(size: int, transform: np.ndarray) -> np.ndarray:
    """The same homography between pixel coordinates (pixel centres at whole numbers) of a square image, (3, 3)."""
    to_pixels = np.array([[size, 0.0, -0.5], [0.0, size, -0.5], [0.0, 0.0, 1.0]])
    return to_pixels @ transform @ np.linalg.inv(to_pixels)
