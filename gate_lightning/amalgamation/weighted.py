"""Amalgamation by learned branch weights (GATE, arXiv 2410.06719, appendix A.4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.levels import Level
from gate_lightning.amalgamation.regularization import check_assigners, weight_regularization
from gate_lightning.errors import ConfigError
from gate_lightning.ops.normalization import group_count
from gate_lightning.structures import FeaturesInfo, Pyramid
from gate_lightning.utils.checks import whole_number

__all__ = ["Norm", "ResidualBlock", "WeightAssigner", "WeightedAmalgamation", "build_norm"]

#: GN: group normalisation, of each image by itself. BN: batch normalisation.
Norm = Literal["GN", "BN"]


def build_norm(norm: Norm, channels: int) -> nn.GroupNorm | nn.BatchNorm2d:
    """Normalisation of (B, channels, h, w) by name.

    Raises:
        ConfigError: for a name other than GN and BN.
    """
    if norm == "GN":
        return nn.GroupNorm(group_count(channels), channels)
    if norm == "BN":
        return nn.BatchNorm2d(channels)
    raise ConfigError(f"norm={norm!r}; expected GN (does not depend on the batch) or BN")


class ResidualBlock(nn.Module):
    """Residual block x + norm(conv(relu(norm(conv(x))))) with 3×3 convolutions; the identity at initialisation.

    Only the last normalisation starts at zero. (If the convolutions started at zero too, every gradient but that of the
    last bias would stay zero.) Convolutions have no bias, which the normalisation after them would remove.

    Args:
        channels: C of the (B, C, h, w) in and out.
        norm: GN or BN.
    """

    def __init__(self, channels: int, norm: Norm = "GN") -> None:
        super().__init__()
        last = build_norm(norm, channels)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            build_norm(norm, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        refined: Tensor = x + self.layers(x)
        return refined


class WeightAssigner(nn.Module):
    """Weight assigner: logits over branches from the map of every branch.

    conv 3×3 → ReLU → norm → dropout → mean over positions → linear, the same network for every branch. The softmax over
    branches that follows ignores constants added to all of them, so neither the linear layer nor the normalisation has
    a bias.

    Without the mean there are logits per position: branches at several timesteps differ in what they know about a
    part of the image, coarse shapes or fine ones (MMDiff, arXiv 2606.16673, lets weights over timesteps vary so).

    Args:
        channels: C of the maps.
        outputs: logits per branch: 1 for a weight per branch, C for a weight per branch and channel.
        hidden_channels: width of the convolution.
        dropout: probability, in [0, 1).
        norm: GN, or BN as in the released code. BN's statistics are taken over images and branches together: over
            the images of one branch alone, the mean over positions that follows would be zero on average whatever
            the branch.
        spatial: leave the mean over positions out.
    """

    def __init__(
        self,
        channels: int,
        outputs: int = 1,
        hidden_channels: int = 128,
        dropout: float = 0.5,
        norm: Norm = "GN",
        spatial: bool = False,
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.conv = nn.Conv2d(channels, hidden_channels, 3, padding=1, bias=False)
        self.norm = build_norm(norm, hidden_channels)
        self.norm.register_parameter("bias", None)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_channels, outputs, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, branches, C, h, w) → logits (B, branches, outputs), ``spatial``: (B, branches, outputs, h, w)."""
        hidden = self.dropout(self.norm(self.conv(maps.flatten(0, 1)).relu()))
        logits: Tensor
        if self.spatial:
            logits = self.linear(hidden.movedim(1, -1)).movedim(-1, 1)
        else:
            logits = self.linear(hidden.mean(dim=(2, 3)))
        return logits.unflatten(0, maps.shape[:2])


