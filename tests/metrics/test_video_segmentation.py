"""J, F and decay are those of the official evaluation's definition, written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gate_lightning.errors import DataError
from gate_lightning.metrics.video_segmentation import (
    FrameScores,
    frame_scores,
    object_rows,
    region_and_outline,
    summary,
)


def slow_outline(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(row < height and column < width and mask[row, column] != mask[y, x] for row, column in near):
                found.add((y, x))
    return found


def slow(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of one object."""
    pixels = [(bool(p), bool(t)) for p, t in zip(prediction.flat, truth.flat, strict=True)]
    either = sum(p or t for p, t in pixels)
    region = sum(p and t for p, t in pixels) / either if either else 1.0
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    found, true = slow_outline(prediction), slow_outline(truth)

    def matched(some: set[tuple[int, int]], others: set[tuple[int, int]]) -> int:
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in some)

    if not found and not true:
        return region, 1.0
    precision = matched(found, true) / len(found) if found else 1.0
    recall = matched(true, found) / len(true) if true else 1.0
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def masks(height: int, width: int) -> dict[str, np.ndarray]:
    """Masks at which an evaluation may go wrong."""
    rng = np.random.default_rng(0)
    empty = np.zeros((height, width), dtype=bool)
    found = {"empty": empty, "full": ~empty, "noise": rng.random((height, width)) < 0.5}
    places: dict[str, tuple[int | slice, int | slice]] = {
        "first pixel": (0, 0),
        "last pixel": (height - 1, width - 1),
        "last row": (height - 1, slice(None)),
        "last column": (slice(None), width - 1),
        "middle": (slice(height // 3, 2 * height // 3), slice(width // 4, width // 2)),
        "middle moved": (slice(height // 3 + 1, 2 * height // 3 + 1), slice(width // 4 + 2, width // 2 + 2)),
        "touching": (slice(0, height // 2), slice(0, width // 2)),
        "one pixel": (height // 2, width // 2),
    }
    for name, place in places.items():
        found[name] = empty.copy()
        found[name][place] = True
    return found


@pytest.mark.parametrize(
    ("height", "width"), [(13, 21), (30, 8), (1, 9), pytest.param(48, 130, marks=pytest.mark.thorough)]
)
def test_one_object_of_every_kind_against_every_other(height: int, width: int) -> None:
    every = masks(height, width)
    for one, prediction in every.items():
        for other, truth in every.items():
            if height * width > 1000 and not {one, other} <= {"empty", "last pixel", "middle", "middle moved"}:
                continue  # takes long
            assert region_and_outline(prediction, truth) == pytest.approx(slow(prediction, truth), abs=1e-9), (
                one,
                other,
            )


def test_void_and_later_objects_are_background() -> None:
    truth = np.zeros((12, 16), dtype=np.uint8)
    truth[2:6, 2:6], truth[7:10, 8:12], truth[0, :], truth[6:9, 2:5] = 1, 2, 255, 3
    prediction = truth.copy()
    prediction[prediction > 2] = 0
    region, outline = frame_scores(prediction, truth, 2)
    assert region.tolist() == outline.tolist() == [1.0, 1.0]
    prediction[0, :8] = 1  # on the void pixels: wrong, as they are background
    region, _ = frame_scores(prediction, truth, 2)
    assert region.tolist() == [pytest.approx(16 / 24), 1.0]


def test_a_prediction_with_more_objects_is_refused() -> None:
    with pytest.raises(DataError, match="object 3, and the first mask declares 2"):
        frame_scores(np.full((4, 4), 3), np.zeros((4, 4)), 2)
    with pytest.raises(DataError, match=r"\(4, 5\), the annotation \(4, 4\)"):
        frame_scores(np.zeros((4, 5)), np.zeros((4, 4)), 2)


def test_an_object_that_vanishes_counts_where_it_is_gone() -> None:
    empty, there = np.zeros((9, 9), dtype=np.uint8), np.zeros((9, 9), dtype=np.uint8)
    there[3:6, 3:6] = 1
    assert [value.tolist() for value in frame_scores(empty, empty, 1)] == [[1.0], [1.0]]
    assert [value.tolist() for value in frame_scores(there, empty, 1)] == [[0.0], [0.0]]
    assert [value.tolist() for value in frame_scores(empty, there, 1)] == [[0.0], [0.0]]


def slow_decay(values: list[float], wrap: bool = False) -> float:
    """First quarter less last; with ``wrap``, bounds in 8 bits as in the official code."""
    count = len(values)
    bounds = []
    for part in range(5):
        exact = 1 + (count - 1) * part / 4 + 1e-10
        whole = math.floor(exact)
        rounded = whole + (exact - whole > 0.5)
        bounds.append((rounded - 1) % 256 if wrap else rounded - 1)
    first, last = values[bounds[0] : bounds[1] + 1], values[bounds[3] : bounds[4] + 1]
    return sum(first) / len(first) - sum(last) / len(last)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 38, 67, 102, 256, 257, 400])
def test_means_recall_and_decay(count: int) -> None:
    rng = np.random.default_rng(count)
    region, outline = rng.random((count, 2)), rng.random((count, 2))
    found = summary({"a": FrameScores(region, outline)})
    for name, values in (("J", region), ("F", outline)):
        assert found[f"{name}-Mean"] == pytest.approx(values.mean(), abs=1e-9)
        shares = [sum(value > 0.5 for value in column) / count for column in values.T]
        assert found[f"{name}-Recall"] == pytest.approx(sum(shares) / 2, abs=1e-9)
        decays = [slow_decay(column.tolist()) for column in values.T]
        assert found[f"{name}-Decay"] == pytest.approx(sum(decays) / 2, abs=1e-9)
        if count <= 256:  # there the official bounds do not wrap around
            assert decays == [slow_decay(column.tolist(), wrap=True) for column in values.T]
    assert found["J&F-Mean"] == pytest.approx((found["J-Mean"] + found["F-Mean"]) / 2, abs=1e-12)


def test_objects_count_alike_not_videos() -> None:
    one = FrameScores(np.full((4, 1), 0.2), np.full((4, 1), 0.4))
    three = FrameScores(np.full((2, 3), 0.6), np.full((2, 3), 0.8))
    found = summary({"a": one, "b": three})
    assert found["J-Mean"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert list(found) == ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    rows = object_rows({"a": one, "b": three})
    assert [row[0] for row in rows] == ["a_1", "b_1", "b_2", "b_3"]
    assert rows[2][1:] == (pytest.approx(0.6), pytest.approx(0.8))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError, match="three frames"):
        FrameScores(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(DataError, match="no video"):
        summary({})
