"""Warps of a part of an image onto another image: homographies, affine maps and thin-plate splines.

A warp is kept as places of anchors, so that warps of neighbouring frames can be averaged whatever their kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.ops.correspondence.estimators import Estimator
from gate_lightning.ops.correspondence.homographies import Numbers, fault_of, project

__all__ = ["MODELS", "Spline", "Warp", "averaged", "fitted_warp"]

MODELS = ("homography", "affine", "thin_plate")
#: anchors of a spline along each side of the part
_ANCHORS = 6
#: inliers of a spline lie at most so many thresholds beside a homography
_BEND = 3.0
#: smallest factor on lengths in any direction, and its inverse the largest, that is still an image of the same thing
_SMALLEST = 0.2


class Spline:
    """Smooth map of the plane whose bending energy is least: a thin-plate spline.

    Args:
        points: (M, 2) where it is known, not all on a line.
        values: (M, 2) what it is there.
        stiffness: weight of the bending energy: 0 passes through all values, infinity is an affine map. Points are in
            units of their spread.
    """

    def __init__(self, points: Numbers, values: Numbers, stiffness: float = 0.0) -> None:
        self._middle = points.mean(axis=0)
        self._spread = float(np.hypot(*(points - self._middle).T).mean()) or 1.0
        self._places, count = (points - self._middle) / self._spread, len(points)
        flat = np.concatenate([np.ones((count, 1)), self._places], axis=1)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(self._places, self._places) + stiffness * np.eye(count)
        system[:count, count:], system[count:, :count] = flat, flat.T
        self._weights: Numbers = np.linalg.lstsq(system, np.concatenate([values, np.zeros((3, 2))]), rcond=None)[0]

    def __call__(self, points: Numbers) -> Numbers:
        """Values (N, 2) at points (N, 2)."""
        found = []
        for part in np.array_split(points, max(1, len(points) * len(self._places) // 2**22 + 1)):
            places = (part - self._middle) / self._spread
            flat = np.concatenate([np.ones((len(part), 1)), places], axis=1)
            found.append(_kernel(places, self._places) @ self._weights[:-3] + flat @ self._weights[-3:])
        return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Warp:
    """Map of a part of a source image to a target image.

    Attributes:
        model: of ``MODELS``.
        anchors: (K, 2) x, y in pixels of the source: the corners of the part, going round; of a spline a grid on it,
            row by row.
        places: (K, 2) where they are in the target.
        inliers: (M,) the matches that it agrees with.
    """

    model: str
    anchors: Numbers
    places: Numbers
    inliers: NDArray[np.bool_]

    @property
    def fault(self) -> str:
        """Fault in words, "" for none."""
        if not np.isfinite(self.places).all():
            return "its matches send a part of the edit to infinity"
        places = self.places
        if self.model != "thin_plate":
            found = fault_of(self._matrix, self.anchors)
            if found:
                return f"the {self.model} of its matches {found.replace('the image', 'the edit')}"
            places = project(_grid(self.anchors), self._matrix)
        # of every cell of a grid on the part: how it is turned over, stretched and squeezed
        before, after = (_edges(one) for one in (_grid(self._corners), places))
        jacobians = after @ np.linalg.inv(before)
        if (np.linalg.det(jacobians) <= 0).any():
            return "its matches fold the edit over"
        factors = np.linalg.svd(jacobians, compute_uv=False)
        if factors.min() < _SMALLEST or factors.max() > 1 / _SMALLEST:
            found = f"by {factors.min():.2g} to {factors.max():.2g}"
            return f"its matches scale the edit {found}; expected {_SMALLEST:g} to {1 / _SMALLEST:g}"
        return ""

    @property
    def _corners(self) -> Numbers:
        """Corners (4, 2) of the part in the source, going round."""
        side = _ANCHORS - 1
        return self.anchors[[0, side, -1, -_ANCHORS]] if self.model == "thin_plate" else self.anchors

    @property
    def _matrix(self) -> Numbers:
        """Homography of the four corners."""
        corners = (self.anchors.astype(np.float32), self.places.astype(np.float32))
        return np.asarray(cv2.getPerspectiveTransform(*corners), dtype=np.float64)

    @property
    def outline(self) -> Numbers:
        """Places x, y in the target of the border of the part, going round."""
        if self.model != "thin_plate":
            return self.places
        grid = self.places.reshape(_ANCHORS, _ANCHORS, 2)
        return np.concatenate([grid[0, :-1], grid[:-1, -1], grid[-1, :0:-1], grid[:0:-1, 0]])

    def sources(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Place in the source of every pixel of a target of ``size`` (H, W): (H, W, 2) x, y."""
        height, width = size
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2).astype(np.float64)
        found = np.full((height * width, 2), -1e4)
        if self.model == "thin_plate":  # far from its anchors a spline is anything
            low, high = self.places.min(axis=0) - 2, self.places.max(axis=0) + 2
            near = ((pixels >= low) & (pixels <= high)).all(axis=1)
            if near.any():
                found[near] = Spline(self.places, self.anchors)(pixels[near])
        else:
            found = np.nan_to_num(project(pixels, np.asarray(np.linalg.inv(self._matrix), dtype=np.float64)), nan=-1e4)
        return found.clip(-1e4, 1e5).reshape(height, width, 2).astype(np.float32)


