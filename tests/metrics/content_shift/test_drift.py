"""Drift of features between noises: exact answers, what adds up, what independent noise gives."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.drift import noise_drift


def test_equal_draws_do_not_drift_and_a_common_change_moves() -> None:
    base = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    still = noise_drift([base, base.clone()])
    assert still.moves.tolist() == still.flickers.tolist() == [0.0, 0.0]
    moved = noise_drift([base, base + 2.0])  # residuals ±1 everywhere
    torch.testing.assert_close(moved.moves, torch.full((2,), 2.0 * 3 * 24, dtype=torch.float64))
    torch.testing.assert_close(moved.flickers, torch.zeros(2, dtype=torch.float64))


def test_a_chequerboard_only_flickers() -> None:
    board = (torch.arange(6)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    found = noise_drift([board.expand(1, 2, 6, 8), -board.expand(1, 2, 6, 8)])
    assert found.moves.tolist() == [0.0]
    assert found.flickers.tolist() == [2 * 48 * 2]
    assert found.contrast.tolist() == [0.0]


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_parts_add_up_to_the_variance(size: tuple[int, int]) -> None:
    draws = torch.randn(5, 3, 4, *size, generator=torch.Generator().manual_seed(0))
    found = noise_drift(list(draws))
    variance = draws.double().var(dim=0).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.moves + found.flickers, variance)
    mean = draws.double().mean(dim=0)
    torch.testing.assert_close(found.contrast, mean.var(dim=(2, 3), correction=0).sum(dim=1) * size[0] * size[1])
    scaled = noise_drift(list(3 * draws))
    torch.testing.assert_close(scaled.moves / scaled.contrast, found.moves / found.contrast)


def test_independent_noise_moves_a_third_of_what_flickers() -> None:
    draws = torch.randn(4, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    found = noise_drift(list(draws))
    assert float(found.moves / found.flickers) == pytest.approx(1 / 3, rel=0.02)


def test_what_has_no_drift_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 draws"):
        noise_drift([torch.zeros(1, 1, 2, 2)])
    with pytest.raises(ConfigError, match="2 draws of"):
        noise_drift([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)])
