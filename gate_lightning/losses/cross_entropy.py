"""Cross-entropy over the pixels that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gate_lightning.losses.base import PixelLoss, require

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(PixelLoss):
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
        super().__init__(ignore_index, class_weight)
        require(0.0 <= label_smoothing < 1.0, "label_smoothing", label_smoothing, "a share in [0, 1), for example 0.1")
        self.label_smoothing = label_smoothing

    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """Mean cross-entropy; arguments as in `PixelLoss.compute`."""
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
