"""Aggregation network of Diffusion Hyperfeatures (Luo et al., NeurIPS 2023, arXiv 2305.14334)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.levels import Level
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import FeaturesInfo
from gate_lightning.utils.checks import whole_number

__all__ = ["Bottleneck", "HyperfeaturesAggregation"]

#: groups of every group normalisation
GROUPS = 32
_MIXING = "mixing_weights"


class _ConvNorm(nn.Conv2d):
    """Convolution without bias and the group normalisation behind it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C', h, w)."""
        normalized: Tensor = self.norm(super().forward(x))
        return normalized


class Bottleneck(nn.Module):
    """Residual bottleneck relu(shortcut(x) + conv1×1(relu(conv3×3(relu(conv1×1(x)))))), all convolutions normalised.

    Args:
        in_channels: of the input.
        out_channels: of the output; the middle has a quarter of them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = out_channels // 4
        # in the order in which the released weights list them
        self.shortcut = _ConvNorm(in_channels, out_channels, 1)
        self.conv1 = _ConvNorm(in_channels, inner, 1)
        self.conv2 = _ConvNorm(inner, inner, 3)
        self.conv3 = _ConvNorm(inner, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, out_channels, h, w)."""
        inner = self.conv2(self.conv1(x).relu()).relu()
        result: Tensor = (self.conv3(inner) + self.shortcut(x)).relu()
        return result


class HyperfeaturesAggregation(Amalgamation):
    """Hyperfeatures: a mean of all layers at all timesteps, each projected, with learned weights for all images.

    Σ_{t,l} softmax(w)_{t,l} · bottleneck_l(r_{t,l}), with r_{t,l} the map of layer l at timestep t, resized to the
    finest map. A layer's bottleneck is the same at all timesteps. Branches are the timesteps, in the order of the
    weights.

    Args:
        feature_info: branch → layer id → channels and stride; every branch has the same layers.
        concatenated: branches that are concatenated rather than fused.
        out_channels: of the result, a multiple of 128. Published: 384.

    Raises:
        ConfigError: branches with different layers, or a number out of range.
    """

    def __init__(self, feature_info: FeaturesInfo, concatenated: Collection[str] = (), out_channels: int = 384) -> None:
        super().__init__(feature_info, concatenated, joined=True)
        if whole_number(out_channels, "amalgamation.out_channels", 1) % (4 * GROUPS):
            raise ConfigError(
                f"amalgamation.out_channels={out_channels}: expected a multiple of {4 * GROUPS}, e.g. 384"
            )
        (level,) = self.levels
        if len(set(level.fused.values())) != 1:
            listed = "; ".join(f"{branch}: {', '.join(own)}" for branch, own in level.fused.items())
            raise ConfigError(f"Hyperfeatures needs the same layers, in one order, in every branch; got {listed}")
        branch, layers = next(iter(level.fused.items()))
        self.widths = [feature_info[branch][layer].channels for layer in layers]
        self.project_channels = out_channels
        # named as in the released files
        self.bottleneck_layers = nn.ModuleList(nn.Sequential(Bottleneck(width, out_channels)) for width in self.widths)
        self.mixing_weights = nn.Parameter(torch.ones(len(level.fused) * len(self.widths)))

    def fused_channels(self, level: Level) -> int:
        """Channels of the projections."""
        return self.project_channels

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Weighted mean of the projected layers of all branches, and the branches' weights (1, 1, branches)."""
        weights = self.mixing_weights.softmax(dim=0).unflatten(0, (len(maps), len(self.widths)))
        parts = [
            weight * bottleneck(layer)
            for of_branch, row in zip(maps, weights, strict=True)
            for layer, bottleneck, weight in zip(
                of_branch.split(self.widths, dim=1), self.bottleneck_layers, row, strict=True
            )
        ]
        return torch.stack(parts).sum(dim=0), weights.sum(dim=1)[None, None]

    def load_released(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take over the weights of a released network.

        Args:
            state: the entry ``aggregation_network`` of a released file.
            source: name of the file, for messages.

        Raises:
            WeightsError: weights for other layers or timesteps, or something else.
        """
        own, count = self.state_dict(), len(state.get(_MIXING, ()))
        layers, timesteps = len(self.widths), len(self.mixing_weights) // len(self.widths)
        if count and count != layers * timesteps:
            raise WeightsError(
                f"{source} mixes {count} maps, here are {timesteps} timesteps (branches) of {layers} layers: "
                "give it the layers and a branch for each of the timesteps that it was trained on"
            )
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} belongs to no layer here" for name in state if name not in own]
        faults += [
            f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ]
        if faults:
            raise WeightsError(
                f"{source} is no aggregation network for these {layers} layers: {faults[0]} ({len(faults)} such "
                "tensors). Choose the layers and the backbone that it was trained on"
            )
        self.load_state_dict(dict(state))
