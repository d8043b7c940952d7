"""Data exchanged between a backbone and its callers: prompts, adapters, ControlNet residuals, places of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

#: adapters of one sample, (name, scale) each; empty for the bare network
Adapters = tuple[tuple[str, float], ...]
#: content of an adapter's file
AdapterKind = Literal["lora", "tokens", "prompt"]
ADAPTER_KINDS: Mapping[AdapterKind, str] = {"lora": "LoRA", "tokens": "learned tokens", "prompt": "learned prompt"}
#: ControlNet residuals of a batch: module path inside the denoiser → (B, …), added to the module's output. A U-Net adds
#: them to the skip connections from these modules, and to the middle block's output.
Residuals = Mapping[str, Tensor]
#: kind of a layer: a module's output or input map (B, C, h, w); the image tokens (B, N, C) of a module's output or
#: input, reshaped to a map; attention weights; a map of attention weights averaged over heads and layers; the image
#: decoded after one scheduler step.
LayerKind = Literal["output", "input", "tokens", "input_tokens", "attention", "averaged", "image"]


@dataclass(frozen=True)
class PromptEmbeds:
    """Text embeddings of B prompts.

    Attributes:
        hidden: (B, T, C), one vector per token; read by (cross-)attention.
        pooled: (B, P), one vector per prompt, for models that add it to the time embedding (SDXL, SD 3, Flux), or None.
        mask: (B, T), false for padding, for models that mask it (PixArt, SANA, Lumina, Qwen-Image), or None.
        second: embeddings of a second text encoder that are not concatenated to the first's (HunyuanDiT), or None.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    second: PromptEmbeds | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: slice | Tensor) -> PromptEmbeds:
        """The embeddings of some of the prompts."""
        return PromptEmbeds(self.hidden[rows], *(part if part is None else part[rows] for part in self._optional))

    @property
    def tensors(self) -> list[Tensor]:
        """All its tensors, also nested ones, in a fixed order."""
        further = [] if self.second is None else self.second.tensors
        return [one for one in (self.hidden, self.pooled, self.mask) if one is not None] + further

    @property
    def _optional(self) -> tuple[Any, Any, Any]:
        return self.pooled, self.mask, self.second

    @staticmethod
    def cat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """Concatenation over prompts; T must be equal, and pooled, mask and second be given in all parts or in none.

        Raises:
            ValueError: embeddings of different models.
        """
        optional = [_cat(column) for column in zip(*(part._optional for part in parts), strict=True)]
        return PromptEmbeds(torch.cat([part.hidden for part in parts]), *optional)


def _cat(column: Sequence[Any]) -> Any:
    present = [part for part in column if part is not None]
    if not present:
        return None
    if len(present) != len(column):
        raise ValueError(f"{len(present)} of {len(column)} prompts have a pooled vector, mask or second embedding")
    return PromptEmbeds.cat(present) if isinstance(present[0], PromptEmbeds) else torch.cat(present)


@dataclass(frozen=True)
class LayerSpec:
    """Place of a layer in the network, and the size of its features.

    Attributes:
        module: module path inside the denoiser, "" for the denoiser itself; for ``attention`` the module with ``to_q``
            and ``to_k``.
        kind: see LayerKind.
        channels: channels of the feature map; heads for ``attention``; 0 if they depend on the image's size.
        stride: pixels of the image per position; 0 for ``attention``, which is no map: (B, heads, queries, keys).
        element: index in a tuple output; position or name of an input.
        offset: for ``tokens``, number of tokens before the image's (class token, registers, text); None if the image's
            are the last of the sequence.
        sources: for ``averaged``, its ``attention`` layers, grouped by size; their ``stride`` is that of the queries.
    """

    module: str
    kind: LayerKind
    channels: int
    stride: int
    element: int | str = 0
    offset: int | None = 0
    sources: tuple[tuple[LayerSpec, ...], ...] = ()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map for an image of that size in pixels."""
        return -(-height // self.stride), -(-width // self.stride)
