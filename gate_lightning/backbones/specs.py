"""What passes between a backbone and whoever uses it: prompts, adapters, residuals, and where layers are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "ADAPTER_KINDS",
    "AdapterKind",
    "Adapters",
    "LayerKind",
    "LayerSpec",
    "PromptEmbeds",
    "Residuals",
]

#: adapters that act on one sample: (name, scale) each; none is the bare network.
Adapters = tuple[tuple[str, float], ...]
#: what the file of an adapter holds
AdapterKind = Literal["lora", "tokens", "prompt"]
ADAPTER_KINDS: Mapping[AdapterKind, str] = {"lora": "LoRA", "tokens": "learned tokens", "prompt": "learned prompt"}
#: ControlNet residuals of a batch: one tensor per skip connection, and the one of the middle block.
Residuals = tuple[tuple[Tensor, ...], Tensor]
#: how a hook reads a layer: a module's output or input map, tokens (B, N, C) to lay out as a map, attention weights,
#: attention weights averaged over heads and layers and laid out as a map, the image decoded after one scheduler step.
LayerKind = Literal["output", "input", "tokens", "attention", "averaged", "image"]


@dataclass(frozen=True)
class PromptEmbeds:
    """What a denoiser is told, as its text encoders say it.

    Attributes:
        hidden: (B, T, C), one vector per token; read by cross-attention.
        pooled: (B, P), one vector per prompt, for models that add it to the time embedding (SDXL); else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: slice | Tensor) -> PromptEmbeds:
        """The same for some of the prompts."""
        return PromptEmbeds(self.hidden[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def cat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """Prompts behind one another; all of equal T, all with or all without ``pooled``."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return PromptEmbeds(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class LayerSpec:
    """Where one layer id is found in the network and what comes out there.

    Attributes:
        module: path of the module inside the denoiser, "" for the denoiser itself; for ``attention`` the one with
            ``to_q`` and ``to_k``.
        kind: how it is read, see LayerKind.
        channels: channels of the feature map; heads for ``attention``; 0 where they depend on the image's size.
        stride: pixels of the image per position; 0 for ``attention``, which is no map: (B, heads, queries, keys).
        grid: path of the module whose input map (B, C, h, w) the tokens come from, "" if no tokens. Of an ``averaged``
            layer: whose input has the size that the maps are resized to.
        sources: of an ``averaged`` layer, the ``attention`` layers (each with its grid) it is made of, by size.
    """

    module: str
    kind: LayerKind
    channels: int
    stride: int
    grid: str = ""
    sources: tuple[tuple[LayerSpec, ...], ...] = ()
