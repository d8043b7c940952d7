"""The live display of a run on a terminal."""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from rich import get_console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from gate_lightning.callbacks.pace.progress import (
    ProgressLines,
    RunProgress,
    keeper_of,
    left_text,
    planned_steps,
    shown_metrics,
)
from gate_lightning.utils import signals
from gate_lightning.utils.console import set_live
from gate_lightning.utils.units import duration, measured

__all__ = ["LiveProgress", "progress_bar"]

#: seconds between two changes of the steps, and of the metrics, which wait for the accelerator
_STEPS_EVERY, _METRICS_EVERY = 0.2, 1.0


def progress_bar(every_seconds: float = 60.0) -> RunProgress:
    """A live display where the output is a terminal, else `ProgressLines`.

    Args:
        every_seconds: between two lines; see `ProgressLines`.
    """
    lines = ProgressLines(every_seconds)
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return lines
    return LiveProgress()


class LiveProgress(RunProgress):
    """Shows the steps of the whole training with the time left, the batches of validation and test, and metrics.

    The display is at the bottom of the terminal; log lines, warnings and what libraries print go above it. It is gone
    when the training or evaluation is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._metrics: dict[str, str] = {}
        self._looked = self._stepped = 0.0
        self._bars = _bars()
        self._train: TaskID | None = None
        self._evaluation: TaskID | None = None

    def disable(self) -> None:
        """Keep the display off (Lightning calls this in all processes but the first)."""
        super().disable()
        self._close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the display when training begins."""
        super().on_train_start(trainer, pl_module)
        self._open()
        self._train = self._bars.add_task("train", total=None, count="", rest="waiting for the first batch")
        self._show_steps(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Say that the first step is computed."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.clock.has_stepped and self._train is not None:
            self._bars.update(self._train, rest="computing the first step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show the step that has ended."""
        super().on_train_batch_end(trainer, pl_module, *args)
        now = time.monotonic()
        if self._live is not None and now - self._stepped >= _STEPS_EVERY:
            self._stepped = now
            self._show_steps(trainer, pl_module)
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar of the validation."""
        super().on_validation_start(trainer, pl_module)
        self._open_evaluation("validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar of the test."""
        super().on_test_start(trainer, pl_module)
        self._open_evaluation("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar of the prediction."""
        super().on_predict_start(trainer, pl_module)
        self._open_evaluation("prediction")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar of the validation away, show its metrics."""
        super().on_validation_end(trainer, pl_module)
        self._close_evaluation()
        self._look(trainer, pl_module, at_once=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        super().on_test_end(trainer, pl_module)
        self._close_evaluation()

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the display away."""
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the display away."""
        super().teardown(trainer, pl_module, stage)
        self._close()

    def evaluating(self, what: str, done: int, total: float, left: float) -> None:
        """Show the batches of an evaluation."""
        if self._evaluation is not None:
            known = total if total < math.inf else None
            count = f"batch {done}" + (f"/{total:.0f}" if known else "")
            rest = f"{duration(left)} left" if known and done < total else ""
            self._bars.update(self._evaluation, total=known, completed=done, count=count, rest=rest)

    def _open(self) -> None:
        if not self.enabled or self._live is not None:
            return
        self._bars, self._train, self._evaluation, self._metrics = _bars(), None, None, {}
        live = Live(console=get_console(), get_renderable=self._rendered, transient=True, refresh_per_second=4)
        live.start()
        self._live = live
        set_live(True)
        atexit.register(self._close)  # the cursor comes back whatever ends the process

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            set_live(False)
            live.stop()
            atexit.unregister(self._close)

    def _open_evaluation(self, what: str) -> None:
        self._open()
        if self._live is not None:
            self._evaluation = self._bars.add_task(what, total=None, count="", rest="computing the first batch")

    def _close_evaluation(self) -> None:
        if self._evaluation is None:
            return
        if self._train is not None:
            self._bars.remove_task(self._evaluation)
        else:  # reports come next
            self._bars.update(self._evaluation, rest="writing tables and figures")
        self._evaluation = None

    def _show_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._train is None:
            return
        (_, total), step = planned_steps(trainer, pl_module), trainer.global_step
        known = total if total < math.inf else None
        pace = self.clock.pace
        changed: dict[str, Any] = {"count": f"step {step}" + (f"/{total:.0f}" if known else "")}
        if not math.isnan(pace):
            changed["rest"] = f"{pace:.2g} s a step{left_text(self.clock, trainer, pl_module)}"
        self._bars.update(self._train, total=known, completed=step, **changed)

    def _look(self, trainer: Trainer, pl_module: LightningModule, at_once: bool = False) -> None:
        """Take over the metrics that are shown."""
        now = time.monotonic()
        if self._live is None or self._train is None or (not at_once and now - self._looked < _METRICS_EVERY):
            return
        self._looked = now
        of_val = {name: float(value) for name, value in trainer.progress_bar_metrics.items() if name.startswith("val/")}
        shown = {**shown_metrics(trainer, pl_module), **of_val}
        keeper = keeper_of(trainer)
        first = None if keeper is None else keeper.monitor
        names = sorted(shown, key=lambda name: (not name.startswith("train/"), name != first, name))
        texts = {name: f"{name} {measured(name, shown[name])}" for name in names}
        if keeper is not None and first in texts and keeper.best_score is not None:
            texts[first] += f" (best {measured(first, keeper.best_score)} at step {keeper.best_step})"
        self._metrics = texts

    def _rendered(self) -> RenderableType:
        number = signals.received()
        lines: list[RenderableType] = [self._bars] if self._bars.tasks else []
        if self._metrics:
            lines.append(Text("  ".join(self._metrics.values()), style="dim", no_wrap=True, overflow="ellipsis"))
        if number is not None:
            lines.append(Text(signals.stopping_text(number), style="yellow", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _bars() -> Progress:
    """Bars with counts and times; without a terminal of their own, `Live` draws them."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
        TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rest]}", markup=False, style="dim", table_column=Column(no_wrap=True)),
        expand=True,
    )
