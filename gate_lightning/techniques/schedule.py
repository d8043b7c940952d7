"""Noise levels of a backbone, and the deterministic step between two of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError

__all__ = ["NoiseSchedule", "wide"]

#: what of a scheduler's config is the model's; the rest (clipping, spacing, solver) is a sampler's choice
_PHYSICS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


class NoiseSchedule:
    """How much signal there is at each timestep, and what the denoiser's prediction says about it.

    Attributes:
        config: of the schedule alone, as diffusers' schedulers take it.
        alphas: cumulative products ᾱ, by timestep.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Raises:
        ConfigError: a backbone without a schedule, or without the need of one.
    """

    def __init__(self, backbone: Backbone, technique: str) -> None:
        if backbone.reads_clean:
            raise ConfigError(
                f"{backbone.identity.name} reads clean latents; {technique} needs noisy ones: leave it out"
            )
        if not backbone.schedule or not backbone.prediction_type:
            raise ConfigError(
                f"{backbone.identity.name} has no noise schedule; {technique} does not apply: leave it out"
            )
        physics = {key: backbone.schedule[key] for key in _PHYSICS if key in backbone.schedule}
        scheduler = DDPMScheduler.from_config(physics)
        self.prediction_type = backbone.prediction_type
        # the betas themselves: not every scheduler knows every way to make them
        self.config: dict[str, Any] = {
            "num_train_timesteps": len(scheduler.betas),
            "trained_betas": scheduler.betas.tolist(),
            "prediction_type": self.prediction_type,
        }
        self.alphas: list[float] = scheduler.alphas_cumprod.double().tolist()

    def __len__(self) -> int:
        return len(self.alphas)

    def split(self, latents: Tensor, prediction: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise, (B, c, h, w) each, that the prediction for latents at ``level`` means."""
        signal, sigma = math.sqrt(self.alphas[level]), math.sqrt(1 - self.alphas[level])
        if self.prediction_type == "epsilon":
            return (latents - sigma * prediction) / signal, prediction
        if self.prediction_type == "v_prediction":
            return signal * latents - sigma * prediction, signal * prediction + sigma * latents
        return prediction, (latents - signal * prediction) / sigma

    def move(self, latents: Tensor, prediction: Tensor, level: int, target: int) -> Tensor:
        """Latents of the timestep ``level`` moved to that of ``target``, up or down, without new noise (DDIM, η = 0).

        Args:
            latents: (B, c, h, w) at ``level``.
            prediction: of the denoiser for them.
            level, target: timesteps.
        """
        clean, noise = self.split(latents, prediction, level)
        return math.sqrt(self.alphas[target]) * clean + math.sqrt(1 - self.alphas[target]) * noise


def wide(latents: Tensor) -> Tensor:
    """Latents in at least float32: small steps would be lost in half precision."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))
