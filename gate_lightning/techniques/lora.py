"""LoRA: low-rank adapters of denoiser and text encoder to the style of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Card, Conditioning, Technique
from gate_lightning.utils.checks import check_type, number

__all__ = ["LoRA"]


class NoLoRAError(WeightsError):
    """LoRAs without files; the message has the keys that take them, and the command that trains one.

    Args:
        roles: of the LoRAs.
        images: name of the data set.
    """

    def __init__(self, roles: Sequence[str], images: str) -> None:
        keys = " ".join(f"technique.lora.weights.{role}=<file.safetensors>" for role in roles)
        super().__init__(
            f"the lora technique has no weights of the role{'s' * (len(roles) > 1)} {', '.join(map(repr, roles))} for "
            f"{images}: set {keys} (with ++ before it for a role of your own). Train one on about 30 of its images "
            "with: python train.py experiment=lora backbone=<yours> dataset.root=<folder of the images>"
        )
        self.roles = tuple(roles)


@dataclass(frozen=True)
class LoRA(Technique):
    """LoRA on the denoiser, and on the text encoder if the file has such a part (GATE §5.1).

    Args:
        role: name of the adapter in the backbone, such as "moderate".
        weights: safetensors file (diffusers, PEFT, kohya or original format, see ``backbones.adapters.lora_files``),
            its folder, a hub id, ``asset:…`` of this package, or a mapping from roles to these.
        scale: factor on top of the file's own alpha / rank.

    Raises:
        ConfigError: no role, or a scale that is no number.
    """

    role: str = "moderate"
    weights: str | Mapping[str, str | None] | None = None
    scale: float = 1.0

    kind = "lora"
    order = 30
    short = several = "role"

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not self.role:
            raise ConfigError(f"lora.role={self.role!r}: expected a name, such as moderate")
        check_type(
            self.weights, "lora.weights", str | Path | Mapping | None, "a file, or a mapping from roles to files"
        )
        own = _of_role(self.weights, self.role) if isinstance(self.weights, Mapping) else self.weights
        object.__setattr__(self, "weights", None if not own else str(own))
        object.__setattr__(self, "scale", number(self.scale, "lora.scale"))

    @property
    def adapter(self) -> str:
        """Its name in the backbone, without dots, which separate modules."""
        return self.role.replace(".", "_")

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; the weights are identified by the backbone's description."""
        return {"technique": self.kind, "adapter": self.adapter, "scale": self.scale}

    def bound(self, card: Card, seed: int) -> LoRA:
        """Raise NoLoRAError if there is no file."""
        if self.weights is None:
            raise NoLoRAError([self.role], card.name)
        return self

    def prepare(self, backbone: Backbone) -> None:
        """Load the adapter beside the backbone."""
        self.check_supported(backbone)
        if not isinstance(self.weights, str):
            raise WeightsError(f"LoRA {self.role!r} has no file; give it one: LoRA({self.role!r}, weights=<file>)")
        backbone.require_adapter(self.adapter, self.weights)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Add the adapter to the conditioning."""
        return replace(conditioning, adapters=(*conditioning.adapters, (self.adapter, self.scale)))


def _of_role(weights: Mapping[str, str | None], role: str) -> str | None:
    """File of a role, whether accents are written as one character or as two."""
    wanted = unicodedata.normalize("NFC", role)
    return next((file for name, file in weights.items() if unicodedata.normalize("NFC", str(name)) == wanted), None)
