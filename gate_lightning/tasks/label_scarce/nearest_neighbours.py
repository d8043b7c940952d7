"""The k-NN probe on the label-scarce protocol: labelled pixels are kept, nothing is trained."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.nearest_neighbours import NearestPixels
from gate_lightning.structures import PixelBatch
from gate_lightning.tasks.label_scarce.task import LabelScarceTask

__all__ = ["NearestPixelsTask"]


class NearestPixelsTask(LabelScarceTask):
    """`LabelScarceTask` with `NearestPixels`: a step keeps the labelled pixels of a batch until the bank is full.

    The batches are those of the ensemble's first member, so pixels are drawn at random without repetition. The
    amalgamation must have nothing to train: concat_pixels.
    """

    head: NearestPixels  # type: ignore[assignment]

    @property
    def steps_bounds(self) -> tuple[float, float]:
        """Steps after which the bank is full."""
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        steps = float(math.ceil(self.head.bank / datamodule.pixels_per_batch))
        return steps, steps

    def configure_optimizers(self) -> None:
        """None: nothing is trained.

        Raises:
            ConfigError: the amalgamation has something to train.
        """
        if self.trained_parameters():
            raise ConfigError("nothing is trained for nearest pixels: use amalgamation=concat_pixels")

    def training_step(self, batch: PixelBatch, batch_idx: int) -> Tensor | None:
        """Keep the pixels of the batch; no loss."""
        if not self.stopping.finished:
            self.head.add(self._fuse(batch.images, batch.positions).features, batch.labels)
        if self.head.full:
            self.stopping.steps += 1  # which nobody counts any more
            self.stopping.active[:] = False
            self.trainer.should_stop = True
        return None
