"""Denoising from a higher timestep before features are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import DiffusionSchedule, NoiseSchedule
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, Predict, Technique
from gate_lightning.techniques.schedule import ddim, noise_schedule, wide
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["SAMPLERS", "Denoise"]


@dataclass(frozen=True)
class Denoise(Technique):
    """Noising to a higher timestep, then denoising down to the one that is read (GATE §6.1).

    Without a ControlNet the denoised latents drift from the image; the paper uses fewer than ten steps. Every step is a
    full pass.

    Args:
        steps: at least 1; the trajectory starts ``steps`` · ``stride`` timesteps above the one that is read.
        sampler: one of SAMPLERS; all are deterministic. "pndm_released" is the trajectory of the released GATE code on
            Stable Diffusion 1.5, which is one call short: its second call repeats the first step, so that all later
            latents are one step noisier than their timestep. Its "denoising from 60 to 50" starts at 61: steps=11.
        stride: timesteps per step, at least 1.
    """

    steps: int = 10
    sampler: str = "ddim"
    stride: int = 1

    kind = "denoise"
    order = 50
    short = "steps"
    decides = "latents"
    shorthands: ClassVar[Mapping[str, str]] = {"denoise_steps": "steps", "sampler": "sampler"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number(self.steps, "denoise.steps", 1))
        object.__setattr__(self, "stride", whole_number(self.stride, "denoise.stride", 1))
        check_choice(self.sampler, "denoise.sampler", SAMPLERS)

    def prepare(self, backbone: Backbone) -> None:
        """Raise ConfigError unless backbone, sampler and stride fit."""
        schedule = noise_schedule(backbone, "denoising from a higher timestep")
        if schedule.prediction_type == "flow" and self.sampler not in _FLOW_SAMPLERS:
            raise ConfigError(
                f"denoise.sampler={self.sampler}: made for the noise levels of DDPM, and {backbone.identity.name} is a "
                f"flow-matching model; choose {' or '.join(_FLOW_SAMPLERS)} (both are Euler's steps there)"
            )
        length = schedule.length
        if self.sampler.startswith("pndm") and length // (length // min(self.stride, length)) != self.stride:
            raise ConfigError(
                f"denoise.stride={self.stride}: the PNDM sampler makes equal steps that divide the {length} timesteps "
                f"of {backbone.identity.name}, like 1, 10 or 20; choose such a stride, or sampler=ddim"
            )

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Denoise down to the timestep that is read."""
        return replace(conditioning, trajectory=self)

    def check(self, backbone: Backbone, timestep: int) -> None:
        """Raise ConfigError if the start lies above the schedule, or the end below it."""
        length = backbone.schedule.length
        if timestep < 0:
            raise ConfigError(f"denoising to the timestep {timestep}: it ends at 0 at the lowest; leave denoising out")
        if self.start(timestep) >= length:
            raise ConfigError(
                f"denoising by {self.steps} steps of {self.stride} to the timestep {timestep} starts at "
                f"{self.start(timestep)}, outside 0 … {length - 1}, the noise schedule of "
                f"{backbone.identity.name}; choose a lower timestep or fewer steps"
            )

    def start(self, timestep: int) -> int:
        """``timestep`` + steps · stride."""
        return timestep + self.steps * self.stride

    def run(self, latents: Tensor, timestep: int, predict: Predict, backbone: Backbone) -> Tensor:
        """See Trajectory; one pass per step, more for samplers of higher order."""
        schedule = noise_schedule(backbone, "denoising from a higher timestep")
        samplers = _FLOW_SAMPLERS if schedule.prediction_type == "flow" else SAMPLERS
        levels = list(range(self.start(timestep), timestep - 1, -self.stride))
        return samplers[self.sampler](wide(latents), levels, predict, schedule).to(latents)


def _pndm(latents: Tensor, levels: list[int], predict: Predict, schedule: NoiseSchedule) -> Tensor:
    """PNDM: the second pass, at the end of the first step, corrects that step, so its level is visited twice."""
    return _pndm_visiting([*levels[:2], *levels[1:-1]], latents, levels, predict, schedule)


def _pndm_released(latents: Tensor, levels: list[int], predict: Predict, schedule: NoiseSchedule) -> Tensor:
    """PNDM started in the middle of the scheduler's list: every level is visited once."""
    return _pndm_visiting(levels[:-1], latents, levels, predict, schedule)


def _pndm_visiting(
    visits: list[int], latents: Tensor, levels: list[int], predict: Predict, schedule: NoiseSchedule
) -> Tensor:
    # PNDM averages predictions of several levels, which only noise allows: other types are converted to it
    scheduler = PNDMScheduler(**{**_config(schedule), "prediction_type": "epsilon"}, skip_prk_steps=True)
    scheduler.set_timesteps(schedule.length // (levels[0] - levels[1]))
    for timestep in visits:
        _, noise = schedule.split(latents, predict(latents, timestep), timestep)
        latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    return latents


def _solver(kind: Any, scaled: bool) -> Callable[[Tensor, list[int], Predict, NoiseSchedule], Tensor]:
    """A diffusers scheduler on the levels given; ``scaled``: its samples are latents · √(1 + σ²)."""

    def sample(latents: Tensor, levels: list[int], predict: Predict, schedule: NoiseSchedule) -> Tensor:
        scheduler = kind(**_config(schedule))
        # the last level is where the last step ends; no pass is made there
        scheduler.set_timesteps(timesteps=levels)
        scheduler.set_begin_index(0)
        if scaled:
            latents = latents / schedule.level(levels[0])[0]
        for timestep in scheduler.timesteps[: (len(levels) - 1) * scheduler.order]:
            prediction = predict(scheduler.scale_model_input(latents, timestep), int(timestep))
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents * schedule.level(levels[-1])[0] if scaled else latents

    return sample


def _config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Arguments of a diffusers scheduler, with the betas as numbers: not every scheduler has every beta schedule."""
    assert isinstance(schedule, DiffusionSchedule)
    return {
        "num_train_timesteps": schedule.length,
        "trained_betas": schedule.betas,
        "prediction_type": schedule.prediction_type,
    }


#: name → (latents at the first level, levels, predict, schedule) → latents at the last level
SAMPLERS: dict[str, Callable[[Tensor, list[int], Predict, NoiseSchedule], Tensor]] = {
    "ddim": ddim,
    "pndm": _pndm,
    "pndm_released": _pndm_released,
    "euler": _solver(EulerDiscreteScheduler, scaled=True),
    "heun": _solver(HeunDiscreteScheduler, scaled=True),
    "dpmpp": _solver(DPMSolverMultistepScheduler, scaled=False),
}
#: the same for flow matching, where the step of DDIM is Euler's
_FLOW_SAMPLERS = {"ddim": ddim, "euler": ddim}
