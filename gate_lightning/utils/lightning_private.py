"""The private attributes of Lightning 2.6 that exact resume relies on, all of them.

``pyproject.toml`` allows ``lightning>=2.6,<2.7`` because of this file; a newer Lightning needs another look at it and
the tests of resume, checkpoint and interrupt.
"""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

__all__ = [
    "count_last_step",
    "is_attached",
    "leave_signals",
    "log_training_step",
    "not_restarting",
    "set_logged_steps",
    "validation_follows",
]


def count_last_step(trainer: Trainer, saved: int = 0) -> None:
    """Let loggers see the last step of a training that had no step left, or whose steps other processes have counted.

    Args:
        trainer: after its training.
        saved: step of the last checkpoint.
    """
    set_logged_steps(trainer, max(trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped, saved))


def is_attached(module: LightningModule) -> bool:
    """True if a trainer runs the module; the public ``trainer`` raises where none does."""
    return module._trainer is not None


def leave_signals(trainer: Trainer) -> None:
    """Keep Lightning from taking over the signals: its SIGTERM handler only notes that there was one.

    Not where it starts the processes itself and hands the signal on to them.
    """
    if not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    pass


def log_training_step(trainer: Trainer) -> None:
    """Give the metrics of the step to the loggers, which Lightning does after the hook ``on_train_batch_end``."""
    trainer._logger_connector.update_train_step_metrics()


def not_restarting(trainer: Trainer) -> None:
    """Tell the epoch loop that it begins an epoch and does not go on inside one; its public setter refuses that."""
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    """Set the step number that loggers get."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def validation_follows(trainer: Trainer) -> bool:
    """True if Lightning validates right after the training batch that is ending.

    The loop itself decides: its rule mixes epochs, intervals in batches or time, and limits.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher)) and sum(trainer.num_val_batches) > 0
