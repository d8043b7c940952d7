"""Plain data between a backbone and its callers: prompts, adapters, ControlNet residuals, places of layers."""

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

#: adapters that act on one sample: (name, scale) each; none is the bare network.
Adapters = tuple[tuple[str, float], ...]
#: what the file of an adapter holds
AdapterKind = Literal["lora", "tokens", "prompt"]
ADAPTER_KINDS: Mapping[AdapterKind, str] = {"lora": "LoRA", "tokens": "learned tokens", "prompt": "learned prompt"}
#: ControlNet residuals of a batch: path of a module inside the denoiser → (B, …) added to what the module gives. A
#: U-Net adds them to the skip connections that start there, and to the middle block's output.
Residuals = Mapping[str, Tensor]
#: how a layer is read: a module's output or input map (B, C, h, w); the image's tokens (B, N, C) of a module's output
#: or input, laid out as a map; attention weights; attention weights averaged over heads and layers and laid out as a
#: map; the image decoded after one scheduler step.
LayerKind = Literal["output", "input", "tokens", "input_tokens", "attention", "averaged", "image"]


@dataclass(frozen=True)
class PromptEmbeds:
    """B prompts as the text encoders of a model embed them.

    Attributes:
        hidden: (B, T, C), one vector per token; read by (cross-)attention.
        pooled: (B, P), one vector per prompt, for models that add it to the time embedding (SDXL, SD 3, Flux), or None.
        mask: (B, T), true for tokens that are read and false for padding, for models that mask it (PixArt, SANA,
            Lumina, Qwen-Image), or None.
        second: of a second text encoder whose tokens are no continuation of the first's (HunyuanDiT), or None.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    second: PromptEmbeds | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: slice | Tensor) -> PromptEmbeds:
        """Some of the prompts."""
        return PromptEmbeds(self.hidden[rows], *(part if part is None else part[rows] for part in self._optional))

    @property
    def _optional(self) -> tuple[Any, Any, Any]:
        return self.pooled, self.mask, self.second

    @staticmethod
    def cat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        """The prompts of all parts; T must be equal, and a part of the embeddings be there in all or in none.

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
    """Where one layer id is found in the network and what comes out there.

    Attributes:
        module: path of the module inside the denoiser, "" for the denoiser itself; for ``attention`` the one with
            ``to_q`` and ``to_k``.
        kind: how it is read, see LayerKind.
        channels: channels of the feature map; heads for ``attention``; 0 where they depend on the image's size.
        stride: pixels of the image per position; 0 for ``attention``, which is no map: (B, heads, queries, keys).
        element: which of several: of a tuple output its index, of inputs the position or the argument's name.
        offset: of ``tokens``: how many stand before the image's (class token, registers, text in front); None if the
            image's are the last of the sequence.
        sources: of an ``averaged`` layer, the ``attention`` layers it is made of, by size; their ``stride`` is that of
            the queries.
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
