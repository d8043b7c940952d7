"""Differences between the features of one image under several noises: what of it moves, and what only flickers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["Drift", "noise_drift"]

#: side of the blocks of positions over which what moves is alike
BLOCK = 2


@dataclass(frozen=True)
class Drift:
    """Sums over channels and positions of the features of B images; ``moves`` and ``flickers`` add up to the variance.

    Attributes:
        moves: (B,) variance over the noises of the means over blocks.
        flickers: (B,) variance over the noises of what is left beside these means.
        contrast: (B,) squared distance of the mean feature from its own mean over the image.
    """

    moves: Tensor
    flickers: Tensor
    contrast: Tensor


def noise_drift(draws: Sequence[Tensor]) -> Drift:
    """Drift of the features F_d of images under D noises d; the definition is ours.

    With M = Σ_d F_d / D, R_d = F_d - M and the projection P onto maps that are constant on blocks of 2 × 2 positions
    (the mean of a block in its four places; blocks at the border may be smaller):

    * moves    = Σ_d ‖P R_d‖² / (D - 1): the part that neighbours share: contours elsewhere, other content
    * flickers = Σ_d ‖R_d - P R_d‖² / (D - 1): the part that differs from one position to the next
    * contrast = ‖M - mean of M over the positions‖²

    P is orthogonal, so moves + flickers is the unbiased variance of the features. Noise that is independent from
    position to position has moves / flickers = 1/3. Divided by the contrast, neither depends on the scale of features.

    Args:
        draws: D ≥ 2 feature maps (B, C, h, w), one for each noise.

    Raises:
        ConfigError: fewer than two, or maps of different sizes.
    """
    shapes = {tuple(one.shape) for one in draws}
    if len(draws) < 2 or len(shapes) > 1:
        raise ConfigError(f"{len(draws)} draws of {sorted(shapes)}; drift needs at least 2 of one size")
    stacked = torch.stack([one.double() for one in draws])
    mean = stacked.mean(dim=0)
    residuals = stacked - mean
    moving = _block_means(residuals.flatten(0, 1)).view_as(residuals)
    freedom = len(draws) - 1
    return Drift(
        moves=_energy(moving, (0, 2, 3, 4)) / freedom,
        flickers=_energy(residuals - moving, (0, 2, 3, 4)) / freedom,
        contrast=_energy(mean - mean.mean(dim=(2, 3), keepdim=True), (1, 2, 3)),
    )


def _block_means(maps: Tensor) -> Tensor:
    """Maps (N, C, h, w) with the mean of its block in every place."""
    means = F.avg_pool2d(maps, BLOCK, ceil_mode=True)
    spread = means.repeat_interleave(BLOCK, dim=2).repeat_interleave(BLOCK, dim=3)
    return spread[..., : maps.shape[2], : maps.shape[3]]


def _energy(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    return values.square().sum(dim=axes)
