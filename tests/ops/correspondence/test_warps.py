"""Warps of edits: they follow their matches, and what matches do not support is told."""

from __future__ import annotations

import numpy as np
import pytest

from gate_lightning.ops.correspondence.estimators import Estimator
from gate_lightning.ops.correspondence.warps import MODELS, Spline, Warp, averaged, fitted_warp
from tests.support.view_layouts import HOMOGRAPHIES, moved

BOX = np.array([[9.5, 19.5], [60.5, 19.5], [60.5, 50.5], [9.5, 50.5]])
RULE = Estimator(threshold=5.0)
AFFINE = np.array([[0.9, -0.2, 12.0], [0.15, 1.1, -4.0], [0, 0, 1]])


def pixels(count: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(BOX[0], BOX[2], (count, 2))


def bent(points: np.ndarray) -> np.ndarray:
    return points + np.stack([6 * np.sin(points[:, 1] / 8), 4 * np.cos(points[:, 0] / 10)], axis=1) + 5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("matrix", [AFFINE, HOMOGRAPHIES[3]])
def test_a_warp_follows_its_matches_among_outliers(model: str, matrix: np.ndarray) -> None:
    if model == "affine" and matrix is not AFFINE:
        return
    points = pixels()
    matches = moved(points, matrix)
    matches[:60] = np.random.default_rng(1).uniform(0, 90, (60, 2))
    warp = fitted_warp(model, RULE, points, matches, BOX)
    assert isinstance(warp, Warp) and not warp.fault
    np.testing.assert_allclose(warp.places, moved(warp.anchors, matrix), atol=1.0)
    assert warp.inliers[60:].all() and warp.inliers[:60].mean() < 0.3
    sources = warp.sources((100, 120))
    inside = moved(points[60:], matrix).round()
    found = np.array([sources[int(y), int(x)] for x, y in inside])
    np.testing.assert_allclose(found, moved(inside, np.linalg.inv(matrix)), atol=1.0)
    assert warp.outline.shape[1] == 2 and len(warp.outline) in (4, 20)


def test_a_spline_bends_where_a_homography_cannot() -> None:
    points = pixels()
    errors = {}
    for model in ("homography", "thin_plate"):
        warp = fitted_warp(model, RULE, points, bent(points), BOX, 0.1)
        assert isinstance(warp, Warp) and not warp.fault
        sources = warp.sources((90, 90))
        errors[model] = np.mean(
            [np.hypot(*(sources[int(y), int(x)] - p)) for p, (x, y) in zip(points, bent(points).round(), strict=True)]
        )
    assert errors["thin_plate"] < 0.8 < 1.2 < errors["homography"]
    spline = Spline(points[:40], bent(points[:40]))
    np.testing.assert_allclose(spline(points[:40]), bent(points[:40]), atol=1e-6)
    stiff = Spline(points, moved(points, AFFINE) + np.random.default_rng(0).normal(0, 1, points.shape), 1e6)
    np.testing.assert_allclose(stiff(points), moved(points, AFFINE), atol=0.5)  # an affine map, fitted to all


@pytest.mark.parametrize("model", MODELS)
def test_matches_that_support_no_warp(model: str) -> None:
    points, rng = pixels(), np.random.default_rng(2)

    def told(matches: np.ndarray, used: np.ndarray = points) -> str:
        warp = fitted_warp(model, RULE, used, matches, BOX)
        return warp if isinstance(warp, str) else warp.fault

    assert "2 matches, and" in told(points[:2], points[:2])
    assert told(np.tile([40.0, 40.0], (300, 1)))  # all at one place
    assert told(points * [1.0, 0.0] + [0, 20])  # on a line
    assert told(points * [-1.0, 1.0] + [90, 0])  # mirrored
    assert told(points * [1.0, 0.05])
    assert told(rng.choice([[10.0, 80.0], [12.0, 82.0], [11.0, 84.0], [14.0, 81.0]], 300))  # many to few


def test_warps_are_averaged_by_their_places() -> None:
    one = Warp("affine", BOX, BOX + 2, np.ones(3, bool))
    other = Warp("affine", BOX, BOX + 8, np.zeros(3, bool))
    mean = averaged([one, other], [2.0, 1.0], other)
    np.testing.assert_allclose(mean.places, BOX + 4)
    assert mean.inliers is other.inliers
