"""Lovász-softmax: a convex surrogate of the mean IoU (Berman et al., arXiv 1705.08790)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gate_lightning.losses.inputs import checked, full_precision

__all__ = ["LovaszSoftmaxLoss", "lovasz_gradient"]


class LovaszSoftmaxLoss(nn.Module):
    """Mean over the classes present of the Lovász extension of their Jaccard loss (eq. 11 there).

    Args:
        ignore_index: mask value of pixels that do not count.
        per_image: take the loss of every picture and average over the pictures that have a labelled pixel, instead of
            one loss over all pixels of the batch.
    """

    def __init__(self, ignore_index: int = 255, *, per_image: bool = False) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.per_image = per_image

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Scalar loss in [0, 1]; 0 if no pixel is labelled.

        Args:
            logits: (B, K, H, W).
            masks: (B, H, W) int64, 0 … K - 1 or ``ignore_index``.

        Raises:
            ConfigError: if shapes do not fit.
            DataError: if a mask value is neither a class nor ``ignore_index``.
        """
        valid = checked(logits, masks, self.ignore_index)
        probabilities = full_precision(logits).softmax(dim=1).movedim(1, 0)  # (K, B, H, W)
        if not self.per_image:
            return _lovasz_softmax(probabilities.flatten(1), masks.flatten(), valid.flatten())
        pictures = [
            _lovasz_softmax(probabilities[:, index].flatten(1), masks[index].flatten(), valid[index].flatten())
            for index in range(len(masks))
            if bool(valid[index].any())
        ]
        return torch.stack(pictures).mean() if pictures else probabilities.sum() * 0.0


def lovasz_gradient(errors: Tensor, foreground: Tensor) -> Tensor:
    """Slope of the Lovász extension of the Jaccard loss, at each pixel's error.

    Pixels are taken in the order of falling error; a pixel's slope is what the Jaccard loss gains when the pixel joins
    the set of mistaken ones. With G foreground pixels, I of them still right and U the union after the pixel joined,
    the gain is 1 / U for a foreground pixel and I / (U (U - 1)) for a background pixel: the difference of two nearly
    equal Jaccard losses (eq. 9 there) in closed form, without its cancellation in single precision.

    Args:
        errors: (C, P) in [0, 1], for C classes and P pixels.
        foreground: (C, P) bool, True where the pixel is of the class; at least one in every row.

    Returns:
        (C, P) like ``errors``; each row sums to 1 (the loss of having every pixel wrong). No gradient.
    """
    with torch.no_grad():
        order = errors.argsort(dim=1, descending=True)
        hit = foreground.gather(1, order)
        # whole numbers: float32 stops counting at 16.7 million, four pictures of 2048²
        wrong_foreground = hit.cumsum(dim=1, dtype=torch.int32)
        total = wrong_foreground[:, -1:]
        intersection = (total - wrong_foreground).to(errors.dtype)
        joined = torch.arange(1, errors.shape[1] + 1, device=errors.device, dtype=torch.int32)
        union = (total + joined - wrong_foreground).to(errors.dtype)
        # max: where the divisor would be 0 (one foreground pixel, first in order) the other case is taken
        slope = torch.where(hit, 1.0 / union, intersection / (union * (union - 1).clamp(min=1)))
        return torch.empty_like(slope).scatter_(1, order, slope)


def _lovasz_softmax(probabilities: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Loss of (K, P) probabilities against (P,) targets, over the pixels that are valid (P,)."""
    targets = targets[valid]
    if len(targets) == 0:
        return probabilities.sum() * 0.0
    present = torch.bincount(targets, minlength=len(probabilities)).nonzero().flatten()
    foreground = targets[None] == present[:, None]
    chances = probabilities[present][:, valid]
    errors = torch.where(foreground, 1.0 - chances, chances)
    # the slopes are constant between changes of the order, so autograd needs them only as factors
    return (errors * lovasz_gradient(errors, foreground)).sum(dim=1).mean()
