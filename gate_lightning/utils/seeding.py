"""Random numbers as a function of a key, independent of process, order and batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["data_generator", "keyed_generator", "keyed_integer", "keyed_noise", "torch_generator"]


def keyed_integer(*key: object) -> int:
    """An integer of 128 bits that depends on ``key`` alone.

    Args:
        key: strings, numbers, None and lists of them; hashed as JSON, so that 1 and "1" differ.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:16], "little")


def keyed_generator(*key: object) -> np.random.Generator:
    """A counter-based generator (Philox) whose numbers depend on ``key`` alone."""
    return np.random.Generator(np.random.Philox(key=keyed_integer(*key)))


def keyed_noise(shape: Sequence[int], *key: object) -> Tensor:
    """Standard normal noise of ``shape``, float32 on the CPU: no global state and no vector width takes part."""
    return torch.from_numpy(keyed_generator(*key).standard_normal(tuple(shape), dtype=np.float32))


def torch_generator(*key: object) -> torch.Generator:
    """A generator of torch on the CPU, for samplers that ask for one."""
    return torch.Generator().manual_seed(keyed_integer(*key) % 2**63)


def data_generator(*key: object) -> np.random.Generator:
    """The generator of orders, splits, augmentation and dropout of controls.

    It differs from `keyed_generator` only so that these stay what they were in every run so far: PCG64, keyed by the
    strings of ``key`` one after another.
    """
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
