"""Noise that depends on what is read, never on how: keyed per sample, the same in any batch, order or process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gate_lightning.structures import Conditions

__all__ = ["batch_noise", "keyed_noise"]


def keyed_noise(shape: Sequence[int], *key: object) -> Tensor:
    """Standard normal noise of ``shape``, float32 on the CPU, a function of ``key`` alone.

    The key is hashed to the 128 bits of a counter-based generator (Philox), so that no global state and no vector width
    of the processor takes part.

    Args:
        shape: of the tensor.
        key: strings, numbers and tuples of them.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


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
