"""Learning-rate schedules, stepped once per optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gate_lightning.errors import ConfigError

__all__ = ["constant", "cosine", "poly", "trapezoid"]


def poly(
    optimizer: Optimizer,
    total_steps: int,
    *,
    power: float = 0.9,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """Falls as (1 - progress)^power, the schedule of most semantic segmentation papers.

    Args:
        optimizer: its learning rates are the peaks.
        total_steps: optimiser steps of the whole run.
        power: exponent > 0; 1 is a straight line.
        warmup_steps: optimiser steps of linear rise at the start.
        final_fraction: share of the peak that is left at the end, in [0, 1].

    Raises:
        ConfigError: if a number is out of range.
    """
    if power <= 0.0:
        raise ConfigError(f"power is {power}; expected a positive exponent, for example 0.9")
    return _schedule(optimizer, total_steps, warmup_steps, final_fraction, partial(_poly_fall, power=power))


def cosine(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, final_fraction: float = 0.0) -> LambdaLR:
    """Falls as half a period of a cosine; arguments as in ``poly``."""
    return _schedule(optimizer, total_steps, warmup_steps, final_fraction, _cosine_fall)


def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0) -> LambdaLR:
    """Stays at the peak after the rise; arguments as in ``poly``."""
    return _schedule(optimizer, total_steps, warmup_steps, 1.0, _cosine_fall)


def trapezoid(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, decay_share: float = 0.2) -> LambdaLR:
    """Stays at the peak after the rise, and falls linearly to 0 at the end.

    Args:
        optimizer, total_steps, warmup_steps: as in ``poly``.
        decay_share: share of the steps after the rise in which it falls, in [0, 1].

    Raises:
        ConfigError: if a number is out of range.
    """
    if not 0.0 <= decay_share <= 1.0:
        raise ConfigError(f"decay_share is {decay_share}; expected a share of the steps in [0, 1]")
    return _schedule(optimizer, total_steps, warmup_steps, 0.0, partial(_late_fall, decay_share=decay_share))


def _late_fall(progress: float, decay_share: float) -> float:
    return min(1.0, (1.0 - progress) / decay_share) if decay_share else 1.0


def _poly_fall(progress: float, power: float) -> float:
    return float((1.0 - progress) ** power)


def _cosine_fall(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _schedule(
    optimizer: Optimizer,
    total_steps: int,
    warmup_steps: int,
    final_fraction: float,
    fall: Callable[[float], float],
) -> LambdaLR:
    if total_steps < 1 or not 0 <= warmup_steps < total_steps:
        raise ConfigError(
            f"total_steps is {total_steps}, warmup_steps {warmup_steps}; expected at least one step, and a rise that "
            "ends before the run does"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise ConfigError(f"final_fraction is {final_fraction}; expected a share of the peak in [0, 1]")
    factor = partial(
        _factor, total_steps=total_steps, warmup_steps=warmup_steps, final_fraction=final_fraction, fall=fall
    )
    return LambdaLR(optimizer, factor)


def _factor(
    step: int, total_steps: int, warmup_steps: int, final_fraction: float, fall: Callable[[float], float]
) -> float:
    """A function of the step and the settings alone, so a resumed run goes on exactly."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * fall(progress)
