"""Batches that parts of a diffusion model are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CaptionedBatch", "LabelledBatch"]


@dataclass(frozen=True)
class CaptionedBatch:
    """Images, or their latents, with captions.

    Attributes:
        captions: B texts.
        images: (B, 3, H, W) float32 in [-1, 1], or None where there are latents.
        latents: (B, c, h, w) float32, scaled, or None where there are images.
        control_images: (B, 3, H, W) float32 in [0, 1], or None.
    """

    captions: tuple[str, ...]
    images: Tensor | None = None
    latents: Tensor | None = None
    control_images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, **kwargs: Any) -> CaptionedBatch:
        """A copy on ``device``."""
        tensors = (self.images, self.latents, self.control_images)
        return CaptionedBatch(self.captions, *(t if t is None else t.to(device, **kwargs) for t in tensors))


@dataclass(frozen=True)
class LabelledBatch:
    """Images with labels of the whole image.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1].
        labels: name → (B,) int64.
    """

    images: Tensor
    labels: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, **kwargs: Any) -> LabelledBatch:
        """A copy on ``device``."""
        labels = {name: value.to(device, **kwargs) for name, value in self.labels.items()}
        return LabelledBatch(self.images.to(device, **kwargs), labels)
