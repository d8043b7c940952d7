"""LoRA: a denoiser that knows the style of the data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning

__all__ = ["LoRA"]


@dataclass(frozen=True)
class LoRA:
    """A LoRA on the denoiser, and on the text encoder where the file has such a part (GATE §5.1).

    Args:
        adapter: name it gets in the backbone, e.g. "moderate".
        weights: safetensors file (diffusers, PEFT, kohya or original format, see ``backbones.lora_files``), or
            ``asset:…`` of this package.
        scale: factor of its effect, on top of the file's own alpha / rank.
    """

    adapter: str
    weights: str
    scale: float = 1.0

    name = "lora"
    order = 30

    def __post_init__(self) -> None:
        if "." in self.adapter or not self.adapter:
            raise ConfigError(f"adapter name {self.adapter!r}: expected a name without dots")

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; the weights are identified by the backbone's description."""
        return {"name": self.name, "adapter": self.adapter, "scale": self.scale}

    def prepare(self, backbone: Backbone) -> None:
        """Load the adapter beside the backbone."""
        if self.name not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} takes no LoRA; use techniques=none with it")
        backbone.require_adapter(self.adapter, self.weights)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Add the adapter to those already there."""
        return replace(conditioning, adapters=(*conditioning.adapters, (self.adapter, self.scale)))
