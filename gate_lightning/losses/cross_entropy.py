"""Cross-entropy over the pixels that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gate_lightning.errors import ConfigError
from gate_lightning.losses.inputs import ClassWeights, checked, full_precision

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(nn.Module):
    """Mean cross-entropy of the labelled pixels; 0 if there are none.

    With class weights the mean is weighted: Σ w_y · loss / Σ w_y.

    Args:
        ignore_index: mask value of pixels that do not count.
        class_weight: K non-negative weights, or None for equal ones.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing is {label_smoothing}; expected a share in [0, 1), for example 0.1")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_weights = ClassWeights(class_weight)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            logits: (B, K, H, W).
            masks: (B, H, W) int64, 0 … K - 1 or ``ignore_index``.

        Raises:
            ConfigError: if shapes do not fit, or there are not K class weights.
            DataError: if a mask value is neither a class nor ``ignore_index``.
        """
        valid = checked(logits, masks, self.ignore_index)
        logits = full_precision(logits)
        weight = self.class_weights.fitting(logits)
        total = cross_entropy(
            logits,
            masks,
            weight=weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        count = valid.sum().to(total) if weight is None else weight[masks[valid]].sum()
        # the sum is 0 where the count is, so any other divisor keeps it 0, and its gradient finite
        return total / torch.where(count > 0, count, torch.ones_like(count))
