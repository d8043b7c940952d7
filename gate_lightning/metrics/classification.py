"""Accuracy of images that have a class each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

__all__ = ["ClassificationMetrics"]


class ClassificationMetrics(MulticlassConfusionMatrix):
    """Top-1 accuracy of a split, and scores of its classes, from one confusion matrix; fractions in [0, 1].

    Acc: share of the images that are called right. mAcc: mean over the classes that have images of the share of theirs
    that are.

    Args:
        class_names: K different names.
        ignore_index: label of images that do not count.

    Example:
        >>> import torch
        >>> metrics = ClassificationMetrics(("cat", "dog"), ignore_index=255)
        >>> metrics.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 255]))
        >>> {name: round(value.item(), 3) for name, value in metrics.scores().items()}
        {'Acc': 0.667, 'mAcc': 0.667}
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int = 255) -> None:
        super().__init__(num_classes=len(class_names), ignore_index=ignore_index)
        self.class_names = tuple(class_names)

    def scores(self) -> dict[str, Tensor]:
        """``Acc`` and ``mAcc`` over all processes, each of which must call it; NaN where there is no image."""
        counts = self.compute().double()
        right, images = counts.diagonal(), counts.sum(dim=1)
        return {"Acc": (right.sum() / images.sum()).float(), "mAcc": (right / images).nanmean().float()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """Class name → ``Acc``, ``Precision``, ``F1`` and ``share`` (of the images); NaN where the divisor is 0."""
        counts = self.compute().double()
        right, images, called = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        columns = {
            "Acc": right / images,
            "Precision": right / called,
            "F1": 2 * right / (images + called),
            "share": images / images.sum(),
        }
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return {name: dict(zip(columns, row, strict=True)) for name, row in zip(self.class_names, rows, strict=True)}
