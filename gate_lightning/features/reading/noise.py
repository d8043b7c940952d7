"""Noise that depends on what is read, never on how: keyed per sample, the same in any batch, order or process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.errors import DataError
from gate_lightning.structures import Conditions
from gate_lightning.utils.seeding import keyed_noise

__all__ = ["batch_noise", "explicit_noise"]


def batch_noise(
    shape: Sequence[int],
    conditions: Conditions,
    seed: int,
    draw: int = 0,
    noise_seed: int | None = 0,
    kind: str = "diffusion",
) -> Tensor:
    """Noise (B, *shape) of a batch, every sample from its own key.

    Args:
        shape: of one sample, (c, h, w).
        conditions: sample ids, views and windows of the batch.
        seed: of the run.
        draw: which of several noises of the same branch.
        noise_seed: the branch's, or None for one noise for all branches.
        kind: what the noise is for ("diffusion", "posterior").
    """
    samples = zip(conditions.sample_ids, conditions.views, conditions.windows, strict=True)
    noises = [
        keyed_noise(shape, kind, seed, sample_id, view, list(window), draw, noise_seed)
        for sample_id, view, window in samples
    ]
    return torch.stack(noises)


def explicit_noise(given: Tensor, shape: Sequence[int], draws: int, draw: int) -> Tensor:
    """One draw (B, c, h, w) of noise that the caller fixed.

    Args:
        given: (B, c, h, w), or (B, E, c, h, w) for an ensemble of E draws.
        shape: of one draw, that of the latents.
        draws: E of the branch, 1 without an ensemble.
        draw: which of them.

    Raises:
        DataError: noise of another shape or number of draws.
    """
    expected = tuple(shape) if draws == 1 else (shape[0], draws, *shape[1:])
    if given.shape != expected:
        raise DataError(
            f"explicit noise of shape {tuple(given.shape)} for latents of shape {tuple(shape)}"
            + (f" and an ensemble of {draws}; expected {expected}" if draws > 1 else "")
        )
    return given if draws == 1 else given[:, draw]
