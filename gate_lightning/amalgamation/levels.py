"""Assignment of feature maps to pyramid levels: one level per stride, or all of them in one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.structures import FeatureInfo, Features, FeaturesInfo
from gate_lightning.utils.checks import whole_number

__all__ = ["Level", "plan_levels"]


@dataclass(frozen=True)
class Level:
    """Branches and layers of one pyramid level.

    Attributes:
        stride: pixels of the image per position.
        fused: branch → its layer ids of this stride, for branches that are fused with each other.
        appended: branch → its layer ids of this stride, for branches that are concatenated after the fusion.
        channels: branch → channels of its layers of this stride, added up.
        joined: the level has layers of all strides; they are resized to one size.
        finest: where ``joined``, the stride of its finest layers, which need not be ``stride``.
    """

    stride: int
    fused: Mapping[str, tuple[str, ...]]
    appended: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, int]
    joined: bool = False
    finest: int = 0

    @property
    def appended_channels(self) -> int:
        """Number of channels that are concatenated after the fusion."""
        return sum(self.channels[branch] for branch in self.appended)

    def branch_map(self, features: Features, branch: str) -> Tensor:
        """Map (B, C, h, w) of a branch at this level: its layers, concatenated in the order asked for."""
        layers = {**self.fused, **self.appended}[branch]
        missing = [layer for layer in layers if layer not in features.get(branch, {})]
        if missing:
            raise ConfigError(
                f"features of branch {branch!r} lack {', '.join(missing)}; got branches "
                f"{ {name: sorted(maps) for name, maps in features.items()} }. The amalgamation and the extractor must "
                "be built from the same branches"
            )
        maps = [features[branch][layer] for layer in layers]
        if self.joined:
            every = [features[b][layer] for b, own in {**self.fused, **self.appended}.items() for layer in own]
            size = max(tuple(map_.shape[-2:]) for map_ in every)
            size = tuple(max(1, round(side * self.finest / self.stride)) for side in size)
            maps = [_resized(map_, size) for map_ in maps]
        joined = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        if joined.shape[1] != self.channels[branch]:
            raise ConfigError(
                f"branch {branch!r} gave {joined.shape[1]} channels at stride {self.stride}; its feature_info said "
                f"{self.channels[branch]}"
            )
        return joined


def plan_levels(
    feature_info: FeaturesInfo, concatenated: Collection[str] = (), joined: bool = False, stride: int | None = None
) -> tuple[Level, ...]:
    """Pyramid levels, one for each stride among the layers, finest first.

    Args:
        feature_info: branch → layer id → channels and stride.
        concatenated: branches that are not fused but concatenated to the level of their stride (attention features, an
            edge map). Their layers may bring levels of their own.
        joined: one level for the layers of all strides.
        stride: of that level; None for the finest one.

    Raises:
        ConfigError: if there is no branch or layer, a layer is no map or its channels are unknown, ``concatenated``
            names an unknown branch, or there is a ``stride`` without ``joined``.
    """
    if stride is not None:
        whole_number(stride, "amalgamation.stride", 1, optional="that of the finest layer")
        if not joined:
            raise ConfigError(
                f"amalgamation.stride={stride}: layers of a stride are a level of their own, unless amalgamation.joined"
            )
    unknown = [branch for branch in concatenated if branch not in feature_info]
    if unknown:
        raise ConfigError(f"concatenated names {', '.join(unknown)}; the branches are {', '.join(feature_info)}")
    empty = [branch for branch, layers in feature_info.items() if not layers]
    if empty or not feature_info:
        found = f"branches without layers: {', '.join(empty)}" if empty else "no branch"
        raise ConfigError(f"{found}; an amalgamation needs at least one branch, and a layer in each (layers=…)")
    for branch, layers in feature_info.items():
        for layer, info in layers.items():
            _check_map(branch, layer, info)
    strides = sorted({info.stride for layers in feature_info.values() for info in layers.values()})
    if joined:
        level = _plan_level(feature_info, concatenated, strides)
        if stride is None or (len(strides) == 1 and stride == level.stride):
            return (level,)
        return (replace(level, stride=stride, joined=True),)
    return tuple(_plan_level(feature_info, concatenated, [one]) for one in strides)


def _check_map(branch: str, layer: str, info: FeatureInfo) -> None:
    if info.stride == 0:
        raise ConfigError(
            f"branch {branch!r} reads {layer}, attention weights (B, heads, queries, keys) rather than a map; they "
            "can be extracted, not fused. Averaged to maps they are layers of their own, like attn-up-cross"
        )
    if info.channels == 0:
        raise ConfigError(
            f"branch {branch!r} reads {layer}, whose number of channels depends on the image's size; it can be "
            "extracted, not fused: a head needs it beforehand. attn-up-cross has one channel per prompt token instead"
        )


def _plan_level(feature_info: FeaturesInfo, concatenated: Collection[str], strides: Sequence[int]) -> Level:
    here = {
        branch: tuple(layer for layer, info in layers.items() if info.stride in strides)
        for branch, layers in feature_info.items()
    }
    here = {branch: layers for branch, layers in here.items() if layers}
    return Level(
        stride=strides[0],
        fused={branch: layers for branch, layers in here.items() if branch not in concatenated},
        appended={branch: layers for branch, layers in here.items() if branch in concatenated},
        channels={
            branch: sum(feature_info[branch][layer].channels for layer in layers) for branch, layers in here.items()
        },
        joined=len(strides) > 1,
        finest=strides[0],
    )


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
