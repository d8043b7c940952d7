"""The prompt technique: telling the denoiser what the picture shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """A fine-grained prompt (GATE §5.1): one text for all pictures, or each picture's own caption.

    Args:
        text: the prompt, or None to read ``Conditions.captions``.
        fallback: with ``text=None``, the prompt for data sets without captions; None makes that an error.
    """

    text: str | None = None
    fallback: str | None = None

    name = "prompt"
    order = 10

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able."""
        return {"name": self.name, "text": self.text, "fallback": self.fallback}

    def prepare(self, backbone: Backbone) -> None:
        """Check that the backbone reads prompts."""
        if self.name not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} reads no prompts; use techniques=none with it")

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Replace the prompts."""
        if self.text is None and conditions.captions is not None:
            return replace(conditioning, prompts=tuple(conditions.captions))
        text = self.fallback if self.text is None else self.text
        if text is None:
            raise DataError(
                "the prompt technique reads captions (technique.prompt.source=caption), but the pictures have none; "
                "add captions to the data set, or set technique.prompt.source=fine (the data set's own prompt)"
            )
        return replace(conditioning, prompts=(text,) * len(images))
