"""Results image by image, the worst ones first."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gate_lightning.callbacks.gather_rows import of_all_processes
from gate_lightning.metrics.segmentation import confusion_counts, scores
from gate_lightning.structures import SegmentationBatch

__all__ = ["ImageTable"]

log = logging.getLogger(__name__)

#: images that the log names
WORST = 5
COLUMNS = ("image", "mIoU", "aAcc", "labelled")

#: sample id, mIoU, aAcc, labelled pixels
_Row = tuple[str, float, float, int]


class ImageTable(Callback):
    """Writes ``images_<split>.csv`` after evaluations outside training, and names the worst images in the log.

    Per image: mIoU over the classes in its mask or prediction, share of pixels called right (fractions), and the
    number of labelled pixels; the lowest mIoU first. The mean of the column is not the mIoU of the split, which counts
    pixels of all images together. Images without a labelled pixel are left out.
    """

    def __init__(self) -> None:
        self._rows: list[_Row] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what a broken-off evaluation left."""
        self._rows = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what a broken-off evaluation left."""
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the images of a batch."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._count(pl_module, outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the images of a batch."""
        self._count(pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table of the validation split."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._report(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table of the test split."""
        self._report(trainer, "test")

    def _count(self, pl_module: LightningModule, labels: Tensor, batch: SegmentationBatch) -> None:
        assert batch.masks is not None
        protocol: Any = pl_module.protocol
        for name, found, mask in zip(batch.conditions.sample_ids, labels, batch.masks, strict=True):
            confusion = confusion_counts(found, mask, len(protocol.classes), protocol.ignore_index)
            labelled = int(confusion.sum())
            if labelled:
                values = scores(confusion)
                self._rows.append((name, float(values["mIoU"]), float(values["aAcc"]), labelled))

    def _report(self, trainer: Trainer, split: str) -> None:
        rows, self._rows = of_all_processes(self._rows, trainer.world_size), []
        if not trainer.is_global_zero or not rows:
            return
        rows.sort(key=lambda row: (row[1], row[0]))
        path = Path(trainer.default_root_dir) / f"images_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        worst = ", ".join(f"{name} {100 * miou:.1f}" for name, miou, *_ in rows[:WORST])
        log.info("images of %s with the lowest mIoU: %s (all: %s)", split, worst, path)
