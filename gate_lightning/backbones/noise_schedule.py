"""Noise schedules: noise level, time input of the denoiser and meaning of its prediction at each timestep.

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

from gate_lightning.errors import ConfigError, WeightsError, first_line
from gate_lightning.utils.checks import check_choice

__all__ = ["CleanSchedule", "DiffusionSchedule", "FlowSchedule", "NoiseSchedule", "PredictionType"]

#: the denoiser's target: ε, v = α·ε - σ·z (Salimans and Ho 2022), z, or the velocity ε - z.
PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]

#: keys of a scheduler's config that belong to the model; the others (clipping, spacing, solver) are a sampler's choice
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


_MOST_TIMESTEPS = 100_000


class NoiseSchedule(ABC):
    """A forward process over ``length`` training timesteps.

    Attributes:
        length: number T of training timesteps; timesteps are whole numbers in [0, T).
        lowest: the lowest timestep: 0, or -1 where clean latents, told as -1, may be read (Diffusion Hyperfeatures).
        prediction_type: the denoiser's target; None without a forward process.
        config: scheduler config of the weights, for diffusers' schedulers; empty without a forward process.
        reads_clean: the denoiser reads clean latents (CleanDIFT): no noise is drawn.
        last: (α, σ) after a sampler's step from timestep 0.
        unit_signal: the weights' own sampler works on x / α (Euler's).
    """

    length: int
    lowest: int = 0
    prediction_type: PredictionType | None
    config: Mapping[str, Any]
    reads_clean = False
    last: tuple[float, float] = (1.0, 0.0)
    unit_signal = False

    @abstractmethod
    def level(self, timestep: int) -> tuple[float, float]:
        """(α, σ) of a timestep."""

    def time_input(self, timestep: int) -> float:
        """The denoiser's time input at this timestep."""
        return timestep

    def time_tensor(self, timestep: int, device: torch.device) -> Tensor:
        """The time input (1,), filled in on the device: a number would be copied there, and the host wait for it."""
        value: Any = self.time_input(timestep)
        if isinstance(value, Tensor):  # of training: a timestep for each image
            return value
        wide = torch.float32 if device.type == "mps" else torch.float64
        return torch.full((1,), value, dtype=wide if isinstance(value, float) else torch.int64, device=device)

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """α · latents + σ · noise, (B, c, h, w)."""
        signal, sigma = self.level(timestep)
        return signal * latents + sigma * noise.to(latents)

    def split(self, latents: Tensor, prediction: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """Estimates of the clean latents z and the noise ε, (B, c, h, w) each, from a prediction for noisy latents."""
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
        raise ConfigError("a network without noise schedule predicts no noise")

    def move(self, latents: Tensor, prediction: Tensor, timestep: int, target: int) -> Tensor:
        """Latents of ``timestep`` moved to ``target``, up or down, without new noise.

        The DDIM step with η = 0; for flow matching Euler's step x + (σ_target - σ_t) · v.

        Args:
            latents: (B, c, h, w) at ``timestep``.
            prediction: the denoiser's, for these latents.
            timestep, target: current and wanted timestep.
        """
        clean, noise = self.split(latents, prediction, timestep)
        signal, sigma = self.level(target)
        return signal * clean + sigma * noise

    def step(self, latents: Tensor, prediction: Tensor, timestep: int) -> Tensor:
        """Latents after one noiseless step to ``timestep - 1``, at the scale of the weights' own sampler."""
        clean, noise = self.split(latents, prediction, timestep)
        signal, sigma = self.level(timestep - 1) if timestep > 0 else self.last
        stepped = signal * clean + sigma * noise
        return stepped / signal if self.unit_signal else stepped


class DiffusionSchedule(NoiseSchedule):
    """Variance-preserving diffusion with ᾱ_t = ∏ (1 - β_s), s ≤ t (DDPM, Ho et al. 2020); time input t. ᾱ_-1 = 1.

    Args:
        config: a diffusers scheduler's (``scheduler_config.json``): betas, number of timesteps, prediction type.

    Raises:
        WeightsError: no betas (EDM, flow matching), or an unknown prediction type.
    """

    lowest = -1

    def __init__(self, config: Mapping[str, Any]) -> None:
        kind = str(config.get("_class_name", ""))
        if kind.startswith(("EDM", "FlowMatch")) or not {"beta_start", "trained_betas"} & config.keys():
            raise WeightsError(
                f"the scheduler ({kind or 'of no class'}) names no betas: its noise levels are not those of DDPM "
                f"(Playground v2.5 and flow-matching models load no U-Net)"
            )
        betas, alphas_cumprod = _betas(config)
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in get_args(PredictionType) or prediction_type == "flow":
            raise WeightsError(
                f"the scheduler has prediction_type={prediction_type!r}; expected epsilon, v_prediction or sample"
            )
        self.config = dict(config)
        self.prediction_type = prediction_type
        self.betas = betas
        self.length = len(betas)
        self._levels = [(math.sqrt(alpha), math.sqrt(1.0 - alpha)) for alpha in alphas_cumprod]
        if not config.get("set_alpha_to_one", True):
            self.last = self._levels[0]
        self.unit_signal = kind.startswith("Euler")

    def level(self, timestep: int) -> tuple[float, float]:
        """(√ᾱ, √(1 - ᾱ)), without noise at -1."""
        return self._levels[timestep] if timestep >= 0 else (1.0, 0.0)


def _betas(config: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """β and ᾱ of each timestep, as python floats: a half-precision module must not round the schedule."""
    length = config.get("num_train_timesteps", 1000)
    if isinstance(length, bool) or not isinstance(length, int) or not 0 < length <= _MOST_TIMESTEPS:
        raise WeightsError(
            f"the scheduler has num_train_timesteps={length!r:.40}, expected a whole number from 1 to {_MOST_TIMESTEPS}"
        )
    try:
        with torch.device("cpu"):  # numbers even where networks are built without
            scheduler = DDPMScheduler.from_config({key: config[key] for key in _BETAS if key in config})
        betas, alphas_cumprod = scheduler.betas.tolist(), scheduler.alphas_cumprod.double().tolist()
    except Exception as error:  # diffusers checks little, and each value in its own way
        raise WeightsError(f"the scheduler's betas cannot be computed ({first_line(error)})") from error
    if not isinstance(betas, list) or not betas or not all(0 <= value <= 1 for value in (*betas, *alphas_cumprod)):
        raise WeightsError(
            "the scheduler's betas are not between 0 and 1; take the scheduler_config.json of the weights"
        )
    return betas, alphas_cumprod


class FlowSchedule(NoiseSchedule):
    """Flow matching on straight paths (rectified flow): x = (1 - σ) · z + σ · ε, σ = t / T, velocity ε - z.

    A sampler's shift decides which σ it visits, not how σ, the latents and the time input belong together; features do
    not depend on it, and it is kept in ``config`` for samplers alone.

    Args:
        time_unit: time input of the network: "timestep" 1000 · σ (SD 3, SANA), "sigma" σ (Flux, Qwen-Image), or
            "reversed" 1 - σ (Lumina 2, Z-Image; such a network predicts z - ε, which its backbone negates).
        shift: timestep shift of the weights' own sampler.
        length: number T of training timesteps.
    """

    prediction_type: PredictionType = "flow"

    def __init__(
        self, time_unit: Literal["timestep", "sigma", "reversed"] = "timestep", shift: float = 1.0, length: int = 1000
    ) -> None:
        check_choice(time_unit, "time_unit", ("timestep", "sigma", "reversed"))
        self.unit, self.length = time_unit, length
        self.config = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": length,
            "shift": shift,
        }

    def level(self, timestep: int) -> tuple[float, float]:
        """(1 - σ, σ)."""
        sigma = timestep / self.length
        return 1.0 - sigma, sigma

    def time_input(self, timestep: int) -> float:
        """1000 · σ, σ or 1 - σ."""
        signal, sigma = self.level(timestep)
        return {"timestep": 1000.0 * timestep / self.length, "sigma": sigma, "reversed": signal}[self.unit]


class CleanSchedule(NoiseSchedule):
    """No forward process: latents are read as they are.

    Args:
        own_timestep: constant time input, whatever the timestep of a branch (CleanDIFT); may be fractional. None for a
            network without time input.
        length: number of timesteps accepted.
    """

    prediction_type = None

    def __init__(self, own_timestep: float | None = None, length: int = 1000) -> None:
        self.own_timestep, self.length = own_timestep, length
        self.config = {}
        self.reads_clean = own_timestep is not None

    def level(self, timestep: int) -> tuple[float, float]:
        """Signal 1 and noise 0 at every timestep."""
        return 1.0, 0.0

    def time_input(self, timestep: int) -> float:
        """The network's own timestep."""
        return timestep if self.own_timestep is None else self.own_timestep

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """The clean latents unchanged, whatever the timestep."""
        return latents
