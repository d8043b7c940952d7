"""Ctrl-C, SIGTERM and their like: finish the step, save the state, stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.ema import WeightAverage
from gate_lightning.errors import ConfigError, Interrupted
from gate_lightning.utils import signals
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import is_live
from gate_lightning.utils.lightning_private import log_training_step, validation_follows

__all__ = ["Interrupt"]


class Interrupt(Checkpoint):
    """Turns the first signal of `signals.STOPPING` during training into a clean stop; a later Ctrl-C aborts at once.

    Training stops after the optimiser step it is in (all batches of an accumulated one), and writes ``last.ckpt`` at
    exactly that step. Validation is broken off; a resumed run does the whole of it. Only a validation after the very
    last step runs to its end, because a finished run has no loop to return to. Then `Interrupted` is raised, in every
    process.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks have seen the step.

    Raises:
        ConfigError: when training starts, if there is no `RunCheckpoint` to save with.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._process = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._step_before = -1
        self._broke_off = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals. (Lightning may have set its own SIGTERM handler shortly before.)"""
        self._checkpoint(trainer)
        self._received, self._broke_off = signals.received(), False
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only, and lets no other one handle them
        ours = [n for n in signals.STOPPING if n in (signal.SIGINT, signal.SIGTERM) or _is_free(n)]
        self._previous = {number: signal.signal(number, self._receive) for number in ours}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step before the batch."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop after a signal if the optimiser has stepped; where a validation is due, stop at its start."""
        complete = trainer.global_step != self._step_before
        if complete and not _is_last(trainer) and self._asked(trainer) and not validation_follows(trainer):
            # Lightning logs a step after this hook; a resumed run does not do it again
            log_training_step(trainer)
            self._stop(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation that a resumed run will do."""
        if self._previous and not _is_last(trainer) and self._asked(trainer):
            self._broke_off = True
            self._stop(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Interrupt validation. Several processes might be at different batches: they finish it."""
        if self._previous and trainer.world_size == 1 and not _is_last(trainer) and self._asked(trainer):
            self._broke_off = True
            self._stop(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step, before evaluation begins."""
        asked = self._asked(trainer)
        self._release()
        if asked:
            self._stop(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Reset the progress of an interrupted validation, which Lightning would resume in its middle."""
        if self._broke_off:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._release()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that was forked from this process
        new = signals.note(number)
        if self._received is not None:
            if new and number == signal.SIGINT:  # a person; others cannot know whether saving is under way
                raise signals.Stop(number)
            return
        self._received = signal.Signals(number)
        if is_live():
            return  # the display says it
        # a handler may run inside any other code, also inside logging: only write
        text = f"\n{signals.stopping_text(number)}\n"
        with suppress(OSError):  # the terminal may be gone
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())

    def _asked(self, trainer: Trainer) -> bool:
        """True if any process has received a signal; every process has to call it."""
        received = self._received is not None
        if trainer.world_size == 1:
            return received
        return bool(trainer.strategy.reduce_boolean_decision(received, all=False))

    def _stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = self._received.name if self._received is not None else "a signal to another process"
        stopped = Interrupted(
            f"stopped at step {trainer.global_step} by {name}. "
            f"Go on with: python train.py {override('resume', trainer.default_root_dir)}",
            self._received or signal.SIGTERM,
        )
        # saved here, not in on_exception: in forked and spawned processes Lightning does not call that
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAverage):
                callback.on_exception(trainer, pl_module, stopped)  # takes the average out of the module again
        self._checkpoint(trainer).save_last(trainer)
        raise stopped

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @staticmethod
    def _checkpoint(trainer: Trainer) -> RunCheckpoint:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):
                return callback
        raise ConfigError("the Interrupt callback saves through RunCheckpoint; add that (conf/callbacks/default.yaml)")


def _is_free(number: int) -> bool:
    """True if nothing else handles or ignores a signal, or `stopping` does."""
    return signal.getsignal(number) in (signal.SIG_DFL, signals.raise_stop)


def _is_last(trainer: Trainer) -> bool:
    """True if the run has made its last step: Lightning does not return into the loops of such a run."""
    return 0 <= trainer.max_steps <= trainer.global_step
