"""Homographies between pixels of two images: projection of points, and what is wrong with a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Numbers", "corners_of", "fault_of", "project"]

Numbers = NDArray[np.float64]
#: smallest homogeneous weight, relative to that of the image's middle, that is still in front of the camera
_NEAREST = 1e-6


def corners_of(size: tuple[int, int]) -> Numbers:
    """Centres x, y (4, 2) of the outermost pixels of an image (H, W), going round."""
    bottom, right = size[0] - 1.0, size[1] - 1.0
    return np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])


def project(points: Numbers, matrix: Numbers) -> Numbers:
    """Points x, y (N, 2) mapped by a homography (3, 3); NaN where one is mapped to infinity."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found: Numbers = mapped[:, :2] / mapped[:, 2:]
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def fault_of(matrix: Numbers, corners: Numbers) -> str:
    """Fault of a homography by which no camera sees the front of a plane, "" for none.

    Args:
        matrix: (3, 3).
        corners: (4, 2), of an image, going round.
    """
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        return "is no matrix of 3 × 3 finite numbers"
    middle = np.append(corners.mean(axis=0), 1.0)
    weights = np.concatenate([corners, np.ones((4, 1))], axis=1) @ matrix[2] / (matrix[2] @ middle or np.nan)
    if not (weights > _NEAREST).all():
        return "sends a part of the image to infinity"
    quad = project(corners, matrix)
    sides = np.roll(quad, -1, axis=0) - quad
    after = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0]
    if (np.hypot(*sides.T) < 1e-6).any() or np.abs(turns).max() < 1e-9:
        return "maps the image to a line or a point"
    return "" if (turns > 0).all() else "folds the image over"
