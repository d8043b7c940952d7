"""Position of training from Lightning's counters, and exact continuation of a resumed run.

Stock Lightning (2.6) replays the first batches of the epoch after a resume, loses the gradients of a half-finished
accumulation window, skips the validation that was due at the checkpoint and evaluates only part of an interrupted
one. All of it can be put right before the loops start, in ``train_dataloader``, by setting their counters.
"""

from __future__ import annotations

import math
from typing import Any

from lightning import Trainer

from gate_lightning.utils.lightning_private import not_restarting, set_logged_steps

__all__ = ["align_loops", "batches_per_epoch", "position"]


def batches_per_epoch(trainer: Trainer, length: int) -> int:
    """Batches of an epoch after ``limit_train_batches``, of ``length`` that the loader has."""
    limit = trainer.limit_train_batches
    return min(length, limit) if isinstance(limit, int) else int(length * limit)


def position(trainer: Trainer, length: int) -> tuple[int, int]:
    """Epoch and batch that follow the optimiser steps done so far.

    The key is the global step, not the count of batches: batches of an accumulation window whose step was not made
    have left no trace in a checkpoint and are due again. Modules that optimise by hand have no such relation between
    steps and batches; there the batches count.

    Args:
        trainer: its ``accumulate_grad_batches`` must not change during training.
        length: batches of the loader.

    Returns:
        (epoch, number of the next batch in it), both from 0; the batch is less than the batches of an epoch.
    """
    batches = batches_per_epoch(trainer, length)
    if batches < 1:
        return 0, 0
    module = trainer.lightning_module
    if module is not None and not module.automatic_optimization:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        return divmod(progress.total.processed, batches)
    window = trainer.accumulate_grad_batches
    epoch, step = divmod(trainer.global_step, math.ceil(batches / window))
    return epoch, step * window


def align_loops(trainer: Trainer, length: int) -> None:
    """Set the counters of a resumed trainer to ``position``; to be called before its first batch.

    Does nothing unless the trainer is about to go on inside an epoch.

    Args:
        trainer: has loaded its checkpoint.
        length: batches of the loader.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not fit_loop.restarting:
        return
    batches = batches_per_epoch(trainer, length)
    epoch, batch = position(trainer, length)
    finished, ready = _epochs(trainer)
    progress: Any = epoch_loop.batch_progress
    at_end = finished == epoch - 1 and batch == 0
    # Saved before validation could run (in on_train_batch_end), or while it was running.
    before = progress.current.processed > progress.current.completed
    unvalidated = (before and progress.current.processed == (batches if at_end else batch)) or _unfinished(
        epoch_loop.val_loop.batch_progress
    )
    if at_end:
        if unvalidated and _validation_due(trainer, batches, epoch * batches, batches):
            _go_on_from(trainer, batches, epoch * batches, batches, unvalidated)
        return  # otherwise the epoch is over, and Lightning starts the next one
    if finished != epoch:
        return  # the length of an epoch has changed: Lightning's own counters decide
    if ready == finished:
        _between_epochs(trainer, epoch * batches)
        return
    _go_on_from(trainer, batch, epoch * batches + batch, batches, unvalidated)


def _go_on_from(trainer: Trainer, batch: int, total: int, batches: int, unvalidated: bool) -> None:
    """Set the epoch loop's counters to ``batch`` finished batches of the epoch, ``total`` of the run."""
    epoch_loop = trainer.fit_loop.epoch_loop
    pending = _validation_due(trainer, batch, total, batches)
    _set(epoch_loop.batch_progress, batch, total)
    epoch_loop.batch_progress.is_last_batch = batch == batches
    # Lightning counts the step for its loggers after the validation that it returns to.
    set_logged_steps(trainer, _batches_that_stepped(trainer, total) - int(pending))
    if batch == 0:
        epoch_loop.restarting = False  # the epoch starts from its beginning, which is no restart
    elif pending and unvalidated:
        # "in the middle of an evaluation", of which nothing is done: the whole of it runs
        validation: Any = epoch_loop.val_loop.batch_progress
        _set(validation, 0, 0)
        validation.total.ready = validation.total.started = 1
        validation.is_last_batch = False


def _batches_that_stepped(trainer: Trainer, total: int) -> int:
    """Step number of the loggers: several optimisers that step in one batch count once."""
    automatic = trainer.lightning_module is None or trainer.lightning_module.automatic_optimization
    return trainer.global_step if automatic else total


def _epochs(trainer: Trainer) -> tuple[int, int]:
    """Epochs finished and epochs begun."""
    current: Any = trainer.fit_loop.epoch_progress.current
    return current.processed, current.ready


def _between_epochs(trainer: Trainer, total: int) -> None:
    """Continue from a checkpoint that was saved between two epochs.

    Lightning sees that by itself where ``max_epochs`` ends training; with ``max_steps`` it would train a batch more.
    """
    not_restarting(trainer)
    set_logged_steps(trainer, _batches_that_stepped(trainer, total))


def _set(progress: Any, current: int, total: int) -> None:
    for tracker, value in ((progress.current, current), (progress.total, total)):
        for name in ("ready", "started", "processed", "completed"):
            setattr(tracker, name, value)


def _unfinished(validation: Any) -> bool:
    """True if the last validation was interrupted."""
    current = validation.current
    return current.ready > 0 and not (validation.is_last_batch and current.completed == current.ready)


def _validation_due(trainer: Trainer, batch: int, total: int, batches: int) -> bool:
    """True if Lightning validates after ``batch`` batches of the epoch, ``total`` in all (its rule)."""
    every_epochs, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    if batch == 0 or not trainer.enable_validation or not isinstance(interval, int | float):
        return False
    if every_epochs is None:
        return total % int(interval) == 0
    if (_epochs(trainer)[0] + 1) % every_epochs:
        return False
    every = interval if isinstance(interval, int) else max(1, int(batches * interval))
    return batch % every == 0
