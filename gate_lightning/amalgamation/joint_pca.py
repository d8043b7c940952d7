"""Fusion of the features of a pair of images, reduced by principal components of both (SD+DINO's co-PCA)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from gate_lightning.amalgamation.levels import plan_levels
from gate_lightning.errors import ConfigError
from gate_lightning.ops.pca import principal_components
from gate_lightning.structures import BranchFeatures, Features, FeaturesInfo
from gate_lightning.utils.checks import check_known, number, whole_number

__all__ = ["JointPCA"]


class JointPCA(nn.Module):
    """Concatenation of branches at one grid, their layers reduced by a PCA of both images of a pair (Zhang et al. 2023,
    arXiv 2305.15347).

    Every layer of a branch in ``components`` is centred and projected onto the principal axes of the vectors of both
    images together. Then the layers of a branch are resized bilinearly to one grid and concatenated, and each branch's
    vectors scaled to length 1. Descriptors of an image so depend on the image that it is matched with; there is nothing
    to train.

    Args:
        feature_info: branch → layer id → channels and stride.
        components: components of every layer of every branch, or by branch; layers of branches that are not named keep
            their channels.
        weights: branch → factor on its vectors of length 1; 1 for those that are not named.
        stride: pixels of the image per position of the grid; None for that of the finest layer.

    Raises:
        ConfigError: a number out of range, more components than a layer has channels, or an unknown branch.
    """

    def __init__(
        self,
        feature_info: FeaturesInfo,
        components: int | Mapping[str, int] = 256,
        weights: Mapping[str, float] | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        (level,) = plan_levels(feature_info, joined=True)
        if stride is not None:
            whole_number(stride, "amalgamation.stride", 1, optional="that of the finest layer")
        self.stride: int = level.stride if stride is None else stride
        self.feature_info = feature_info
        self.weights = dict(weights or {})
        check_known(self.weights, tuple(feature_info), "amalgamation.weights")
        for branch, weight in self.weights.items():
            number(weight, f"amalgamation.weights.{branch}", 0)
        by_branch = components if isinstance(components, Mapping) else dict.fromkeys(feature_info, components)
        check_known(by_branch, tuple(feature_info), "amalgamation.components")
        self.components: Mapping[str, int] = by_branch
        for branch, count in by_branch.items():
            whole_number(count, "amalgamation.components", 1)
            small = {layer: info.channels for layer, info in feature_info[branch].items() if info.channels < count}
            if small:
                layer, channels = next(iter(small.items()))
                raise ConfigError(
                    f"amalgamation.components={count}: layer {layer} of branch {branch!r} has {channels} channels; "
                    f"name the branches to be reduced, and how far: amalgamation.components={{<branch>: <number>}}"
                )

    @property
    def strides(self) -> tuple[int]:
        """Pixels per position of the grid."""
        return (self.stride,)

    @property
    def out_channels(self) -> tuple[int]:
        """Channels of the descriptors."""
        return (
            sum(
                self.components.get(branch, info.channels)
                for branch, layers in self.feature_info.items()
                for info in layers.values()
            ),
        )

    @torch.no_grad()
    def forward(self, source: Features, target: Features) -> tuple[Tensor, Tensor]:
        """Descriptors of both images, (1, C, h, w) each, on a grid of the stride.

        Args:
            source, target: branch → layer id → (1, C, h, w); the images may differ in size.
        """
        grids = self._grid(source), self._grid(target)
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for branch in self.feature_info:
            both = self._reduced(branch, source[branch], target[branch])
            for part, layers, grid in zip(parts, both, grids, strict=True):
                joined = normalize(torch.cat([_resized(layer, grid) for layer in layers], dim=1), dim=1)
                part.append(joined * self.weights.get(branch, 1.0))
        return torch.cat(parts[0], dim=1), torch.cat(parts[1], dim=1)

    def _reduced(
        self, branch: str, source: BranchFeatures, target: BranchFeatures
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The layers of both images, as they are or projected."""
        layers = [(source[layer].float(), target[layer].float()) for layer in self.feature_info[branch]]
        if branch in self.components:
            count = self.components[branch]
            axes = [principal_components(pair, count) for pair in layers]
            layers = [(project(one), project(other)) for project, (one, other) in zip(axes, layers, strict=True)]
        return [one for one, _ in layers], [other for _, other in layers]

    def _grid(self, features: Features) -> tuple[int, int]:
        """Rows and columns for the image of some features."""
        finest = min(
            (info.stride, branch, layer)
            for branch, layers in self.feature_info.items()
            for layer, info in layers.items()
        )
        stride, branch, layer = finest
        rows, columns = features[branch][layer].shape[-2:]
        return -(-rows * stride // self.stride), -(-columns * stride // self.stride)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