class WeightedAmalgamation(Amalgamation):
    """Weighted sums of the branches, their weights chosen per image by assigners.

    With b branches r_1 … r_b and n assigners, w_i^j the weight that assigner j gives branch i (Σ_i w_i^j = 1), the
    output is the concatenation over j of Σ_i w_i^j r_i. A single branch needs no assigner: its weight is 1 and the
    output is the branch.

    Args:
        feature_info: branch → layer id → channels and stride. Fused branches must have equal channels per stride.
        concatenated: branches that are concatenated rather than fused.
        num_assigners: n; the output has n times the channels of a branch. The paper advises fewer than three.
        per_channel: a weight per branch and channel, as in the released code, instead of one per branch.
        spatial: weights of every position, for branches at several timesteps, instead of one for the whole image.
        hidden_channels: width of the assigners.
        dropout: of the assigners, in [0, 1).
        norm: GN (does not depend on the batch) or BN (as released), of assigners and refiners.
        refiner_blocks: residual blocks that every branch passes before fusion; one set per level, shared by branches.
        sparsity: γ1 ≥ 0; rewards weights that pick one branch.
        diversity: γ2 ≥ 0; rewards assigners that differ from each other.
        joined, stride: one level for all strides, see `Amalgamation`.

    Raises:
        ConfigError: if fused branches differ in channels at a stride, or a number is out of range.
    """

    def __init__(
        self,
        feature_info: FeaturesInfo,
        concatenated: Collection[str] = (),
        *,
        num_assigners: int = 1,
        per_channel: bool = False,
        spatial: bool = False,
        hidden_channels: int = 128,
        dropout: float = 0.5,
        norm: Norm = "GN",
        refiner_blocks: int = 0,
        sparsity: float = 0.0,
        diversity: float = 0.0,
        joined: bool = False,
        stride: int | None = None,
    ) -> None:
        super().__init__(feature_info, concatenated, joined, stride)
        check_assigners(num_assigners, hidden_channels, dropout, sparsity, diversity)
        whole_number(refiner_blocks, "refiner_blocks")
        branches = [branch for branch in feature_info if branch not in concatenated]
        channels = [_equal_channels(level, branches) for level in self.levels]
        self.num_assigners = num_assigners if len(branches) > 1 else 0
        self.per_channel, self.spatial = per_channel, spatial
        self.sparsity, self.diversity = sparsity, diversity
        self.refiners = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(count, norm) for _ in range(refiner_blocks if count else 0)))
            for count in channels
        )
        self.assigners = nn.ModuleList(
            nn.ModuleList(
                WeightAssigner(count, count if per_channel else 1, hidden_channels, dropout, norm, spatial)
                for _ in range(self.num_assigners if count else 0)
            )
            for count in channels
        )

    def fused_channels(self, level: Level) -> int:
        """Channels of one branch, times the number of assigners."""
        return next(level.channels[branch] for branch in level.fused) * max(1, self.num_assigners)

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Refine, weigh and add the branches of a level.

        Returns:
            Map (B, assigners · C, h, w), and weights (B, assigners, branches), with ``per_channel`` further ones over
            C, with ``spatial`` over h and w: (B, assigners, branches[, C][, h, w]); for a single branch (1, 1, 1), all
            one.
        """
        stack = torch.stack(tuple(maps), dim=1)  # (B, branches, C, h, w)
        refined = self.refiners[index](stack.flatten(0, 1)).unflatten(0, stack.shape[:2])
        assigners = self.assigners[index]
        if not isinstance(assigners, nn.ModuleList) or len(assigners) == 0:
            return refined[:, 0], refined.new_ones(1, 1, 1)
        # (B, n, b, 1 or C[, h, w])
        weights = torch.stack([assigner(refined).softmax(dim=1) for assigner in assigners], dim=1)
        if not self.per_channel:
            weights = weights.squeeze(3)
        axes = ("c" if self.per_channel else "") + ("hw" if self.spatial else "")
        return torch.einsum(f"bji{axes},bichw->bjchw", weights, refined).flatten(1, 2), weights

    def regularization(self, pyramid: Pyramid) -> Tensor | None:
        """``weight_regularization``, to be added to the loss: scalar ≤ 0, or None where it is off or one branch alone.

        The paper writes it for one set of maps; here it is the mean over images, levels and, with ``per_channel``,
        channels, with ``spatial``, positions, so that γ keeps its meaning when their number changes.
        """
        if self.num_assigners == 0 or (self.sparsity == 0.0 and self.diversity == 0.0):
            return None
        values = [weight_regularization(weights, 1, self.sparsity, self.diversity) for weights in pyramid.weights]
        return torch.stack([value.mean() for value in values]).mean()


def _equal_channels(level: Level, branches: Sequence[str]) -> int:
    """Channels of every fused branch at this level; 0 for a level that only concatenated branches have."""
    found = {branch: level.channels[branch] if branch in level.fused else 0 for branch in branches}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{branch}: {count}" for branch, count in found.items())
        raise ConfigError(
            f"branches that are fused by weights need equal channels at every stride; at stride {level.stride} they "
            f"have {listed}. Give them layers of equal width, or use amalgamation=concat"
        )
    return next(iter(found.values()), 0)
