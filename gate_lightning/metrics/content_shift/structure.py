"""Structure of feature maps, without labels or references: fine detail, and groups of positions.

Both are named after ideas of papers whose formulas were not to be had; the definitions are this project's:

* A-SelecT (arXiv 2603.25758) chooses the timestep whose features have the largest ratio of high frequencies.
* DiEC (arXiv 2512.20905) chooses the layer and timestep whose features cluster best, images being what is
  clustered. Here it is the positions of each image: what is asked of dense features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gate_lightning.errors import ConfigError

__all__ = ["between_clusters", "high_frequency_share"]


def high_frequency_share(features: Tensor, cutoff: float = 0.25) -> Tensor:
    """(B,) share of the energy of feature maps (B, C, h, w) above a frequency, the mean of each channel left out.

    Energy is summed over the channels; the frequency of a wave is its length in cycles per position, whatever its
    direction, so 0.5 is the finest along an axis. Maps are continued as their mirror images, since the jump from one
    border to the opposite one would count as detail. Unchanged by a factor on all channels, a constant added to a
    channel, and an orthogonal mixture of channels. A map without any detail has 0.

    Args:
        features: maps.
        cutoff: frequency, in (0, 0.5).

    Raises:
        ConfigError: a cutoff out of range.
    """
    if not 0.0 < cutoff < 0.5:
        raise ConfigError(f"cutoff={cutoff}: expected a frequency between 0 and 0.5 cycles per position, such as 0.25")
    # relative to the largest value of each image, in float64: squares of activations of a thousand are exact enough
    maps = features.double() / features.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    maps = maps - maps.mean(dim=(2, 3), keepdim=True)
    mirrored = torch.cat([maps, maps.flip(3)], dim=3)
    mirrored = torch.cat([mirrored, mirrored.flip(2)], dim=2)
    energy = torch.fft.fft2(mirrored).abs().square().sum(dim=1)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64, device=maps.device) for side in energy.shape[1:])
    high = torch.hypot(rows[:, None], columns[None, :]) > cutoff
    total, above = energy.sum(dim=(1, 2)), energy[:, high].sum(dim=1)
    # what rounding leaves of a constant map is no detail
    detail = total > 1e-20 * mirrored[0, 0].numel() * energy[0].numel()
    return torch.where(detail, above / torch.where(detail, total, torch.ones_like(total)), torch.zeros_like(total))


def between_clusters(features: Tensor, clusters: int = 6, steps: int = 20) -> tuple[Tensor, Tensor]:
    """(B,) variance of an image's positions within clusters, and in all; 1 - their ratio is the share between clusters.

    Positions of feature maps (B, C, h, w) are vectors of length 1. Clusters are found by k-means (Lloyd), begun at the
    position farthest from the mean and then at those farthest from all before, so that nothing is drawn.

    Args:
        features: maps.
        clusters: number of clusters.
        steps: of k-means, at most.

    Raises:
        ConfigError: fewer than two clusters, or no more positions than clusters.
    """
    rows = normalize(features.flatten(2).transpose(1, 2).float(), dim=2)  # (B, P, C)
    if clusters < 2 or rows.shape[1] <= clusters:
        raise ConfigError(
            f"clusters={clusters}: feature maps have {rows.shape[1]} positions; expected two clusters or more, and "
            "fewer than positions"
        )
    centres = _farthest(rows, clusters)
    nearest = torch.cdist(rows, centres).argmin(dim=2)
    for _ in range(steps):
        members = torch.nn.functional.one_hot(nearest, clusters).to(rows).transpose(1, 2)  # (B, k, P)
        counts = members.sum(dim=2, keepdim=True)
        centres = torch.where(counts > 0, members @ rows / counts.clamp_min(1.0), centres)
        again = torch.cdist(rows, centres).argmin(dim=2)
        if torch.equal(again, nearest):
            break
        nearest = again
    own = centres.gather(1, nearest[..., None].expand_as(rows))
    within = (rows - own).double().square().sum(dim=2).mean(dim=1)
    total = (rows - rows.mean(dim=1, keepdim=True)).double().square().sum(dim=2).mean(dim=1)
    return within, total


def _farthest(rows: Tensor, count: int) -> Tensor:
    """(B, count, C) of rows (B, P, C): each the farthest from all before, the first the farthest from the mean."""
    distances = torch.cdist(rows, rows.mean(dim=1, keepdim=True))[..., 0]
    chosen: list[Tensor] = []
    for number in range(count):
        place = distances.argmax(dim=1)
        centre = rows[torch.arange(len(rows), device=rows.device), place][:, None]
        chosen.append(centre)
        found = torch.cdist(rows, centre)[..., 0]
        distances = found if number == 0 else torch.minimum(distances, found)
    return torch.cat(chosen, dim=1)
