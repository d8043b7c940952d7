"""How unsure an ensemble is: pixel by pixel as images, image by image as a table."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.gather_rows import of_all_processes
from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.callbacks.reports.predictions import to_image
from gate_lightning.errors import ConfigError
from gate_lightning.metrics.segmentation import confusion_counts, scores
from gate_lightning.pixel_classifiers.votes import image_uncertainty
from gate_lightning.structures import SegmentationBatch
from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.heat import heat_map
from gate_lightning.visualization.overlay import error_map, legend_entries
from gate_lightning.visualization.palette import colorize

__all__ = ["UncertaintyImages", "UncertaintyTable"]

log = logging.getLogger(__name__)

#: sample id, uncertainty, mIoU, aAcc
_Row = tuple[str, float, float, float]


class UncertaintyImages(Callback):
    """Draws ``images/uncertainty_test.png``: image, truth, prediction, disagreement of the members, errors.

    Of the disagreement black is none; the brightest colour is the largest of all images drawn, which the title of the
    column says in nats. It reads the task's ``uncertainty`` (B, H, W) after every test batch.

    Args:
        count: images shown, at least 1; the first ones of the split.

    Raises:
        ConfigError: if ``count`` is out of range.
    """

    def __init__(self, count: int = 6) -> None:
        if count < 1:
            raise ConfigError(f"count is {count}; expected at least 1 image")
        self.count = count
        self._rows: list[tuple[str, NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what a broken-off evaluation left."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the first images."""
        missing = self.count - len(self._rows)
        uncertainty: Tensor | None = pl_module.uncertainty  # type: ignore[assignment]
        if missing <= 0 or uncertainty is None or not trainer.is_global_zero:
            return
        assert isinstance(batch, SegmentationBatch) and batch.masks is not None
        entries = zip(batch.conditions.sample_ids, batch.images, batch.masks, outputs, uncertainty, strict=True)
        for name, image, mask, labels, unsure in list(entries)[:missing]:
            size = (mask.shape[1], mask.shape[0])
            image = cv2.resize(to_image(image), size, interpolation=cv2.INTER_AREA).astype(np.uint8)
            values = (mask.cpu().numpy(), labels.cpu().numpy(), unsure.float().cpu().numpy())
            self._rows.append((name, image, *values))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        protocol: Any = pl_module.protocol
        palette, ignored = protocol.palette, protocol.ignore_index
        largest = max(float(unsure.max()) for *_, unsure in rows)
        highest = largest if largest > 0 else 1.0  # members that all agree, or one alone: black
        cells: list[list[NDArray[np.uint8] | None]] = [
            [
                image,
                colorize(truth, palette, ignored),
                colorize(labels, palette),
                heat_map(unsure, highest),
                error_map(image, labels, truth, ignored),
            ]
            for _, image, truth, labels, unsure in rows
        ]
        maps = [labels for _, _, _, labels, _ in rows] + [truth[truth != ignored] for _, _, truth, _, _ in rows]
        legend = legend_entries(maps, protocol.classes, palette)
        titles = ("image", "ground truth", "prediction", f"uncertainty 0 … {largest:.2f}", "errors (red)")
        smooth = (True, False, False, False, False)
        grid = image_grid(cells, titles, [row[0] for row in rows], legend, smooth=smooth)
        publish_image(trainer, "uncertainty", grid, "_test")


class UncertaintyTable(Callback):
    """Writes ``uncertainty_test.csv``: the images of the split, the most uncertain first.

    Per image its uncertainty (mean of the tenth of the pixels that the members disagree on most, nats) and, where it
    has labels, mIoU over the classes in mask or prediction and the share of pixels called right. It reads the task's
    ``uncertainty``.
    """

    def __init__(self) -> None:
        self._rows: list[_Row] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what a broken-off evaluation left."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Measure the images of a batch."""
        protocol: Any = pl_module.protocol
        uncertainty: Any = pl_module.uncertainty
        for name, labels, mask, unsure in zip(
            batch.conditions.sample_ids, outputs, batch.masks, uncertainty, strict=True
        ):
            values = scores(confusion_counts(labels, mask, len(protocol.classes), protocol.ignore_index))
            self._rows.append((name, float(image_uncertainty(unsure)), float(values["mIoU"]), float(values["aAcc"])))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table."""
        everyone, self._rows = of_all_processes(self._rows, trainer.world_size), []
        rows = sorted(everyone, key=lambda row: (-row[1], row[0]))
        if not rows or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "uncertainty_test.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "uncertainty", "mIoU", "aAcc"])
            writer.writerows(rows)
        log.info("most uncertain image of test: %s, least: %s (all: %s)", rows[0][0], rows[-1][0], path)
