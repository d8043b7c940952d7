"""Image classification: probes on frozen features, averaged over the image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError
from gate_lightning.heads.nearest_images import NearestImages
from gate_lightning.metrics.classification import ClassificationMetrics
from gate_lightning.ops.labels import check_label_range
from gate_lightning.structures import ClassificationBatch, Conditions, Extractor, Pyramid
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.evaluation import branch_weights
from gate_lightning.utils.console import taking
from gate_lightning.utils.finite import check_outputs
from gate_lightning.utils.processes import gathered
from gate_lightning.utils.progress import Progress

__all__ = ["ClassificationTask"]

log = logging.getLogger(__name__)


class ClassificationTask(BaseTask):
    """Frozen features → amalgamation → average over the image → head → logits; it is `SegmentationResults` for reports.

    A linear head is a linear probe, with several branches and ``amalgamation=weighted`` on GATE's amalgamated features.
    `NearestImages` is a k-NN probe: where the amalgamation has no weights there is nothing to train, and evaluation
    compares images with those of the training split.

    The data module gives batches of classified images, and ``images(split)``: those of a split, as they are evaluated.

    Args:
        extractor: images and conditions → features; frozen.
        amalgamation: features → pyramid.
        head: levels (B, C_l, 1, 1) → logits (B, K, 1, 1).
        labels: classes.
        loss: logits (B, K, 1, 1), classes (B, 1, 1) → scalar; None where nothing is trained.
        optimizer: takes the trainable parameters; None where nothing is trained.
        scheduler: takes the optimiser and the number of optimiser steps, or None.

    Attributes:
        per_class: split → class → Acc, Precision, …, of the last evaluation.
        confusion: split → (K, K) images of the last evaluation, rows: truth, columns: prediction.

    Raises:
        ConfigError: a k-NN probe on an amalgamation with weights, which nothing would train.
    """

    classifies_images = True
    batch_type = ClassificationBatch
    final_splits = ("val", "test")
    training_free = True
    without_weights = "amalgamation=concat head=nearest_images"
    metrics: dict[str, ClassificationMetrics]  # an nn.ModuleDict

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: Amalgamation,
        head: nn.Module,
        labels: ClassLabels,
        loss: nn.Module | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if isinstance(head, NearestImages) and any(one.requires_grad for one in amalgamation.parameters()):
            raise ConfigError(
                "head=nearest_images trains nothing, and the amalgamation has weights that would stay random: use "
                "amalgamation=concat, or one branch (techniques=none); head=bn_linear trains them"
            )
        self.extractor, self.amalgamation, self.head, self.loss = extractor, amalgamation, head, loss
        self.labels = labels
        self.per_class: dict[str, dict[str, dict[str, float]]] = {}
        self.confusion: dict[str, Tensor] = {}
        self.metrics = nn.ModuleDict(  # type: ignore[assignment]
            {split: ClassificationMetrics(labels.classes, labels.ignore_index) for split in self.final_splits}
        )

    def frozen_description(self) -> dict[str, Any]:
        """Description of the extractor: all that features depend on."""
        return dict(self.extractor.description)

    def pyramid(self, images: Tensor, conditions: Conditions) -> Pyramid:
        """Fused features of images (B, 3, H, W) in [-1, 1], every level averaged to (B, C_l, 1, 1)."""
        fused: Pyramid = self.amalgamation(self.extractor(images, conditions))
        return Pyramid(tuple(level.mean(dim=(2, 3), keepdim=True) for level in fused.levels), fused.weights)

    def logits(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Logits (B, K); of a k-NN probe, shares of the votes."""
        found = self.head(self.pyramid(images, conditions).levels).flatten(1)
        check_outputs(found, "predictions", conditions.sample_ids)
        return found

    # training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: ClassificationBatch, batch_idx: int) -> Tensor:
        """Loss of a batch, and the amalgamation's regularization."""
        assert self.loss is not None
        pyramid = self.pyramid(batch.images, batch.conditions)
        loss: Tensor = self.loss(self.head(pyramid.levels), batch.labels[:, None, None])
        regularization = self.amalgamation.regularization(pyramid)
        loss = loss if regularization is None else loss + regularization
        self.log("train/loss", loss.detach(), batch_size=len(batch))
        # strides mean little where maps were averaged: levels are counted, the finest first
        fused = [(place, level.fused) for place, level in enumerate(self.amalgamation.levels) if level.fused]
        named = zip(fused, pyramid.weights, strict=False)
        found = ((f"weights/level{place}", branches, weights, 2) for (place, branches), weights in named)
        self.log_dict(branch_weights(found), batch_size=len(batch))
        return loss

    def check_labels(self, batch: Any) -> None:
        """Raise DataError for classes of images that there are not."""
        if isinstance(batch, ClassificationBatch):
            check_label_range(batch.labels, self.labels.num_classes, self.labels.ignore_index)

    # evaluation -------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Read the training images that a k-NN probe compares with."""
        with self.trainer.precision_plugin.forward_context():  # as in the steps
            self.remember(self.trainer.datamodule)  # type: ignore[attr-defined]

    on_test_start = on_validation_start

    def remember(self, data: Any) -> None:
        """Read the training images of a data module, if the head compares with them."""
        if isinstance(self.head, NearestImages):
            self.head.remember(*self._training_images(data.images("train"), self.head))

    @torch.no_grad()
    def _training_images(self, loader: Any, head: NearestImages) -> tuple[Tensor, Tensor]:
        """Features (N, C) and classes (N,) of the training split, of all processes."""
        progress, rows, labels = Progress(len(loader.dataset), 0, 1, "features"), [], []
        with taking(f"computing the features of {len(loader.dataset)} training images"):
            for batch in loader:
                levels = self.pyramid(batch.images.to(self.device), batch.conditions.to(self.device)).levels
                known = batch.labels != self.labels.ignore_index
                rows.append(head.described(levels).cpu()[known])
                labels.append(batch.labels[known])
                progress.step(len(batch), 0)
        parts = gathered((torch.cat(rows), torch.cat(labels)))
        features, classes = (torch.cat(column).to(self.device) for column in zip(*parts, strict=True))
        return features, classes

    def validation_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Predicted classes (B,) of a validation batch; counts them."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: ClassificationBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Predicted classes (B,) of a test batch; counts them."""
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self._report("test")

    def _evaluate(self, batch: ClassificationBatch, split: str) -> Tensor:
        logits = self.logits(batch.images, batch.conditions)
        if self.loss is not None:
            counted = int((batch.labels != self.labels.ignore_index).sum())
            loss = self.loss(logits[..., None, None], batch.labels[:, None, None])
            self.log(f"{split}/loss", loss, batch_size=counted, on_epoch=True, sync_dist=True)
        found = logits.argmax(dim=1)
        self.metrics[split].update(found, batch.labels)
        return found

    def _report(self, split: str) -> None:
        metrics = self.metrics[split]
        self.log_dict({f"{split}/{name}": value for name, value in metrics.scores().items()}, prog_bar=True)
        self.per_class[split], self.confusion[split] = metrics.per_class(), metrics.compute().cpu()
        metrics.reset()

    def class_shares(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Shares (B, K) of the classes: softmax of the logits, or votes of a k-NN probe."""
        logits = self.logits(images, conditions)
        return logits if isinstance(self.head, NearestImages) else logits.softmax(dim=1)
