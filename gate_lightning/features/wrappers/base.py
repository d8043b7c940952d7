"""Base class of extractor wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gate_lightning.structures import BackboneInfo, Extractor, FeaturesInfo

__all__ = ["WrappedExtractor"]


class WrappedExtractor(nn.Module):
    """Wrapper with the properties of its extractor; subclasses define ``forward`` and override what they change.

    Args:
        extractor: any extractor, also another wrapper.
    """

    extractor: Extractor

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def backbone(self) -> BackboneInfo:
        """See `Extractor`."""
        return self.extractor.backbone

    @property
    def feature_info(self) -> FeaturesInfo:
        """See `Extractor`."""
        return self.extractor.feature_info

    @property
    def concatenated(self) -> tuple[str, ...]:
        """See `Extractor`."""
        return self.extractor.concatenated

    @property
    def description(self) -> Mapping[str, Any]:
        """See `Extractor`."""
        return self.extractor.description

    def check_room(self, images: int, values: int) -> None:
        """See `Extractor`."""
        self.extractor.check_room(images, values)
