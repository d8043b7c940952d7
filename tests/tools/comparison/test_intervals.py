"""Intervals of paired differences against printed tables and scipy."""

from __future__ import annotations

from statistics import mean

import pytest

from gate_lightning.tools.comparison.intervals import paired_interval, t_quantile

#: two-sided 95 % and 99 % of Student's t, from printed tables
TABLE = {
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    9: (2.262, 3.250),
    10: (2.228, 3.169),
}
TABLE |= {29: (2.045, 2.756), 30: (2.042, 2.750), 120: (1.980, 2.617)}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    for level, expected in zip((0.95, 0.99), TABLE[freedom], strict=True):
        assert t_quantile(level, freedom) == pytest.approx(expected, abs=6e-4)


def test_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
    differences = [0.02, 0.035, -0.01, 0.018, 0.027]
    expected = stats.ttest_rel(differences, [0.0] * 5).confidence_interval(0.9)
    found = paired_interval(differences, 0.9)
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_interval_is_around_the_mean_and_shrinks_with_pairs() -> None:
    few, many = paired_interval([0.1, 0.3]), paired_interval([0.1, 0.3] * 8)
    assert few is not None
    assert many is not None
    assert mean(few) == pytest.approx(0.2)
    assert few[0] < 0 < many[0]


def test_one_pair_has_no_interval() -> None:
    assert paired_interval([0.1]) is None
    assert paired_interval([]) is None


def test_equal_differences_have_an_interval_without_width() -> None:
    assert paired_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
