"""Aggregation network of Diffusion Hyperfeatures (Luo et al., NeurIPS 2023, arXiv 2305.14334), and of GeoAware-SC."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.amalgamation.levels import Level
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import FeaturesInfo
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.state_dicts import misfits

__all__ = ["Bottleneck", "HyperfeaturesAggregation"]

log = logging.getLogger(__name__)

#: groups of every group normalisation
GROUPS = 32
_MIXING, _NETWORK = "mixing_weights", "aggregation_network"


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
    """Mean of all layers of all branches, each projected, with learned weights for all images.

    Σ_{t,l} softmax(w)_{t,l} · bottleneck_l(r_{t,l}), with r_{t,l} the map of layer l in branch t, resized to one size.
    In Hyperfeatures branches are timesteps, in the order of the weights, and a layer's bottleneck is the same at all of
    them. In the adapter of GeoAware-SC (Zhang et al., CVPR 2024) branches are sources, like Stable Diffusion and DINO,
    and every layer has a bottleneck of its own.

    Args:
        feature_info: branch → layer id → channels and stride; where ``shared``, every branch has the same layers.
        concatenated: branches that are concatenated rather than fused.
        out_channels: of the result, a multiple of 128. Published: 384; 768 in GeoAware-SC.
        shared: one bottleneck a layer, for all branches; False: one for every layer of every branch.
        dropout: share of the channels of the maps left out in training, in [0, 1). GeoAware-SC: 0.2.
        stride: see `Amalgamation`.
        released: file of a released network (``aggregation_network.pt``), whose weights are taken over.
        read_weights: reads such a file without running code in it; returns its content and its header.

    Raises:
        ConfigError: branches with different layers, or a number out of range.
        WeightsError: a file of something else, or for other layers or timesteps.
    """

    def __init__(
        self,
        feature_info: FeaturesInfo,
        concatenated: Collection[str] = (),
        out_channels: int = 384,
        shared: bool = True,
        dropout: float = 0.0,
        stride: int | None = None,
        released: str | None = None,
        read_weights: Callable[[Path], tuple[Any, Any]] | None = None,
    ) -> None:
        super().__init__(feature_info, concatenated, joined=True, stride=stride)
        if whole_number(out_channels, "amalgamation.out_channels", 1) % (4 * GROUPS):
            raise ConfigError(
                f"amalgamation.out_channels={out_channels}: expected a multiple of {4 * GROUPS}, e.g. 384"
            )
        if number(dropout, "amalgamation.dropout", 0.0, 1.0) == 1.0:
            raise ConfigError("amalgamation.dropout=1 leaves nothing; expected a share below 1, e.g. 0.2")
        (level,) = self.levels
        self.widths = [
            [feature_info[branch][layer].channels for layer in layers] for branch, layers in level.fused.items()
        ]
        if shared and (len(set(level.fused.values())) != 1 or any(own != self.widths[0] for own in self.widths)):
            listed = "; ".join(f"{branch}: {', '.join(own)}" for branch, own in level.fused.items())
            raise ConfigError(
                "Hyperfeatures needs the same layers, in one order and of one width, in every branch (or "
                f"amalgamation.shared=false); got {listed}"
            )
        self.shared, self.project_channels = shared, out_channels
        every = [width for own in (self.widths[:1] if shared else self.widths) for width in own]
        self.dropout = nn.Dropout2d(dropout)
        # named as in the released files
        self.bottleneck_layers = nn.ModuleList(nn.Sequential(Bottleneck(width, out_channels)) for width in every)
        self.mixing_weights = nn.Parameter(torch.ones(sum(map(len, self.widths))))
        if released is not None:
            if read_weights is None:
                raise ConfigError(f"amalgamation.released={released}: nothing to read it with; give read_weights")
            content, _ = read_weights(Path(released))
            self.load_released(_network_of(content, released), released)

    def fused_channels(self, level: Level) -> int:
        """Channels of the projections."""
        return self.project_channels

    def fuse(self, index: int, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Weighted mean of the projected layers of all branches, and the branches' weights (1, 1, branches)."""
        weights = self.mixing_weights.softmax(dim=0)
        layers = [layer for one, own in zip(maps, self.widths, strict=True) for layer in one.split(own, dim=1)]
        bottlenecks = list(self.bottleneck_layers) * (len(maps) if self.shared else 1)
        total: Tensor | None = None
        for weight, bottleneck, layer in zip(weights, bottlenecks, layers, strict=True):
            part = weight * bottleneck(self.dropout(layer))
            total = part if total is None else total + part
        assert total is not None
        of_branches = torch.stack([own.sum() for own in weights.split([len(own) for own in self.widths])])
        return total, of_branches[None, None]

    def load_released(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take over the weights of a released network.

        Args:
            state: the entry ``aggregation_network`` of a released file.
            source: name of the file, for messages.

        Raises:
            WeightsError: weights for other layers or timesteps, or something else.
        """
        count, here = len(state.get(_MIXING, ())), len(self.mixing_weights)
        shape = f"{len(self.widths)} timesteps (branches) of {len(self.widths[0])} layers"
        if count and count != here:
            raise WeightsError(
                f"{source} mixes {count} maps, here are {shape}: give it the layers and a branch for each of the "
                "timesteps that it was trained on"
            )
        faults = misfits(state, self.state_dict(), "the file")
        if faults:
            raise WeightsError(
                f"{source} is no aggregation network for {shape}: {faults[0]} ({len(faults)} such tensors). Choose the "
                "layers and the backbone that it was trained on"
            )
        self.load_state_dict(dict(state))


def _network_of(content: Any, source: str) -> Mapping[str, Tensor]:
    """State dict of the network in a released file, {step, config, aggregation_network, optimizer_state_dict}."""
    state = content.get(_NETWORK) if isinstance(content, Mapping) else None
    plain = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if not plain:
        seen = ", ".join(list(map(str, content))[:6]) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"{source} is no released file of Hyperfeatures, which has the entry {_NETWORK} with names and tensors; it "
            f"holds: {seen:.200}"
        )
    # weights of SD 1.5 and SD 2.1 are alike in shape
    log.info("%s: step %s of a training with %.600s", source, content.get("step"), content.get("config"))
    assert isinstance(state, Mapping)
    return state
