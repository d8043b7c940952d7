"""Soft Dice: overlap of probabilities with the mask, class by class (Milletari et al., arXiv 1606.04797)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.losses.base import PixelLoss, mean_over_shares, require

__all__ = ["DiceLoss"]


class DiceLoss(PixelLoss):
    """Soft Dice loss 1 − (2 Σ p y + s) / (Σ p + Σ y + s), averaged over the classes present, in [0, 1].

    The sums run over the labelled pixels of the batch (or image), p is the softmax of the class and y is 1 where the
    mask has it. Classes without a labelled pixel are left out, as for ``LovaszSoftmaxLoss``: what they take away from
    the others counts there.

    Args:
        ignore_index: mask value of pixels that do not count.
        class_weight: K non-negative weights of the classes in the mean, or None for equal ones.
        smooth: s ≥ 0 pixels, which soften the score of small classes.
        per_image: take the loss of every image and average over the images that have a labelled pixel of a weight
            above 0, instead of one loss over all pixels of the batch.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        class_weight: Sequence[float] | None = None,
        smooth: float = 1.0,
        per_image: bool = False,
    ) -> None:
        super().__init__(ignore_index, class_weight)
        require(0.0 <= smooth < math.inf, "smooth", smooth, "a finite number of pixels ≥ 0, for example 1")
        self.smooth, self.per_image = smooth, per_image

    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """Soft Dice loss; arguments as in `PixelLoss.compute`."""
        chances = torch.where(valid[:, None], logits.softmax(dim=1), 0.0)
        classes = torch.arange(chances.shape[1], device=masks.device)[:, None, None]
        here = (masks[:, None] == classes) & valid[:, None]  # (B, K, H, W)
        # (B, K); sums over the axes of an image add pairwise, a scatter would lose digits over a million pixels
        overlap = torch.where(here, chances, 0.0).sum(dim=(2, 3))
        size = here.sum(dim=(2, 3)).to(chances)
        total = chances.sum(dim=(2, 3)) + size
        if not self.per_image:
            overlap, size, total = (sums.sum(dim=0, keepdim=True) for sums in (overlap, size, total))
        present = size > 0
        # where nothing is present the divisor may be 0: replaced before the division, so that gradients stay finite
        score = (2.0 * overlap + self.smooth) / torch.where(present, total + self.smooth, 1.0)
        shares = present.to(score) if weight is None else present * weight
        losses = mean_over_shares(1.0 - score, shares)
        return losses.sum() / (shares.sum(dim=1) > 0).sum().clamp(min=1)
