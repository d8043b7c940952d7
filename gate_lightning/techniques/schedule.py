"""Shared by the techniques that move latents along the noise schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import NoiseSchedule
from gate_lightning.errors import ConfigError

__all__ = ["noise_schedule", "wide"]


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
