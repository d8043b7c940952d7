"""What single parts of a training take: the backbone of a step, a prediction."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.hooks import RemovableHandle

from gate_lightning.features.wrappers.base import WrappedExtractor

__all__ = ["ComputingClock", "prediction_seconds", "synchronize"]


class ComputingClock:
    """Time in which a task's extractor computes features; what only reads stored ones does not count.

    Attributes:
        seconds: so far.
        calls: batches that were computed.
    """

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0
        self._began = 0.0
        self._device = torch.device("cpu")
        self._hooks: list[RemovableHandle] = []

    def start(self, task: LightningModule) -> None:
        """Begin at 0; a task without extractor stays there."""
        self.stop()
        self.seconds, self.calls, self._device = 0.0, 0, task.device
        extractor = getattr(task, "extractor", None)
        module = extractor.computing if isinstance(extractor, WrappedExtractor) else extractor
        if isinstance(module, nn.Module):
            self._hooks = [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]

    def stop(self) -> None:
        """Measure no further."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _enter(self, *_: Any) -> None:
        synchronize(self._device)
        self._began = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        synchronize(self._device)
        self.seconds += time.perf_counter() - self._began
        self.calls += 1


def prediction_seconds(trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
    """Time of one validation batch, and how much of it the extractor computed.

    Both are 0 where the task cannot predict or the data cannot be indexed.
    """
    loader = trainer.val_dataloaders
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return 0.0, 0.0
    if not is_overridden("predict_step", pl_module, LightningModule):
        return 0.0, 0.0
    clock = ComputingClock()
    with isolate_rng(), _evaluating(pl_module), torch.no_grad():
        started = time.perf_counter()
        batch = trainer.strategy.batch_to_device(_first_batch(loader))
        clock.start(pl_module)
        try:
            pl_module.predict_step(batch, 0)
        finally:
            clock.stop()
        synchronize(pl_module.device)
        return time.perf_counter() - started, clock.seconds


def synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose work is only queued when a step returns."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()


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
