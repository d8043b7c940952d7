"""Fine detail of feature maps, and clusters of their positions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.content_shift.structure import between_clusters, high_frequency_share


def wave(height: int, width: int, down: int, across: int) -> torch.Tensor:
    """(h, w) cosine of the transform of mirrored maps, of frequencies down / 2h and across / 2w."""
    rows = torch.cos(math.pi * (torch.arange(height) + 0.5) * down / height)
    columns = torch.cos(math.pi * (torch.arange(width) + 0.5) * across / width)
    return rows[:, None] * columns[None, :]


@pytest.mark.parametrize(("down", "across"), [(1, 0), (0, 3), (3, 3), (4, 0), (5, 0), (0, 7), (4, 4), (7, 11)])
def test_a_single_wave_is_high_or_not(down: int, across: int) -> None:
    maps = wave(8, 12, down, across)[None, None].expand(1, 3, 8, 12)
    high = math.hypot(down / 16, across / 24) > 0.25
    np.testing.assert_allclose(high_frequency_share(maps), float(high), atol=1e-9)


def test_energies_of_waves_add_up() -> None:
    """Of the mixture of a low wave and a high one, the share is that of their energies, whatever the channel."""
    low, high = wave(8, 8, 1, 1), wave(8, 8, 6, 6)
    maps = torch.stack([torch.stack([3 * low + 1 * high, 2 * low]), torch.stack([high, torch.zeros(8, 8)])])
    energy = low.square().sum(), high.square().sum()
    expected = energy[1] / (energy[1] + (9 + 4) * energy[0])
    np.testing.assert_allclose(high_frequency_share(maps), [expected, 1.0], rtol=1e-6)


def test_detail_does_not_depend_on_scale_offset_or_mixture_of_channels() -> None:
    maps = torch.randn(2, 5, 7, 9, dtype=torch.float64)
    plain = high_frequency_share(maps)
    mixed = torch.einsum("dc,bchw->bdhw", torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0], maps)
    for other in (1e6 * maps, maps + 3 * torch.arange(5)[:, None, None], mixed, maps.flip(3), maps.transpose(2, 3)):
        np.testing.assert_allclose(high_frequency_share(other), plain, rtol=1e-6)


def test_white_noise_has_the_share_of_the_area() -> None:
    """Of independent values every wave but the mean expects the same energy."""
    side = 16
    waves = [pair for pair in product(range(side), repeat=2) if pair != (0, 0)]
    expected = np.mean([math.hypot(*pair) / (2 * side) > 0.25 for pair in waves])
    torch.manual_seed(0)
    found = high_frequency_share(torch.randn(8, 200, side, side))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_ramp_is_not_detail_and_a_constant_map_has_none() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    assert float(high_frequency_share(ramp)[0]) < 0.01
    for value in (0.0, 1.0, 1e4, 1 / 3):
        assert float(high_frequency_share(torch.full((1, 4, 5, 5), value))[0]) == 0.0
    assert float(high_frequency_share(torch.randn(1, 3, 1, 1))[0]) == 0.0


def test_a_cutoff_out_of_range_is_refused() -> None:
    for cutoff in (0.0, 0.5, -1.0):
        with pytest.raises(ConfigError, match=r"between 0 and 0\.5 cycles per position"):
            high_frequency_share(torch.zeros(1, 1, 4, 4), cutoff)


def test_positions_of_a_few_kinds_lie_between_clusters() -> None:
    torch.manual_seed(0)
    kinds, which = torch.randn(3, 8), torch.randint(3, (2, 6, 7))
    within, total = between_clusters(kinds[which].movedim(3, 1), clusters=3)
    np.testing.assert_allclose(within, 0.0, atol=1e-10)
    unit = kinds / kinds.norm(dim=1, keepdim=True)
    rows = unit[which[0].flatten()].double()
    np.testing.assert_allclose(total[0], ((rows - rows.mean(0)) ** 2).sum(1).mean(), rtol=1e-5)


def test_variances_are_those_of_the_clusters_found() -> None:
    """Two well separated clouds: the best division is known, and so is what it leaves."""
    torch.manual_seed(1)
    axis = torch.tensor([1.0, 0.0, 0.0, 0.0])
    signs = torch.where(torch.arange(30) % 3 == 0, 1.0, -1.0)
    rows = axis * signs[:, None] + 0.05 * torch.randn(30, 4)
    within, total = between_clusters(rows.T.reshape(1, 4, 5, 6), clusters=2)
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    left = sum(((unit[signs == s] - unit[signs == s].mean(0)) ** 2).sum() for s in (1.0, -1.0)) / 30
    np.testing.assert_allclose(within, left, rtol=1e-4)
    np.testing.assert_allclose(total, ((unit - unit.mean(0)) ** 2).sum() / 30, rtol=1e-4)


def test_more_clusters_leave_less_and_the_order_of_positions_does_not_count() -> None:
    torch.manual_seed(2)
    maps = torch.randn(2, 6, 5, 5)
    shares = [float((1 - within / total)[0]) for within, total in (between_clusters(maps, k) for k in (2, 4, 8, 16))]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    moved = maps.flatten(2)[:, :, torch.randperm(25)].reshape(maps.shape)
    for one, other in zip(between_clusters(maps), between_clusters(3 * moved), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_as_many_clusters_as_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"clusters=6: feature maps have 4 positions"):
        between_clusters(torch.randn(1, 3, 2, 2))
    with pytest.raises(ConfigError, match=r"clusters=1: .*two clusters or more"):
        between_clusters(torch.randn(1, 3, 2, 2), 1)
