"""Accuracy of matches between views: estimated homographies, relative poses, and the matches themselves.

A name is the whole definition of its number:

* ``homography_accuracy_3px_corner-mean_per-pair_le``: share of pairs whose estimated homography maps the four corner
  pixels of the source, in the mean, at most 3 pixels beside their true places;
* ``MMA_3px_per-pair_le``: mean over pairs of the share of matches that lie at most 3 pixels beside the place that the
  true homography maps their keypoint to (mean matching accuracy; 0 for a pair without matches);
* ``pose_AUC_10deg_max-rotation-translation_per-pair``: area below the share of pairs over the error, up to 10 degrees
  and divided by them; the error is the larger one of the angles of rotation and direction of translation.

A pair without an estimate is a miss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.estimators import REASONS, Estimate
from gate_lightning.ops.correspondence.homographies import Numbers, corners_of, project
from gate_lightning.structures import RelativePose, ViewPair
from gate_lightning.utils.checks import number
from gate_lightning.utils.processes import gathered

__all__ = ["MeasuredViews", "ViewMetrics", "accuracy_key", "matching_accuracy", "matching_key", "pose_errors"]

#: angles up to which areas are computed, in degrees
ANGLES = (5, 10, 20)


@dataclass(frozen=True, eq=False)
class MeasuredViews:
    """A pair with its matches and what was estimated from them.

    Attributes:
        number: position of the pair in its split.
        pair: the pair.
        keypoints: how many the source and the target have.
        points, matches: (M, 2) x, y in pixels of the source's and the target's file.
        estimate: homography or pose.
    """

    number: int
    pair: ViewPair
    keypoints: tuple[int, int]
    points: Numbers
    matches: Numbers
    estimate: Estimate

    @property
    def corner_error(self) -> float:
        """Mean distance in pixels between the source's corners mapped by the truth and by the estimate; infinite where
        it failed."""
        truth, found = self.pair.homography, self.estimate.matrix
        if truth is None or found is None:
            return np.inf
        corners = corners_of(self.pair.source_size)
        return float(np.hypot(*(project(corners, found) - project(corners, truth.numpy())).T).mean())

    @property
    def distances(self) -> Numbers:
        """Distances (M,) in pixels of the matches from their true places."""
        assert self.pair.homography is not None
        found: Numbers = np.hypot(*(project(self.points, self.pair.homography.numpy()) - self.matches).T)
        return np.nan_to_num(found, nan=np.inf)

    @property
    def angles(self) -> tuple[float, float]:
        """Errors of rotation and translation in degrees; infinite where the estimate failed."""
        assert self.pair.pose is not None
        return pose_errors(self.estimate.matrix, self.pair.pose)


class ViewMetrics:
    """All numbers of a split, over all processes.

    Args:
        corner_thresholds: pixels at which an estimated homography counts as accurate.
        match_thresholds: pixels at which a match counts as right.

    Raises:
        ConfigError: no threshold, or one that is not above 0.
    """

    def __init__(self, corner_thresholds: Sequence[float], match_thresholds: Sequence[float]) -> None:
        for name, given in (("corner_thresholds", corner_thresholds), ("match_thresholds", match_thresholds)):
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"task.{name}={given!r}: expected pixels, each once")
            for value in given:
                number(value, f"task.{name}", 1e-9)
        self.corner_thresholds, self.match_thresholds = tuple(corner_thresholds), tuple(match_thresholds)
        self._measured: dict[int, MeasuredViews] = {}

    def update(self, measured: MeasuredViews) -> None:
        """Add a pair of the split."""
        self._measured[measured.number] = measured

    def reset(self) -> None:
        """Forget all pairs that were added."""
        self._measured = {}

    def measured(self) -> tuple[MeasuredViews, ...]:
        """The pairs of all processes in the order of the split, each once; every process has to call it."""
        every = {one.number: one for part in gathered(list(self._measured.values())) for one in part}
        return tuple(every[index] for index in sorted(every))

    def compute(self, measured: Sequence[MeasuredViews]) -> dict[str, float]:
        """Name → number, of all pairs and, with the group behind the name, of each group where there are several."""
        found = self._of(measured)
        groups = sorted({one.pair.group for one in measured} - {""})
        for group in groups if len({one.pair.group for one in measured}) > 1 else ():
            values = self._of([one for one in measured if one.pair.group == group])
            found |= {f"{name}_{group}": value for name, value in values.items() if not name.startswith("failed")}
        return found

    def _of(self, measured: Sequence[MeasuredViews]) -> dict[str, float]:
        planar = [one for one in measured if one.pair.homography is not None]
        posed = [one for one in measured if one.pair.pose is not None]
        found: dict[str, float] = {}
        if planar:
            errors = np.array([one.corner_error for one in planar])
            found |= {accuracy_key(limit): float((errors <= limit).mean()) for limit in self.corner_thresholds}
            curve = matching_accuracy(planar, self.match_thresholds)
            found |= {
                matching_key(limit): float(value) for limit, value in zip(self.match_thresholds, curve, strict=True)
            }
        if posed:
            largest = np.array([max(one.angles) for one in posed])
            for limit in ANGLES:
                found[f"pose_AUC_{limit}deg_max-rotation-translation_per-pair"] = area_under_recall(largest, limit)
        found["matches_per-pair"] = float(np.mean([len(one.points) for one in measured]))
        found["inliers_per-pair"] = float(np.mean([one.estimate.inliers.sum() for one in measured]))
        reasons = Counter(one.estimate.reason for one in measured)
        found |= {f"failed_{reason.replace('_', '-')}_pairs": float(reasons[reason]) for reason in REASONS}
        return found


def accuracy_key(limit: float) -> str:
    """Name of the accuracy of homographies at a number of pixels."""
    return f"homography_accuracy_{limit:g}px_corner-mean_per-pair_le"


def matching_key(limit: float) -> str:
    """Name of the mean matching accuracy at a number of pixels."""
    return f"MMA_{limit:g}px_per-pair_le"


def matching_accuracy(measured: Sequence[MeasuredViews], limits: Sequence[float]) -> Numbers:
    """Mean over pairs of the share of matches (T,) at most so many pixels from their true places."""
    limit = np.asarray(limits, dtype=np.float64)
    shares = [
        (one.distances[:, None] <= limit).mean(axis=0) if len(one.points) else np.zeros(len(limit)) for one in measured
    ]
    found: Numbers = np.mean(shares, axis=0)
    return found


def pose_errors(found: Numbers | None, truth: RelativePose) -> tuple[float, float]:
    """Angles in degrees between rotations and between directions of translation; infinite without an estimate.

    The sign of a translation cannot be seen in matches of two images, and does not count (SuperGlue's evaluation).

    Args:
        found: (3, 4) rotation and translation, or None.
        truth: the pair's.
    """
    if found is None:
        return np.inf, np.inf
    cosine = (np.trace(found[:, :3].T @ truth.rotation.numpy()) - 1) / 2
    wanted = truth.translation.numpy()
    along = abs(found[:, 3] @ wanted) / (np.linalg.norm(found[:, 3]) * np.linalg.norm(wanted))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(np.degrees(np.arccos(min(along, 1.0))))


def area_under_recall(errors: NDArray[np.float64], limit: float) -> float:
    """Area below the share of errors up to a value, from 0 to ``limit``, divided by ``limit``; the share is linear
    between errors (SuperGlue's evaluation)."""
    ordered = np.sort(errors)
    recall = np.arange(1, len(ordered) + 1) / len(ordered)
    ordered, recall = np.concatenate([[0.0], ordered]), np.concatenate([[0.0], recall])
    last = int(np.searchsorted(ordered, limit))
    share = np.concatenate([recall[:last], [recall[last - 1]]])
    return float(np.trapezoid(share, np.concatenate([ordered[:last], [limit]])) / limit)
