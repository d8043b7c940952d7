"""Robust estimates: they find what was put in, fail with a reason, and are the same every time."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.estimators import METHODS, Estimator
from gate_lightning.ops.correspondence.homographies import corners_of, fault_of, project
from tests.support.view_layouts import HOMOGRAPHIES, moved

SIZE = corners_of((96, 128))


def matches(outliers: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 96, (80, 2))
    found = moved(points, HOMOGRAPHIES[4])
    found[:outliers] = rng.uniform(0, 96, (outliers, 2))
    return points, found


@pytest.mark.parametrize("method", METHODS)
def test_a_homography_is_found_among_outliers_and_always_the_same(method: str) -> None:
    points, found = matches()
    estimates = [Estimator(method).homography(points, found, SIZE) for _ in range(3)]
    assert estimates[0].matrix is not None
    np.testing.assert_allclose(moved(points, estimates[0].matrix), moved(points, HOMOGRAPHIES[4]), atol=0.01)
    assert estimates[0].inliers[20:].all() and estimates[0].inliers[:20].sum() < 4 and not estimates[0].reason
    assert all(np.array_equal(one.matrix, estimates[0].matrix) for one in estimates)
    affine = Estimator(method).affine(points, points @ np.array([[0.9, 0.2], [-0.1, 1.1]]) + 3, SIZE)
    np.testing.assert_allclose(affine.matrix, [[0.9, -0.1, 3], [0.2, 1.1, 3], [0, 0, 1]], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_what_matches_do_not_support_fails_with_a_reason(method: str) -> None:
    estimator, line = Estimator(method), np.stack([np.arange(30.0)] * 2, axis=1)
    points, found = matches(0)
    few = estimator.homography(points[:3], found[:3], SIZE)
    assert (few.matrix, few.reason, few.inliers.tolist()) == (None, "too_few_matches", [False] * 3)
    assert estimator.affine(points[:2], found[:2], SIZE).reason == "too_few_matches"
    assert estimator.homography(line, line, SIZE).reason in ("no_estimate", "degenerate")
    assert estimator.homography(np.ones((9, 2)), np.ones((9, 2)), SIZE).reason in ("no_estimate", "degenerate")
    assert estimator.homography(points, points[:, ::-1].copy(), SIZE).reason in (
        "no_estimate",
        "degenerate",
    )  # mirrored


@pytest.mark.parametrize("method", METHODS)
def test_a_pose_is_found_among_outliers(method: str) -> None:
    rng = np.random.default_rng(1)
    rotation, translation = cv2.Rodrigues(np.array([0.1, 0.25, -0.05]))[0], np.array([0.5, 0.1, -0.1])
    cameras = (
        np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]]),
        np.array([[280.0, 2, 150], [0, 290, 130], [0, 0, 1]]),
    )
    places = rng.uniform(-1, 1, (150, 3)) + np.array([0, 0, 4])
    here, there = places @ cameras[0].T, (places @ rotation.T + translation) @ cameras[1].T
    points, found = (seen[:, :2] / seen[:, 2:] for seen in (here, there))
    found[:30] = rng.uniform(0, 300, (30, 2))
    estimate = Estimator(method, threshold=1.0).pose(points, found, cameras)
    assert estimate.matrix is not None and estimate.inliers[30:].all()
    np.testing.assert_allclose(estimate.matrix[:, :3], rotation, atol=1e-4)
    np.testing.assert_allclose(estimate.matrix[:, 3], translation / np.linalg.norm(translation), atol=1e-4)
    assert Estimator(method).pose(points[:4], found[:4], cameras).reason == "too_few_matches"


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"estimator.method='ransack': did you mean ransac"):
        Estimator("ransack")
    with pytest.raises(ConfigError, match=r"estimator\.threshold"):
        Estimator(threshold=0)
    with pytest.raises(ConfigError, match=r"estimator\.confidence"):
        Estimator(confidence=1.0)


def test_faults_of_homographies() -> None:
    assert fault_of(HOMOGRAPHIES[4], SIZE) == ""
    assert fault_of(-5.0 * HOMOGRAPHIES[4], SIZE) == ""  # homogeneous: a factor is nothing
    assert "finite" in fault_of(np.full((3, 3), np.nan), SIZE)
    assert "line or a point" in fault_of(np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]), SIZE)
    assert "folds" in fault_of(np.diag([-1.0, 1, 1]), SIZE)
    assert "infinity" in fault_of(np.array([[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1]]), SIZE)
    assert corners_of((3, 5)).tolist() == [[0, 0], [4, 0], [4, 2], [0, 2]]
    assert np.isnan(project(np.array([[50.0, 0]]), np.array([[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1]]))).all()
