"""Rows of tensors, and small data for them, without a wait for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["moved_like", "on_device", "rows_of"]


def on_device(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(N,) of numbers on a device. A few bytes: the copy is queued, and the host goes on at once."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def moved_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of the host on the device and in the dtype of another one, through page-locked memory to a GPU: the copy
    is queued, and the host goes on at once."""
    if like.device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)  # and cast there: here it would be a copy
    return tensor.to(like)


def rows_of(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a tensor (B, …): the tensor itself for all of them, a view of neighbours, or a copy."""
    first, count = rows[0], len(rows)
    if list(rows) != list(range(first, first + count)):
        return tensor.index_select(0, on_device(rows, tensor.device, torch.int64))
    return tensor if count == len(tensor) else tensor[first : first + count]
