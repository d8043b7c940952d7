"""Accuracy of homographies, matches and poses, held against slow and plain versions."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.homography import MeasuredViews, ViewMetrics, area_under_recall, pose_errors
from gate_lightning.ops.correspondence.estimators import Estimate
from gate_lightning.structures import RelativePose, ViewPair


def mapped(matrix: np.ndarray, x: float, y: float) -> tuple[float, float]:
    a, b, c = (sum(float(row[i]) * value for i, value in enumerate((x, y, 1.0))) for row in matrix)
    return a / c, b / c


def random_pair(number: int, rng: np.random.Generator) -> MeasuredViews:
    height, width = (int(value) for value in rng.integers(20, 90, 2))
    truth = np.eye(3) + rng.normal(0, 1, (3, 3)) * [[0.1, 0.1, 5], [0.1, 0.1, 5], [1e-4, 1e-4, 0]]
    found = truth + rng.normal(0, 1, (3, 3)) * [[0.01, 0.01, 1], [0.01, 0.01, 1], [1e-5, 1e-5, 0]]
    points = rng.uniform(0, 80, (int(rng.integers(0, 9)), 2))
    matches = cv2.perspectiveTransform(points[None], truth)[0] if len(points) else points
    matches = matches + rng.normal(0, 4, points.shape)
    failed = number % 7 == 3
    estimate = Estimate(None if failed else found, np.zeros(len(points), bool), "no_estimate" if failed else "")
    group = ("illumination", "viewpoint")[number % 2]
    pair = ViewPair("a", str(number), (height, width), (50, 50), torch.from_numpy(truth), group=group)
    return MeasuredViews(number, pair, (9, 9), points, matches, estimate)


def slow(pairs: list[MeasuredViews], limit: float) -> tuple[float, float]:
    """Accuracy of corners and of matches, number by number."""
    right, shares = 0, 0.0
    for one in pairs:
        truth = one.pair.homography.numpy()
        if one.estimate.matrix is not None:
            total = 0.0
            for x in (0, one.pair.source_size[1] - 1):
                for y in (0, one.pair.source_size[0] - 1):
                    total += math.dist(mapped(truth, x, y), mapped(one.estimate.matrix, x, y))
            right += total / 4 <= limit
        hits = [
            math.dist(mapped(truth, *point), match) <= limit
            for point, match in zip(one.points, one.matches, strict=True)
        ]
        shares += sum(hits) / len(hits) if hits else 0.0
    return right / len(pairs), shares / len(pairs)


def test_accuracies_are_those_of_a_slow_version() -> None:
    rng = np.random.default_rng(0)
    pairs = [random_pair(number, rng) for number in range(60)]
    metrics = ViewMetrics((1, 3, 5), range(1, 11))
    for one in reversed(pairs):
        metrics.update(one)
    found = metrics.compute(metrics.measured())
    groups = {"": pairs, "_illumination": pairs[::2], "_viewpoint": pairs[1::2]}
    for suffix, some in groups.items():
        for limit in range(1, 11):
            corner, match = slow(some, limit)
            assert found[f"MMA_{limit}px_per-pair_le{suffix}"] == pytest.approx(match, abs=1e-6)
            if limit in (1, 3, 5):
                key = f"homography_accuracy_{limit}px_corner-mean_per-pair_le{suffix}"
                assert found[key] == pytest.approx(corner, abs=1e-6)
    assert found["failed_no-estimate_pairs"] == 9 and found["failed_degenerate_pairs"] == 0
    assert 0 < found["homography_accuracy_3px_corner-mean_per-pair_le"] < 1
    assert found["matches_per-pair"] == np.mean([len(one.points) for one in pairs])


def test_a_corner_error_of_exactly_the_limit_counts() -> None:
    pair = ViewPair("a", "b", (10, 10), (10, 10), torch.eye(3, dtype=torch.float64))
    moved = np.array([[1.0, 0, 3], [0, 1, 0], [0, 0, 1]])
    metrics = ViewMetrics((3, 2.999), (1,))
    one = MeasuredViews(0, pair, (0, 0), np.zeros((0, 2)), np.zeros((0, 2)), Estimate(moved, np.zeros(0, bool)))
    found = metrics.compute([one])
    assert found["homography_accuracy_3px_corner-mean_per-pair_le"] == 1
    assert found["homography_accuracy_2.999px_corner-mean_per-pair_le"] == 0
    assert found["MMA_1px_per-pair_le"] == 0  # nothing was matched


def test_errors_of_poses_and_the_area_below_their_recall() -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.0, math.radians(12)]))[0]
    camera, base = torch.eye(3, dtype=torch.float64), torch.from_numpy(cv2.Rodrigues(np.array([0.3, 0.1, 0.2]))[0])
    truth = RelativePose(camera, camera, base, torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    found = np.concatenate([turn @ base.numpy(), [[0.0], [math.sin(0.1)], [-math.cos(0.1)]]], axis=1)
    assert pose_errors(found, truth) == pytest.approx((12.0, math.degrees(0.1)))
    assert pose_errors(None, truth) == (math.inf, math.inf)
    assert area_under_recall(np.zeros(4), 5) == 1 and area_under_recall(np.full(4, 30.0), 5) == 0
    errors = np.array([1.0, 4.0, 8.0, math.inf])
    for limit in (5, 10, 20):  # by small steps
        steps = np.linspace(0, limit, 200_001)
        recall = np.interp(steps, [0, 1, 4, 8], [0, 0.25, 0.5, 0.75])
        recall[steps > max(one for one in errors if one < limit)] = (errors < limit).mean()
        assert area_under_recall(errors, limit) == pytest.approx(recall.mean(), abs=1e-4)


def test_thresholds_are_checked() -> None:
    for bad in ((), (1, 1), (0,), ("3",)):
        with pytest.raises(ConfigError, match=r"task\.corner_thresholds"):
            ViewMetrics(bad, (1,))
