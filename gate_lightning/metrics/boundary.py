"""Boundary IoU (Cheng et al., arXiv 2103.16562): IoU of the classes' outlines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.base import ClassMetric
from gate_lightning.ops.labels import check_label_range

__all__ = ["BoundaryMetrics", "boundary_band"]


def boundary_band(labels: Tensor, width: int) -> Tensor:
    """Pixels from which another label, or the outside of the image, is at most ``width`` rows and columns away.

    For every class these are the pixels that ``width`` erosions of its mask by a 3×3 square take away, the image's
    border counting as another class: the definition of Cheng et al. (arXiv 2103.16562), for all classes at once.

    Args:
        labels: (B, H, W) integers in −1 … 16777216 (float32 holds them); −1 and the outside are one.
        width: pixels, at least 1.

    Returns:
        (B, H, W) bool.
    """
    outside = pad(labels[:, None].float(), (width,) * 4, value=-1.0)
    return (_highest(outside, width) != -_highest(-outside, width))[:, 0]


def _highest(maps: Tensor, width: int) -> Tensor:
    """Maximum over squares of 2 ``width`` + 1 pixels, without padding: rows, then columns."""
    side = 2 * width + 1
    return max_pool2d(max_pool2d(maps, (side, 1), stride=1), (1, side), stride=1)


class BoundaryMetrics(ClassMetric):
    """Boundary IoU per class, |M ∩ P| / |M ∪ P|, and its mean (arXiv 2103.16562), as fractions in [0, 1].

    M and P are the pixels of the class in the ``boundary_band`` of mask and prediction; the band is ``ratio`` of the
    image's diagonal wide (rounded, at least 1 pixel). Pixels are summed over all images and processes before anything
    is divided, as for mIoU. Ignored pixels count as outside of the image for both.

    Args:
        num_classes: K.
        ignore_index: mask value of pixels that do not count.
        class_names: K names for ``per_class``; "0" … "K-1" if not given.
        ratio: width over diagonal, in (0, 1): 0.02 for photographs, 0.005 for Cityscapes.

    Raises:
        ConfigError: if a number is out of range.
    """

    shared: Tensor
    either: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        ratio: float = 0.02,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_names)
        if not 0.0 < ratio < 1.0:
            raise ConfigError(f"boundary_ratio is {ratio}; expected a share of the diagonal in (0, 1), usually 0.02")
        self.ratio = ratio
        empty = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("shared", default=empty.clone(), dist_reduce_fx="sum")
        self.add_state("either", default=empty.clone(), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Add a batch to the counts.

        Args:
            predictions: (B, H, W) class indices.
            masks: (B, H, W) class indices or ``ignore_index``.

        Raises:
            ConfigError: if shapes do not fit.
            DataError: if a mask value is neither a class nor ``ignore_index``.
        """
        if predictions.is_floating_point() or predictions.shape != masks.shape or masks.dim() != 3:
            raise ConfigError(
                f"predictions are {tuple(predictions.shape)} of {predictions.dtype}, masks {tuple(masks.shape)}; "
                "expected class indices of the shape of the masks, (B, H, W)"
            )
        valid = check_label_range(masks, self.num_classes, self.ignore_index)
        width = max(round(self.ratio * math.hypot(*masks.shape[-2:])), 1)
        masks, predictions = torch.where(valid, masks, -1), torch.where(valid, predictions, -1)
        in_mask = valid & boundary_band(masks, width)
        in_prediction = valid & boundary_band(predictions, width)
        shared = self._count(masks[in_mask & in_prediction & (masks == predictions)])
        self.shared += shared
        self.either += self._count(masks[in_mask]) + self._count(predictions[in_prediction]) - shared

    def compute(self) -> dict[str, Tensor]:
        """``boundary_mIoU``: mean over the classes that have a band in masks or predictions; NaN if none has."""
        return {"boundary_mIoU": (self.shared.double() / self.either).nanmean().float()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class name → ``boundary_IoU``; NaN where there is no band. All processes must call it."""
        with self.summed():
            values = (self.shared.double() / self.either).tolist()
        return {name: {"boundary_IoU": value} for name, value in zip(self.class_names, values, strict=True)}

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=self.num_classes)
