"""Focal loss over the pixels that count (Lin et al., arXiv 1708.02002, eq. 5, for one class out of K)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.losses.base import PixelLoss, mean_over_pixels, require

__all__ = ["FocalLoss"]


class FocalLoss(PixelLoss):
    """Mean of −(1 − p_y)^γ · log p_y over the labelled pixels, p being the softmax; 0 if there are none.

    With class weights (α of the paper) the mean is Σ w_y · loss / Σ w_y, so γ = 0 is ``CrossEntropyLoss``.
    mmsegmentation's loss of that name instead adds up K sigmoids.

    Args:
        ignore_index: mask value of pixels that do not count.
        gamma: focusing parameter γ ≥ 0; larger values reduce the loss of well-classified pixels.
        class_weight: K non-negative weights, or None for equal ones.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self, ignore_index: int = 255, *, gamma: float = 2.0, class_weight: Sequence[float] | None = None
    ) -> None:
        super().__init__(ignore_index, class_weight)
        require(0.0 <= gamma < math.inf, "gamma", gamma, "a finite number ≥ 0, for example 2")
        self.gamma = gamma

    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """Focal loss; arguments as in `PixelLoss.compute`."""
        targets = torch.where(valid, masks, 0)
        log_chances = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0][valid]
        # 1 − p without cancellation; a power below 1 has no slope at 0, where the loss is 0 anyway
        missing = (-torch.expm1(log_chances)).clamp(min=torch.finfo(log_chances.dtype).tiny)
        return mean_over_pixels(-(missing**self.gamma) * log_chances, masks[valid], weight)
