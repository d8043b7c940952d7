"""Descriptors of images: frozen features → amalgamation → head, as feature maps in the pixels of the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.joint_pca import JointPCA
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.structures import Conditions, Extractor, Features

__all__ = ["ImageFeatures", "descriptor_grids", "image_features", "joint_grids"]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image, whose descriptors depend on the other image of a pair.

    Attributes:
        maps: branch → layer id → (1, C, h, w).
        size: (height, width) of the image's file.
        shown: its (height, width) in pixels as the backbone saw it, without padding.
    """

    maps: Features
    size: tuple[int, int]
    shown: tuple[int, int]


def descriptor_grids(
    extractor: Extractor,
    amalgamation: Amalgamation,
    head: Callable[[Sequence[Tensor]], Tensor],
    images: Tensor,
    conditions: Conditions,
    sizes: Sequence[tuple[int, int]],
    shown: Sequence[tuple[int, int]] | None = None,
) -> list[FeatureGrid]:
    """Descriptors of images, at the resolution of the pyramid's finest level.

    Args:
        extractor: frozen backbone and branches.
        amalgamation: features → pyramid.
        head: levels of the pyramid → descriptors (B, C, h, w).
        images: (B, 3, H, W).
        conditions: of the images.
        sizes: (height, width) of each image's file, which may differ from that of ``images``.
        shown: (height, width) of the part of ``images``, from the corner on, that each file fills; None for all of it.
    """
    described = head(amalgamation(extractor(images, conditions)).levels).float()
    stride = amalgamation.strides[0]
    return [
        _grid(features, size, part, stride)
        for features, size, part in zip(described, sizes, _shown(images, shown), strict=True)
    ]


def image_features(
    extractor: Extractor,
    images: Tensor,
    conditions: Conditions,
    sizes: Sequence[tuple[int, int]],
    shown: Sequence[tuple[int, int]] | None = None,
) -> list[ImageFeatures]:
    """Features of images one by one, for `joint_grids`; arguments as for `descriptor_grids`."""
    features = extractor(images, conditions)
    return [
        ImageFeatures(
            {
                branch: {layer: maps[row : row + 1].clone() for layer, maps in layers.items()}
                for branch, layers in features.items()
            },
            size,
            part,
        )
        for row, (size, part) in enumerate(zip(sizes, _shown(images, shown), strict=True))
    ]


def joint_grids(
    amalgamation: JointPCA, source: ImageFeatures, target: ImageFeatures
) -> tuple[FeatureGrid, FeatureGrid]:
    """Descriptors of both images of a pair."""
    described = amalgamation(source.maps, target.maps)
    here, there = (
        _grid(maps[0], one.size, one.shown, amalgamation.stride)
        for maps, one in zip(described, (source, target), strict=True)
    )
    return here, there


def _shown(images: Tensor, shown: Sequence[tuple[int, int]] | None) -> Sequence[tuple[int, int]]:
    height, width = images.shape[-2:]
    return [(height, width)] * len(images) if shown is None else shown


def _grid(features: Tensor, size: tuple[int, int], shown: tuple[int, int], stride: int) -> FeatureGrid:
    height, width = (side / stride for side in shown)  # without padding
    return FeatureGrid(features, size, (height / size[0], width / size[1]))
