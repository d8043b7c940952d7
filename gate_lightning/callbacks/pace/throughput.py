"""Training throughput in images per second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer

__all__ = ["Throughput"]


class Throughput(Callback):
    """Logs ``train/images_per_second`` of all processes together, every ``trainer.log_every_n_steps`` steps.

    The mean since the last value: data loading and writing of checkpoints are in it, validation is not, nor is the
    first batch of a run.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._paused = 0.0
        self._images = 0
        self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset counts and clock."""
        self._began, self._logged_step = None, trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of a batch; log every ``log_every_n_steps`` steps."""
        now, step = time.perf_counter(), trainer.global_step
        if self._began is None:
            self._began, self._images = now, 0
            return
        self._images += _images(batch)
        if step == self._logged_step or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        # logged with the batch, so that it gets into the row of the batch's other metrics
        pace = trainer.world_size * self._images / (now - self._began)
        pl_module.log("train/images_per_second", pace, batch_size=1)
        self._began, self._images, self._logged_step = now, 0, step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock during validation."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the clock after validation."""
        if self._began is not None:
            self._began += time.perf_counter() - self._paused


def _images(batch: Any) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)
