"""PCK of points that are followed through a video, as on JHMDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gate_lightning.errors import DataError

__all__ = ["ALPHAS", "PointDistances", "point_distances", "point_rows", "point_summary"]

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
#: share of the diagonal of the box of a frame's points that distances are divided by
_SHARE = 0.6


@dataclass(frozen=True)
class PointDistances:
    """Distances of followed points from the true ones, over 0.6 times the diagonal of the box of a frame's true points.

    Attributes:
        names: of the K points.
        values: (T - 1, K) of all frames but the first, NaN where a point does not count: it is not annotated, was not
            found, or the frame has no box.
    """

    names: tuple[str, ...]
    values: np.ndarray


def point_distances(names: Sequence[str], found: np.ndarray, truth: np.ndarray) -> PointDistances:
    """Distances of a video.

    Args:
        names: of the K points.
        found: (T, K, 2) x, y in pixels, NaN where a point was not found.
        truth: (T, K, 2) x, y in pixels, NaN where it is not annotated.
    """
    place, wanted = found[1:].astype(np.float64), truth[1:].astype(np.float64)
    known = np.isfinite(wanted).all(axis=2, keepdims=True)
    low = np.where(known, wanted, np.inf).min(axis=1)
    high = np.where(known, wanted, -np.inf).max(axis=1)
    diagonal = _SHARE * np.hypot(*np.where(high >= low, high - low, 0.0).T)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.hypot(*np.moveaxis(place - wanted, 2, 0)) / diagonal[:, None]
    return PointDistances(tuple(names), np.where(diagonal[:, None] > 0, values, np.nan))


def point_summary(videos: Mapping[str, PointDistances]) -> dict[str, float]:
    """``PCK_0.10_box`` …: of every point the share of all videos' frames in which it is near enough; their mean.

    Raises:
        DataError: nothing counts.
    """
    by_name: dict[str, list[np.ndarray]] = {}
    for one in videos.values():
        for name, column in zip(one.names, one.values.T, strict=True):
            by_name.setdefault(name, []).append(column[np.isfinite(column)])
    series = [np.concatenate(columns) for columns in by_name.values()]
    series = [values for values in series if len(values)]
    if not series:
        raise DataError("no point is annotated in a frame after the first; nothing can be measured")
    return {f"PCK_{alpha:.2f}_box": float(np.mean([(one <= alpha).mean() for one in series])) for alpha in ALPHAS}


def point_rows(videos: Mapping[str, PointDistances]) -> list[tuple[str, int, float]]:
    """Name of every video, the number of points in frames that count, and their share within 0.1."""
    rows = []
    for name, one in videos.items():
        known = one.values[np.isfinite(one.values)]
        rows.append((name, len(known), float((known <= ALPHAS[0]).mean()) if len(known) else float("nan")))
    return rows
