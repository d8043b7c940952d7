"""PCK of followed points, against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gate_lightning.errors import DataError
from gate_lightning.metrics.video_points import ALPHAS, point_distances, point_rows, point_summary

NAMES = ("head", "hand", "foot")


def slow(videos: list[tuple[np.ndarray, np.ndarray]], alpha: float) -> float:
    shares = []
    for point in range(3):
        near = counted = 0
        for found, truth in videos:
            for frame in range(1, len(truth)):
                known = [place for place in truth[frame].tolist() if not math.isnan(place[0])]
                xs, ys = [x for x, _ in known], [y for _, y in known]
                if not known or (max(xs) == min(xs) and max(ys) == min(ys)):
                    continue
                size = 0.6 * math.sqrt((max(xs) - min(xs)) ** 2 + (max(ys) - min(ys)) ** 2)
                (x, y), (u, v) = found[frame, point], truth[frame, point]
                if not (math.isnan(x) or math.isnan(u)):
                    counted += 1
                    near += math.sqrt((x - u) ** 2 + (y - v) ** 2) / size <= alpha
        if counted:
            shares.append(near / counted)
    return sum(shares) / len(shares)


def test_pck_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    videos = []
    for frames in (5, 9):
        truth = rng.uniform(0, 50, (frames, 3, 2))
        found = truth + rng.normal(0, 8, truth.shape)
        found[2, 0], truth[3, 1], truth[1, 1:] = np.nan, np.nan, np.nan  # lost, not annotated, a frame without a box
        videos.append((found, truth))
    made = {str(index): point_distances(NAMES, *video) for index, video in enumerate(videos)}
    found = point_summary(made)
    assert found == pytest.approx({f"PCK_{alpha:.2f}_box": slow(videos, alpha) for alpha in ALPHAS}, abs=1e-9)
    assert 0 < found["PCK_0.10_box"] < found["PCK_0.50_box"]
    name, counted, _ = point_rows(made)[0]
    assert (name, counted) == ("0", 3 * 4 - 1 - 1 - 3)


def test_a_distance_that_is_just_the_threshold_counts() -> None:
    truth = np.array([[[0.0, 0.0], [30.0, 40.0]]] * 2)
    found = truth.copy()
    found[1, 0] = [3.0, 0.0]  # 0.1 · 0.6 · 50
    assert point_summary({"a": point_distances(NAMES[:2], found, truth)})["PCK_0.10_box"] == 1.0


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(DataError, match="no point is annotated in a frame after the first"):
        point_summary({"a": point_distances(NAMES, np.zeros((3, 3, 2)), np.full((3, 3, 2), np.nan))})
