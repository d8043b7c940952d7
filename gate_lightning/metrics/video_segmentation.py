"""J and F of propagated masks: DAVIS-2017's measures (semi-supervised), as the official evaluation computes them.

Objects are 1 … n, the numbers in the first mask; 255 (ignored) and numbers that come later are background. The first
frame is given and the last one is left out; the others count. J is the IoU of an object, F the F-score of its outline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from gate_lightning.errors import DataError

__all__ = ["FrameScores", "frame_scores", "object_rows", "outline", "region_and_outline", "summary"]

#: share of the image's diagonal that outlines may be apart
_TOLERANCE = 0.008
#: value of unlabelled pixels
_IGNORED = 255
_BINS = 4


@dataclass(frozen=True)
class FrameScores:
    """J and F of the objects of a video, frame by frame.

    Attributes:
        region: (frames, objects) J in [0, 1].
        outline: (frames, objects) F in [0, 1].
    """

    region: np.ndarray
    outline: np.ndarray

    def __post_init__(self) -> None:
        if self.region.shape != self.outline.shape or self.region.ndim != 2 or not self.region.size:
            raise DataError(
                f"scores are {self.region.shape} and {self.outline.shape} (frames, objects); expected one frame and "
                "one object or more: a video of three frames, since its first and last are not measured"
            )


def frame_scores(prediction: np.ndarray, truth: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """J and F of every object in one frame, each (objects,).

    Args:
        prediction: (H, W) numbers of objects, 0 for background.
        truth: (H, W) the same; 255 and numbers above ``objects`` are background.
        objects: their number.

    Raises:
        DataError: other sizes, or a prediction with numbers above ``objects``.
    """
    if prediction.shape != truth.shape:
        raise DataError(f"the predicted mask is {prediction.shape}, the annotation {truth.shape} (height, width)")
    if prediction.max(initial=0) > objects:
        raise DataError(f"the predicted mask has object {prediction.max()}, and the first mask declares {objects}")
    scores = [region_and_outline(prediction == number, truth == number) for number in range(1, objects + 1)]
    found = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def region_and_outline(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F of one object, bool (H, W); both are 1 where there is nothing to find and nothing was found."""
    union = np.count_nonzero(prediction | truth)
    region = np.count_nonzero(prediction & truth) / union if union else 1.0
    tolerance = math.ceil(_TOLERANCE * math.hypot(*truth.shape))
    found, true = outline(prediction), outline(truth)
    counts = np.count_nonzero(found), np.count_nonzero(true)
    if not all(counts):
        return region, float(not any(counts))
    precision = np.count_nonzero(found & _widened(true, tolerance)) / counts[0]
    recall = np.count_nonzero(true & _widened(found, tolerance)) / counts[1]
    return region, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that differ from their neighbour to the east, south or south-east; the image's border is none."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    # beyond the last row and column there is nothing to differ from; the corner has no neighbour at all
    east, south, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ east) | (mask ^ south) | (mask ^ both)


def _widened(outlines: np.ndarray, radius: int) -> np.ndarray:
    """Pixels at most ``radius`` from one of an outline."""
    axis = np.arange(-radius, radius + 1)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.uint8)
    return cv2.dilate(outlines.astype(np.uint8), disc).astype(bool)


def summary(videos: Mapping[str, FrameScores]) -> dict[str, float]:
    """Measures of a data set: means over the objects of all videos, each of which counts alike.

    Mean: over frames. Recall: share of the frames above 0.5. Decay: mean of the first quarter less that of the last.

    Raises:
        DataError: no video.
    """
    if not videos:
        raise DataError("no video was measured")
    rows = {
        name: np.array([_statistics(one) for scores in videos.values() for one in getattr(scores, part).T])
        for name, part in (("J", "region"), ("F", "outline"))
    }
    means = {name: values.mean(axis=0) for name, values in rows.items()}
    found = {"J&F-Mean": (means["J"][0] + means["F"][0]) / 2}
    for name, values in means.items():
        found |= {f"{name}-{what}": value for what, value in zip(("Mean", "Recall", "Decay"), values, strict=True)}
    return {name: float(value) for name, value in found.items()}


def object_rows(videos: Mapping[str, FrameScores]) -> list[tuple[str, float, float]]:
    """Name (``<video>_<object>``), mean J and mean F of every object."""
    return [
        (f"{name}_{number + 1}", float(scores.region[:, number].mean()), float(scores.outline[:, number].mean()))
        for name, scores in videos.items()
        for number in range(scores.region.shape[1])
    ]


def _statistics(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean, recall and decay of one object's values (frames,).

    Quarters overlap in one frame, as in the official code; that code's bounds wrap around beyond 256 frames, where
    these do not.
    """
    series = np.asarray(values, dtype=np.float64)
    bounds = (np.round(np.linspace(1, len(series), _BINS + 1) + 1e-10) - 1).astype(np.int64)
    quarters = [series[bounds[part] : bounds[part + 1] + 1] for part in range(_BINS)]
    return float(series.mean()), float((series > 0.5).mean()), float(quarters[0].mean() - quarters[-1].mean())
