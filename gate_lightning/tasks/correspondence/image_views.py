"""An image of a pair as it is and mirrored: what is kept of it, and what the mirror does to its pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gate_lightning.features.descriptors import ImageFeatures
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.structures import PairBatch

__all__ = ["Described", "Views", "box_mask", "mirror_images", "object_lengths"]

#: descriptors of an image, or its features where descriptors depend on the other image of the pair
Described = FeatureGrid | ImageFeatures


@dataclass(frozen=True)
class Views:
    """Features kept of an image, and of its mirror image where that may be chosen."""

    plain: Described
    mirrored: Described | None


def mirror_images(images: Tensor, shown: Sequence[tuple[int, int]] | None = None) -> Tensor:
    """Mirror images of (B, 3, H, W), each of the part (height, width) that it shows; its padding stays where it is."""
    if shown is None:
        return images.flip(-1)
    made = images.clone()
    for row, (height, width) in enumerate(shown):
        made[row, :, :height, :width] = images[row, :, :height, :width].flip(-1)
    return made


def box_mask(box: Sequence[float], size: tuple[int, int]) -> Tensor:
    """(H, W) bool: pixels in a box x1, y1, x2, y2."""
    y, x = (torch.arange(length) for length in size)
    return ((y >= box[1]) & (y <= box[3]))[:, None] & ((x >= box[0]) & (x <= box[2]))[None, :]


def object_lengths(batch: PairBatch, shown_size: Callable[[int, int], tuple[int, int]] | None) -> Tensor:
    """Larger side (B,) of the targets' boxes in pixels of the batch's images; NaN where there is no box.

    Args:
        batch: of pairs.
        shown_size: (height, width) of a file → the part of its batch that it fills; None for all of it.
    """
    found = []
    for pair in batch.pairs:
        shown = batch.target.images.shape[-2:] if shown_size is None else shown_size(*pair.target_size)
        (height, width), box = pair.target_size, pair.target_box
        sides = [] if box is None else [(box[2] - box[0]) * shown[1] / width, (box[3] - box[1]) * shown[0] / height]
        found.append(max(sides, default=torch.nan))
    return torch.tensor(found)