def fitted_warp(
    model: str, estimator: Estimator, source: Numbers, target: Numbers, box: Numbers, stiffness: float = 10.0
) -> Warp | str:
    """Warp of a part of an image from matches, or why there is none.

    Args:
        model: ``homography``, ``affine``, or ``thin_plate``: a spline through the matches within three thresholds of a
            homography.
        estimator: finds the inliers.
        source, target: (M, 2) matches x, y in pixels.
        box: (4, 2) corners of the part in the source, going round.
        stiffness: of the spline.

    """
    if model == "thin_plate":
        estimator = replace(estimator, threshold=_BEND * estimator.threshold)
    estimate = (estimator.affine if model == "affine" else estimator.homography)(source, target, box)
    if estimate.matrix is None:
        least = 3 if model == "affine" else 4
        return {
            "too_few_matches": f"{len(source)} matches, and {model} needs {least}",
            "no_estimate": f"no {model} fits its {len(source)} matches",
            "degenerate": f"the {model} that fits most of its {len(source)} matches is degenerate",
        }[estimate.reason]
    anchors, places = box, project(box, estimate.matrix)
    if model == "thin_plate":
        inside = estimate.inliers
        anchors = _grid(box)
        places = Spline(source[inside], target[inside], stiffness)(anchors)
    return Warp(model, anchors, places, estimate.inliers)


def averaged(warps: Sequence[Warp], weights: Sequence[float], like: Warp) -> Warp:
    """``like`` with the weighted mean of the places of several warps of the same anchors."""
    places = np.average([warp.places for warp in warps], axis=0, weights=weights)
    return replace(like, places=places)


def _kernel(points: Numbers, others: Numbers) -> Numbers:
    """r² log r of the distances between points (N, 2) and others (M, 2)."""
    squares = np.square(points[:, None] - others[None]).sum(axis=-1)
    found: Numbers = 0.5 * squares * np.log(np.maximum(squares, 1e-12))
    return found


def _grid(box: Numbers) -> Numbers:
    """Places (K, 2) of a grid on a box (4, 2), row by row."""
    steps = np.linspace(0.0, 1.0, _ANCHORS)
    left, right = (start + steps[:, None] * (end - start) for start, end in ((box[0], box[3]), (box[1], box[2])))
    found: Numbers = (left[:, None] + steps[None, :, None] * (right - left)[:, None]).reshape(-1, 2)
    return found


def _edges(places: Numbers) -> Numbers:
    """(C, 2, 2) edges to the right and downwards, as columns, of both triangles of every cell of a grid (K, 2)."""
    grid = places.reshape(_ANCHORS, _ANCHORS, 2)
    right, down = grid[:, 1:] - grid[:, :-1], grid[1:] - grid[:-1]
    cells = [np.stack([right[:-1], down[:, :-1]], axis=-1), np.stack([right[1:], down[:, 1:]], axis=-1)]
    return np.concatenate([one.reshape(-1, 2, 2) for one in cells])
