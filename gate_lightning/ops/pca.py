"""Principal components of feature maps, for images of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Projection", "principal_components", "to_unit_range"]


@dataclass(frozen=True)
class Projection:
    """An affine map onto principal axes.

    Attributes:
        mean: (C,) mean of the vectors it was fitted to.
        axes: (C, k) orthonormal columns, largest variance first. Zero columns where the vectors vary in fewer
            directions than k.
    """

    mean: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Coordinates (B, k, h, w) of a feature map (B, C, h, w), in the projection's dtype."""
        centred = features.to(self.mean) - self.mean[None, :, None, None]
        return torch.einsum("bchw,ck->bkhw", centred, self.axes)


def principal_components(maps: Sequence[Tensor], count: int = 3) -> Projection:
    """The axes along which the vectors of all given maps together vary most.

    Deterministic: exact eigenvectors in float64; each axis' entry of largest magnitude is positive.

    Args:
        maps: feature maps (B, C, h, w) with equal C; B, h and w may differ.
        count: number of axes.
    """
    vectors = torch.cat([m.detach().permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]).double()
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    # the smaller of the two Gram matrices has the same non-zero spectrum
    if centred.shape[0] >= centred.shape[1]:
        values, axes = torch.linalg.eigh(centred.T @ centred)
    else:
        values, left = torch.linalg.eigh(centred @ centred.T)
        axes = centred.T @ left
        axes = axes / axes.norm(dim=0, keepdim=True).clamp_min(torch.finfo(axes.dtype).tiny)
    order = values.argsort(descending=True)[:count]
    values, axes = values[order], axes[:, order]
    noise_floor = values.max().clamp_min(torch.finfo(values.dtype).tiny) * 1e-12
    axes = torch.where(values > noise_floor, axes, torch.zeros_like(axes))
    peak = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * torch.where(peak < 0, -1.0, 1.0)
    missing = count - axes.shape[1]
    if missing > 0:
        axes = torch.cat([axes, axes.new_zeros(axes.shape[0], missing)], dim=1)
    return Projection(mean.float(), axes.float())


def to_unit_range(coordinates: Sequence[Tensor], quantile: float = 0.01) -> list[Tensor]:
    """Coordinates rescaled to [0, 1], each component by limits that all given maps share.

    Sharing keeps colours comparable between the maps. Limits are quantiles, so that single outliers do not flatten
    the rest; a component that does not vary becomes 0.5.

    Args:
        coordinates: maps (B, k, h, w).
        quantile: share of values that is clipped at either end.
    """
    values = torch.cat([c.transpose(0, 1).flatten(1) for c in coordinates], dim=1).double()
    ordered = values.sort(dim=1).values
    cut = min(int(quantile * values.shape[1]), (values.shape[1] - 1) // 2)
    low, high = ordered[:, cut], ordered[:, -1 - cut]
    span = high - low
    flat = span <= 1e-12 * ordered.abs().amax(dim=1).clamp_min(1e-12)
    scale = torch.where(flat, 0.0, 1.0 / torch.where(flat, 1.0, span))
    offset = torch.where(flat, 0.5, -low * scale)
    shape = (1, -1, 1, 1)
    return [(c.double() * scale.view(shape) + offset.view(shape)).clamp(0.0, 1.0).float() for c in coordinates]
