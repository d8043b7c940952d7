"""Metrics of the label-scarce data sets, in their own convention (ddpm-segmentation, arXiv 2112.03126)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.metrics.segmentation import SegmentationMetrics, scores

__all__ = ["LabelScarceMetrics"]


class LabelScarceMetrics(SegmentationMetrics):
    """``SegmentationMetrics`` and, beside them, ``mIoU_ddpm``, the convention of the published label-scarce tables.

    Both sum counts over all images first. ``mIoU_ddpm`` is the mean of IoU_ddpm = TP / max(TP + FP + FN + U, 1), which
    differs in two points that change numbers:

    * U, the predictions of the class at unlabelled pixels, enlarges the union;
    * a class that is in neither masks nor predictions has IoU 0 and is part of the mean. Only the class of number
      ``ignore_index`` is left out, where that is a class (Bedroom-28: its background).

    Args:
        num_classes: K.
        ignore_index: mask value of unlabelled pixels. May be one of the classes.
        class_names: K different names.

    Raises:
        ConfigError: if there are not K different names.

    Example:
        >>> metrics = LabelScarceMetrics(3, ignore_index=255)
        >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'mIoU_ddpm': 0.278, 'aAcc': 0.667, 'mIoU': 0.5, 'mAcc': 0.75}
    """

    unlabelled: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, class_names: Sequence[str] | None = None) -> None:
        super().__init__(num_classes, ignore_index, class_names)
        #: (K,) predictions at unlabelled pixels
        self.add_state("unlabelled", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Count a batch: predictions (B, H, W) classes or (B, K, H, W) logits, masks (B, H, W)."""
        if predictions.is_floating_point() and predictions.dim() == 4:
            predictions = predictions.argmax(dim=1)
        super().update(predictions, masks)
        called = predictions[masks == self.ignore_index].long()
        self.unlabelled += torch.bincount(called, minlength=self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """``mIoU_ddpm``, ``aAcc``, ``mIoU`` and ``mAcc`` as scalars in [0, 1]."""
        return {"mIoU_ddpm": _ious(self.confusion, self.unlabelled)[self._counted()].mean().float()} | scores(
            self.confusion
        )

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class name → ``IoU_ddpm`` (NaN for an ignored class) and the columns of ``SegmentationMetrics``."""
        rows = super().per_class()
        with self.summed():
            ious = _ious(self.confusion, self.unlabelled)
        ious[~self._counted().to(ious.device)] = torch.nan
        return {name: {"IoU_ddpm": iou} | rows[name] for name, iou in zip(self.class_names, ious.tolist(), strict=True)}

    def _counted(self) -> Tensor:
        return torch.arange(self.num_classes, device=self.confusion.device) != self.ignore_index


def _ious(confusion: Tensor, unlabelled: Tensor) -> Tensor:
    """(K,) float64; 0 where the union is empty."""
    confusion = confusion.double()
    right = confusion.diagonal()
    union = confusion.sum(dim=1) + confusion.sum(dim=0) - right + unlabelled
    return right / union.clamp(min=1)
