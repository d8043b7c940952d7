"""Cost of a training, measured on its first steps."""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gate_lightning.callbacks.pace.progress import planned_steps
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.units import GIB, duration, human_size

__all__ = ["CostReport"]

log = logging.getLogger(__name__)

#: files of the full state that exist at once: the last one, and the next while it is written
STATES_AT_ONCE = 2


class CostReport(Callback):
    """Measures the first steps after a warm-up and logs time, memory and disk that the training will take.

    ``cost.json`` in the run folder has it, too, and at the end what the training took, validation included: seconds and
    steps of this process (a resumed run counts from where it went on) and the most memory.

    The time is steps to go × seconds of a measured step, data loading included, validation not. Where a cache will
    know the features of all images, later steps are faster. Nothing is run for the measurement, and no weight, random
    number or order of data is touched.

    Args:
        warmup: batches that are not measured, at least 1.
        measured: batches that are, at least 1.

    Attributes:
        report: what was measured, by name; empty until then. Sizes in GiB.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, warmup: int = 1, measured: int = 2) -> None:
        self.warmup, self.measured = whole_number(warmup, "warmup", 1), whole_number(measured, "measured", 1)
        self.report: dict[str, float] = {}
        self._seen, self._started = 0, 0.0
        self._began, self._first_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure again in every fit."""
        self.report, self._seen = {}, 0
        self._began, self._first_step = time.perf_counter(), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the training took."""
        _synchronize(pl_module.device)
        took = {
            "trained_seconds": time.perf_counter() - self._began,
            "trained_steps": float(trainer.global_step - self._first_step),
            "memory_peak_gib": _peak_bytes() / GIB,
            **_device_memory(pl_module.device),
        }
        _write(trainer, self.report | took)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin again: steps around a validation cannot be measured."""
        self._seen = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; report after the last measured one."""
        if self.report:
            return
        self._seen += 1
        if self._seen == self.warmup:
            _synchronize(pl_module.device)
            self._started = time.perf_counter()
        elif self._seen == self.warmup + self.measured:
            _synchronize(pl_module.device)
            batches_per_step = trainer.accumulate_grad_batches
            self._report(trainer, pl_module, (time.perf_counter() - self._started) / self.measured * batches_per_step)

    def _report(self, trainer: Trainer, pl_module: LightningModule, seconds_per_step: float) -> None:
        fewest, most = (max(steps - trainer.global_step, 0.0) for steps in planned_steps(trainer, pl_module))
        self.report = {
            "seconds_per_step": seconds_per_step,
            "training_seconds": seconds_per_step * most,
            "memory_gib": psutil.Process().memory_info().rss / GIB,
            "memory_peak_gib": _peak_bytes() / GIB,
            "memory_free_gib": psutil.virtual_memory().available / GIB,
            **_device_memory(pl_module.device),
            "checkpoints_gib": _checkpoint_bytes(trainer, pl_module) / GIB,
            "disk_free_gib": shutil.disk_usage(trainer.default_root_dir).free / GIB,
        }
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics({f"cost/{k}": v for k, v in self.report.items()}, step=trainer.global_step)
        _write(trainer, self.report)
        log.info("%s", self._text(fewest, most))
        if self.report["disk_free_gib"] < self.report["checkpoints_gib"]:
            log.warning("the disk of %s has no room for the checkpoints", trainer.default_root_dir)

    def _text(self, fewest: float, most: float) -> str:
        report, pace = self.report, self.report["seconds_per_step"]
        if most == math.inf:
            rest = f"{fewest:.0f} or more steps to go" if fewest < math.inf else "no end set"
        elif fewest < most:
            rest = f"{fewest:.0f} to {most:.0f} steps to go: {duration(pace * fewest)} to {duration(pace * most)}"
        else:
            rest = f"{most:.0f} steps to go: about {duration(pace * most)}"
        sizes = {name: human_size(value * GIB) for name, value in report.items() if name.endswith("_gib")}
        device = f", accelerator {sizes['device_peak_gib']} at most" if "device_peak_gib" in sizes else ""
        return (
            f"first steps: {duration(pace)} a step, {rest}, without validation; "
            f"memory {sizes['memory_peak_gib']} at most, {sizes['memory_free_gib']} free{device}; "
            f"disk {sizes['checkpoints_gib']} for checkpoints, {sizes['disk_free_gib']} free"
        )


def _write(trainer: Trainer, values: dict[str, float]) -> None:
    """Write ``cost.json``, in the first process; a training without an end has no total."""
    if trainer.is_global_zero:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        write_atomically(Path(trainer.default_root_dir) / "cost.json", json.dumps(finite, indent=2).encode())


def _checkpoint_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Size of the files in ``checkpoints/``: two full states at most, and the best weights."""
    weights = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    states = (value for o in trainer.optimizers for state in o.state.values() for value in state.values())
    optimizer = sum(v.numel() * v.element_size() for v in states if isinstance(v, Tensor))
    return STATES_AT_ONCE * (weights + optimizer) + weights


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose work is only queued when a step returns."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()


def _device_memory(device: torch.device) -> dict[str, float]:
    if device.type == "cpu":
        return {}
    peak = getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    return {} if peak is None else {"device_peak_gib": peak() / GIB}
