"""Optimiser and learning-rate shapes shared by the denoising tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from gate_lightning.errors import ConfigError


def trapezoid(step: int, max_steps: int, warmup: int, decay_share: float) -> float:
    """Learning-rate factor: linear rise, constant, linear fall to zero.

    A function of the step and the total only, so a resumed run may shorten or lengthen the total.

    Args:
        step: optimiser steps done.
        max_steps: total; -1 (endless) gives no fall.
        warmup: steps of the rise.
        decay_share: share of ``max_steps`` that the fall takes, in [0, 1].
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    if max_steps <= 0 or decay_share <= 0.0:
        return rise
    fall = (max_steps - step) / (decay_share * max_steps)
    return rise * min(1.0, max(0.0, fall))


class OptimisedModule(LightningModule):
    """A LightningModule with AdamW, trapezoid learning rate, clipping that allows the fused optimiser, and step seeds.

    Args:
        lr: peak learning rate.
        betas: AdamW's moments.
        weight_decay: AdamW's decay.
        warmup: steps of linear rise.
        decay_share: share of all steps in which the rate falls linearly to zero at the end.
        seed: seed of noise and timesteps.
    """

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
        warmup: int = 200,
        decay_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ConfigError(f"lr is {lr}; expected a positive learning rate, for example 1e-3.")
        if not 0.0 <= decay_share <= 1.0:
            raise ConfigError(f"decay_share is {decay_share}; expected a share in [0, 1], for example 0.2.")
        self.lr, self.betas, self.weight_decay = lr, (betas[0], betas[1]), weight_decay
        self.warmup, self.decay_share, self.seed = warmup, decay_share, seed

    def trained_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters the optimiser moves."""
        return (p for p in self.parameters() if p.requires_grad)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; each may have a learning rate of its own."""
        return [{"params": list(self.trained_parameters())}]

    def configure_optimizers(self) -> Any:
        """AdamW with the trapezoid, stepped once per optimiser step."""
        optimizer = AdamW(
            self.parameter_groups(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )
        # max_steps is read at every step, not here: a resumed run may have another total.
        schedule = LambdaLR(
            optimizer, lambda step: trapezoid(step, self.trainer.max_steps, self.warmup, self.decay_share)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by norm directly: Lightning refuses to clip for fused optimisers under mixed precision."""
        if gradient_clip_val:
            norm = nn.utils.clip_grad_norm_(list(self.trained_parameters()), gradient_clip_val)
            self.log("train/grad_norm", norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights only: frozen ones come from the model folder and do not belong into checkpoints."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the frozen weights."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def step_generator(self) -> torch.Generator:
        """Generator that depends on seed, step, accumulated batch and process only: resuming needs no stored state."""
        accumulated = getattr(self.trainer, "fit_loop", None)
        batch = accumulated.epoch_loop.total_batch_idx if accumulated is not None else 0
        number = (self.seed * 1_000_003 + batch) * 1_009 + self.global_rank
        return torch.Generator().manual_seed(number % (1 << 62))

    def noise_like(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise like ``x``, drawn on the CPU so that the device does not change it."""
        return torch.randn(x.shape, generator=generator).to(x)
