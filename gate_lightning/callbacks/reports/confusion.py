"""Which classes are taken for which: an image, a CSV and the worst pairs in words."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.visualization.charts import confusion_image

__all__ = ["ConfusionImage"]

log = logging.getLogger(__name__)

#: pairs of classes that the log names
WORST = 3


class ConfusionImage(Callback):
    """Writes ``images/confusion_<split>.png`` and ``confusion_<split>.csv`` after evaluations outside training.

    It reads the task's ``confusion``: split → (K, K) pixels, rows: truth, columns: prediction. The CSV holds these
    numbers with the classes in its first row and column; the image and the log hold shares of every row.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """That of the validation split."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """That of the test split."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        confusion: Any = pl_module.confusion
        protocol: Any = pl_module.protocol
        if not trainer.is_global_zero or split not in confusion:
            return
        counts, classes = confusion[split].numpy(), list(protocol.classes)
        path = Path(trainer.default_root_dir) / f"confusion_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["truth", *classes])
            writer.writerows([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
        title = f"{split}: share of each class's pixels"
        publish_image(trainer, f"confusion_{split}", confusion_image(counts, classes, title))
        pairs = worst_pairs(counts, classes)
        if pairs:
            log.info("most confused in %s: %s", split, "; ".join(pairs))


def worst_pairs(counts: NDArray[np.int64], classes: list[str]) -> list[str]:
    """The largest shares of a class that are called another one, in words."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    np.fill_diagonal(shares, 0.0)
    order = np.argsort(shares, axis=None, kind="stable")[::-1][:WORST]
    found = [np.unravel_index(index, shares.shape) for index in order]
    return [
        f"{100 * shares[row, column]:.0f} % of {classes[row]} is called {classes[column]}"
        for row, column in found
        if shares[row, column] > 0
    ]
