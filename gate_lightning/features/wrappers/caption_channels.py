"""Caption ablation: each image's caption as input channels of the head instead of a prompt of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.reading.text import TextCache
from gate_lightning.features.wrappers.base import BranchBesides
from gate_lightning.ops.padding import pad_batch
from gate_lightning.structures import Conditions, Extractor, FeatureInfo, Features, FeaturesInfo
from gate_lightning.utils.precision import own_precision

__all__ = ["CaptionChannels"]


class CaptionChannels(BranchBesides):
    """Extractor with an additional branch "caption": the mean of the caption's token embeddings, the same at every
    position, at every stride of the features.

    The branch is concatenated to the pyramid after amalgamation, so the head knows what the prompt technique would
    tell the backbone.

    Args:
        extractor: source of all other branches.
        backbone: its text encoder reads the captions.

    Raises:
        ConfigError: there is a branch "caption" already, or the backbone reads no text.
    """

    BRANCH = "caption"

    def __init__(self, extractor: Extractor, backbone: Backbone) -> None:
        super().__init__(extractor)
        self._backbones = (backbone,)  # in a tuple, so that its frozen weights are no part of the state dict
        self._cache = TextCache()
        self.channels = self._mean("").shape[-1]
        if not self.channels:
            raise ConfigError(f"caption_channels=true: {backbone.identity.name} has no text encoder to read captions")

    @property
    def feature_info(self) -> FeaturesInfo:
        """The extractor's, and the text encoder's channels at every stride of the branch "caption"."""
        own = {_layer(stride): FeatureInfo(self.channels, stride) for stride in self.strides}
        return {**self.extractor.feature_info, self.BRANCH: own}

    @property
    def description(self) -> Mapping[str, Any]:
        """The extractor's, and that captions are among the features."""
        return {**self.extractor.description, "caption_channels": "mean of token embeddings"}

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of the extractor, and embeddings of the captions (B, channels, h, w), constant over h and w.

        Raises:
            DataError: the images have no captions.
        """
        captions = conditions.captions
        if captions is None:
            raise DataError(
                "caption_channels=true gives captions to the head, but the images have none; add captions to the "
                "images, or choose another ablation"
            )
        images, conditions = pad_batch(images, conditions, self.backbone.size_multiple)
        features = self.extractor(images, conditions)
        rows = torch.cat([self._mean(caption) for caption in captions]).to(images)
        height, width = images.shape[-2:]
        own = {
            _layer(stride): rows[:, :, None, None].expand(-1, -1, -(-height // stride), -(-width // stride))
            for stride in self.strides
        }
        return {**features, self.BRANCH: own}

    def _mean(self, caption: str) -> Tensor:
        """Mean of the token embeddings (1, C)."""
        (backbone,) = self._backbones
        with own_precision(backbone.device):
            (embeds,) = self._cache.encode(backbone, [caption])
            return embeds.hidden.mean(dim=1)


def _layer(stride: int) -> str:
    return f"caption-stride{stride}"
