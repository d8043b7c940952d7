"""Robust estimates of a homography, an affine map or a relative pose from matches, by OpenCV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.ops.correspondence.homographies import Numbers, fault_of
from gate_lightning.utils.checks import check_choice, number, whole_number

__all__ = ["METHODS", "REASONS", "Estimate", "Estimator"]

#: name → method of OpenCV; all of them draw from generators with fixed seeds
METHODS: Mapping[str, int] = {"ransac": cv2.RANSAC, "lmeds": cv2.LMEDS, "magsac": cv2.USAC_MAGSAC}
#: why an estimate fails
REASONS = ("too_few_matches", "no_estimate", "degenerate")


@dataclass(frozen=True, eq=False)
class Estimate:
    """A transform estimated from matches.

    Attributes:
        matrix: (3, 3) homography or affine map, (3, 4) rotation and translation of length 1, or None where it failed.
        inliers: (M,) the matches it agrees with; none of them where it failed.
        reason: of ``REASONS``, or "".
    """

    matrix: Numbers | None
    inliers: NDArray[np.bool_]
    reason: str = ""


@dataclass(frozen=True)
class Estimator:
    """Robust estimation of what maps matches onto each other; the same matches give the same estimate.

    Args:
        method: ``ransac``, ``lmeds`` (least median of squares; more than half of the matches must be right) or
            ``magsac`` (MAGSAC++).
        threshold: pixels from its match that a point is mapped to, at most, to be an inlier (RANSAC, MAGSAC++); of a
            pose: from its epipolar line.
        iterations: most samples that are drawn.
        confidence: probability with which one of them should have held inliers only.

    Raises:
        ConfigError: unknown or out of range.
    """

    method: str = "ransac"
    threshold: float = 3.0
    iterations: int = 2000
    confidence: float = 0.995

    def __post_init__(self) -> None:
        check_choice(self.method, "estimator.method", METHODS)
        number(self.threshold, "estimator.threshold", 1e-6)
        whole_number(self.iterations, "estimator.iterations", 1)
        number(self.confidence, "estimator.confidence", 1e-6, 1 - 1e-9)

    def homography(self, source: Numbers, target: Numbers, corners: Numbers) -> Estimate:
        """Homography of an image with these corners (4, 2) from matches x, y (M, 2) in pixels."""
        if len(source) < 4:
            return _failed(len(source), "too_few_matches")
        settings = (METHODS[self.method], self.threshold, None, self.iterations, self.confidence)
        matrix, mask = cv2.findHomography(source, target, *settings)
        return _checked(matrix, mask, len(source), corners)

    def affine(self, source: Numbers, target: Numbers, corners: Numbers) -> Estimate:
        """Affine map (3, 3) of an image with these corners (4, 2) from matches x, y (M, 2) in pixels."""
        if len(source) < 3:
            return _failed(len(source), "too_few_matches")
        method, limits = METHODS[self.method], (self.iterations, self.confidence)
        matrix, mask = cv2.estimateAffine2D(source, target, None, method, self.threshold, *limits)
        whole = None if matrix is None else np.concatenate([matrix, [[0.0, 0.0, 1.0]]])
        return _checked(whole, mask, len(source), corners)

    def pose(self, source: Numbers, target: Numbers, cameras: tuple[Numbers, Numbers]) -> Estimate:
        """Rotation and translation of length 1 between calibrated cameras (3, 3), from matches x, y (M, 2) in pixels.

        The essential matrix is estimated in normalised coordinates, the threshold divided by the mean of the four
        focal lengths, as SuperGlue's evaluation does; of its decompositions the one with most points in front.
        """
        count = len(source)
        if count < 5:
            return _failed(count, "too_few_matches")
        focal = np.mean([camera[axis, axis] for camera in cameras for axis in (0, 1)])
        here, there = _normalised(source, cameras[0]), _normalised(target, cameras[1])
        settings = (METHODS[self.method], self.confidence, self.threshold / focal, self.iterations)
        found, mask = cv2.findEssentialMat(here, there, np.eye(3), *settings)
        if found is None or mask is None:
            return _failed(count, "no_estimate")
        best: tuple[int, Numbers, NDArray[np.bool_]] | None = None
        for essential in np.split(found, len(found) // 3):
            front, rotation, translation, seen = cv2.recoverPose(essential, here, there, np.eye(3), mask=mask.copy())
            if best is None or front > best[0]:
                best = front, np.concatenate([rotation, translation], axis=1), seen.ravel() > 0
        if best is None or not best[0] or not np.isfinite(best[1]).all():
            return _failed(count, "degenerate")
        return Estimate(best[1], best[2])


def _normalised(points: Numbers, camera: Numbers) -> Numbers:
    """Points (M, 2) in pixels → on the plane before a camera (3, 3), at distance 1."""
    found: Numbers = (np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(camera).T)[:, :2]
    return found


def _checked(matrix: Numbers | None, mask: NDArray[np.uint8] | None, count: int, corners: Numbers) -> Estimate:
    if matrix is None or mask is None or not matrix.size:
        return _failed(count, "no_estimate")
    if fault_of(matrix, corners):
        return _failed(count, "degenerate")
    return Estimate(np.asarray(matrix, dtype=np.float64), mask.ravel() > 0)


def _failed(count: int, reason: str) -> Estimate:
    return Estimate(None, np.zeros(count, dtype=bool), reason)
