"""What stands in front of a feature extractor and, unless it says otherwise, describes itself as that one."""

from __future__ import annotations

from typing import Any

from torch import nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.structures import FeatureInfo

__all__ = ["WrappedExtractor"]


class WrappedExtractor(nn.Module):
    """Base of wrappers; subclasses define ``forward``.

    Args:
        extractor: what is wrapped: any extractor, wrapped ones too.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor = extractor

    @property
    def backbone(self) -> Backbone:
        """The frozen network, the first one where there are several."""
        backbone: Backbone = self.extractor.backbone
        return backbone

    @property
    def feature_info(self) -> dict[str, dict[str, FeatureInfo]]:
        """Branch → layer id → FeatureInfo."""
        info: dict[str, dict[str, FeatureInfo]] = self.extractor.feature_info
        return info

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation."""
        names: tuple[str, ...] = self.extractor.concatenated
        return names

    @property
    def description(self) -> dict[str, Any]:
        """All that the features depend on besides the images, JSON-able."""
        description: dict[str, Any] = self.extractor.description
        return description

    @property
    def computing(self) -> nn.Module:
        """What computes, below all that stands in front of it."""
        inner: nn.Module = self.extractor
        return inner.computing if isinstance(inner, WrappedExtractor) else inner

    def keeps(self, images: float) -> bool:
        """Whether features of so many plain images are computed only once, however often the images come."""
        return isinstance(self.extractor, WrappedExtractor) and self.extractor.keeps(images)
