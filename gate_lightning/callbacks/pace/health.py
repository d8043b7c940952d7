"""Signs that a training goes well or not: gradient norm, learning rate, memory."""

from __future__ import annotations

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from gate_lightning.utils.units import GIB

__all__ = ["TrainingHealth"]


class TrainingHealth(Callback):
    """Logs gradient norm, learning rate and memory every ``trainer.log_every_n_steps`` steps.

    ``train/gradient_norm`` is the 2-norm over all parameters of the optimiser, before clipping; ``train/lr`` the rate
    of its first group; ``cost/memory_gib`` the resident memory of the process, ``cost/device_memory_gib`` the most that
    was allocated on its accelerator. Nothing is changed: a training with it is equal bit for bit.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log, if the step is one that loggers get."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        values = {"train/lr": groups[0]["lr"], "cost/memory_gib": psutil.Process().memory_info().rss / GIB}
        if gradients:
            values["train/gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
        if pl_module.device.type == "cuda":
            values["cost/device_memory_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / GIB
        pl_module.log_dict(values, batch_size=1)
