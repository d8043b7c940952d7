"""Batches that parts of a diffusion model are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gate_lightning.structures.conditions import Movable

__all__ = ["CaptionedBatch", "LabelledBatch"]


@dataclass(frozen=True)
class CaptionedBatch(Movable):
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


@dataclass(frozen=True)
class LabelledBatch(Movable):
    """Images with labels of the whole image.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1].
        labels: name → (B,) int64.
    """

    images: Tensor
    labels: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)
