"""Rank correlation with an interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gate_lightning.utils.seeding import keyed_generator

__all__ = ["Correlation", "correlation_of", "spearman"]

#: fewest points that a correlation is worth a number for
FEWEST = 3
#: comparisons of pairs that are made at a time
_CELLS = 2**24


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two values, with its interval.

    Attributes:
        points: number of points.
        value: in [-1, 1]; NaN of fewer than three points, or where all of one side are equal.
        low, high: limits of its interval over points.
        within: mean correlation inside the groups that have one; NaN where there is none.
        groups: number of these.
    """

    points: int
    value: float
    low: float
    high: float
    within: float
    groups: int


def correlation_of(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    groups: NDArray[np.int64],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Correlation:
    """Correlation of two values of N points, its percentile interval over points drawn anew, and that within groups.

    Args:
        one, other: (N,) values.
        groups: (N,) number of the group of every point.
        resamples: draws.
        level: share of draws inside the interval.
        seed: of the draws.
    """
    count = len(one)
    value = float(spearman(one[None], other[None])[0])
    low = high = float("nan")
    if count >= FEWEST:
        chosen = keyed_generator("gate_report", seed, count).integers(count, size=(resamples, count))
        found = np.concatenate([spearman(one[part], other[part]) for part in _parts(chosen)])
        if np.isfinite(found).any():
            low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2]).tolist()
    inside = [spearman(one[None, groups == group], other[None, groups == group])[0] for group in np.unique(groups)]
    defined = [float(each) for each in inside if np.isfinite(each)]
    within = float(np.mean(defined)) if defined else float("nan")
    return Correlation(count, value, low, high, within, len(defined))


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) correlation of the ranks of rows (R, N); equal values share the mean of their ranks.

    NaN of rows of fewer than three points, and where all values of a side are equal.
    """
    if one.shape[1] < FEWEST:
        return np.full(len(one), np.nan)
    ranks = [_ranks(side) for side in (one, other)]
    left, right = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found: NDArray[np.float64] = np.full(len(one), np.nan)
    np.divide((left * right).sum(axis=1), scale, out=found, where=scale > 0)
    return found.clip(-1.0, 1.0)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R, N) places of values in their rows, from 0."""
    here, there = values[:, :, None], values[:, None, :]
    ranks: NDArray[np.float64] = (here > there).sum(axis=2) + ((here == there).sum(axis=2) - 1) / 2
    return ranks


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(rows, max(1, rows.size * rows.shape[1] // _CELLS))
