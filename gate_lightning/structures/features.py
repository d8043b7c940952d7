"""Feature maps, where they come from, and what fuses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["BranchFeatures", "FeatureInfo", "Features", "FeaturesInfo", "Identity", "Pyramid"]


@dataclass(frozen=True)
class FeatureInfo:
    """Channels and stride of a layer's features.

    Attributes:
        channels: channels of the feature map; 0 if they depend on the image's size.
        stride: pixels of the image per position of the map (8 for SD's latents, 16 one level down); 0 for attention
            weights (B, heads, queries, keys), which are no map.
        module: path of the hooked module inside the denoiser, for tables and errors.
    """

    channels: int
    stride: int
    module: str = ""


#: layer id → feature map (B, C, h, w), of one branch.
BranchFeatures = dict[str, Tensor]
#: branch name → layer id → feature map.
Features = dict[str, BranchFeatures]
#: branch name → layer id → FeatureInfo, in the given order of branches and layers.
FeaturesInfo = Mapping[str, Mapping[str, FeatureInfo]]


@dataclass(frozen=True)
class Identity:
    """Identity of frozen weights; saved in checkpoints and caches instead of the weights.

    Attributes:
        name: hub id, folder name or family name.
        revision: commit or tag of the hub id, empty for local folders.
        digest: hash of the weights' content (hex).
    """

    name: str
    revision: str
    digest: str


@dataclass(frozen=True)
class Pyramid:
    """Fused features, finest level first.

    Attributes:
        levels: (B, C_l, h_l, w_l) per level, stride growing.
        weights: per level (B or 1, assigners, branches) branch weights that sum to 1 over branches (last axis;
            further axes C where weights are per channel, and h, w where they vary over the image), or () where the
            amalgamation has none.
    """

    levels: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()
