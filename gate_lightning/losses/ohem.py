"""Cross-entropy of the hard pixels: online hard example mining (Shrivastava et al., arXiv 1604.03540)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.losses.base import PixelLoss, mean_over_pixels, require

__all__ = ["OhemCrossEntropyLoss"]


class OhemCrossEntropyLoss(PixelLoss):
    """Mean cross-entropy of the pixels whose true class has a low probability; 0 if no pixel is labelled.

    A pixel counts if the softmax of its true class is below ``threshold``. Where these are fewer than ``min_kept``,
    the ``min_kept`` least probable pixels of the batch count (all of them, if it has no more; and others of exactly the
    same probability). mmsegmentation's rule, which however drops the easiest pixel of a small batch and is not a
    number where all pixels are equal.

    Args:
        ignore_index: mask value of pixels that do not count.
        threshold: probability in (0, 1].
        min_kept: pixels of a batch (and process), at least 1; or a share of the labelled ones in (0, 1).
        class_weight: K non-negative weights, or None for equal ones; the mean is then Σ w_y · loss / Σ w_y.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        threshold: float = 0.7,
        min_kept: float = 100_000,
        class_weight: Sequence[float] | None = None,
    ) -> None:
        super().__init__(ignore_index, class_weight)
        require(0.0 < threshold <= 1.0, "threshold", threshold, "a probability in (0, 1], for example 0.7")
        countable = 0.0 < min_kept < math.inf and (min_kept < 1 or min_kept == int(min_kept))
        require(countable, "min_kept", min_kept, "a number of pixels ≥ 1, or a share in (0, 1)")
        self.threshold, self.min_kept = threshold, min_kept

    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """Cross-entropy of the hard pixels; arguments as in `PixelLoss.compute`."""
        targets = torch.where(valid, masks, 0)
        log_chances = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0][valid]
        hard = self._hard(log_chances.detach())
        return mean_over_pixels(-log_chances[hard], masks[valid][hard], weight)

    def _hard(self, log_chances: Tensor) -> Tensor:
        """(P,) bool: which of the labelled pixels count."""
        hard = log_chances.exp() < self.threshold
        least = self.min_kept if self.min_kept >= 1 else math.ceil(self.min_kept * len(log_chances))
        kept = min(int(least), len(log_chances))
        if kept > int(hard.sum()):
            hard = log_chances <= log_chances.kthvalue(kept).values
        return hard
