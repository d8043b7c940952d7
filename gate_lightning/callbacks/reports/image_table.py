"""Results per image, sorted by mIoU or by the uncertainty of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from lightning import Trainer
from torch import Tensor

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_table
from gate_lightning.metrics.segmentation import confusion_counts, scores
from gate_lightning.pixel_classifiers.votes import image_uncertainty
from gate_lightning.structures import SegmentationBatch
from gate_lightning.tasks.base import SegmentationResults, UncertainResults

__all__ = ["ImageTable", "UncertaintyTable"]

log = logging.getLogger(__name__)

#: images that the log names
WORST = 5

#: sample id, mIoU, aAcc, labelled pixels
Scores = tuple[str, float, float, int]
#: sample id, uncertainty, mIoU, aAcc
Uncertainty = tuple[str, float, float, float]


class ImageTable(SplitReport[SegmentationResults, Scores]):
    """Writes ``images_<split>.csv`` after evaluations outside training, and names the worst images in the log.

    Per image: mIoU over the classes in its mask or prediction, share of pixels called right (fractions), and number
    of labelled pixels; the lowest mIoU first. The mean of the column is not the mIoU of the split, which counts the
    pixels of all images together. Images without a labelled pixel are left out.
    """

    of_masks: ClassVar[bool] = True

    def rows_of(self, task: SegmentationResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[Scores]:
        """Scores of the images that have labels."""
        return (row for row in image_scores(task, batch, outputs) if row[3])

    def on_split_end(self, trainer: Trainer, task: SegmentationResults, split: str, rows: list[Scores]) -> None:
        """Write the table and log the worst images."""
        rows.sort(key=lambda row: (row[1], row[0]))
        path = publish_table(trainer, f"images_{split}", ("image", "mIoU", "aAcc", "labelled"), rows)
        worst = ", ".join(f"{name} {100 * miou:.1f}" for name, miou, *_ in rows[:WORST])
        log.info("images of %s with the lowest mIoU: %s (in percent; all: %s)", split, worst, path)


class UncertaintyTable(SplitReport[UncertainResults, Uncertainty]):
    """Writes ``uncertainty_test.csv``: the images of the split, the most uncertain first.

    Per image: uncertainty (mean of the tenth of the pixels that the members disagree on most, nats), mIoU over the
    classes in mask or prediction, share of pixels called right.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    reads: ClassVar[type] = UncertainResults

    def rows_of(self, task: UncertainResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[Uncertainty]:
        """Uncertainty and scores of the images."""
        assert task.uncertainty is not None
        for (name, miou, accuracy, _), values in zip(image_scores(task, batch, outputs), task.uncertainty, strict=True):
            yield name, float(image_uncertainty(values)), miou, accuracy

    def on_split_end(self, trainer: Trainer, task: UncertainResults, split: str, rows: list[Uncertainty]) -> None:
        """Write the table and log its first and last image."""
        rows.sort(key=lambda row: (-row[1], row[0]))
        path = publish_table(trainer, "uncertainty_test", ("image", "uncertainty", "mIoU", "aAcc"), rows)
        log.info("most uncertain image of test: %s, least: %s (all: %s)", rows[0][0], rows[-1][0], path)


def image_scores(task: SegmentationResults, batch: SegmentationBatch, outputs: Tensor) -> Iterator[Scores]:
    """Scores of every image of a batch."""
    labels = task.labels
    for name, found, mask in zip(batch.conditions.sample_ids, outputs, batch.masks, strict=True):
        confusion = confusion_counts(found, mask, len(labels.classes), labels.ignore_index)
        values = scores(confusion)
        yield name, float(values["mIoU"]), float(values["aAcc"]), int(confusion.sum())
