"""The amalgamations of GATE's released code for segmentation, equal in their results, and for correspondence.

In segmentation, the released residual blocks start with every convolution, scale and shift at zero, so gradients reach
the last shift alone and a block is the identity plus a vector. The "four blocks" of the code are one block applied four
times: they add that vector four times. Only this is built here; the other parameters (29.5 million in a block of 1280
channels) stay zero and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.random import fork_rng

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.structures import Features, FeaturesInfo, Pyramid

__all__ = ["ReleasedConcat", "ReleasedJoined", "ReleasedRefiner", "ReleasedWeighted"]

#: applications of a released block: to each branch's map, and to the joined map of a level
BRANCH_REPEATS, LEVEL_REPEATS = 4, 2


class ReleasedRefiner(nn.Module):
    """Released residual blocks: x + Σ_k repeats_k · shift_k.

    The shifts stay separate parameters: an optimiser that scales gradients (AdamW) moves their sum further than it
    would move a single one.

    Args:
        channels: C of the (B, C, h, w) in and out.
        repeats: applications of each of the successive blocks.
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
    """Concatenation of the branches with dead refiners, as in the released configurations.

    These name the class that joins several models: blocks are applied four and two times to each branch, once to all.

    Args:
        feature_info: branch → layer id → channels and stride. One layer per branch and stride, as in those runs.
        concatenated: branches whose channels follow those of the others.
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
    """Weights per branch and channel with dead refiners: the released code's class for GATE.

    A block is applied four times to each branch's map, an assigner per level weighs them, another block is applied
    twice to the sum. There is no reward of sparsity or diversity.

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


class ReleasedJoined(WeightedAmalgamation):
    """Weights per branch and channel of all layers joined: the released code's network for correspondence.

    That code never switches it to evaluation: images are measured under dropout, and normalised by the statistics of
    the batch they happen to be in. So an image's descriptors depend on the images beside it, and results on the size of
    the batches and the number of processes. Dropout draws the same numbers for every batch that is evaluated, and none
    of training's; running statistics, which nothing would read, are left out. There is no reward of sparsity.

    Args:
        feature_info: branch → layer id → channels and stride. Fused branches must have equal channels.
        concatenated: branches that are concatenated rather than fused.
        always_training: as released; False to evaluate without dropout and by running statistics.
    """

    def __init__(
        self, feature_info: FeaturesInfo, concatenated: Collection[str] = (), always_training: bool = True
    ) -> None:
        super().__init__(feature_info, concatenated, per_channel=True, norm="BN", joined=True)
        self.always_training, self._evaluated = always_training, False
        for module in self.modules() if always_training else ():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def train(self, mode: bool = True) -> ReleasedJoined:
        """Switch between training and evaluation; where ``always_training``, layers stay in training."""
        self._evaluated = not mode
        super().train(mode or self.always_training)
        return self

    def forward(self, features: Features) -> Pyramid:
        """Pyramid of a batch's features, see `Amalgamation`."""
        if not (self._evaluated and self.always_training):
            return super().forward(features)
        first = next(map_ for maps in features.values() for map_ in maps.values())
        with fork_rng([first.device] if first.device.type != "cpu" else [], device_type=first.device.type):
            torch.manual_seed(0)
            return super().forward(features)
