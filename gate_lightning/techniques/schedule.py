"""Shared by the techniques that move latents along the noise schedule."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.errors import ConfigError
from gate_lightning.techniques.base import Predict

__all__ = ["ddim", "noise_schedule", "wide"]


def noise_schedule(backbone: Backbone, technique: str) -> NoiseSchedule:
    """Noise schedule of a backbone.

    Raises:
        ConfigError: the backbone reads clean latents or has no schedule.
    """
    schedule = backbone.schedule
    if schedule.reads_clean:
        raise ConfigError(f"{backbone.identity.name} reads clean latents; {technique} needs noisy ones: leave it out")
    if schedule.prediction_type is None:
        raise ConfigError(f"{backbone.identity.name} has no noise schedule; {technique} does not apply: leave it out")
    return schedule


def wide(latents: Tensor) -> Tensor:
    """Latents in at least float32: small steps would be lost in half precision."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def ddim(latents: Tensor, levels: list[int], predict: Predict, schedule: NoiseSchedule) -> Tensor:
    """Latents moved along timesteps by DDIM steps without new noise; for flow matching by Euler's.

    Args:
        latents: (B, c, h, w) at the first timestep.
        levels: timesteps, falling; no pass is made at the last one.
        predict: the denoiser.
        schedule: its noise schedule.
    """
    for level, target in pairwise(levels):
        latents = schedule.move(latents, predict(latents, level), level, target)
    return latents
