"""Amalgamation of pixels by learned branch weights, as GATE describes it (arXiv 2410.06719, appendix A.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.regularization import check_assigners, weight_regularization
from gate_lightning.pixel_classifiers.amalgamation import GroupMaps, PixelAmalgamation, PixelFusion
from gate_lightning.pixel_classifiers.dense import project_maps, resized_sum, row_bands
from gate_lightning.pixel_classifiers.stacked import StackedBatchNorm, StackedDropout, StackedLinear

__all__ = ["PixelAssigner", "WeightedPixels"]


class PixelAssigner(nn.Module):
    """Weight assigner: logits over the entries of a pixel.

    linear → ReLU → batch norm → dropout → linear, one such network per ensemble member, the same for all entries. A
    softmax over entries follows, so what is added to all of them alike has no effect: neither the last layer nor the
    normalisation has a bias. Batch statistics are taken over pixels and entries together.

    Args:
        members: M.
        channels: D of an entry.
        outputs: logits per entry: 1 for a weight per entry, D for a weight per entry and channel.
        hidden_channels: width.
        dropout: probability, in [0, 1).
        key: of initial weights and dropout masks.
    """

    def __init__(
        self,
        members: int,
        channels: int,
        outputs: int,
        *,
        hidden_channels: int = 128,
        dropout: float = 0.5,
        key: Sequence[object],
    ) -> None:
        super().__init__()
        self.first = StackedLinear(members, channels, hidden_channels, key=(*key, "first"))
        self.norm = StackedBatchNorm(members, hidden_channels, bias=False)
        self.dropout = StackedDropout(members, dropout, key=(*key, "dropout"))
        self.last = StackedLinear(members, hidden_channels, outputs, key=(*key, "last"), bias=False)

    def forward(self, entries: Tensor) -> Tensor:
        """(M or 1, P, entries, D) → logits (M, outputs, P, entries)."""
        hidden: Tensor = self.first(entries.flatten(1, 2).transpose(1, 2))
        return self._later_layers(hidden).unflatten(2, entries.shape[1:3])

    def tail(self, projected: Tensor) -> Tensor:
        """Logits (M, outputs, N) from the first layer's products of N pixels, without its bias."""
        assert self.first.bias is not None
        return self._later_layers(projected + self.first.bias.unsqueeze(-1))

    def _later_layers(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(self.norm(hidden.relu())))
        return logits


