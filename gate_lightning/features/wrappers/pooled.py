"""Average pooling of feature maps, for smaller caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gate_lightning.errors import ConfigError
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.structures import Conditions, Extractor, Features, FeaturesInfo
from gate_lightning.utils.checks import whole_number

__all__ = ["PooledExtractor"]


class PooledExtractor(WrappedExtractor):
    """Extractor with feature maps averaged over ``pooling`` × ``pooling`` positions.

    A map of h × w positions becomes one of ⌈h/pooling⌉ × ⌈w/pooling⌉; where that does not divide evenly the cells
    overlap by a position, so that they still cover the image evenly. Strides grow by the factor; channels stay.
    Training and evaluation read the same coarse maps: a head is trained on what it is used on.

    Args:
        extractor: source of the maps.
        pooling: factor, at least 1.

    Raises:
        ConfigError: a factor out of range, or a layer of attention weights, which is no map.
    """

    def __init__(self, extractor: Extractor, pooling: int) -> None:
        super().__init__(extractor)
        self.pooling = whole_number(pooling, "pooling (features.pooling)", 1)
        attention = [
            f"{branch}: {layer}"
            for branch, layers in extractor.feature_info.items()
            for layer, info in layers.items()
            if not info.stride
        ]
        if attention:
            raise ConfigError(
                f"pooling={pooling} averages maps, and {', '.join(attention)} gives attention weights; leave "
                f"that layer or the pooling out"
            )

    @property
    def feature_info(self) -> FeaturesInfo:
        """Branch → layer id → FeatureInfo of the coarse maps."""
        return {
            branch: {layer: replace(info, stride=info.stride * self.pooling) for layer, info in layers.items()}
            for branch, layers in self.extractor.feature_info.items()
        }

    @property
    def description(self) -> Mapping[str, Any]:
        """The extractor's, and the factor."""
        return {**self.extractor.description, "pooling": self.pooling}

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Coarse features of images; arguments as the extractor's."""
        features = self.extractor(images, conditions)
        return {
            branch: {layer: self._averaged(value) for layer, value in layers.items()}
            for branch, layers in features.items()
        }

    def _averaged(self, value: Tensor) -> Tensor:
        height, width = (-(-side // self.pooling) for side in value.shape[-2:])
        return adaptive_avg_pool2d(value.float(), (height, width)).to(value.dtype)
