"""The edge control: the Canny map given to the head directly, as input channels instead of through a ControlNet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.raw_pixels import space_to_depth
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.techniques.controlnet import CannyEdges

__all__ = ["EdgeChannels"]


class EdgeChannels(nn.Module):
    """A feature extractor with one more branch "edges": the edge map, space to depth, at every stride that occurs.

    The branch is concatenated to the pyramid after amalgamation, not fused with the others.

    Args:
        extractor: gives all other branches.
        low, high, blur_sigma, normalize: Canny's settings, see ``ops.edges.canny``.
    """

    BRANCH = "edges"

    def __init__(
        self,
        extractor: FeatureExtractor | MultiBackboneExtractor,
        low: float = 100.0,
        high: float = 200.0,
        blur_sigma: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if self.BRANCH in extractor.feature_info:
            raise ConfigError(
                f"edge_channels=true adds a branch {self.BRANCH!r}, and there is one already; rename yours"
            )
        self.extractor = extractor
        self.settings = CannyEdges(low, high, blur_sigma, normalize)
        strides = {info.stride for branch in extractor.feature_info.values() for info in branch.values() if info.stride}
        self.strides = sorted(strides, reverse=True)
        self.feature_info: dict[str, dict[str, FeatureInfo]] = {
            **extractor.feature_info,
            self.BRANCH: {_layer(stride): FeatureInfo(stride * stride, stride) for stride in self.strides},
        }

    @property
    def backbone(self) -> Backbone:
        """The frozen network of the other branches."""
        return self.extractor.backbone

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""
        return (*self.extractor.concatenated, self.BRANCH)

    @property
    def description(self) -> dict[str, Any]:
        """All that the features depend on besides the images, JSON-able."""
        return {**self.extractor.description, "edges": asdict(self.settings)}

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as FeatureExtractor gives them, and the edge maps (B, stride², h, w), 0 or 1."""
        features = self.extractor(images, conditions)
        edges = self.settings(images, conditions)[:, :1]
        return {**features, self.BRANCH: {_layer(stride): space_to_depth(edges, stride) for stride in self.strides}}


def _layer(stride: int) -> str:
    return f"edges-stride{stride}"
