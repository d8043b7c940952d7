"""Semantic segmentation with a head on frozen, steered, amalgamated diffusion features."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.heads.base import Head, resize
from gate_lightning.metrics.boundary import BoundaryMetrics
from gate_lightning.metrics.segmentation import SegmentationMetrics
from gate_lightning.ops.padding import padded_size
from gate_lightning.structures import Conditions, Extractor, ImageBatch, Pyramid, SegmentationBatch
from gate_lightning.tasks.evaluation import DenseTask, branch_weights
from gate_lightning.tasks.inference import Inference, height_width
from gate_lightning.utils.finite import check_outputs

__all__ = ["SegmentationTask"]

log = logging.getLogger(__name__)


class SegmentationTask(DenseTask):
    """Frozen features → amalgamation → head → logits, trained on masks.

    Args:
        extractor: images and conditions → features; frozen.
        amalgamation: features → pyramid.
        head: levels of the pyramid → logits (B, K, h, w).
        loss: logits (B, K, H, W), masks (B, H, W) → scalar.
        optimizer: takes the trainable parameters.
        scheduler: takes the optimiser and the number of optimiser steps, or None.
        labels: classes and ignored value.
        auxiliary_head: a second head on the same pyramid, used in training only, or None.
        auxiliary_loss: its loss, or None for ``loss``. GATE's runs use cross-entropy alone.
        auxiliary_weight: factor of its loss, at least 0.
        inference: whole images or windows, in one or several views, in validation, test and prediction.
        boundary_ratio: width of the bands of boundary IoU over the image's diagonal, or None to leave it out.

    Raises:
        ConfigError: if ``auxiliary_weight`` is negative, ``boundary_ratio`` not in (0, 1), or a loss is for
            other classes.
    """

    batch_type = SegmentationBatch
    final_splits = ("val", "test")
    amalgamation: Amalgamation
    head: Head
    auxiliary_head: Head | None
    loss: nn.Module
    auxiliary_loss: nn.Module
    boundary_metrics: dict[str, BoundaryMetrics]  # an nn.ModuleDict

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: Amalgamation,
        head: Head,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None,
        labels: ClassLabels,
        auxiliary_head: Head | None = None,
        auxiliary_loss: nn.Module | None = None,
        auxiliary_weight: float = 0.4,
        inference: Inference | None = None,
        boundary_ratio: float | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if auxiliary_weight < 0:
            raise ConfigError(f"auxiliary_weight is {auxiliary_weight}; expected at least 0, for example 0.4")
        self.extractor, self.amalgamation = extractor, amalgamation
        self.head, self.auxiliary_head, self.loss = head, auxiliary_head, loss
        self.auxiliary_loss = auxiliary_loss or loss
        self.auxiliary_weight = auxiliary_weight
        self.labels = labels
        # tried on an ignored pixel: class weights of other classes are refused here, not after hours of computing
        # features
        for each in (self.loss, self.auxiliary_loss):
            try:
                each(torch.zeros(1, labels.num_classes, 1, 1), torch.full((1, 1, 1), labels.ignore_index))
            except TypeError as error:  # it takes something else
                name = type(each).__name__
                raise ConfigError(
                    f"{name} is no loss of logits and masks ({error}); choose loss=ce_lovasz …"
                ) from error
        self.inference = inference or Inference()
        counted = (labels.num_classes, labels.ignore_index, labels.classes)
        splits = self.final_splits
        self.metrics = nn.ModuleDict({split: SegmentationMetrics(*counted) for split in splits})  # type: ignore[assignment]
        self.boundary_metrics = nn.ModuleDict(  # type: ignore[assignment]
            {} if boundary_ratio is None else {split: BoundaryMetrics(*counted, boundary_ratio) for split in splits}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the class names to the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = list(self.labels.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See BaseTask; a checkpoint of another number of classes is refused before its weights are compared.

        Raises:
            ResumeError: other classes, frozen parts, trainable weights, or another number of processes.
        """
        self._check_classes(checkpoint.get("classes"))
        super().on_load_checkpoint(checkpoint)

    def _check_classes(self, saved: list[str] | None) -> None:
        own = list(self.labels.classes)
        if saved is None or saved == own:  # None: of an earlier version
            return
        if len(saved) != len(own):
            raise ResumeError(
                f"the checkpoint was trained on {len(saved)} classes ({_listed(saved)}), the data set has "
                f"{len(own)} ({_listed(own)}). Use the data set it was trained on, with its settings, or train anew."
            )
        other = next(index for index, name in enumerate(own) if saved[index] != name)
        log.warning(
            "class %d was %r when the checkpoint was trained and is %r in this data set: the numbers mean something "
            "only if these are the same",
            *(other, saved[other], own[other]),
        )

    def pyramid(self, images: Tensor, conditions: Conditions) -> Pyramid:
        """Fused features of images (B, 3, H, W) in [-1, 1], padded as the extractor pads them."""
        result: Pyramid = self.amalgamation(self.extractor(images, conditions))
        return result

    def infer(self, images: Tensor, conditions: Conditions, size: tuple[int, int] | None = None) -> Tensor:
        """Logits of images of any size.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            conditions: captions, control images and noise keys of the images.
            size: (height, width) of the result; None for that of the images.

        Returns:
            (B, K, *size).
        """
        return self.inference(self._logits, images, conditions, self.extractor.backbone.native_size, size)

    def label_maps(self, images: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        """Label maps (B, *size) int64 of images (B, 3, H, W); logits are resized, not labels."""
        logits = self.infer(images, conditions, size)
        check_outputs(logits, "predictions", conditions.sample_ids)
        return logits.argmax(dim=1)

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        """Loss of a batch: head + auxiliary head + the amalgamation's regularization."""
        masks = _masks(batch)
        pyramid = self.pyramid(batch.images, batch.conditions)
        parts = {"head": self.loss(self._to_masks(self.head(pyramid.levels), batch), masks)}
        if self.auxiliary_head is not None:
            logits = self._to_masks(self.auxiliary_head(pyramid.levels), batch)
            parts["auxiliary"] = self.auxiliary_weight * self.auxiliary_loss(logits, masks)
        regularization = self.amalgamation.regularization(pyramid)
        if regularization is not None:
            parts["regularization"] = regularization
        loss = sum(parts.values(), start=batch.images.new_zeros(()))
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        if len(parts) > 1:
            self.log_dict({f"train/loss_{name}": part.detach() for name, part in parts.items()}, batch_size=len(batch))
        self.log_dict(self._branch_weights(pyramid), batch_size=len(batch))
        return loss

    def validation_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Label maps (B, H, W) of a validation batch; counts them."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: SegmentationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Label maps (B, H, W) of a test batch; counts them."""
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.report("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self.report("test")

    def _evaluate(self, batch: SegmentationBatch, split: str) -> Tensor:
        masks = _masks(batch)
        logits = self.infer(batch.images, batch.conditions, height_width(masks))
        check_outputs(logits, "predictions", batch.conditions.sample_ids)
        # weighted by labelled pixels: the mean over the split, whatever the batches, and ignored padding counts nothing
        labelled = int((masks != self.labels.ignore_index).sum())
        self.log(f"{split}/loss", self.loss(logits, masks), batch_size=labelled, on_epoch=True, sync_dist=True)
        labels = logits.argmax(dim=1)
        self.metrics[split].update(labels, masks)
        if split in self.boundary_metrics:
            self.boundary_metrics[split].update(labels, masks)
        return labels

    def report(self, split: str) -> None:
        """Log the metrics of a whole split; see DenseTask."""
        super().report(split)
        if split not in self.boundary_metrics:
            return
        boundary = self.boundary_metrics[split]
        self.log_dict({f"{split}/{name}": value for name, value in boundary.compute().items()})
        for name, row in boundary.per_class().items():
            self.per_class[split][name] |= row
        boundary.reset()

    def _logits(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Logits (B, K, H, W) in one pass."""
        return self._to_images(self.head(self.pyramid(images, conditions).levels), images)

    def _to_images(self, logits: Tensor, images: Tensor) -> Tensor:
        """Logits of padded images at the size of the images, the padding cut off."""
        height, width = height_width(images)
        padded = padded_size(height, width, self.extractor.backbone.size_multiple)
        return resize(logits, padded)[..., :height, :width]

    def _to_masks(self, logits: Tensor, batch: SegmentationBatch) -> Tensor:
        return resize(self._to_images(logits, batch.images), height_width(_masks(batch)))

    def _branch_weights(self, pyramid: Pyramid) -> dict[str, Tensor]:
        """Mean weight of every branch at every level with several branches."""
        levels = [level for level in self.amalgamation.levels if level.fused]
        found = zip(levels, pyramid.weights, strict=False)
        return branch_weights((f"weights/stride{level.stride}", level.fused, weights, 2) for level, weights in found)


def _listed(classes: list[str]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")


def _masks(batch: ImageBatch) -> Tensor:
    if not isinstance(batch, SegmentationBatch):
        raise ConfigError("a batch without masks cannot be trained on or evaluated; use prediction for such images")
    return batch.masks
