"""Checks that all losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.labels import check_label_range

__all__ = ["checked", "full_precision"]


def checked(logits: Tensor, masks: Tensor, ignore_index: int) -> Tensor:
    """Check logits and masks against each other; return which pixels count.

    Args:
        logits: (B, K, H, W) floating point.
        masks: (B, H, W) int64.
        ignore_index: value of pixels that do not count.

    Returns:
        (B, H, W) bool.

    Raises:
        ConfigError: if shapes or dtype do not fit.
        DataError: if a mask value is neither a class nor ``ignore_index``.
    """
    if logits.dim() != 4 or masks.shape != (logits.shape[0], *logits.shape[2:]) or masks.dtype != torch.int64:
        raise ConfigError(
            f"a loss got logits {tuple(logits.shape)} and masks {tuple(masks.shape)} of {masks.dtype}; expected "
            "(B, K, H, W) and (B, H, W) of torch.int64. Resize the logits to the masks first"
        )
    return check_label_range(masks, logits.shape[1], ignore_index)


def full_precision(logits: Tensor) -> Tensor:
    """Half precision becomes float32, anything else stays: sums over a million pixels need the digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
