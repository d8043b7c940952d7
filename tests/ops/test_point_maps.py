"""Points as soft labels on cells, and back."""

from __future__ import annotations

import math

import pytest
import torch

from gate_lightning.ops.point_maps import point_maps, points_of_maps


def test_maps_are_gaussians_about_the_points() -> None:
    points = torch.tensor([[13.0, 7.5], [79.0, 63.0], [math.nan, 3.0]])
    maps = point_maps(points, (64, 80), (8, 10))
    assert maps.shape == (4, 8, 10)
    for number, (x, y) in enumerate(points[:2].tolist()):
        column, row = (x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5
        for v in range(8):
            for u in range(10):
                near = max(abs(v - row), abs(u - column)) <= 1.5
                wanted = math.exp(-((v - row) ** 2 + (u - column) ** 2) / 0.5) if near else 0
                assert float(maps[number + 1, v, u]) == pytest.approx(wanted, abs=1e-6)
    assert maps[3].eq(0).all()
    assert maps[0].equal((maps[1:] == 0).all(dim=0).float())


def test_points_come_back() -> None:
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([300.0, 220.0]) + 8
    found = points_of_maps(point_maps(points, (240, 320), (40, 40)), (240, 320))
    assert (found - points).norm(dim=1).max() < 0.5 * math.hypot(8, 6)


def test_the_place_is_the_mean_of_the_three_highest_cells() -> None:
    soft = torch.zeros(3, 2, 4)
    soft[1] = torch.tensor([[0.0, 0.6, 0.3, 0.0], [0.0, 0.1, 0.0, 0.05]])
    (x, y), nothing = points_of_maps(soft, (2, 4)).tolist()
    assert (x, y) == (pytest.approx(0.6 + 2 * 0.3 + 0.1), pytest.approx(0.1))
    assert all(map(math.isnan, nothing))
