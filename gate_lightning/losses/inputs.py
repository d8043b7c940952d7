"""Checks that all losses share, and class weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.ops.labels import check_label_range

__all__ = ["ClassWeights", "checked", "full_precision"]


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


class ClassWeights(nn.Module):
    """One weight per class, moved with the loss and left out of checkpoints.

    Args:
        class_weight: K finite weights ≥ 0, not all of them 0; None for equal ones.

    Raises:
        ConfigError: for other weights.
    """

    values: Tensor | None

    def __init__(self, class_weight: Sequence[float] | None) -> None:
        super().__init__()
        weights = None if class_weight is None else [float(weight) for weight in class_weight]
        if weights is not None and (not all(0.0 <= weight < math.inf for weight in weights) or sum(weights) == 0.0):
            raise ConfigError(f"class_weight is {weights}; expected finite weights ≥ 0, not all of them 0")
        self.register_buffer("values", None if weights is None else torch.tensor(weights), persistent=False)

    def fitting(self, logits: Tensor) -> Tensor | None:
        """(K,) like ``logits`` (B, K, H, W), or None.

        Raises:
            ConfigError: if there are not K weights.
        """
        if self.values is None:
            return None
        if len(self.values) != logits.shape[1]:
            raise ConfigError(
                f"class_weight has {len(self.values)} entries for {logits.shape[1]} classes; give one per class"
            )
        return self.values.to(logits)

    def mean(self, losses: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """Σ w_y · loss / Σ w_y over pixels; 0 where no weight is left.

        Args:
            losses: (P,) unweighted.
            targets: (P,) int64 classes.
            weight: what ``fitting`` gave.
        """
        shares = torch.ones_like(losses) if weight is None else weight[targets]
        total, count = (shares * losses).sum(), shares.sum()
        # the sum is 0 where the count is, so any other divisor keeps it 0, and its gradient finite
        return total / torch.where(count > 0, count, torch.ones_like(count))
