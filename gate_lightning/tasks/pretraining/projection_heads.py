"""Projection heads of CleanDIFT: from a student's features to those of its teacher at a timestep.

As in the released code (Stracke et al., CVPR 2025): token by token, three gated blocks whose normalisation is scaled by
the timestep, and which change nothing at the start, so that training begins at the student's own features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GatedBlock", "ProjectionHeads", "TimestepCondition"]

_EPSILON = 1e-6


class GatedBlock(nn.Module):
    """x + down(value · SiLU(gate)) with (value, gate) = up(norm(x)); ``down`` starts at zero.

    Args:
        width: channels.
        hidden: channels of value and gate.
        condition: channels of a condition that scales the normalised channels, from no effect on; None for learned
            scales.
    """

    def __init__(self, width: int, hidden: int, condition: int | None = None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=_EPSILON, elementwise_affine=condition is None)
        self.scale = None if condition is None else nn.Linear(condition, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)
        if self.scale is not None:
            nn.init.zeros_(self.scale.weight)

    def forward(self, tokens: Tensor, condition: Tensor | None = None) -> Tensor:
        """Tokens (B, ..., C) under conditions (B, ..., D), whose dimensions between are 1."""
        normed = self.norm(tokens)
        if self.scale is not None and condition is not None:
            normed = normed * (1.0 + self.scale(condition))
        value, gate = self.up(normed).chunk(2, dim=-1)
        out: Tensor = tokens + self.down(value * F.silu(gate))
        return out


class TimestepCondition(nn.Module):
    """Timesteps (B,) → conditions (B, width): Fourier features of fixed random frequencies, then a small network.

    Args:
        length: number of timesteps of the schedule.
        width: channels.
    """

    frequencies: Tensor

    def __init__(self, length: int, width: int = 256) -> None:
        super().__init__()
        self.last = length - 1
        self.register_buffer("frequencies", torch.randn(width // 2))
        self.project = nn.Linear(width, width, bias=False)
        norms = (nn.RMSNorm(width, eps=_EPSILON) for _ in range(2))
        blocks = (GatedBlock(width, 3 * width) for _ in range(2))
        first, second = norms
        self.mapping = nn.Sequential(first, *blocks, second)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Conditions (B, width) of timesteps (B,)."""
        phases = 2.0 * math.pi * (timesteps.float() / self.last)[:, None] * self.frequencies
        conditions: Tensor = self.mapping(self.project(torch.cat([phases.cos(), phases.sin()], dim=-1)))
        return conditions


class ProjectionHeads(nn.Module):
    """One head per layer, all under one condition.

    Args:
        channels: layer → C.
        length: number of timesteps of the schedule.
        width: channels of the condition.
        depth: blocks of a head.
    """

    def __init__(self, channels: Mapping[str, int], length: int, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.layers = tuple(channels)
        self.condition = TimestepCondition(length, width)
        # by position: names of layers may hold dots
        self.heads = nn.ModuleList(
            nn.ModuleList(GatedBlock(count, count, width) for _ in range(depth)) for count in channels.values()
        )

    def forward(self, features: Mapping[str, Tensor], timesteps: Tensor) -> dict[str, Tensor]:
        """Features {layer: (B, C, h, w)} of the student → those of the teacher at timesteps (B,)."""
        condition = self.condition(timesteps)[:, None, None]
        projected = {}
        for layer, blocks in zip(self.layers, self.heads, strict=True):
            tokens = features[layer].permute(0, 2, 3, 1)
            for block in blocks:  # type: ignore[attr-defined]
                tokens = block(tokens, condition)
            projected[layer] = tokens.permute(0, 3, 1, 2)
        return projected
