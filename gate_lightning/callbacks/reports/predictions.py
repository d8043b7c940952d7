"""Images of predictions beside the truth."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.callbacks.reports.dashboards import publish_image
from gate_lightning.errors import ConfigError
from gate_lightning.structures import SegmentationBatch
from gate_lightning.visualization.grid import image_grid
from gate_lightning.visualization.overlay import error_map, legend_entries
from gate_lightning.visualization.palette import colorize

__all__ = ["PredictionImages", "to_image"]

COLUMNS = ("image", "ground truth", "prediction", "errors (red)")

#: name, image, truth, prediction
_Row = tuple[str, NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


class PredictionImages(Callback):
    """Draws the first images of a split after its evaluation: image, truth, prediction, errors.

    In training they are ``images/predictions_step<step>.png``, else ``images/predictions_<split>.png``.

    Args:
        count: images shown, at least 1. The first process shows its own.
        every_n_validations: draw after every n-th validation of the training, at least 1.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(self, count: int = 4, every_n_validations: int = 1) -> None:
        if count < 1 or every_n_validations < 1:
            raise ConfigError(f"count is {count}, every_n_validations {every_n_validations}; expected at least 1")
        self.count, self.every_n_validations = count, every_n_validations
        self._rows: list[_Row] = []
        self._validations = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the first images."""
        self._collect(trainer, outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the first images."""
        self._collect(trainer, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """SampleRequest, if it is this validation's turn."""
        training = trainer.state.fn == TrainerFn.FITTING
        drawn = not training or self._validations % self.every_n_validations == 0
        if training and not trainer.sanity_checking:
            self._validations += 1
        if drawn and not trainer.sanity_checking:
            self._draw(trainer, pl_module, f"_step{trainer.global_step:06d}" if training else "_val")
        self._rows = []

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module, "_test")
        self._rows = []

    def _collect(self, trainer: Trainer, outputs: Any, batch: SegmentationBatch) -> None:
        missing = self.count - len(self._rows)
        if missing <= 0 or batch.masks is None or not trainer.is_global_zero:
            return
        entries = zip(batch.conditions.sample_ids, batch.images, batch.masks, outputs, strict=True)
        for name, image, mask, labels in list(entries)[:missing]:
            truth = mask.cpu().numpy()
            self._rows.append((name, _sized(to_image(image), truth.shape), truth, labels.cpu().numpy()))

    def _draw(self, trainer: Trainer, pl_module: LightningModule, suffix: str) -> None:
        if not self._rows:
            return
        protocol: Any = pl_module.protocol
        palette, ignored = protocol.palette, protocol.ignore_index
        rows = [
            [
                image,
                colorize(truth, palette, ignored),
                colorize(labels, palette),
                error_map(image, labels, truth, ignored),
            ]
            for _, image, truth, labels in self._rows
        ]
        maps = [labels for _, _, truth, labels in self._rows] + [
            truth[truth != ignored] for _, _, truth, _ in self._rows
        ]
        image = image_grid(
            rows,
            COLUMNS,
            [name for name, *_ in self._rows],
            legend_entries(maps, protocol.classes, palette),
            smooth=(True, False, False, False),
        )
        publish_image(trainer, "predictions", image, suffix)


def to_image(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [-1, 1] → (H, W, 3) uint8."""
    scaled = (image.detach().float().clamp(-1, 1) + 1) * 127.5
    array: NDArray[np.uint8] = scaled.round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def _sized(image: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """The image at the size of its mask, which evaluation leaves at that of the file."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
