"""Evaluation shared by the tasks that label every pixel: prediction, metrics of a split, branch weights in the log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.prediction import PredictionBatch
from gate_lightning.errors import ConfigError
from gate_lightning.metrics.segmentation import SegmentationMetrics
from gate_lightning.ops.labels import check_label_range
from gate_lightning.structures import Conditions, Extractor, ImageBatch, SegmentationBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.inference import height_width

__all__ = ["DenseTask", "branch_weights"]


class DenseTask(BaseTask):
    """A task on frozen features whose result is a label map; it is `SegmentationResults` for reports.

    Attributes:
        labels: classes, palette and ignored value.
        per_class: split → class → IoU, Acc, …, share of pixels, of the last evaluation.
        confusion: split → (K, K) pixels of the last evaluation, rows: mask, columns: prediction.
    """

    extractor: Extractor
    labels: ClassLabels
    metrics: Mapping[str, SegmentationMetrics]  # an nn.ModuleDict: split → its metrics

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.per_class: dict[str, dict[str, dict[str, float]]] = {}
        self.confusion: dict[str, Tensor] = {}

    @abstractmethod
    def label_maps(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        """Label maps (B, *size) int64 of images (B, 3, H, W) in [-1, 1]."""

    def frozen_description(self) -> dict[str, Any]:
        """Description of the extractor: all that features depend on."""
        return dict(self.extractor.description)

    def predict_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Label maps (B, H, W) int64 at the size of the files, of the masks, or else of the images."""
        size = height_width(batch.masks if isinstance(batch, SegmentationBatch) else batch.images)
        if isinstance(batch, PredictionBatch):
            if len(set(batch.sizes)) > 1:
                raise ConfigError(f"one batch has images of sizes {sorted(set(batch.sizes))}; predict them apart")
            size = batch.sizes[0]
        return self.label_maps(batch.images, batch.conditions, size)

    def check_labels(self, batch: Any) -> None:
        """Raise DataError for values of masks that are no class and not ignored."""
        if isinstance(batch, SegmentationBatch):
            check_label_range(batch.masks, self.labels.num_classes, self.labels.ignore_index)

    def report(self, split: str) -> None:
        """Log the metrics of a whole split, keep its tables, and start counting anew."""
        metrics = self.metrics[split]
        self.log_dict({f"{split}/{name}": value for name, value in metrics.compute().items()}, prog_bar=True)
        self.per_class[split] = metrics.per_class()
        self.confusion[split] = metrics.confusion_matrix().cpu()
        metrics.reset()


def branch_weights(found: Iterable[tuple[str, Iterable[str], Tensor, int]]) -> dict[str, Tensor]:
    """Mean weight of every branch, for the log.

    Args:
        found: (key in the log, names of the branches, weights, their axis of branches); left out where there is a
            single branch.

    Returns:
        "<key>/<branch>" → scalar.
    """
    means: dict[str, Tensor] = {}
    for key, branches, weights, axis in found:
        of_branch = weights.detach().float().mean(dim=[other for other in range(weights.dim()) if other != axis])
        if len(of_branch) > 1:
            means |= {f"{key}/{branch}": of_branch[index] for index, branch in enumerate(branches)}
    return means
