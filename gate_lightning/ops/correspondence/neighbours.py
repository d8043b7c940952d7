"""Nearest neighbours between all positions of two feature maps, and distances by which a mirrored image is chosen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.rows import on_device

__all__ = [
    "dense_matches",
    "instance_distance",
    "mutual_distance",
    "mutual_neighbours",
    "mutual_pairs",
    "nearest_neighbours",
]

#: rows of the matrix of similarities that are in memory at once
ROWS = 1024


def nearest_neighbours(source: Tensor, target: Tensor, metric: str = "cosine") -> tuple[Tensor, Tensor]:
    """Index and similarity of the target vector that is most similar to each source vector; the first of equal ones.

    Args:
        source: (P, C).
        target: (Q, C).
        metric: ``cosine``, or ``l2``: the negative squared distance.

    Returns:
        (P,) int64 and (P,).
    """
    if metric == "cosine":
        source, target = normalize(source.float(), dim=1), normalize(target.float(), dim=1)
        found = [(part @ target.T).max(dim=1) for part in source.split(ROWS)]
    else:
        # in double precision: of long vectors that are near each other little is left by the subtraction
        source, target = source.double(), target.double()
        squares = target.square().sum(dim=1)
        found = [
            (2 * part @ target.T - squares - part.square().sum(dim=1, keepdim=True)).max(dim=1)
            for part in source.split(ROWS)
        ]
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def mutual_pairs(source: Tensor, target: Tensor, metric: str = "cosine") -> Tensor:
    """Vectors that are each other's nearest neighbours.

    Args:
        source: (P, C).
        target: (Q, C).
        metric: see `nearest_neighbours`.

    Returns:
        (M, 2) int64 indices of both, in the order of the source.
    """
    if not len(source) or not len(target):
        return torch.zeros(0, 2, dtype=torch.int64, device=source.device)
    there, _ = nearest_neighbours(source, target, metric)
    back, _ = nearest_neighbours(target, source, metric)
    here = torch.arange(len(there), device=there.device)
    mutual = back[there] == here
    return torch.stack([here[mutual], there[mutual]], dim=1)


def mutual_neighbours(source: FeatureGrid, target: FeatureGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that are each other's nearest neighbours by cosine ("best buddies").

    Returns:
        (M, 2) points x, y in the source, (M, 2) in the target, both at the centres of positions in pixels of the files,
        and their cosines (M,); in the order of the source's positions.
    """
    (from_source, of_source), (from_target, of_target) = _inside(source), _inside(target)
    there, cosine = nearest_neighbours(of_source, of_target)
    back, _ = nearest_neighbours(of_target, of_source)
    mutual = back[there] == torch.arange(len(there), device=there.device)
    return from_source[mutual], from_target[there[mutual]], cosine[mutual]


def dense_matches(source: FeatureGrid, target: FeatureGrid) -> Tensor:
    """Place in the source of every pixel of the target's file.

    Every position of the target's map is matched with its nearest neighbour by cosine. The pixels around its centre lie
    around that neighbour's centre in the same way, at most at the source's border.

    Returns:
        (H, W, 2) float32 x, y in pixels of the source's file, (H, W) being the target's size.
    """
    (centres, of_source), (_, of_target) = _inside(source), _inside(target)
    matched = centres[nearest_neighbours(of_target, of_source)[0]].view(*target.inside, 2)
    index, offset = [], []
    for side, here, there, count in zip(target.size, target.scales, source.scales, target.inside, strict=True):
        places = (torch.arange(side, dtype=torch.float64, device=centres.device) + 0.5) * here - 0.5
        index.append((places + 0.5).floor().long().clamp(max=count - 1))
        offset.append((places - index[-1]) / there)
    (rows, columns), (down, across) = index, offset
    x, y = matched[rows][:, columns].unbind(dim=-1)
    height, width = source.size
    x, y = (x + across).clamp_(0, width - 1), (y + down[:, None]).clamp_(0, height - 1)
    return torch.stack([x.float(), y.float()], dim=-1)


def mutual_distance(source: FeatureGrid, target: FeatureGrid) -> float:
    """Mean L2 distance of the normalised vectors of mutual nearest neighbours (GeoAware-SC's choice of a pose)."""
    return float(_distance(mutual_neighbours(source, target)[2]).mean())


def instance_distance(source: FeatureGrid, target: FeatureGrid, source_mask: Tensor, target_mask: Tensor) -> float:
    """Instance matching distance of GeoAware-SC: mean over the source object's positions of the L2 distance between
    normalised vectors to the nearest position of the target's object.

    Args:
        source, target: feature maps.
        source_mask, target_mask: (H, W) bool on the files' pixels: the object. A position belongs to it if the pixel at
            its centre does.

    Raises:
        ConfigError: no position belongs to an object, or a mask of another size than its image.
    """
    of_source, of_target = _masked(source, source_mask), _masked(target, target_mask)
    return float(_distance(nearest_neighbours(of_source, of_target)[1]).mean())


def _distance(cosine: Tensor) -> Tensor:
    return (2 - 2 * cosine.double()).clamp(min=0).sqrt()


def _inside(grid: FeatureGrid) -> tuple[Tensor, Tensor]:
    """Centres (P, 2) in pixels and vectors (P, C) of the positions in the image."""
    rows, columns = grid.inside
    features = grid.features[:, :rows, :columns]
    y, x = torch.meshgrid(
        torch.arange(rows, device=features.device), torch.arange(columns, device=features.device), indexing="ij"
    )
    return grid.to_pixels(torch.stack([x, y], dim=-1).view(-1, 2)), features.flatten(1).T


def _masked(grid: FeatureGrid, mask: Tensor) -> Tensor:
    if tuple(mask.shape) != grid.size:
        raise ConfigError(f"the mask of an object is {tuple(mask.shape)}, its image {grid.size} (height, width)")
    centres, vectors = _inside(grid)
    last = on_device([grid.size[1] - 1, grid.size[0] - 1], centres.device, centres.dtype)
    x, y = (centres + 0.5).floor().clamp(min=0).minimum(last).long().unbind(dim=1)
    chosen = mask.to(vectors.device)[y, x]
    if not chosen.any():
        raise ConfigError("the mask of an object holds no position of its feature map; use a finer layer, or no mask")
    return vectors[chosen]
