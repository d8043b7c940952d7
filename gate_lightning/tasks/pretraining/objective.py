"""The denoising objective: forward diffusion and loss weights.

Weightings: "min_snr" is Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", for
noise prediction with gamma 5.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.schedulers import SchedulerMixin
from torch import Tensor

from gate_lightning.errors import ConfigError

Weighting = Literal["uniform", "min_snr", "balanced"]


def loss_weights(alphas_cumprod: Tensor, weighting: Weighting) -> Tensor:
    """Weight of each timestep's noise error, mean 1 over all timesteps.

    Args:
        alphas_cumprod: (T,) signal power.
        weighting: "uniform"; "min_snr" (less weight where there is hardly any noise); "balanced"
            (``sqrt(1 + 1 / SNR)`` up to 10: the noisy steps, which decide what is where, count more).

    Raises:
        ConfigError: unknown weighting.
    """
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    if weighting == "uniform":
        weights = torch.ones_like(snr)
    elif weighting == "min_snr":
        weights = snr.clamp(max=5.0) / snr
    elif weighting == "balanced":
        weights = (1.0 + 1.0 / snr).sqrt().clamp(max=10.0)
    else:
        raise ConfigError(f"loss_weighting is {weighting!r}; expected uniform, min_snr or balanced.")
    return weights / weights.mean()


def spread_timesteps(batch: int, total: int, generator: torch.Generator) -> Tensor:
    """(batch,) timesteps, each uniform over its own stretch of [0, total): uniform together, with less variance."""
    return (
        ((torch.arange(batch) + torch.rand(batch, generator=generator)) * (total / batch)).long().clamp(max=total - 1)
    )


def diffuse(scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the target that the scheduler's prediction type asks for, both shaped like ``latents``."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noisy, noise
    if kind == "v_prediction":
        return noisy, scheduler.get_velocity(latents, noise, timesteps)
    raise ConfigError(f"prediction_type is {kind!r}; training works for epsilon and v_prediction.")


def error_per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean square error of each sample, (B,) float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
