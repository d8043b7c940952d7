"""Segmentation metrics of a whole data set, from one summed confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.metrics.base import ClassMetric
from gate_lightning.ops.labels import check_label_range, in_range

__all__ = ["SegmentationMetrics", "confusion_counts", "scores"]


class SegmentationMetrics(ClassMetric):
    """aAcc, mIoU and mAcc as mmsegmentation computes them, as fractions in [0, 1] (higher is better).

    Counts are summed over all images (and processes) before anything is divided:

    * IoU = TP / (TP + FP + FN) and Acc = TP / (TP + FN), per class
    * mIoU, mAcc: their means over classes; aAcc = Σ TP / labelled pixels

    A class without a divisor (for IoU: in neither masks nor predictions; for Acc: not in the masks) is NaN and left out
    of the mean. A class that is predicted but nowhere in the masks has IoU 0.

    Args:
        num_classes: K.
        ignore_index: mask value of pixels that do not count.
        class_names: K different names for ``per_class``; "0" … "K-1" if not given.

    Raises:
        ConfigError: if there are not K different names.

    Example:
        >>> metrics = SegmentationMetrics(3, ignore_index=255)
        >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'aAcc': 0.667, 'mIoU': 0.5, 'mAcc': 0.75}
    """

    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, class_names: Sequence[str] | None = None) -> None:
        super().__init__(num_classes, ignore_index, class_names)
        #: (K, K) pixel counts, rows: mask, columns: prediction
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Add a batch to the confusion matrix.

        Args:
            predictions: (B, H, W) class indices (faster), or (B, K, H, W) logits.
            masks: (B, H, W) class indices or ``ignore_index``.

        Raises:
            ConfigError: if shapes do not fit.
            DataError: if a mask value is neither a class nor ``ignore_index``, or a prediction is no class.
        """
        self.confusion += confusion_counts(predictions, masks, self.num_classes, self.ignore_index)

    def compute(self) -> dict[str, Tensor]:
        """``aAcc``, ``mIoU`` and ``mAcc`` as scalars in [0, 1]; NaN if no pixel was counted."""
        return scores(self.confusion)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class name → ``IoU``, ``Acc``, ``Precision``, ``Dice``, ``share``, as fractions in [0, 1].

        Acc (recall) = TP / (TP + FN); Precision = TP / (TP + FP); Dice (F1) = 2 TP / (2 TP + FP + FN);
        share = (TP + FN) / labelled pixels. NaN where the divisor is 0.

        Counts are those of all processes, each of which must call it.
        """
        confusion = self.confusion_matrix()
        right, union, labelled = _counts(confusion)
        called = confusion.sum(dim=0).double()
        columns = {
            "IoU": right / union,
            "Acc": right / labelled,
            "Precision": right / called,
            "Dice": 2 * right / (labelled + called),
            "share": labelled / labelled.sum(),
        }
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return {name: dict(zip(columns, row, strict=True)) for name, row in zip(self.class_names, rows, strict=True)}

    def confusion_matrix(self) -> Tensor:
        """Confusion matrix (K, K) int64 of all processes, which must all call it; rows: mask, columns: prediction."""
        with self.summed():
            return self.confusion.clone()


def confusion_counts(predictions: Tensor, masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Confusion matrix (K, K) int64 of a batch, rows: mask, columns: prediction; see ``SegmentationMetrics.update``."""
    if predictions.is_floating_point() and predictions.dim() == 4 and predictions.shape[1] == num_classes:
        predictions = predictions.argmax(dim=1)
    if predictions.is_floating_point() or predictions.shape != masks.shape:
        raise ConfigError(
            f"predictions are {tuple(predictions.shape)} of {predictions.dtype}, masks {tuple(masks.shape)}; "
            f"expected class indices of the shape of the masks, or logits with {num_classes} channels"
        )
    valid, wrong = in_range(masks, num_classes, ignore_index)
    strange = valid & ((predictions < 0) | (predictions >= num_classes))
    if bool((wrong | strange).any()):  # one look at both
        check_label_range(masks, num_classes, ignore_index)
        called = predictions[valid]
        raise ConfigError(f"predictions hold {int(called.min())} … {int(called.max())}; expected 0 … {num_classes - 1}")
    # pixels that do not count are one more cell
    cells = torch.where(valid, masks.long() * num_classes + predictions.long(), num_classes**2).flatten()
    return torch.bincount(cells, minlength=num_classes**2 + 1)[:-1].view(num_classes, num_classes)


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """``aAcc``, ``mIoU`` and ``mAcc`` of a confusion matrix (K, K), as ``SegmentationMetrics`` defines them."""
    right, union, labelled = _counts(confusion)
    return {
        "aAcc": (right.sum() / labelled.sum()).float(),
        "mIoU": (right / union).nanmean().float(),
        "mAcc": (right / labelled).nanmean().float(),
    }


def _counts(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per class (K,) float64: TP, TP + FP + FN, TP + FN."""
    confusion = confusion.double()
    right, labelled = confusion.diagonal(), confusion.sum(dim=1)
    return right, labelled + confusion.sum(dim=0) - right, labelled
