"""What a run costs, said before it has cost it."""

from __future__ import annotations

import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gate_lightning.callbacks.progress import duration
from gate_lightning.errors import ConfigError

__all__ = ["CostReport"]

log = logging.getLogger(__name__)

GIB = 2**30
#: files of the full state that exist at once: the last one, and the next while it is written
STATES_AT_ONCE = 2


class CostReport(Callback):
    """Measures the first steps after a warm-up and says what the rest will take: time, memory, disk.

    What is measured are steps of the training itself, data loading included, so nothing is run twice and no weight,
    random number or order of data is touched. Validation is judged by one prediction of its first batch.

    Args:
        warmup: batches that are not measured, at least 1.
        measured: batches that are, at least 1.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(self, warmup: int = 1, measured: int = 2) -> None:
        if warmup < 1 or measured < 1:
            raise ConfigError(f"warmup is {warmup}, measured {measured}; expected at least 1 batch each")
        self.warmup, self.measured = warmup, measured
        self.report: dict[str, float] = {}
        self._seen = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A trainer that fits again is measured again."""
        self.report, self._seen = {}, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps around a validation cannot be measured: begin again."""
        if not self.report:
            self._seen = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count; report after the last measured batch."""
        if self.report:
            return
        self._seen += 1
        if self._seen == self.warmup:
            _synchronize(pl_module.device)
            self._started = time.perf_counter()
        elif self._seen == self.warmup + self.measured:
            _synchronize(pl_module.device)
            batch_seconds = (time.perf_counter() - self._started) / self.measured
            self._report(trainer, pl_module, batch_seconds)

    def _report(self, trainer: Trainer, pl_module: LightningModule, batch_seconds: float) -> None:
        step_seconds = batch_seconds * trainer.accumulate_grad_batches
        total = trainer.estimated_stepping_batches
        steps_left = max(float(total) - trainer.global_step, 0.0)
        validations, batches = _validations_left(trainer, steps_left)
        self.report = {
            "seconds_per_step": step_seconds,
            "training_seconds": step_seconds * steps_left,
            "validation_seconds": validations * batches * _prediction_seconds(trainer, pl_module),
            "memory_gib": psutil.Process().memory_info().rss / GIB,
            "memory_peak_gib": _peak_bytes() / GIB,
            "memory_free_gib": psutil.virtual_memory().available / GIB,
            **_device_memory(pl_module.device),
            "checkpoints_gib": _checkpoint_bytes(trainer, pl_module) / GIB,
            "disk_free_gib": shutil.disk_usage(trainer.default_root_dir).free / GIB,
        }
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics({f"cost/{k}": v for k, v in self.report.items()}, step=trainer.global_step)
            log.info("%s", self._text(steps_left, validations, batches))
            if self.report["disk_free_gib"] < self.report["checkpoints_gib"]:
                log.warning("the disk of %s has no room for the checkpoints", trainer.default_root_dir)

    def _text(self, steps_left: float, validations: int, batches: int) -> str:
        r = self.report
        whole = duration(r["training_seconds"] + r["validation_seconds"]) if steps_left < float("inf") else "no end set"
        device = f", accelerator {r['device_peak_gib']:.2f} GiB at most" if "device_peak_gib" in r else ""
        return (
            f"cost: {duration(r['seconds_per_step'])} a step, {steps_left:.0f} steps to go, "
            f"{validations} validations of {batches} batches ({duration(r['validation_seconds'])}): "
            f"about {whole} in all; memory {r['memory_gib']:.2f} GiB now, {r['memory_peak_gib']:.2f} at most, "
            f"{r['memory_free_gib']:.1f} free{device}; disk {1024 * r['checkpoints_gib']:.1f} MiB for checkpoints, "
            f"{r['disk_free_gib']:.1f} GiB free"
        )


def _validations_left(trainer: Trainer, steps_left: float) -> tuple[int, int]:
    """Number of validations to come, and batches of one."""
    batches = int(sum(trainer.num_val_batches))
    if not batches or trainer.val_check_batch is None or steps_left == float("inf"):
        return 0, batches
    window = trainer.accumulate_grad_batches
    done = trainer.global_step * window
    # a validation that is due at this very batch is still to come
    return _validations(trainer, done + int(steps_left) * window) - _validations(trainer, done - 1), batches


def _validations(trainer: Trainer, train_batches: int) -> int:
    """Validations of a run of so many batches."""
    every, every_epochs = int(trainer.val_check_batch or 1), trainer.check_val_every_n_epoch
    if every_epochs is None:
        return train_batches // every
    length = int(trainer.num_training_batches)
    epochs, rest = divmod(train_batches, length)
    begun = rest // every if (epochs + 1) % every_epochs == 0 else 0
    return epochs // every_epochs * (length // every) + begun


def _prediction_seconds(trainer: Trainer, pl_module: LightningModule) -> float:
    """Time of one validation batch, 0 where the task cannot predict or the data cannot be indexed."""
    loader = trainer.val_dataloaders
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return 0.0
    if not is_overridden("predict_step", pl_module, LightningModule):
        return 0.0
    with isolate_rng(), _evaluating(pl_module), torch.no_grad():
        started = time.perf_counter()
        batch = trainer.strategy.batch_to_device(_first_batch(loader))
        pl_module.predict_step(batch, 0)
        _synchronize(pl_module.device)
        return time.perf_counter() - started


def _first_batch(loader: DataLoader[Any]) -> Any:
    """The first batch, read in this process: no workers are started for it."""
    if loader.batch_sampler is None:
        return loader.collate_fn(loader.dataset[next(iter(loader.sampler))])
    return loader.collate_fn([loader.dataset[index] for index in next(iter(loader.batch_sampler))])


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _checkpoint_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Size of the files in ``checkpoints/``: two full states at most, and the best weights."""
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    states = (value for o in trainer.optimizers for state in o.state.values() for value in state.values())
    optimizer = sum(v.numel() * v.element_size() for v in states if isinstance(v, Tensor))
    return STATES_AT_ONCE * (weights + optimizer) + weights


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _device_memory(device: torch.device) -> dict[str, float]:
    if device.type == "cpu":
        return {}
    peak = getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    return {} if peak is None else {"device_peak_gib": peak() / GIB}


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose work is only queued when a step returns."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()
