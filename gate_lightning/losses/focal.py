"""Focal loss over the pixels that count (Lin et al., arXiv 1708.02002, eq. 5, for one class out of K)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.losses.inputs import ClassWeights, checked, full_precision

__all__ = ["FocalLoss"]


class FocalLoss(nn.Module):
    """Mean of −(1 − p_y)^γ · log p_y over the labelled pixels, p being the softmax; 0 if there are none.

    With class weights (α of the paper) the mean is Σ w_y · loss / Σ w_y, so γ = 0 is ``CrossEntropyLoss``.
    mmsegmentation's loss of that name instead adds up K sigmoids.

    Args:
        ignore_index: mask value of pixels that do not count.
        gamma: γ ≥ 0: how little a pixel counts that is right already.
        class_weight: K non-negative weights, or None for equal ones.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self, ignore_index: int = 255, *, gamma: float = 2.0, class_weight: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not 0.0 <= gamma < math.inf:
            raise ConfigError(f"gamma is {gamma}; expected a finite number ≥ 0, for example 2")
        self.ignore_index, self.gamma = ignore_index, gamma
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
        targets = torch.where(valid, masks, 0)
        log_chances = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0][valid]
        # 1 − p without cancellation; a power below 1 has no slope at 0, where the loss is 0 anyway
        missing = (-torch.expm1(log_chances)).clamp(min=torch.finfo(log_chances.dtype).tiny)
        return self.class_weights.mean(-(missing**self.gamma) * log_chances, masks[valid], weight)
