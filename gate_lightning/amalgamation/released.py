"""The two amalgamations of GATE's released segmentation code, with all that their numbers depend on.

The released residual blocks start with every convolution, scale and shift at zero. Then no gradient ever reaches
anything but the last shift: a block is the identity plus a vector. "Four blocks" there are one block four times over,
so they add that vector four times. This is what is built here; the 29.5 million parameters beside it, in a block of
1280 channels, stay zero and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.structures import FeaturesInfo

__all__ = ["ReleasedConcat", "ReleasedRefiner", "ReleasedWeighted"]

#: times that a released block is run: over each branch's map, and over what a model gives at a level
BRANCH_REPEATS, LEVEL_REPEATS = 4, 2


class ReleasedRefiner(nn.Module):
    """What released residual blocks do: x + Σ_k repeats_k · shift_k.

    The shifts stay apart although one would do: an optimiser that scales gradients (AdamW) moves their sum further than
    it would move that one.

    Args:
        channels: C of the (B, C, h, w) in and out.
        repeats: how often each of the blocks, one behind the other, is run.
    """

    def __init__(self, channels: int, repeats: Sequence[int]) -> None:
        super().__init__()
        self.repeats = tuple(repeats)
        self.shifts = nn.Parameter(torch.zeros(len(self.repeats), channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        times = self.shifts.new_tensor(self.repeats)
        return x + (times @ self.shifts)[:, None, None]


class ReleasedConcat(ConcatAmalgamation):
    """Concatenated branches behind dead refiners: what the released configurations run.

    They name the class that joins several models: four and two runs of blocks over each branch, one over all together.

    Args:
        feature_info: branch → layer id → channels and stride. One layer per branch and stride, as in those runs.
        concatenated: branches that are put behind the others.
    """

    def __init__(self, feature_info: FeaturesInfo, concatenated: Collection[str] = ()) -> None:
        super().__init__(feature_info, concatenated)
        self.refiners = nn.ModuleList(
            ReleasedRefiner(self.fused_channels(level), (BRANCH_REPEATS, LEVEL_REPEATS, 1))
            if level.fused
            else nn.Identity()
            for level in self.levels
        )

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Concatenate (B, C_branch, h, w) over channels, and refine."""
        joined, weights = super().fuse(index, maps)
        return self.refiners[index](joined), weights


class ReleasedWeighted(WeightedAmalgamation):
    """Weights per branch and channel behind dead refiners: the class that the released code has for GATE.

    Four runs of a block of its own over each branch's map, one assigner per level, two runs of a block over the sum. No
    reward of sparsity or diversity.

    Args:
        feature_info: branch → layer id → channels and stride. Fused branches must have equal channels per stride.
        concatenated: branches that are concatenated rather than fused.
    """

    def __init__(self, feature_info: FeaturesInfo, concatenated: Collection[str] = ()) -> None:
        super().__init__(feature_info, concatenated, per_channel=True, norm="BN")
        self.before = nn.ModuleList(
            nn.ModuleList(ReleasedRefiner(level.channels[branch], (BRANCH_REPEATS,)) for branch in level.fused)
            for level in self.levels
        )
        self.after = nn.ModuleList(
            ReleasedRefiner(self.fused_channels(level), (LEVEL_REPEATS,)) if level.fused else nn.Identity()
            for level in self.levels
        )

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Refine, weigh and add the branches of a level, see WeightedAmalgamation, and refine the sum."""
        own = self.before[index]
        assert isinstance(own, nn.ModuleList)
        fused, weights = super().fuse(index, [refine(map_) for refine, map_ in zip(own, maps, strict=True)])
        return self.after[index](fused), weights
