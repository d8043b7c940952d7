"""Learning-rate schedules, stepped once per optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from gate_lightning.errors import ConfigError

__all__ = ["constant", "cosine", "one_cycle", "poly", "trapezoid"]


def poly(
    optimizer: Optimizer,
    total_steps: int,
    *,
    power: float = 0.9,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """Decay as (1 - progress)^power after a linear warm-up, customary in semantic segmentation.

    Args:
        optimizer: its learning rates are the peaks.
        total_steps: optimiser steps of the whole run.
        power: exponent > 0; 1 is a straight line.
        warmup_steps: optimiser steps of linear rise at the start.
        final_fraction: fraction of the peak at the end, in [0, 1].

    Raises:
        ConfigError: if a number is out of range.
    """
    if power <= 0.0:
        raise ConfigError(f"power is {power}; expected a positive exponent, for example 0.9")
    return _schedule(
        optimizer, total_steps, warmup_steps, final_fraction, lambda progress: float((1.0 - progress) ** power)
    )


def cosine(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, final_fraction: float = 0.0) -> LambdaLR:
    """Decay as half a period of a cosine; arguments as in ``poly``."""

    def fall(progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return _schedule(optimizer, total_steps, warmup_steps, final_fraction, fall)


def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0) -> LambdaLR:
    """Constant rate after the warm-up; arguments as in ``poly``."""
    return _schedule(optimizer, total_steps, warmup_steps, 1.0, lambda _: 1.0)


def trapezoid(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, decay_share: float = 0.2) -> LambdaLR:
    """Constant rate after the warm-up, with a linear decay to 0 at the end.

    Args:
        optimizer, total_steps, warmup_steps: as in ``poly``.
        decay_share: share of the steps after the warm-up taken by the decay, in [0, 1].

    Raises:
        ConfigError: if a number is out of range.
    """
    if not 0.0 <= decay_share <= 1.0:
        raise ConfigError(f"decay_share is {decay_share}; expected a share of the steps in [0, 1]")

    def fall(progress: float) -> float:
        return min(1.0, (1.0 - progress) / decay_share) if decay_share else 1.0

    return _schedule(optimizer, total_steps, warmup_steps, 0.0, fall)


def one_cycle(optimizer: Optimizer, total_steps: int, *, rise_share: float = 0.3) -> OneCycleLR:
    """Rise from a 25th of the rate and fall to nearly 0, both as half a period of a cosine, while the momentum of Adam
    and SGD falls from 0.95 to 0.85 and rises again (Smith and Topin 2017; PyTorch's own).

    Args:
        optimizer, total_steps: as in ``poly``.
        rise_share: share of the steps until the peak, in (0, 1).

    Raises:
        ConfigError: if a number is out of range.
    """
    if not 0.0 < rise_share < 1.0 or total_steps < 1:
        raise ConfigError(
            f"rise_share is {rise_share}, total_steps {total_steps}; expected a share in (0, 1) of 1 step or more"
        )
    return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps, pct_start=rise_share)


def _schedule(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int,
    final_fraction: float,
    fall: Callable[[float], float],
) -> LambdaLR:
    """Warm-up, then final_fraction + (1 - final_fraction) · fall(progress), progress from 0 to 1."""
    if total_steps < 1 or not 0 <= warmup_steps < total_steps:
        raise ConfigError(
            f"total_steps is {total_steps}, warmup_steps {warmup_steps}; expected at least one step, and a warm-up "
            "that ends before the run does"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise ConfigError(f"final_fraction is {final_fraction}; expected a fraction of the peak in [0, 1]")

    def factor(step: int) -> float:  # of the step and the settings alone, so that a resumed run goes on exactly
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final_fraction + (1.0 - final_fraction) * fall(progress)

    return LambdaLR(optimizer, factor)
