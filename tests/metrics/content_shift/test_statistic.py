"""Bootstrap of figures: against scipy's, against enumeration, paired differences, ranks, failures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.statistic import Bootstrap, Statistic, ranks, share_kept
from gate_lightning.metrics.content_shift.table import ALL, Row, figures


def statistic(rows: np.ndarray, **settings: object) -> Statistic:
    return Statistic(torch.from_numpy(rows), higher_is_better=True, **settings)  # type: ignore[arg-type]


def test_intervals_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed (extra mat)")
    rows = np.random.default_rng(0).gamma(2.0, size=(24, 2))
    bootstrap = Bootstrap(24, resamples=20000, level=0.9, seed=1)
    ratio = statistic(rows, reduce=share_kept)
    found = bootstrap.interval(bootstrap.draws(ratio))
    expected = stats.bootstrap(
        (rows[:, 0], rows[:, 1]),
        lambda a, b, axis: 1 - a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)
    assert ratio.value == pytest.approx(1 - rows[:, 0].mean() / rows[:, 1].mean())
    np.testing.assert_allclose(ratio.of_images.numpy(), 1 - rows[:, 0] / rows[:, 1])


def test_draws_are_means_of_drawn_images() -> None:
    rows = np.array([[1.0], [10.0], [100.0]])
    drawn = Bootstrap(3, resamples=5000).draws(statistic(rows)).numpy()
    possible = {np.round(rows[list(places)].mean(), 9) for places in itertools.product(range(3), repeat=3)}
    assert {np.round(value, 9) for value in drawn} == possible
    assert drawn.mean() == pytest.approx(rows.mean(), rel=0.05)
    assert drawn.std() == pytest.approx(rows.std() / np.sqrt(3), rel=0.05)  # the theory of the mean of three draws


def test_differences_are_paired_by_image() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 1)) * 100
    cells = {("none", 50, "a"): statistic(rows), ("prompt", 50, "a"): statistic(rows + 1)}
    lines = list(figures({"m": cells}, {"none": Row("none"), "prompt": Row("none")}, Bootstrap(30)))
    plain, prompt = lines
    assert plain.difference is None
    assert prompt.difference is not None
    assert (prompt.difference.low, prompt.difference.high) == pytest.approx((1.0, 1.0))
    assert prompt.figure.high - prompt.figure.low > 20
    assert (plain.rank, prompt.rank) == (2, 1)


def test_means_over_cells_and_controls_of_equal_cost() -> None:
    def constant(value: float) -> Statistic:
        return statistic(np.full((4, 1), value))

    found = {("none", t, "a"): constant(t) for t in (1, 3)} | {("x", t, "a"): constant(t + t) for t in (1, 3)}
    found |= {("none x2", t, "a"): constant(1.5 * t) for t in (1, 3)}
    rows = {"none": Row("none"), "x": Row("none", controls={"passes": "none x2"}), "none x2": Row("none", False)}
    lines = {(one.candidate, one.timestep): one for one in figures({"m": found}, rows, Bootstrap(4))}
    assert lines["x", ALL].figure.value == 4.0
    assert lines["x", ALL].layer == ALL
    kept, difference = lines["x", 3].controlled["passes"]
    assert (kept, difference.value) == ("none x2", 1.5)
    assert [lines[name, 3].rank for name in rows] == [2, 1, None]


def test_ranks_of_less_is_better() -> None:
    assert ranks({"a": 1.0, "b": 2.0, "c": 1.0}, False) == {"a": 1, "b": 3, "c": 1}


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 image: an interval over images needs at least 2"):
        Bootstrap(1)
    with pytest.raises(ConfigError, match=r"level=1\.0"):
        Bootstrap(2, level=1.0)
    with pytest.raises(ConfigError, match="a statistic of 3 images among others of 2"):
        Bootstrap(2).draws(statistic(np.zeros((3, 1))))
    with pytest.raises(ConfigError, match=r"statistics of image 1 .* are not finite"):
        statistic(np.array([[0.0], [np.nan]]))
    with pytest.raises(ConfigError, match=r"are \(3,\)"):
        statistic(np.zeros(3))
