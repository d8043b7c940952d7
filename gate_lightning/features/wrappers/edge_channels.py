"""Edge ablation: Canny edges as input channels of the head instead of control images of a ControlNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gate_lightning.backbones.raw_pixels import space_to_depth
from gate_lightning.features.wrappers.base import BranchBesides
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import Conditions, Extractor, FeatureInfo, Features, FeaturesInfo
from gate_lightning.techniques.controlnet import CannyEdges

__all__ = ["EdgeChannels"]


class EdgeChannels(BranchBesides):
    """Extractor with an additional branch "edges": the edge map, space to depth, at every stride of the features.

    The branch is concatenated to the pyramid after amalgamation, not fused with the others.

    Args:
        extractor: source of all other branches.
        low, high, blur_sigma, normalize: Canny's settings, see ``ops.edges.canny``.

    Raises:
        ConfigError: there is a branch "edges" already.
    """

    BRANCH = "edges"

    def __init__(
        self,
        extractor: Extractor,
        low: float = 100.0,
        high: float = 200.0,
        blur_sigma: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__(extractor)
        self.settings = CannyEdges(low, high, blur_sigma, normalize)

    @property
    def feature_info(self) -> FeaturesInfo:
        """The extractor's, and stride² channels at every stride of the branch "edges"."""
        own = {_layer(stride): FeatureInfo(stride * stride, stride) for stride in self.strides}
        return {**self.extractor.feature_info, self.BRANCH: own}

    @property
    def description(self) -> Mapping[str, Any]:
        """The extractor's, and Canny's settings."""
        return {**self.extractor.description, "edges": asdict(self.settings)}

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of the extractor, and edge maps (B, stride², h, w), 0 or 1."""
        images, conditions = pad_batch(images, conditions, self.backbone.size_multiple)
        features = self.extractor(images, conditions)
        edges = self.settings(images, conditions)[:, :1]
        return {**features, self.BRANCH: {_layer(stride): space_to_depth(edges, stride) for stride in self.strides}}


def _layer(stride: int) -> str:
    return f"edges-stride{stride}"
