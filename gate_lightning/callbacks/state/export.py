"""Writes the trained part into a model folder when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from lightning import Callback, LightningModule, Trainer

from gate_lightning.callbacks.state.ema import with_average


class Exportable(Protocol):
    """Protocol of tasks whose trained part can be exported."""

    def export(self, folder: Path) -> None:
        """Write the part below ``folder``."""


class Export(Callback):
    """Calls the task's ``export`` at the end of training, with the averaged weights where there are any.

    An interrupted run exports nothing: resume it, with a smaller ``trainer.max_steps`` where it shall end now.

    Args:
        folder: model folder, created where missing; None is ``model`` in the run folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        #: where the part is, once it is written
        self.written: Path | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export in the first process; the weights are equal in all."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = self.folder or Path(trainer.default_root_dir) / "model"
            with with_average(trainer, pl_module):
                cast(Exportable, pl_module).export(folder)
            self.written = folder
