"""Points as soft labels on the cells of a feature map, and back, as VideoWalk follows the joints of JHMDB."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.ops.rows import on_device

__all__ = ["point_maps", "points_of_maps"]

_SIGMA = 0.5  # cells
_MOST = 3  # cells that a point is read off


def point_maps(points: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Labels (K + 1, h, w): 1 where no point is near, and of each point a Gaussian of σ = 0.5 cells, cut at 3 σ.

    Args:
        points: (K, 2) x, y in pixels of the file; a NaN gives an empty map.
        size: (H, W) of the file.
        cells: (h, w).
    """
    x, y = _to_cells(points.double(), size, cells).unbind(dim=1)
    down = torch.arange(cells[0], device=points.device)[None, :] - y[:, None]
    across = torch.arange(cells[1], device=points.device)[None, :] - x[:, None]
    squared = (down**2)[:, :, None] + (across**2)[:, None, :]
    near = (down.abs() <= 3 * _SIGMA)[:, :, None] & (across.abs() <= 3 * _SIGMA)[:, None, :]
    maps = torch.where(near, torch.exp(-squared / (2 * _SIGMA**2)), torch.zeros_like(squared))
    return torch.cat([(maps == 0).all(dim=0)[None].to(maps), maps]).float()


def points_of_maps(soft: Tensor, size: tuple[int, int]) -> Tensor:
    """Points (K, 2) x, y in pixels of the file, from labels (K + 1, h, w): the mean place of the three highest cells.

    NaN where a map is 0 everywhere.
    """
    cells = (soft.shape[1], soft.shape[2])
    values, index = soft[1:].flatten(1).topk(min(_MOST, cells[0] * cells[1]), dim=1)
    weights = values / values.sum(dim=1, keepdim=True)
    x, y = ((part * weights).sum(dim=1) for part in (index % cells[1], index // cells[1]))
    found = _to_pixels(torch.stack([x, y], dim=1).double(), size, cells)
    return torch.where((values.sum(dim=1) > 0)[:, None], found, torch.full_like(found, torch.nan)).float()


def _to_cells(points: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    return (points + 0.5) * on_device([cells[1] / size[1], cells[0] / size[0]], points.device, points.dtype) - 0.5


def _to_pixels(places: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    return (places + 0.5) * on_device([size[1] / cells[1], size[0] / cells[0]], places.device, places.dtype) - 0.5
