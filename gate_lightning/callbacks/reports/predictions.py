"""Predictions as images: beside the truth, and with the disagreement of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image, publish_predictions
from gate_lightning.callbacks.reports.image_table import image_scores
from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.structures import SegmentationBatch
from gate_lightning.tasks.base import SegmentationResults, UncertainResults
from gate_lightning.utils.checks import whole_number
from gate_lightning.visualization.examples import write_examples
from gate_lightning.visualization.predictions import PredictedImage, prediction_grid, to_image

__all__ = ["PredictionImages", "UncertaintyImages", "WorstImages"]


class PredictionImages(SplitReport[SegmentationResults, PredictedImage]):
    """Draws the first images of a split after its evaluation: image, truth, prediction, errors.

    In training they are ``images/predictions_step<step>.png``, else ``images/predictions_<split>.png`` and the files of
    ``examples/<split>/first``, which the report shows.

    Args:
        count: images shown, at least 1. The first process shows its own.
        every_n_validations: draw after every n-th validation of the training, at least 1.

    Raises:
        ConfigError: a number is out of range.
    """

    of_masks: ClassVar[bool] = True
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
        name = f"predictions_{split}"
        if trainer.state.fn == TrainerFn.FITTING:
            name, number = f"predictions_step{trainer.global_step:06d}", self._validations
            self._validations += 1
            if number % self.every_n_validations:
                return
        if rows:
            rows = _of_files(rows, trainer, split)
            publish_image(trainer, name, _grid(rows, task.labels), f"predictions_{split}")
            publish_predictions(trainer, split, rows, task.labels)
            if trainer.state.fn != TrainerFn.FITTING:
                _keep(trainer, f"{split}/first", rows, task.labels)


class WorstImages(SplitReport[SegmentationResults, PredictedImage]):
    """Draws ``images/worst_<split>.png`` after evaluations outside training: the images with the lowest mIoU.

    The report shows them from the files of ``examples/<split>/worst``.

    The mIoU of an image is that of `ImageTable`; images without a labelled pixel have none.

    Args:
        most: images shown, at least 1; of all processes.

    Raises:
        ConfigError: ``most`` is out of range.
    """

    of_masks: ClassVar[bool] = True

    def __init__(self, most: int = 4) -> None:
        super().__init__()
        self.most = whole_number(most, "most", 1)

    def rows_of(self, task: SegmentationResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[PredictedImage]:
        """The images of a batch with their mIoU; only those that may be among the worst are copied."""
        for index, (_, miou, _, labelled) in enumerate(image_scores(task, batch, outputs)):
            if labelled and (len(self._rows) < self.most or miou <= (self._rows[-1].miou or 0.0)):
                rows = slice(index, index + 1)
                one = SegmentationBatch(batch.images[rows], batch.conditions[rows], batch.masks[rows])
                yield replace(next(predicted_images(one, outputs[rows])), miou=miou)

    def kept(self, rows: list[PredictedImage]) -> list[PredictedImage]:
        """The worst ones, the lowest mIoU first."""
        return sorted(rows, key=lambda row: (row.miou, row.name))[: self.most]

    def on_split_end(self, trainer: Trainer, task: SegmentationResults, split: str, rows: list[PredictedImage]) -> None:
        """Draw the images with the lowest mIoU."""
        if rows:
            rows = _of_files(rows, trainer, split)
            publish_image(trainer, f"worst_{split}", _grid(rows, task.labels))
            publish_predictions(trainer, f"worst_{split}", rows, task.labels)
            _keep(trainer, f"{split}/worst", rows, task.labels)


class UncertaintyImages(SplitReport[UncertainResults, PredictedImage]):
    """Draws ``images/uncertainty_test.png``: image, truth, prediction, disagreement of the members, errors.

    Of the disagreement black is none; the brightest colour is what 99 % of the pixels drawn stay below, which the title
    of the column says in nats.

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
            rows = _of_files(rows, trainer, split)
            publish_image(trainer, f"uncertainty_{split}", _grid(rows, task.labels))
            _keep(trainer, f"{split}/first", rows, task.labels)


def predicted_images(batch: SegmentationBatch, outputs: Tensor) -> Iterator[PredictedImage]:
    """Images of a batch, resized to their masks, which have the size of the file."""
    for name, image, mask, labels in zip(batch.conditions.sample_ids, batch.images, batch.masks, outputs, strict=True):
        seen, (height, width) = to_image(image), mask.shape
        truth, prediction = mask.cpu().numpy(), labels.cpu().numpy()
        if seen.shape[:2] == (height, width):
            yield PredictedImage(name, seen, truth, prediction)
            continue
        method = cv2.INTER_AREA if seen.shape[1] > width else cv2.INTER_LINEAR
        sized = cv2.resize(seen, (width, height), interpolation=method).astype(np.uint8)
        yield PredictedImage(name, sized, truth, prediction, seen)


def _of_files(rows: list[PredictedImage], trainer: Trainer, split: str) -> list[PredictedImage]:
    """Rows with the pixels of their files, where the network sees another size."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if all(row.seen is None for row in rows) or not isinstance(data, ImageDataModule):
        return rows
    source = data.source(split)
    places = {source.sample_id(index): index for index in range(len(source))}
    return [row if row.seen is None else _of_file(row, source.load(places[row.name]).image) for row in rows]


def _of_file(row: PredictedImage, image: NDArray[np.uint8]) -> PredictedImage:
    return replace(row, image=image) if image.shape[:2] == row.truth.shape else row


def _grid(rows: list[PredictedImage], labels: ClassLabels) -> NDArray[np.uint8]:
    return prediction_grid(rows, labels.classes, labels.palette, labels.ignore_index)


def _keep(trainer: Trainer, place: str, rows: list[PredictedImage], labels: ClassLabels) -> None:
    """Write ``examples/<place>/`` of the run folder, which its report shows."""
    folder = Path(trainer.default_root_dir) / "examples" / place
    write_examples(folder, rows, labels.classes, labels.palette, labels.ignore_index)
