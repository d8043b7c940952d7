"""Confidence intervals of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

__all__ = ["paired_interval", "t_quantile"]

LEVEL = 0.95


def paired_interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Confidence interval of the mean of paired differences, by Student's t; None of fewer than two.

    It takes the differences for draws of a normal distribution; of few seeds it is wide, and rightly so. It is the
    interval of one comparison: of twenty rows without any effect, one is expected to lie off zero.

    Args:
        differences: one per pair.
        level: share of such intervals that hold the true mean, in (0, 1).
    """
    if len(differences) < 2:
        return None
    middle = mean(differences)
    half = t_quantile(level, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return middle - half, middle + half


def t_quantile(level: float, freedom: int) -> float:
    """The value that the absolute value of Student's t stays below with probability ``level``.

    Args:
        level: in (0, 1).
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(100):  # the interval shrinks to neighbouring floats
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(value: float, freedom: int) -> float:
    """P(|t| < value), by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
