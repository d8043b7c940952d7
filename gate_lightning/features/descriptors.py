"""Descriptors of images: frozen features → amalgamation → head, as feature maps in the pixels of the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.structures import Conditions, Extractor

__all__ = ["descriptor_grids"]


def descriptor_grids(
    extractor: Extractor,
    amalgamation: Amalgamation,
    head: Callable[[Sequence[Tensor]], Tensor],
    images: Tensor,
    conditions: Conditions,
    sizes: Sequence[tuple[int, int]],
) -> list[FeatureGrid]:
    """Descriptors of images, at the resolution of the pyramid's finest level.

    Args:
        extractor: frozen backbone and branches.
        amalgamation: features → pyramid.
        head: levels of the pyramid → descriptors (B, C, h, w).
        images: (B, 3, H, W).
        conditions: of the images.
        sizes: (height, width) of each image's file, which may differ from that of ``images``.
    """
    described = head(amalgamation(extractor(images, conditions)).levels).float()
    height, width = (side / amalgamation.strides[0] for side in images.shape[-2:])  # without padding
    return [
        FeatureGrid(features, size, (height / size[0], width / size[1]))
        for features, size in zip(described, sizes, strict=True)
    ]
