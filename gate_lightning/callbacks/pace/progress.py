"""Progress of a run: a live display on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from gate_lightning.callbacks.pace.clock import Clock
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.tasks.base import BaseTask
from gate_lightning.utils.checks import number
from gate_lightning.utils.console import taking
from gate_lightning.utils.units import duration, few, measured

__all__ = ["ProgressLines", "RunProgress", "planned_steps"]

log = logging.getLogger(__name__)


class RunProgress(ProgressBar):
    """Counts steps and batches, and logs the metrics of every validation; subclasses show the rest.

    Attributes:
        enabled: whether anything is shown: Lightning switches it off in all processes but the first.
        clock: pace and time left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.clock = Clock()
        self._waiting = ExitStack()
        self._evaluated = 0
        self._began = 0.0

    def disable(self) -> None:
        """Show nothing from now on (Lightning calls this in all processes but the first)."""
        self.enabled = False

    def enable(self) -> None:
        """Show progress again after `disable`."""
        self.enabled = True

    def waits(self, what: str | None, seconds: float = 5.0) -> None:
        """Say what is waited for if it takes ``seconds``; None: it is there."""
        self._waiting.close()
        if what is not None and self.enabled:
            self._waiting.enter_context(taking(what, seconds))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of steps."""
        self.clock.start(trainer.global_step)
        self.waits("waiting for the first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Say what the first step waits for."""
        if not self.clock.has_stepped:
            self.waits("computing the first step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a batch of training."""
        self.waits(None)
        self.clock.step(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self.clock.pause(trainer.global_step)
        self._begin_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the clock of training, and log the metrics; validation alone is reported by its caller."""
        self.waits(None)
        self.clock.go_on()
        if self.enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            text = "  ".join(validation_texts(trainer))
            log.info("%s: %s%s", step_text(trainer, pl_module), text, left_text(self.clock, trainer, pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count batches."""
        self._begin_evaluation()

    on_predict_start = on_test_start

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a batch of validation."""
        trial = trainer.sanity_checking
        self._evaluate("validation", sum(trainer.num_sanity_val_batches if trial else trainer.num_val_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a batch of test images."""
        self._evaluate("test", sum(trainer.num_test_batches))

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count a batch of images to predict."""
        self._evaluate("prediction", sum(trainer.num_predict_batches))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the message about what is waited for."""
        self.waits(None)

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the message about what is waited for."""
        self.waits(None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the message about what is waited for."""
        self.waits(None)

    def evaluating(self, what: str, done: int, total: float, left: float) -> None:
        """Show the progress of an evaluation: batches, and seconds left."""
        raise NotImplementedError

    def _begin_evaluation(self) -> None:
        self._evaluated, self._began = 0, time.monotonic()

    def _evaluate(self, what: str, total: float) -> None:
        self.waits(None)
        self._evaluated += 1
        left = (time.monotonic() - self._began) / self._evaluated * (total - self._evaluated)
        if self.enabled:
            self.evaluating(what, self._evaluated, total, left)


class ProgressLines(RunProgress):
    """Logs a line from time to time: step, loss, pace, time left; batches of validation and test where those take long.

    Args:
        every_seconds: at least this long between two lines of training, ≥ 0.

    Raises:
        ConfigError: if ``every_seconds`` is negative, or no number.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__()
        self.every_seconds = number(every_seconds, "every_seconds", 0)
        self._said = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks of steps and of lines."""
        super().on_train_start(trainer, pl_module)
        self._said = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log a line if the last one is ``every_seconds`` old."""
        super().on_train_batch_end(trainer, pl_module, *args)
        if math.isnan(self.clock.pace) or not self._due():
            return
        values = [f"{name} {measured(name, value)}" for name, value in shown_metrics(trainer, pl_module).items()]
        pace = f"{self.clock.pace:.3g} s a step{left_text(self.clock, trainer, pl_module)}"
        log.info("%s: %s", step_text(trainer, pl_module), "  ".join([*values, pace]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that a validation is under way if its first batch takes long."""
        super().on_validation_start(trainer, pl_module)
        self.waits("validation: computing the first batch", max(self.every_seconds, 5.0))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that a test is under way if its first batch takes long."""
        super().on_test_start(trainer, pl_module)
        self.waits("test: computing the first batch", max(self.every_seconds, 5.0))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait as long as ever for the next line."""
        super().on_validation_end(trainer, pl_module)
        self._said = time.monotonic()

    def evaluating(self, what: str, done: int, total: float, left: float) -> None:
        """Log a line if the last one is ``every_seconds`` old."""
        if done < total and self._due():
            log.info("%s: batch %d of %.0f, %s left", what, done, total, duration(left))

    def _begin_evaluation(self) -> None:
        super()._begin_evaluation()
        self._said = self._began

    def _due(self) -> bool:
        due = self.enabled and time.monotonic() - self._said >= self.every_seconds
        if due:
            self._said = time.monotonic()
        return due


def planned_steps(trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
    """Optimiser steps of the whole training, at least and at most, by trainer and task; infinite without an end."""
    fewest, most = pl_module.steps_bounds if isinstance(pl_module, BaseTask) else (math.inf, math.inf)
    planned = float(trainer.estimated_stepping_batches)
    return min(fewest, planned), min(most, planned)


def step_text(trainer: Trainer, pl_module: LightningModule) -> str:
    """``step 100/500``, or ``step 100`` of a training without an end."""
    _, total = planned_steps(trainer, pl_module)
    return f"step {trainer.global_step}" + (f"/{total:.0f}" if total < math.inf else "")


def left_text(clock: Clock, trainer: Trainer, pl_module: LightningModule) -> str:
    """``, 2 min 10 s left``; empty at the end, without an end, and where the pace is not known."""
    fewest, total = planned_steps(trainer, pl_module)
    seconds = clock.left(trainer.global_step, total)
    if not 0 < seconds < math.inf:
        return ""
    return f", {duration(seconds)} left" + (" at most" if fewest < total else "")


def shown_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """Metrics of training that the task wants to be shown."""
    names = pl_module.shown if isinstance(pl_module, BaseTask) else ()
    return {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}


def validation_texts(trainer: Trainer) -> list[str]:
    """Metrics of the last validation, a few if there are many, the monitored one first, and whether it is the best."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    keeper = keeper_of(trainer)
    monitor = None if keeper is None else keeper.monitor
    texts = []
    for name in sorted(few(metrics, monitor), key=lambda name: name != monitor):
        best = keeper is not None and name == monitor and keeper.is_best(metrics[name])
        texts.append(f"{name} {measured(name, metrics[name])}{' (best so far)' if best else ''}")
    return texts


def keeper_of(trainer: Trainer) -> RunCheckpoint | None:
    """Callback that keeps the best weights; None where there is none."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = next((one for one in callbacks if isinstance(one, RunCheckpoint)), None)
    return found if found is not None and found.monitor is not None else None
