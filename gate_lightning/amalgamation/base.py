"""Base class of amalgamations, which fuse the features of several branches into one pyramid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.levels import Level, plan_levels
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Features, FeaturesInfo, Pyramid

__all__ = ["Amalgamation"]


class Amalgamation(nn.Module, ABC):
    """Fuses the features of several branches into a pyramid, level by level.

    Each stride is a level, unless levels are joined. A branch's layers of equal stride are concatenated before branches
    are fused. Branches named in ``concatenated`` are not fused; their channels follow the fused ones of their stride.

    Args:
        feature_info: branch → layer id → channels and stride, from the feature extractor.
        concatenated: branches that are concatenated rather than fused.
        joined: one level only: all layers of a branch are resized bilinearly to one size and concatenated, as GATE and
            Hyperfeatures do for correspondence.
        stride: pixels per position of the joined level; None for those of its finest layer.

    Raises:
        ConfigError: if there is nothing to fuse, or ``concatenated`` names an unknown branch.
    """

    def __init__(
        self,
        feature_info: FeaturesInfo,
        concatenated: Collection[str] = (),
        joined: bool = False,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.levels: tuple[Level, ...] = plan_levels(feature_info, concatenated, joined, stride)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per position of each level, finest level first."""
        return tuple(level.stride for level in self.levels)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(
            (self.fused_channels(level) if level.fused else 0) + level.appended_channels for level in self.levels
        )

    @abstractmethod
    def fused_channels(self, level: Level) -> int:
        """Output channels of ``fuse`` at a level."""

    @abstractmethod
    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Fuse the branches of level ``index``.

        Args:
            index: level, 0 is the finest.
            maps: one map (B, C, h, w) per fused branch, in the order of ``levels[index].fused``.

        Returns:
            Fused map (B, fused channels, h, w), and branch weights as ``Pyramid.weights`` has them, or None.
        """

    def branch_map(self, level: Level, features: Features, branch: str) -> Tensor:
        """Map (B, C, h, w) of a branch at a level, as it is fused or concatenated."""
        return level.branch_map(features, branch)

    def forward(self, features: Features) -> Pyramid:
        """Pyramid of a batch's features.

        Args:
            features: branch → layer id → (B, C, h, w). Branches and layers that are not in ``feature_info`` are
                ignored.

        Returns:
            Levels, finest first, and branch weights where the amalgamation has them.

        Raises:
            ConfigError: a map is missing or has other channels than in ``feature_info``, or sizes differ at a stride.
        """
        levels, weights = [], []
        for index, level in enumerate(self.levels):
            fused = [self.branch_map(level, features, branch) for branch in level.fused]
            appended = [self.branch_map(level, features, branch) for branch in level.appended]
            _check_sizes(level, [*fused, *appended])
            parts = list(appended)
            if fused:
                part, weight = self.fuse(index, fused)
                parts.insert(0, part)
                if weight is not None:
                    weights.append(weight)
            levels.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        return Pyramid(levels=tuple(levels), weights=tuple(weights))

    def regularization(self, pyramid: Pyramid) -> Tensor | None:
        """Scalar that the task adds to its loss, or None if this amalgamation has none."""
        del pyramid
        return None


def _check_sizes(level: Level, maps: Sequence[Tensor]) -> None:
    sizes = {tuple(map_.shape[-2:]) for map_ in maps}
    if len(sizes) > 1:
        raise ConfigError(
            f"maps of stride {level.stride} have different sizes (height, width): {sorted(sizes)}. Pad the images "
            "to a multiple of the backbone's size_multiple"
        )
