"""Noise schedules: how latents are noised at a timestep, what the denoiser is told there, what its prediction means.

Every schedule here is of the form x_t = α_t · z + σ_t · ε with clean latents z and standard normal noise ε. Variance
preserving diffusion (DDPM) has α_t = √ᾱ_t and σ_t = √(1 - ᾱ_t); flow matching has α_t = 1 - σ_t and σ_t = t / T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from gate_lightning.errors import ConfigError, WeightsError

__all__ = ["CleanSchedule", "DiffusionSchedule", "FlowSchedule", "NoiseSchedule", "PredictionType"]

#: what a denoiser predicts: the noise ε, v = α·ε - σ·z (Salimans and Ho 2022), z itself, the velocity ε - z.
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]

#: what of a scheduler's config is the model's; the rest (clipping, spacing, solver) is a sampler's choice
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


class NoiseSchedule(ABC):
    """A forward process over ``length`` training timesteps.

    Attributes:
        length: number T of training timesteps; a timestep is a whole number from 0 to T - 1.
        prediction_type: what the denoiser predicts; None without a forward process.
        config: of the scheduler that came with the weights, as diffusers' schedulers take it; empty without a forward
            process.
        reads_clean: the denoiser reads clean latents (CleanDIFT): no noise is drawn.
        last: (α, σ) that a sampler's step from timestep 0 ends at.
        unit_signal: the weights' own sampler keeps latents at α = 1 (Euler's), so that a step ends at x / α.
    """

    length: int
    prediction_type: PredictionType | None
    config: Mapping[str, Any]
    reads_clean = False
    last: tuple[float, float] = (1.0, 0.0)
    unit_signal = False

    @abstractmethod
    def level(self, timestep: int) -> tuple[float, float]:
        """(α, σ) of a timestep."""

    def told(self, timestep: int) -> float:
        """The number that the network is called with at this timestep."""
        return timestep

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """α · latents + σ · noise, (B, c, h, w)."""
        signal, sigma = self.level(timestep)
        return signal * latents + sigma * noise.to(latents)

    def split(self, latents: Tensor, prediction: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise, (B, c, h, w) each, that a prediction for noisy latents means."""
        signal, sigma = self.level(timestep)
        match self.prediction_type:
            case "epsilon":
                return (latents - sigma * prediction) / signal, prediction
            case "v_prediction":
                return signal * latents - sigma * prediction, signal * prediction + sigma * latents
            case "sample":
                return prediction, (latents - signal * prediction) / sigma
            case "flow":
                return latents - sigma * prediction, latents + signal * prediction
        raise ConfigError("a network that reads clean latents predicts no noise")

    def move(self, latents: Tensor, prediction: Tensor, timestep: int, target: int) -> Tensor:
        """Latents of ``timestep`` moved to ``target``, up or down, without new noise.

        The DDIM step with η = 0; for flow matching Euler's step x + (σ_target - σ_t) · v.

        Args:
            latents: (B, c, h, w) at ``timestep``.
            prediction: of the denoiser for them.
            timestep, target: timesteps.
        """
        clean, noise = self.split(latents, prediction, timestep)
        signal, sigma = self.level(target)
        return signal * clean + sigma * noise

    def step(self, latents: Tensor, prediction: Tensor, timestep: int) -> Tensor:
        """Latents after one noiseless step to ``timestep - 1``, as the weights' own kind of sampler leaves them."""
        clean, noise = self.split(latents, prediction, timestep)
        signal, sigma = self.level(timestep - 1) if timestep > 0 else self.last
        stepped = signal * clean + sigma * noise
        return stepped / signal if self.unit_signal else stepped


