"""What a technique is: something that changes how a denoising pass is conditioned, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters
from gate_lightning.structures import Conditions

__all__ = ["Conditioning", "Control", "ControlSource", "Predict", "Technique", "Trajectory"]


class ControlSource(Protocol):
    """Where the control images of a ControlNet come from; equal (and hashable) for equal images."""

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control images (B, 3, H, W) in [0, 1] for images (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Control:
    """One ControlNet at work.

    Attributes:
        name: of the ControlNet in the backbone.
        source: makes the control images; called once per batch for all branches with an equal source.
        scale: factor of its residuals.
        kept: for each sample whether it has this ControlNet, or None if all have (training-time dropout).
    """

    name: str
    source: ControlSource
    scale: float
    kept: tuple[bool, ...] | None = None

    def scaled(self, residual: Tensor, rows: Sequence[int]) -> Tensor:
        """The residual (R, C, h, w) of these R images of the batch at its scale; 0 for those that go without it."""
        if self.kept is None:
            return self.scale * residual
        scales = residual.new_tensor([self.scale * self.kept[row] for row in rows])
        return scales.view(-1, *[1] * (residual.dim() - 1)) * residual


#: (latents, timestep) → the prediction of the conditioned denoiser, in the type of the latents
Predict = Callable[[Tensor, int], Tensor]


@runtime_checkable
class Trajectory(Protocol):
    """Passes of the denoiser that bring latents to the timestep that is read; equal (and hashable) for equal plans."""

    def check(self, backbone: Backbone, timestep: int) -> None:
        """Raise ConfigError unless features can be read at ``timestep`` after this walk."""

    def start(self, timestep: int) -> int | None:
        """The timestep to whose level the clean latents are noised first, or None for no noise."""

    def run(self, latents: Tensor, timestep: int, predict: Predict, backbone: Backbone) -> Tensor:
        """Latents (B, c, h, w) at the level of ``timestep``, from those at the level of ``start(timestep)``."""


@dataclass(frozen=True)
class Conditioning:
    """How one branch's denoising pass is conditioned; techniques make changed copies of it.

    Attributes:
        prompts: B prompts.
        controls: ControlNets whose residuals are added up.
        adapters: (name, scale) of the LoRAs that act on text encoder and denoiser.
        walk: passes that move the latents before the one that is read; None for that one alone.
    """

    prompts: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    adapters: Adapters = ()
    walk: Trajectory | None = None


@runtime_checkable
class Technique(Protocol):
    """An off-the-shelf generation technique that steers the denoiser.

    Attributes:
        name: what ``techniques=`` calls it.
        order: techniques of a branch are applied by rising order: prompt 10, controlnet 20, lora 30,
            inversion 40, denoise 50.
        description: its settings, JSON-able; for caches and checkpoints.
    """

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> int: ...

    @property
    def description(self) -> dict[str, object]: ...

    def prepare(self, backbone: Backbone) -> None:
        """Load into the backbone what the technique needs; raises before anything expensive if that cannot work."""

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """The changed conditioning of a batch."""