class WeightedPixels(PixelAmalgamation):
    """Weighted sums of a group's entries, the weights chosen per pixel by assigners; a set of assigners per member.

    With b entries r_1 … r_b and n assigners, w_i^j the weight that assigner j gives entry i (Σ_i w_i^j = 1), a group
    becomes the concatenation over j of Σ_i w_i^j r_i. A group of one entry needs no assigner: its weight is 1.

    Args:
        backbone_groups: name → (entries, channels of an entry).
        members: M.
        seed: of initial weights and dropout.
        num_assigners: n. The paper advises fewer than three.
        per_channel: a weight per entry and channel, as in the released code, instead of one per entry.
        hidden_channels: width of the assigners.
        dropout: of the assigners, in [0, 1).
        sparsity: γ1 ≥ 0; rewards weights that pick one entry.
        diversity: γ2 ≥ 0; rewards assigners that differ from each other.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(
        self,
        backbone_groups: Mapping[str, tuple[int, int]],
        members: int = 10,
        *,
        seed: int = 0,
        num_assigners: int = 1,
        per_channel: bool = False,
        hidden_channels: int = 128,
        dropout: float = 0.5,
        sparsity: float = 0.0,
        diversity: float = 0.0,
    ) -> None:
        super().__init__(backbone_groups, members, seed=seed)
        check_assigners(num_assigners, hidden_channels, dropout, sparsity, diversity)
        self.num_assigners, self.per_channel = num_assigners, per_channel
        self.sparsity, self.diversity = sparsity, diversity
        self.assigners = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    PixelAssigner(
                        members,
                        channels,
                        channels if per_channel else 1,
                        hidden_channels=hidden_channels,
                        dropout=dropout,
                        key=("pixel_assigner", seed, name, index),
                    )
                    for index in range(num_assigners)
                )
                for name, (entries, channels) in backbone_groups.items()
                if entries > 1
            }
        )

    @property
    def out_channels(self) -> int:
        """Channels of an entry times the assigners, of all backbone_groups together."""
        return sum(self._group_channels(name) for name in self.backbone_groups)

    def forward(self, backbone_groups: Mapping[str, Tensor]) -> PixelFusion:
        """Weigh and add, see ``PixelAmalgamation.forward``."""
        self.check(backbone_groups)
        fused, weights = [], {}
        for name in self.backbone_groups:
            features, weights[name] = self._fuse(name, backbone_groups[name])
            fused.append(features)
        members = max(len(features) for features in fused)
        fused = [features.expand(members, -1, -1) for features in fused]
        return PixelFusion(fused[0] if len(fused) == 1 else torch.cat(fused, dim=2), weights)

    def losses(self, losses: Tensor, fusion: PixelFusion) -> Tensor:
        """Losses + ``weight_regularization`` per member.

        The paper writes it for one set of maps; here it is the mean over pixels, groups that have assigners and, with
        ``per_channel``, channels, so that γ keeps its meaning when their number changes.
        """
        if not self.assigners or (self.sparsity == 0.0 and self.diversity == 0.0):
            return losses
        values = [
            weight_regularization(fusion.weights[name], 2, self.sparsity, self.diversity).flatten(1).mean(dim=1)
            for name in self.assigners
        ]
        return losses + torch.stack(values).mean(dim=0)

    def dense(self, maps: GroupMaps, weight: Tensor, size: tuple[int, int], rows: int = 32) -> Iterator[Tensor]:
        """With a weight per entry, Σ_i w_i^j(p) W_j r_i(p): both W_j and the assigners' first layers act on maps.

        See ``PixelAmalgamation.dense``. With ``per_channel`` every row is resized and fused.
        """
        if self.per_channel:
            yield from super().dense(maps, weight, size, rows)
            return
        parts = weight.split([self._group_channels(name) for name in self.backbone_groups], dim=2)
        projected = [
            self._project(name, maps[name], part) for name, part in zip(self.backbone_groups, parts, strict=True)
        ]
        for band in row_bands(size[0], rows):
            fused = [
                self._fuse_projected(name, [resized_sum(entry, size, band) for entry in entries], len(weight))
                for name, entries in zip(self.backbone_groups, projected, strict=True)
            ]
            yield torch.stack(fused).sum(dim=0).unflatten(2, (-1, size[1]))

    def _group_channels(self, name: str) -> int:
        entries, channels = self.backbone_groups[name]
        return channels * (self.num_assigners if entries > 1 else 1)

    def _group_assigners(self, name: str) -> list[PixelAssigner]:
        if name not in self.assigners:
            return []
        return list(cast("Iterable[PixelAssigner]", self.assigners[name]))

    def _fuse(self, name: str, entries: Tensor) -> tuple[Tensor, Tensor]:
        """(M or 1, P, b, C) → features (M, P, n · C) and weights (M, P, n, b[, C])."""
        assigners = self._group_assigners(name)
        if not assigners:
            return entries[:, :, 0], entries.new_ones(1, 1, 1, 1)
        logits = torch.stack([assigner(entries) for assigner in assigners], dim=1)  # (M, n, 1 or C, P, b)
        weights = logits.softmax(dim=-1)
        if self.per_channel:
            weights = weights.permute(0, 3, 1, 4, 2)
            return (weights * entries.unsqueeze(2)).sum(dim=3).flatten(2), weights
        weights = weights.squeeze(2).transpose(1, 2)
        return (weights @ entries).flatten(2), weights

    def _project(self, name: str, entries: Sequence[Sequence[Tensor]], weight: Tensor) -> list[list[Tensor]]:
        """Per entry and resolution (M · n · hidden, then M · n · assigners' hidden, h, w)."""
        assigners = self._group_assigners(name)
        layers = [
            *weight.split(self.backbone_groups[name][1], dim=2),
            *(assigner.first.weight for assigner in assigners),
        ]
        stacked = torch.cat([layer.flatten(0, 1) for layer in layers])
        return [project_maps(entry, stacked) for entry in entries]

    def _fuse_projected(self, name: str, entries: Sequence[Tensor], members: int) -> Tensor:
        """Per entry (channels as ``_project`` has them, R, W) → (M, hidden, R · W)."""
        assigners = self._group_assigners(name)
        if not assigners:
            return entries[0].flatten(1).unflatten(0, (members, -1))
        judged = sum(assigner.first.weight.shape[:2].numel() for assigner in assigners)
        layer, logits = [], []
        for entry in entries:
            values, hidden = entry.flatten(1).split([len(entry) - judged, judged])
            layer.append(values.unflatten(0, (len(assigners), members, -1)))
            rows = hidden.unflatten(0, (len(assigners), members, -1))
            logits.append(torch.stack([assigner.tail(row) for assigner, row in zip(assigners, rows, strict=True)]))
        weights = torch.stack(logits).softmax(dim=0)  # (b, n, M, 1, R · W)
        total = torch.zeros_like(layer[0][0])
        for values, weight in zip(layer, weights, strict=True):
            for value, share in zip(values, weight, strict=True):
                total.addcmul_(value, share)
        return total
