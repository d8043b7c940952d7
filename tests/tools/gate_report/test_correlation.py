"""Rank correlation with an interval."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from gate_lightning.tools.gate_report import correlation
from gate_lightning.tools.gate_report.correlation import correlation_of, spearman

ONE = np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_torchmetrics(ties: bool) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 20, 15))
    if ties:
        one, other = one.round(), (one + other).round()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            float(spearman_corrcoef(torch.from_numpy(a), torch.from_numpy(b))) for a, b in zip(one, other, strict=True)
        ]
    np.testing.assert_allclose(spearman(one, other), expected, atol=1e-6)


def test_orders_that_agree_are_one_and_orders_that_turn_are_minus_one() -> None:
    values = np.array([0.1, 0.2, 0.5, 3.0, 9.0])
    groups = np.zeros(5, dtype=np.int64)
    for other, expected in ((np.exp(values), 1.0), (-(values**3), -1.0)):
        found = correlation_of(values, other, groups)
        assert (found.points, found.value, found.within, found.groups) == (5, expected, expected, 1)
        assert found.low == found.high == expected


def test_equal_values_share_their_rank() -> None:
    """By hand: ranks 1 2 2 4 and 1 2 3 4 have covariance 4.5 and variances 4.5 and 5."""
    found = spearman(np.array([[1.0, 2.0, 2.0, 4.0]]), np.array([[1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(found, 4.5 / math.sqrt(4.5 * 5))


def test_nothing_is_said_of_too_little() -> None:
    assert np.isnan(spearman(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]]))).all()
    assert np.isnan(spearman(np.ones((1, 4)), np.arange(4.0)[None])).all()
    for count in (0, 2):
        found = correlation_of(np.arange(count) * 1.0, np.arange(count) * 1.0, np.zeros(count, dtype=np.int64))
        assert found.points == count
        assert all(map(math.isnan, (found.value, found.low, found.high, found.within)))


def test_intervals_hold_what_is_true_as_often_as_they_say() -> None:
    """Of pairs of independent values the true correlation is 0."""
    rng, inside = np.random.default_rng(1), 0
    for seed in range(100):
        one, other = rng.standard_normal((2, 40))
        found = correlation_of(one, other, np.zeros(40, dtype=np.int64), resamples=300, seed=seed)
        inside += found.low <= 0 <= found.high
        assert found.low < found.value < found.high
    assert 88 <= inside <= 99


def test_within_groups_what_differs_between_them_does_not_count() -> None:
    """In each group the order is turned; the groups' levels agree."""
    values = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    other = np.array([2.0, 1.0, 0.0, 12.0, 11.0, 10.0])
    found = correlation_of(values, other, np.array([0, 0, 0, 1, 1, 1]))
    assert found.value > 0
    assert (found.within, found.groups) == (-1.0, 2)


def test_draws_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = np.random.default_rng(2).standard_normal((2, 12))
    groups = np.zeros(12, dtype=np.int64)
    whole = correlation_of(one, other, groups)
    monkeypatch.setattr(correlation, "_CELLS", 1000)
    assert correlation_of(one, other, groups) == whole