class DiffusionSchedule(NoiseSchedule):
    """Variance-preserving diffusion with ᾱ_t = ∏ (1 - β_s), s ≤ t (DDPM, Ho et al. 2020); the network is told t.

    Args:
        config: of a diffusers scheduler (``scheduler_config.json``): betas, their number, the prediction type.

    Raises:
        WeightsError: noise levels of another kind, or an unknown prediction type.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        kind = str(config.get("_class_name", ""))
        if kind.startswith(("EDM", "FlowMatch")) or not {"beta_start", "trained_betas"} & config.keys():
            raise WeightsError(
                f"the scheduler ({kind or 'of no class'}) names no betas: its noise levels are not those of DDPM "
                f"(Playground v2.5 and flow-matching models load no U-Net)"
            )
        with torch.device("cpu"):  # numbers even where networks are built without
            scheduler = DDPMScheduler.from_config({key: config[key] for key in _BETAS if key in config})
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in get_args(PredictionType) or prediction_type == "flow":
            raise WeightsError(
                f"the scheduler says prediction_type={prediction_type!r}; expected epsilon, v_prediction or sample"
            )
        self.config = dict(config)
        self.prediction_type = prediction_type
        self.betas: list[float] = scheduler.betas.tolist()
        self.length = len(self.betas)
        # python floats: a half-precision module must not round the schedule
        alphas_cumprod = scheduler.alphas_cumprod.double().tolist()
        self._levels = [(math.sqrt(alpha), math.sqrt(1.0 - alpha)) for alpha in alphas_cumprod]
        if not config.get("set_alpha_to_one", True):
            self.last = self._levels[0]
        self.unit_signal = kind.startswith("Euler")

    def level(self, timestep: int) -> tuple[float, float]:
        """(√ᾱ, √(1 - ᾱ))."""
        return self._levels[timestep]


class FlowSchedule(NoiseSchedule):
    """Flow matching on straight paths (rectified flow): x = (1 - σ) · z + σ · ε, σ = t / T, velocity ε - z.

    A sampler's shift decides which σ it visits, never how σ, the latents and what the network is told belong together;
    so reading features needs none, and ``shift`` is kept in ``config`` for samplers alone.

    Args:
        told: what the network is called with: "timestep" 1000 · σ (SD 3, SANA), "sigma" σ (Flux, Qwen-Image), or
            "reversed" 1 - σ (Lumina 2, Z-Image; such a network predicts z - ε, which its backbone negates).
        shift: of the weights' own sampler.
        length: number T of training timesteps.
    """

    prediction_type: PredictionType = "flow"

    def __init__(
        self, told: Literal["timestep", "sigma", "reversed"] = "timestep", shift: float = 1.0, length: int = 1000
    ) -> None:
        if told not in ("timestep", "sigma", "reversed"):
            raise ConfigError(f"told={told!r}: expected timestep, sigma or reversed")
        self.unit, self.length = told, length
        self.config = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": length,
            "shift": shift,
        }

    def level(self, timestep: int) -> tuple[float, float]:
        """(1 - σ, σ)."""
        sigma = timestep / self.length
        return 1.0 - sigma, sigma

    def told(self, timestep: int) -> float:
        """1000 · σ, σ or 1 - σ."""
        signal, sigma = self.level(timestep)
        return {"timestep": 1000.0 * timestep / self.length, "sigma": sigma, "reversed": signal}[self.unit]


class CleanSchedule(NoiseSchedule):
    """No forward process: latents are read as they are.

    Args:
        own_timestep: what the network is told whatever the timestep of a branch (CleanDIFT), fractions included; None
            for a network without a notion of time.
        length: number of timesteps that are accepted.
    """

    prediction_type = None

    def __init__(self, own_timestep: float | None = None, length: int = 1000) -> None:
        self.own_timestep, self.length = own_timestep, length
        self.config = {}
        self.reads_clean = own_timestep is not None

    def level(self, timestep: int) -> tuple[float, float]:
        """(1, 0)."""
        return 1.0, 0.0

    def told(self, timestep: int) -> float:
        """The network's own timestep."""
        return timestep if self.own_timestep is None else self.own_timestep

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The latents."""
        return latents
