"""Image prompts beside a frozen U-Net: decoupled cross-attention on tokens of an image (IP-Adapter, Ye et al. 2023).

The network is not changed. During a pass one pair of hooks per cross-attention adds scale · attention(Q, K', V') to the
rows that have an image prompt, where the network itself adds up its heads: in front of the output projection, with the
queries of the pass (LoRA included) and keys and values of the image's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.ops.rows import on_device

__all__ = ["ImagePromptAdapter", "ImageTokens", "ImageUse"]

#: of CLIP's images, in RGB
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageTokens:
    """Tokens that stand for images.

    Attributes:
        shown: (B, M, C) of B images.
        unshown: (1, M, C) of no image, for the second pass of guidance.
    """

    shown: Tensor
    unshown: Tensor


@dataclass(frozen=True)
class ImageUse:
    """Rows of a batch that see image tokens.

    Attributes:
        rows: R of the batch.
        tokens: (R, M, C).
        scale: factor of the attention on them.
    """

    rows: slice
    tokens: Tensor
    scale: float


class ImagePromptAdapter(nn.Module):
    """An IP-Adapter: image encoder, projection to tokens, keys and values of every cross-attention.

    Args:
        source: weights file and folder of the encoder it was read from.
        digest: hash of both.
        encoder: CLIP vision model with projection.
        projection: image embedding (B, D) → tokens (B, M, C); for ``fine`` patch states (B, P, D) → tokens.
        layers: path of a cross-attention in the U-Net → weights of its keys and values, (inner, C) each.
        fine: the projection reads the states before the encoder's last layer ("plus") instead of its embedding.
    """

    def __init__(
        self,
        source: tuple[str, str],
        digest: str,
        encoder: nn.Module,
        projection: nn.Module,
        layers: Mapping[str, tuple[Tensor, Tensor]],
        fine: bool,
    ) -> None:
        super().__init__()
        self.source, self.digest, self.fine = source, digest, fine
        self.encoder, self.projection = encoder, projection
        self.paths = tuple(layers)
        self.keys, self.values = (
            nn.ParameterList(nn.Parameter(pair[which], requires_grad=False) for pair in layers.values())
            for which in (0, 1)
        )
        self.requires_grad_(False)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> ImageTokens:
        """Tokens of images (B, 3, H, W) in [-1, 1]."""
        pixels = self.pixels(images)
        if self.fine:
            states = [self._states(given) for given in (pixels, torch.zeros_like(pixels[:1]))]
        else:
            embeds = self.encoder(pixels).image_embeds
            states = [embeds, torch.zeros_like(embeds[:1])]
        return ImageTokens(*map(self.projection, states))

    def pixels(self, images: Tensor) -> Tensor:
        """Images as CLIP's processor makes them: shorter side resized, bicubic, the middle cut out, normalised."""
        config: Any = self.encoder.config
        side, (height, width) = int(config.image_size), images.shape[-2:]
        size = [side * given // min(height, width) for given in (height, width)]
        shares = images.float() / 2 + 0.5
        if size != [height, width]:
            shares = F.interpolate(shares, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((given - side) // 2 for given in size)
        mean, std = (on_device(values, shares.device, shares.dtype).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        return ((shares[..., top : top + side, left : left + side] - mean) / std).to(self.keys[0].dtype)

    def _states(self, pixels: Tensor) -> Tensor:
        """States (B, 1 + P, D) before the encoder's last layer.

        By a hook that is removed: the ones by which transformers returns hidden states stay in the network for good.
        """
        kept = _Kept()
        network: Any = self.encoder
        handle = network.vision_model.encoder.layers[-1].register_forward_pre_hook(kept, with_kwargs=True)
        try:
            network(pixels)
        finally:
            handle.remove()
        assert kept.states is not None
        return kept.states

    @contextmanager
    def applied(self, unet: nn.Module, uses: Sequence[ImageUse]) -> Iterator[None]:
        """Context in which rows of every batch through ``unet`` see image tokens."""
        acting = [use for use in uses if use.scale != 0.0]
        handles = []
        try:
            for index, path in enumerate(self.paths if acting else ()):
                attention = unet.get_submodule(path)
                hooks = _Decoupled(attention, self.keys[index], self.values[index], acting)
                handles.append(attention.get_submodule("to_q").register_forward_hook(hooks.keep))
                # before other hooks, which then see the steered input
                handles.append(attention.get_submodule("to_out.0").register_forward_pre_hook(hooks.add, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Kept:
    """Forward pre-hook that keeps a layer's input; a class so that modules stay picklable."""

    states: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        self.states = inputs[0] if inputs else named["hidden_states"]


@dataclass
class _Decoupled:
    """Hooks of one cross-attention."""

    attention: Any
    key: Tensor
    value: Tensor
    uses: Sequence[ImageUse]
    queries: Tensor | None = field(default=None, repr=False)

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook of the query projection."""
        self.queries = output

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Forward pre-hook of the output projection."""
        assert self.queries is not None
        hidden = inputs[0].clone()
        for use in self.uses:
            tokens = use.tokens.to(self.key)
            parts = (self.queries[use.rows], F.linear(tokens, self.key), F.linear(tokens, self.value))
            query, key, value = (x.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2) for x in parts)
            attended = F.scaled_dot_product_attention(query, key, value)
            hidden[use.rows] += use.scale * attended.transpose(1, 2).flatten(2)
        self.queries = None
        return (hidden, *inputs[1:])
