"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from gate_lightning.errors import ConfigError
from gate_lightning.tasks.base import BaseTask
from gate_lightning.utils.units import duration

__all__ = ["ProgressLines", "planned_steps", "progress_bar"]

log = logging.getLogger(__name__)


def progress_bar(every_seconds: float = 20.0) -> ProgressBar:
    """A rich progress bar where the output is a terminal, else `ProgressLines`.

    Args:
        every_seconds: between two lines; see `ProgressLines`.
    """
    return RichProgressBar(leave=True) if sys.stdout.isatty() else ProgressLines(every_seconds)


class ProgressLines(ProgressBar):
    """Logs a line from time to time: step, loss, pace, time left; and the metrics of every validation.

    Args:
        every_seconds: at least this long between two lines of training, ≥ 0.

    Raises:
        ConfigError: if ``every_seconds`` is negative.
    """

    def __init__(self, every_seconds: float = 20.0) -> None:
        super().__init__()
        if every_seconds < 0:
            raise ConfigError(f"every_seconds is {every_seconds}; expected 0 or more")
        self.every_seconds = every_seconds
        self._enabled = True
        self._last_time = 0.0
        self._last_step = 0

    def disable(self) -> None:
        """Log no lines (Lightning calls this in all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Log lines again after `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the first line."""
        self._restart_clock(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log a line if the last one is ``every_seconds`` old."""
        step, elapsed = trainer.global_step, time.monotonic() - self._last_time
        if not self._enabled or elapsed < self.every_seconds or step == self._last_step:
            return
        pace = elapsed / (step - self._last_step)
        fewest, total = planned_steps(trainer, pl_module)
        remaining = f", {duration(pace * (total - step))} left" if total < math.inf else ""
        if fewest < total < math.inf:
            remaining += " at most"
        values = self._values(trainer, pl_module)
        log.info("step %d/%.0f  %s  %.3g s a step%s", step, total, values, pace, remaining)
        self._restart_clock(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics during training; validation alone is reported by its caller."""
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            log.info("step %d  %s", trainer.global_step, "  ".join(f"{k} {v:.4f}" for k, v in sorted(metrics.items())))
        # validation is no part of a step's time
        self._restart_clock(trainer)

    def _values(self, trainer: Trainer, pl_module: LightningModule) -> str:
        shown = self.get_metrics(trainer, pl_module)
        pairs = ((k, v) for k, v in shown.items() if k != "v_num" and not k.startswith("val/"))
        return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in pairs)

    def _restart_clock(self, trainer: Trainer) -> None:
        self._last_time, self._last_step = time.monotonic(), trainer.global_step


def planned_steps(trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
    """Optimiser steps of the whole training, at least and at most, by trainer and task; infinite without an end."""
    fewest, most = pl_module.steps_bounds if isinstance(pl_module, BaseTask) else (math.inf, math.inf)
    planned = float(trainer.estimated_stepping_batches)
    return min(fewest, planned), min(most, planned)
