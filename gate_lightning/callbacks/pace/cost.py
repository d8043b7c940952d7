"""What a run costs, said before it has cost it."""

from __future__ import annotations

import logging
import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from gate_lightning.callbacks.pace.measuring import ComputingClock, prediction_seconds, synchronize
from gate_lightning.callbacks.pace.progress import planned_steps
from gate_lightning.errors import ConfigError
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.utils.units import duration

__all__ = ["CostReport"]

log = logging.getLogger(__name__)

GIB = 2**30
#: files of the full state that exist at once: the last one, and the next while it is written
STATES_AT_ONCE = 2


@dataclass(frozen=True)
class _Pace:
    """Seconds of a batch.

    Attributes:
        rest: without computing features.
        computing: features of a training batch.
        new_batches: training batches to come whose features are not known; None: all of them.
        validation: of a validation batch.
        recalled: how much of that a later validation does not take.
    """

    rest: float
    computing: float
    new_batches: int | None
    validation: float
    recalled: float


class CostReport(Callback):
    """Measures the first steps after a warm-up and says what the rest will take: time, memory, disk.

    What is measured are steps of the training itself, data loading included, so nothing is run twice and no weight,
    random number or order of data is touched. Validation is judged by one prediction of its first batch.

    Where a cache keeps the features of all images, the backbone is needed until all are known: its share of the
    measured time is measured by itself and foretold for that long only. What reading a large cache takes is not known
    before. With several processes, each of which remembers in a memory of its own, nothing is foretold to get cheaper.

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
        self._seen = self._batches = self._begun = 0
        self._started = 0.0
        self._computing = ComputingClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A trainer that fits again is measured again."""
        self.report, self._seen, self._batches = {}, 0, 0
        # a resumed run may begin in the middle of an epoch
        self._begun = trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps around a validation cannot be measured: begin again."""
        if not self.report:
            self._seen = 0
            self._computing.stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training too short to be measured leaves nothing behind."""
        self._computing.stop()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; report after the last measured batch."""
        if self.report:
            return
        self._seen += 1
        self._batches += 1
        if self._seen == self.warmup:
            synchronize(pl_module.device)
            self._computing.start(pl_module)
            self._started = time.perf_counter()
        elif self._seen == self.warmup + self.measured:
            synchronize(pl_module.device)
            elapsed = time.perf_counter() - self._started
            self._computing.stop()
            self._report(trainer, pl_module, self._pace(trainer, pl_module, elapsed, batch))

    def _pace(self, trainer: Trainer, pl_module: LightningModule, elapsed: float, batch: Any) -> _Pace:
        computing = self._computing.seconds / max(self._computing.calls, 1)
        rest = (elapsed - self._computing.seconds) / self.measured
        validation, validation_computing = prediction_seconds(trainer, pl_module)
        # asked after the prediction, which tells a cache in memory how large an image's features are
        train_kept, val_kept = _kept(trainer, pl_module, batch)
        new = max(_batches_of_new_images(trainer, batch, self._begun) - self._batches, 0) if train_kept else None
        return _Pace(rest, computing, new, validation, validation_computing if val_kept else 0.0)

    def _report(self, trainer: Trainer, pl_module: LightningModule, pace: _Pace) -> None:
        window = trainer.accumulate_grad_batches
        fewest, steps_left = _steps_left(trainer, pl_module)
        new_steps = steps_left if pace.new_batches is None else min(-(-pace.new_batches // window), steps_left)
        validations, batches = _validations_left(trainer, steps_left)
        computing = pace.computing * window
        self.report = {
            "seconds_per_step": pace.rest * window + computing,
            "seconds_per_known_step": pace.rest * window + (computing if new_steps == steps_left else 0.0),
            "new_steps": new_steps,
            "training_seconds": pace.rest * window * steps_left + (computing * new_steps if computing else 0.0),
            "validation_seconds": batches * (validations * pace.validation - max(validations - 1, 0) * pace.recalled),
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
            log.info("%s", self._text(fewest, steps_left, validations, batches))
            if self.report["disk_free_gib"] < self.report["checkpoints_gib"]:
                log.warning("the disk of %s has no room for the checkpoints", trainer.default_root_dir)

    def _text(self, fewest: float, steps_left: float, validations: int, batches: int) -> str:
        r = self.report
        whole, steps = "no end set", f"{fewest:.0f} or more" if fewest < math.inf else "inf"
        if steps_left < math.inf:
            whole, steps = duration(r["training_seconds"] + r["validation_seconds"]), f"{steps_left:.0f}"
        if fewest < steps_left < math.inf:
            whole = f"{duration(r['training_seconds'] * fewest / steps_left)} to {whole}"
            steps = f"{fewest:.0f} to {steps}"
        pace = f"{duration(r['seconds_per_step'])} a step"
        if r["seconds_per_known_step"] < r["seconds_per_step"]:
            pace += f" for {r['new_steps']:.0f} steps, then {duration(r['seconds_per_known_step'])} (features known)"
        device = f", accelerator {r['device_peak_gib']:.2f} GiB at most" if "device_peak_gib" in r else ""
        return (
            f"cost: {pace}, {steps} steps to go, "
            f"{validations} validations of {batches} batches ({duration(r['validation_seconds'])}): "
            f"about {whole} in all; memory {r['memory_gib']:.2f} GiB now, {r['memory_peak_gib']:.2f} at most, "
            f"{r['memory_free_gib']:.1f} free{device}; disk {1024 * r['checkpoints_gib']:.1f} MiB for checkpoints, "
            f"{r['disk_free_gib']:.1f} GiB free"
        )


def _kept(trainer: Trainer, pl_module: LightningModule, batch: Any) -> tuple[bool, bool]:
    """Whether features of all images are known after a while: of training, of validation."""
    extractor = getattr(pl_module, "extractor", None)
    if not isinstance(extractor, WrappedExtractor):
        return False, False
    train, val = _images(trainer.train_dataloader), _images(trainer.val_dataloaders)
    conditions = getattr(batch, "conditions", None)
    plain = conditions is not None and not any(conditions.views)  # an augmented view does not come again
    # part of an epoch is another part every time
    whole = plain and trainer.num_training_batches == len(trainer.train_dataloader or ())
    # every process sees other images in every epoch: of what each remembers by itself nothing is sure
    wanted = train + val if trainer.world_size == 1 else math.inf
    return whole and extractor.keeps(wanted), extractor.keeps(train * plain + val)


def _images(loader: Any) -> int:
    return len(loader.dataset) if isinstance(loader, DataLoader) and hasattr(loader.dataset, "__len__") else 0


def _batches_of_new_images(trainer: Trainer, batch: Any, begun: int) -> int:
    """At most so many batches, after the ``begun`` first ones of an epoch, hold an image that did not come before.

    Images of the batches that were not seen come in the next epoch, those that do not fill a batch of an epoch in
    later ones: each of them in another batch at worst.
    """
    batches, together = int(trainer.num_training_batches), len(batch) * trainer.world_size
    unseen = begun % batches
    waiting = max(_images(trainer.train_dataloader) - batches * together, 0)
    return batches - unseen + min(unseen * together, batches) + waiting


def _steps_left(trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
    """Steps to come, at least and at most."""
    fewest, most = (max(steps - trainer.global_step, 0.0) for steps in planned_steps(trainer, pl_module))
    return fewest, most


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
