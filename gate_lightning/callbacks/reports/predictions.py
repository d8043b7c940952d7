"""Predictions as images: beside the truth, and with the disagreement of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.data.card import ClassLabels
from gate_lightning.structures import SegmentationBatch
from gate_lightning.tasks.base import SegmentationResults, UncertainResults
from gate_lightning.utils.checks import whole_number
from gate_lightning.visualization.predictions import PredictedImage, prediction_grid, to_image

__all__ = ["PredictionImages", "UncertaintyImages"]


class PredictionImages(SplitReport[SegmentationResults, PredictedImage]):
    """Draws the first images of a split after its evaluation: image, truth, prediction, errors.

    In training they are ``images/predictions_step<step>.png``, else ``images/predictions_<split>.png``.

    Args:
        count: images shown, at least 1. The first process shows its own.
        every_n_validations: draw after every n-th validation of the training, at least 1.

    Raises:
        ConfigError: a number is out of range.
    """

    during_training: ClassVar[bool] = True

    def __init__(self, count: int = 4, every_n_validations: int = 1) -> None:
        super().__init__()
        self.count = whole_number(count, "count", 1)
        self.every_n_validations = whole_number(every_n_validations, "every_n_validations", 1)
        self._validations = 0

    def rows_of(self, task: SegmentationResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[PredictedImage]:
        """The images of a batch."""
        return predicted_images(batch, outputs)

    def on_split_end(self, trainer: Trainer, task: SegmentationResults, split: str, rows: list[PredictedImage]) -> None:
        """Draw the images; in training, only after every n-th validation."""
        suffix = f"_{split}"
        if trainer.state.fn == TrainerFn.FITTING:
            suffix, number = f"_step{trainer.global_step:06d}", self._validations
            self._validations += 1
            if number % self.every_n_validations:
                return
        if rows:
            publish_image(trainer, "predictions", _grid(rows, task.labels), suffix)


class UncertaintyImages(SplitReport[UncertainResults, PredictedImage]):
    """Draws ``images/uncertainty_test.png``: image, truth, prediction, disagreement of the members, errors.

    Of the disagreement black is none; the brightest colour is the largest of all images drawn, which the title of the
    column says in nats.

    Args:
        count: images shown, at least 1; the first ones of the split.

    Raises:
        ConfigError: ``count`` is out of range.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    reads: ClassVar[type] = UncertainResults

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.count = whole_number(count, "count", 1)

    def rows_of(self, task: UncertainResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[PredictedImage]:
        """The images of a batch with their uncertainty."""
        assert task.uncertainty is not None
        for row, values in zip(predicted_images(batch, outputs), task.uncertainty, strict=True):
            yield replace(row, uncertainty=values.float().cpu().numpy())

    def on_split_end(self, trainer: Trainer, task: UncertainResults, split: str, rows: list[PredictedImage]) -> None:
        """Draw the images with their uncertainty."""
        if rows:
            publish_image(trainer, "uncertainty", _grid(rows, task.labels), f"_{split}")


def predicted_images(batch: SegmentationBatch, outputs: Tensor) -> Iterator[PredictedImage]:
    """Images of a batch, resized to their masks, which have the size of the file."""
    for name, image, mask, labels in zip(batch.conditions.sample_ids, batch.images, batch.masks, outputs, strict=True):
        shrinks = image.shape[-1] > mask.shape[-1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        sized = cv2.resize(to_image(image), (mask.shape[1], mask.shape[0]), interpolation=method).astype(np.uint8)
        yield PredictedImage(name, sized, mask.cpu().numpy(), labels.cpu().numpy())


def _grid(rows: list[PredictedImage], labels: ClassLabels) -> NDArray[np.uint8]:
    return prediction_grid(rows, labels.classes, labels.palette, labels.ignore_index)
