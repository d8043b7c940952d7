"""What a technique is: something that changes how a denoising pass is conditioned, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gate_lightning.backbones.base import Adapters, Backbone
from gate_lightning.structures import Conditions

__all__ = ["Conditioning", "Control", "ControlSource", "Technique"]


class ControlSource(Protocol):
    """Where the control pictures of a ControlNet come from; equal (and hashable) for equal pictures."""

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        """Control pictures (B, 3, H, W) in [0, 1] for images (B, 3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Control:
    """One ControlNet at work.

    Attributes:
        name: of the ControlNet in the backbone.
        source: makes the control pictures; called once per batch for all branches with an equal source.
        scale: factor of its residuals.
    """

    name: str
    source: ControlSource
    scale: float


@dataclass(frozen=True)
class Conditioning:
    """How one branch's denoising pass is conditioned; techniques make changed copies of it.

    Attributes:
        prompts: B prompts.
        controls: ControlNets whose residuals are added up.
        adapters: (name, scale) of the LoRAs that act on text encoder and denoiser.
    """

    prompts: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    adapters: Adapters = ()


@runtime_checkable
class Technique(Protocol):
    """An off-the-shelf generation technique that steers the denoiser.

    Attributes:
        name: what ``techniques=`` calls it.
        order: techniques of a branch are applied by rising order: prompt 10, controlnet 20, lora 30.
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
