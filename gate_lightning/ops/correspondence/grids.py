"""Feature maps with their place in the pixels of an image, and what bilinear resizing makes of them.

Bilinear resizing is linear: the resized map at a pixel is a mean of four vectors. So similarities to the resized map
are resized similarities, and its norms follow from products of neighbouring vectors. The resized map itself, of
C × H × W numbers, is never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.rows import on_device

__all__ = ["FeatureGrid"]


@dataclass(frozen=True, eq=False)
class FeatureGrid:
    """Feature map of an image.

    Pixels are counted as in `Pair`: centres at integers. A position of the map covers 1 / scale pixels, the first from
    the image's corner on (align_corners=False).

    Attributes:
        features: (C, h, w).
        size: (H, W) of the image's file.
        scale: positions per pixel of the file, vertically and horizontally; None where the map covers just the image.
            Maps of padded images cover more than the image.
    """

    features: Tensor
    size: tuple[int, int]
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.features.dim() != 3 or not self.features.is_floating_point():
            found = f"{tuple(self.features.shape)} of {self.features.dtype}"
            raise ConfigError(f"the feature map is {found}; expected floating-point numbers (C, h, w)")
        object.__setattr__(self, "features", self.features.float())
        if self.scale is None:
            _, height, width = self.features.shape
            object.__setattr__(self, "scale", (height / self.size[0], width / self.size[1]))

    @property
    def scales(self) -> tuple[float, float]:
        """Positions per pixel of the file, vertically and horizontally."""
        assert self.scale is not None
        return self.scale

    @property
    def inside(self) -> tuple[int, int]:
        """(rows, columns) of the positions whose centres are in the image, not in its padding."""
        _, *shape = self.features.shape
        count = [
            next((n for n in range(length, 1, -1) if n - 0.5 < side * scale - 1e-6), 1)
            for length, side, scale in zip(shape, self.size, self.scales, strict=True)
        ]
        return count[0], count[1]

    def to_positions(self, points: Tensor) -> Tensor:
        """x, y of the map (…, 2), float64, from pixels of the file."""
        scale = on_device(self.scales[::-1], points.device, torch.float64)
        return (points.double() + 0.5) * scale - 0.5

    def to_pixels(self, positions: Tensor) -> Tensor:
        """x, y in pixels of the file (…, 2), float64, from positions of the map."""
        scale = on_device(self.scales[::-1], positions.device, torch.float64)
        return (positions.double() + 0.5) / scale - 0.5

    def sample(self, points: Tensor) -> Tensor:
        """Descriptors (N, C): the map at points x, y (N, 2) of the file; at whole pixels those of the resized map."""
        places = self.to_positions(points.to(self.features.device))
        _, height, width = self.features.shape
        left, right, across = _taps(places[:, 0], width)
        above, below, down = _taps(places[:, 1], height)
        flat = self.features.flatten(1)
        found = flat.new_zeros(len(flat), len(points))
        for row, by_row in ((above, 1 - down), (below, down)):
            for column, by_column in ((left, 1 - across), (right, across)):
                found += flat[:, row * width + column] * (by_row * by_column).to(flat)
        return found.T

    def sample_released(self, points: Tensor) -> Tensor:
        """Descriptors (N, C) at points x, y (N, 2) of the file as the released code of DIFT reads them on HPatches.

        It counts coordinates from the centres of the outermost pixels, and reads the map from corner to corner: exact
        in the middle, half a position too far out at the border, where zeros begin.
        """
        _, height, width = self.features.shape
        points = points.to(self.features.device)
        sides = on_device([self.size[1], self.size[0]], points.device, torch.float64)
        covered = sides * on_device(
            self.scales[::-1], sides.device, sides.dtype
        )  # positions of the image, without padding
        places = points.double() / (sides - 1).clamp(min=1) * covered  # from the map's corner, in positions
        grid = (2 * places / on_device([width, height], sides.device, sides.dtype) - 1).to(self.features)
        found = torch.nn.functional.grid_sample(self.features[None], grid[None, None], align_corners=False)
        return found[0, :, 0].T

    def resize(self, maps: Tensor) -> Tensor:
        """Maps (N, h, w) on the positions, bilinearly resized to the file's pixels: (N, H, W)."""
        rows, columns = self._weights
        return self._with_borders(rows.to(maps) @ maps @ columns.to(maps).T)

    @cached_property
    def position_norms(self) -> Tensor:
        """L2 norms (h, w) of the map's vectors."""
        return self.features.norm(dim=0)

    @cached_property
    def pixel_norms(self) -> Tensor:
        """L2 norms (H, W) of the resized map's vectors.

        The squared norm of a mean of four vectors is a mean of their squared norms and mutual products.
        """
        features = self.features
        square = features.square().sum(dim=0)
        right = (features[:, :, :-1] * features[:, :, 1:]).sum(dim=0)
        down = (features[:, :-1] * features[:, 1:]).sum(dim=0)
        diagonal = (features[:, :-1, :-1] * features[:, 1:, 1:]).sum(dim=0)
        diagonal = (diagonal + (features[:, :-1, 1:] * features[:, 1:, :-1]).sum(dim=0)) / 2
        (row, rows), (column, columns) = (_squared(weights) for weights in self._weights)
        square, right, down, diagonal = (part.double() for part in (square, right, down, diagonal))
        squares = (row @ square + rows @ down) @ column.T + (row @ right + rows @ diagonal) @ columns.T
        return self._with_borders(squares.clamp_(min=0).sqrt_().float())

    def _with_borders(self, maps: Tensor) -> Tensor:
        """Maps (…, H, W) whose pixels beyond the centre of the outermost position are equal to the last bit, as they
        are by definition: of equal similarities the first one is the match."""
        for axis, side, scale, length in zip((-2, -1), self.size, self.scales, self.features.shape[1:], strict=True):
            places = (torch.arange(side, dtype=torch.float64) + 0.5) * scale - 0.5
            before, inner = int((places <= 0).sum()), int((places < length - 1).sum())
            if before > 1:
                maps.narrow(axis, 0, before - 1).copy_(maps.narrow(axis, before - 1, 1))
            if side - inner > 1:
                maps.narrow(axis, inner + 1, side - inner - 1).copy_(maps.narrow(axis, inner, 1))
        return maps

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Weights (H, h) and (W, w), float64, of the positions in each row and column of pixels."""
        _, *shape = self.features.shape
        made = []
        for length, side, scale in zip(shape, self.size, self.scales, strict=True):
            places = (torch.arange(side, dtype=torch.float64, device=self.features.device) + 0.5) * scale - 0.5
            low, high, weight = _taps(places, length)
            weights = places.new_zeros(side, length)
            weights.scatter_add_(1, low[:, None], (1 - weight)[:, None])
            made.append(weights.scatter_add_(1, high[:, None], weight[:, None]))
        return made[0], made[1]


def _taps(places: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two positions around places on an axis, and the weight of the second; beyond the ends the outermost one."""
    places = places.clamp(0, length - 1)
    low = places.floor().long()
    return low, (low + 1).clamp(max=length - 1), places - low


def _squared(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Squared weights (n, k), and twice the products of neighbouring ones (n, k - 1)."""
    return weights.square(), 2 * weights[:, :-1] * weights[:, 1:]
