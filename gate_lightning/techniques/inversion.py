"""DDIM inversion: noise predicted by the denoiser in place of drawn noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, Predict, Technique
from gate_lightning.techniques.schedule import noise_schedule, wide
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["Inversion"]


@dataclass(frozen=True)
class Inversion(Technique):
    """Clean latents brought up to the timestep that is read by DDIM steps in reverse (Song et al. 2021, §4.3).

    Every pass has the conditioning of the branch: prompt, ControlNets, LoRAs. No noise is drawn. For flow-matching
    models the steps are Euler's.

    Args:
        stride: timesteps per step, at least 1. The released GATE code takes 10, Diffusion Hyperfeatures 20.
        first: timestep assigned to the clean latents, 0 or more; -1: they are clean, and the first step leads to 0, as
            in Hyperfeatures.
        last: "exact" ends at the timestep that is read, with a shorter step if needed; "grid" ends at the next
            multiple of the stride above it, as in the released code, with noisier latents. Equal on the grid.
        told: time input of a pass: the timestep that its step leads to ("next"), or that of its latents ("current", as
            in Hyperfeatures).
    """

    stride: int = 10
    first: int = 1
    last: Literal["exact", "grid"] = "exact"
    told: Literal["next", "current"] = "next"

    kind = "inversion"
    order = 40
    decides = "latents"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", whole_number(self.stride, "inversion.stride", 1))
        object.__setattr__(self, "first", whole_number(self.first, "inversion.first", -1))
        check_choice(self.last, "inversion.last", ("exact", "grid"))
        check_choice(self.told, "inversion.told", ("next", "current"))

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; ``told`` only where it is not "next", as in older run folders."""
        return {key: value for key, value in super().description.items() if (key, value) != ("told", "next")}

    def prepare(self, backbone: Backbone) -> None:
        """Raise ConfigError for a backbone without noise schedule."""
        noise_schedule(backbone, "DDIM inversion")

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Move the clean latents up to the timestep that is read."""
        return replace(conditioning, trajectory=self)

    def levels(self, timestep: int) -> list[int]:
        """Timesteps of the latents along the trajectory, the first included."""
        clean, first = [self.first] if self.first < 0 <= timestep else [], max(self.first, min(timestep, 0))
        if self.last == "grid":
            return [*clean, *(range(first, timestep + self.stride, self.stride) or [first])]
        return [*clean, *range(first, timestep, self.stride), max(timestep, first)]

    def check(self, backbone: Backbone, timestep: int) -> None:
        """Raise ConfigError if the trajectory leaves the schedule."""
        whole_number(self.first, "inversion.first", backbone.schedule.lowest)
        last = self.levels(timestep)[-1]
        if last >= backbone.schedule.length:
            raise ConfigError(
                f"inversion from {self.first} by {self.stride} to the timestep {timestep} ends at {last}, outside 0 … "
                f"{backbone.schedule.length - 1}; choose a lower timestep, another stride, or last=exact"
            )

    def start(self, timestep: int) -> None:
        """None: no noise is added."""

    def run(self, latents: Tensor, timestep: int, predict: Predict, backbone: Backbone) -> Tensor:
        """See Trajectory; one pass per step."""
        schedule = noise_schedule(backbone, "DDIM inversion")
        state = wide(latents)
        for level, target in pairwise(self.levels(timestep)):
            told = target if self.told == "next" else level
            state = schedule.move(state, predict(state, told), level, target)
        return state.to(latents)
