"""The two checkpoints of a run: the last state, to go on from, and the best weights, to evaluate."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from gate_lightning.callbacks.state.ema import with_average
from gate_lightning.errors import CacheError, ConfigError, GateError, NotFiniteError
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.commands import override
from gate_lightning.utils.files import publish, writing
from gate_lightning.utils.lightning_private import validation_follows

__all__ = ["RunCheckpoint"]


class RunCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` into the run folder (``default_root_dir``).

    ``last.ckpt`` is a complete state. Where a validation is due at its step, it is written after that, so that its
    result is part of it. ``best.ckpt`` holds the weights that were measured (averaged ones, where there is an average).
    Files appear under their names only when they are complete. The best score survives a move of the run folder.

    Args:
        every_n_steps: optimiser steps between two ``last.ckpt``, at least 1.
        monitor: metric that picks the best weights, or None to keep no best.
        mode: ``max`` or ``min``: which values of ``monitor`` are better.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str | None = None, mode: str = "max") -> None:
        check_choice(mode, "mode", ("max", "min"))
        self.every_n_steps, self.monitor, self.mode = whole_number(every_n_steps, "every_n_steps", 1), monitor, mode
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.best_model_path = ""
        self.metrics: dict[str, float] = {}
        self._due = False
        self._saved_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find ``best.ckpt`` in the run folder, which may have moved; write checkpoints where they belong."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _InPlace()
        best = self.folder(trainer) / "best.ckpt"
        self.best_model_path = str(best) if best.is_file() else ""

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        """Folder of the checkpoints."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a run starts or resumes from, which is not written again."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write the state every ``every_n_steps``, or leave that to the validation that follows."""
        step = trainer.global_step
        if step == self._saved_step or step % self.every_n_steps or _is_trial(trainer):
            return
        if validation_follows(trainer):
            self._due = True
        else:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or _is_trial(trainer):
            return
        try:
            if self.monitor is not None:
                self._keep_best(trainer, pl_module, self.monitor)
        except GateError:
            self.save_last(trainer)  # what was trained is not lost for a metric
            raise
        if self._due:
            self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the final state."""
        if trainer.global_step != self._saved_step and not _is_trial(trainer):
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> Path:
        """Write ``last.ckpt`` now; to be called by all processes."""
        self._due = False
        self._saved_step = trainer.global_step
        # a resumed run has those of its checkpoint until it measures anew; an undisturbed trainer keeps them itself
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        return _save(trainer, self.folder(trainer) / "last.ckpt", weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, for checkpoints, and the metrics, which a run with no step left has from here."""
        return {"best_score": self.best_score, "best_step": self.best_step, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score so far."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self.metrics = dict(state_dict.get("metrics", {}))

    def _keep_best(self, trainer: Trainer, pl_module: LightningModule, monitor: str) -> None:
        if monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ConfigError(
                f"monitor={monitor}: no such metric after validation; there are: {known}. The state is kept: go on "
                f"with {override('resume', trainer.default_root_dir)} monitor=<one of them> allow_changes=true"
            )
        score = float(trainer.callback_metrics[monitor])
        if not math.isfinite(score):
            raise NotFiniteError(
                f"{monitor} is {score} after validation at step {trainer.global_step}: nothing was measured, or what "
                "was is no number. Are the validation masks labelled? Another metric: monitor=<name>"
            )
        if not self.is_best(score):
            return
        self.best_score, self.best_step = score, trainer.global_step
        with with_average(trainer, pl_module):  # the weights that validation measured
            path = _save(trainer, self.folder(trainer) / "best.ckpt", weights_only=True)
        self.best_model_path = str(path)

    def is_best(self, score: float) -> bool:
        """True if a value of ``monitor`` is better than all before."""
        if self.best_score is None:
            return True
        return score > self.best_score if self.mode == "max" else score < self.best_score


class _InPlace(TorchCheckpointIO):
    """Writes a checkpoint where it is to be; Lightning's takes the way over the folder for temporary files, which may
    be small, and where a process that is killed leaves them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb") as file:
            file.write(content.getbuffer())


def _is_trial(trainer: Trainer) -> bool:
    """True if this is Lightning's ``fast_dev_run``, which leaves no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _save(trainer: Trainer, path: Path, weights_only: bool) -> Path:
    partial = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            trainer.save_checkpoint(partial, weights_only=weights_only)
            if trainer.is_global_zero:
                publish(partial, path)
    except CacheError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return path
