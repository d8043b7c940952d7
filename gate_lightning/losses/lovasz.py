"""Lovász-softmax: a convex surrogate of the mean IoU (Berman et al., arXiv 1705.08790)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.losses.base import PixelLoss, mean_over_shares

__all__ = ["LovaszSoftmaxLoss", "lovasz_gradient"]


class LovaszSoftmaxLoss(PixelLoss):
    """Mean over the classes present of the Lovász extension of their Jaccard loss (eq. 11 there): in [0, 1].

    Args:
        ignore_index: mask value of pixels that do not count.
        class_weight: K non-negative weights of the classes in the mean, or None for equal ones.
        per_image: take the loss of every image and average over the images that have a labelled pixel of a weight
            above 0, instead of one loss over all pixels of the batch.

    Raises:
        ConfigError: if a weight is out of range.
    """

    def __init__(
        self, ignore_index: int = 255, *, class_weight: Sequence[float] | None = None, per_image: bool = False
    ) -> None:
        super().__init__(ignore_index, class_weight)
        self.per_image = per_image

    def compute(self, logits: Tensor, masks: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
        """Lovász-softmax loss; arguments as in `PixelLoss.compute`."""
        probabilities = logits.softmax(dim=1).movedim(1, 0)  # (K, B, H, W)
        if not self.per_image:
            return _lovasz_softmax(probabilities.flatten(1), masks.flatten(), valid.flatten(), weight)
        counts = valid if weight is None else valid & (weight > 0)[torch.where(valid, masks, 0)]
        images = [
            _lovasz_softmax(probabilities[:, index].flatten(1), masks[index].flatten(), valid[index].flatten(), weight)
            for index in range(len(masks))
            if bool(counts[index].any())
        ]
        return torch.stack(images).mean() if images else probabilities.sum() * 0.0


def lovasz_gradient(errors: Tensor, foreground: Tensor) -> Tensor:
    """Gradient of the Lovász extension of the Jaccard loss with respect to the pixels' errors.

    Pixels are sorted by decreasing error; a pixel's slope is the increase of the Jaccard loss when the pixel joins the
    set of mispredicted ones. With G foreground pixels, I of them still right and U the union after the pixel joined,
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
        # whole numbers: float32 stops counting at 16.7 million, four images of 2048²
        wrong_foreground = hit.cumsum(dim=1, dtype=torch.int32)
        total = wrong_foreground[:, -1:]
        intersection = (total - wrong_foreground).to(errors.dtype)
        joined = torch.arange(1, errors.shape[1] + 1, device=errors.device, dtype=torch.int32)
        union = (total + joined - wrong_foreground).to(errors.dtype)
        # max: where the divisor would be 0 (one foreground pixel, first in order) the other case is taken
        slope = torch.where(hit, 1.0 / union, intersection / (union * (union - 1).clamp(min=1)))
        return torch.empty_like(slope).scatter_(1, order, slope)


def _lovasz_softmax(probabilities: Tensor, targets: Tensor, valid: Tensor, weight: Tensor | None) -> Tensor:
    """Loss of (K, P) probabilities against (P,) targets, over the pixels that are valid (P,)."""
    if valid.device.type == "cpu":  # elsewhere the host would wait for their number
        probabilities, targets, valid = probabilities[:, valid], targets[valid], valid[valid]
    # classes that are there; the others and pixels that do not count are one more
    seen = valid.new_zeros(len(probabilities) + 1).scatter_(0, torch.where(valid, targets, len(probabilities)), True)
    present = seen[:-1].nonzero().flatten()
    if len(present) == 0:
        return probabilities.sum() * 0.0
    foreground = (targets[None] == present[:, None]) & valid
    chances = probabilities.index_select(0, present)
    errors = torch.where(foreground, 1.0 - chances, chances)
    # the slopes are constant between changes of the order, so autograd needs them only as factors; pixels that do not
    # count come last, where they change no other's
    slopes = lovasz_gradient(errors.detach().masked_fill(~valid, -1.0), foreground)
    losses = torch.where(valid, errors * slopes, 0.0).sum(dim=1)
    return losses.mean() if weight is None else mean_over_shares(losses, weight[present])
