"""Classifier-free guidance: more of what the prompt changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning, Technique
from gate_lightning.utils.checks import number

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance(Technique):
    """Classifier-free guidance (Ho and Salimans 2022): e_∅ + scale · (e_p - e_∅), with e_∅ under the negative prompt.

    This is the prediction of every pass in a trajectory and in image to image. Features are read in both passes of the
    timestep that is read, and are combined alike, F_∅ + scale · (F_p - F_∅): a definition of ours, as guidance is
    defined for predictions only; attention maps are those under the prompt. GATE rejects it: neither closeness to the
    image nor features improve (§5.1).

    Both passes have the branch's ControlNets and LoRAs; a branch costs twice the denoiser's time. At scale 1 there is
    one pass, as without the technique.

    Args:
        scale: 0 or more; 1 is no guidance, Stable Diffusion generates at 7.5.
        negative: prompt of the second pass, of all images; "" as in training for guidance.

    Raises:
        ConfigError: a scale that is no number or negative, or a negative prompt that is no text.
    """

    scale: float = 7.5
    negative: str = ""

    kind = "guidance"
    order = 35
    short = "scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number(self.scale, "guidance.scale", 0))
        if not isinstance(self.negative, str):
            raise ConfigError(f"guidance.negative={self.negative!r}: expected a text, in quotes")

    def prepare(self, backbone: Backbone) -> None:
        """Raise ConfigError for a backbone without text."""
        if "prompt" not in backbone.supports:
            raise ConfigError(
                f"{backbone.identity.name} reads no prompts, so there is nothing to guide by; leave guidance out"
            )

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Have every pass guided, under the negative prompt as well."""
        return replace(conditioning, guidance=self.scale, negative=self.negative)
