"""Writes the trained part into a model folder when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from lightning import Callback, LightningModule, Trainer

from gate_lightning.callbacks.state.ema import with_average
from gate_lightning.utils.checks import whole_number


class Exportable(Protocol):
    """Protocol of tasks whose trained part can be exported."""

    def export(self, folder: Path) -> None:
        """Write the part below ``folder``."""


class Export(Callback):
    """Calls the task's ``export`` at the end of training, with the averaged weights where there are any.

    An interrupted run exports nothing at its end: resume it, with a smaller ``trainer.max_steps`` where it shall
    end now.

    Args:
        folder: model folder, created where missing; None is ``model`` in the run folder.
        every_n_steps: the part as it is every so many optimiser steps, too, in ``step_<n>`` of that folder; None: only
            at the end.
    """

    def __init__(self, folder: str | Path | None = None, every_n_steps: int | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every_n_steps = None if every_n_steps is None else whole_number(every_n_steps, "every_n_steps", 1)
        self._last_step = 0
        #: where the part is, once it is written
        self.written: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that training goes on from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Export between, once per optimiser step."""
        step = trainer.global_step
        due = self.every_n_steps is not None and step != self._last_step and step % self.every_n_steps == 0
        self._last_step = step
        if due:
            self._write(trainer, pl_module, f"step_{step}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export in the first process; the weights are equal in all."""
        written = self._write(trainer, pl_module)
        self.written = written or self.written

    def _write(self, trainer: Trainer, pl_module: LightningModule, inside: str = "") -> Path | None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        folder = (self.folder or Path(trainer.default_root_dir) / "model") / inside
        with with_average(trainer, pl_module):
            cast(Exportable, pl_module).export(folder)
        return folder
