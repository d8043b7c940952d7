"""Confusion matrix as an image and a CSV, and the most confused pairs of classes in the log."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from lightning import Trainer
from numpy.typing import NDArray

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image, publish_table
from gate_lightning.tasks.base import SegmentationResults
from gate_lightning.visualization.charts import confusion_image

__all__ = ["ConfusionImage"]

log = logging.getLogger(__name__)

#: pairs of classes that the log names
WORST = 3


class ConfusionImage(SplitReport[SegmentationResults, Any]):
    """Writes ``images/confusion_<split>.png`` and ``confusion_<split>.csv`` after evaluations outside training.

    The CSV holds the task's ``confusion`` in pixels or images, the true class in the first column; the image and the
    log show shares of every true class.

    Args:
        counted: what the matrix counts, for the title.
    """

    def __init__(self, counted: str = "pixels") -> None:
        super().__init__()
        self.counted = counted

    def on_split_end(self, trainer: Trainer, task: SegmentationResults, split: str, rows: list[Any]) -> None:
        """Write table and image, log the worst pairs."""
        counts, classes = task.confusion[split].numpy(), list(task.labels.classes)
        table = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        publish_table(trainer, f"confusion_{split}", ["truth", *classes], table)
        title = f"{split}: share of each class's {self.counted}"
        publish_image(trainer, f"confusion_{split}", confusion_image(counts, classes, title))
        pairs = worst_pairs(counts, classes)
        if pairs:
            log.info("most confused in %s: %s", split, "; ".join(pairs))


def worst_pairs(counts: NDArray[np.int64], classes: list[str]) -> list[str]:
    """Sentences about the largest shares of a class that are predicted as another class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(shares, axis=None, kind="stable")[::-1][:WORST]
    return [
        f"{100 * shares[row, column]:.0f} % of {classes[row]} is called {classes[column]}"
        for row, column in zip(*np.unravel_index(order, shares.shape), strict=True)
        if shares[row, column] > 0
    ]
