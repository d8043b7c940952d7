"""The protocol of feature extractors, and what their users may ask of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gate_lightning.structures.conditions import Conditions
from gate_lightning.structures.features import Features, FeaturesInfo

__all__ = ["BackboneInfo", "Extractor"]


class BackboneInfo(Protocol):
    """The part of a backbone that users of an extractor may rely on.

    Attributes:
        native_size: side in pixels of its training images.
        size_multiple: images are padded to multiples of this, so feature maps cover the padded image.
        minimum_size: smallest side in pixels that it reads.
    """

    native_size: int
    size_multiple: int
    minimum_size: int

    @property
    def device(self) -> torch.device:
        """Device of its weights."""

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless images (B, 3, H, W), padded already, can be read."""


class Extractor(Protocol):
    """Images → features of every branch: the plain extractor, and every cache and wrapper around one.

    Frozen, and in evaluation mode for good.
    """

    @property
    def backbone(self) -> BackboneInfo:
        """Frozen network; the first of several."""

    @property
    def feature_info(self) -> FeaturesInfo:
        """Branch → layer id → FeatureInfo, in the order of branches and layers."""

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything the features depend on besides images and conditions, JSON-able."""

    def check_room(self, images: int, values: int) -> None:
        """Check the disk of a cache, before features are computed.

        Args:
            images: number of images, not augmented, whose features will be asked for.
            values: numbers in the features of one image.

        Raises:
            ConfigError: the disk has no room for them.
        """

    def __call__(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1] of any size from the backbone's ``minimum_size``.

        Images and control images are padded at the bottom and the right to multiples of the backbone's
        ``size_multiple`` (`ops.padding.pad_batch`).

        Returns:
            Branch → layer id → (B, C, ⌈H'/stride⌉, ⌈W'/stride⌉) of the padded H' × W', in the dtype of ``images``.

        Raises:
            DataError: images that are too small, or conditions that do not fit them.
        """
