"""What the loss tests share: an example with ignored pixels, and its pixels one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

WEIGHTS = [0.5, 2.0, 0.0, 1.0]


def example(ignore: int = 255, images: int = 2) -> tuple[Tensor, Tensor]:
    """Logits (B, 4, 5, 6) float64 and masks with ignored rows."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, 4, 5, 6, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 4, (images, 5, 6), generator=generator)
    masks[0, 1:3] = ignore
    return logits, masks


def pixels(logits: Tensor, masks: Tensor, ignore: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """Image, probabilities (K,) and class of every labelled pixel."""
    scores, labels = logits.detach().numpy(), masks.numpy()
    for b, row, column in np.ndindex(*labels.shape):
        if labels[b, row, column] != ignore:
            powers = np.exp(scores[b, :, row, column])
            yield b, powers / powers.sum(), int(labels[b, row, column])
