"""Amalgamation by concatenation, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.levels import Level

__all__ = ["ConcatAmalgamation"]


class ConcatAmalgamation(Amalgamation):
    """Concatenation of all branches at each level, in the order of the branches.

    Branches may read different layers: a level holds those that have its stride.
    """

    def fused_channels(self, level: Level) -> int:
        """Channels of all fused branches together."""
        return sum(level.channels[branch] for branch in level.fused)

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Concatenate (B, C_branch, h, w) over channels."""
        del index
        return torch.cat(tuple(maps), dim=1), None
