"""Base class of heads, which turn a pyramid into logits at the finest level's resolution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError

__all__ = ["Head", "resize"]


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (B, C, h, w) to ``size`` (height, width), pixel areas aligned unless ``align_corners``."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


class Head(nn.Module, ABC):
    """Head: pyramid → class logits.

    Args:
        in_channels: channels of each level, finest level first.
        strides: pixels per position of each level, growing.
        num_classes: K, at least 2.

    Raises:
        ConfigError: if the numbers do not describe a pyramid.
    """

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if not in_channels or len(in_channels) != len(strides) or min(in_channels) < 1:
            raise ConfigError(f"in_channels={list(in_channels)}, strides={list(strides)}; expected one of each a level")
        if list(strides) != sorted(set(strides)):
            raise ConfigError(f"strides={list(strides)}; expected growing strides, the finest level first")
        if num_classes < 2:
            raise ConfigError(f"num_classes is {num_classes}; expected 2 or more (background counts as a class)")
        self.in_channels = tuple(in_channels)
        self.strides = tuple(strides)
        self.num_classes = num_classes

    @abstractmethod
    def predict(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at any resolution, from levels that are checked."""

    @property
    def resolution(self) -> int:
        """Index of the level whose resolution the logits have: 0, the finest, unless a subclass differs."""
        return 0

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits of every position of the finest level (of level ``resolution``).

        Args:
            levels: (B, C_l, h_l, w_l) per level, finest first, as ``in_channels`` says.

        Returns:
            (B, K, h_0, w_0), 0 standing for ``resolution``.

        Raises:
            ConfigError: if number or channels of the levels are not those of the constructor.
        """
        found = tuple(level.shape[1] for level in levels)
        if found != self.in_channels:
            raise ConfigError(
                f"{type(self).__name__} got levels of {list(found)} channels; it was built for "
                f"{list(self.in_channels)} at strides {list(self.strides)}"
            )
        height, width = levels[self.resolution].shape[-2:]
        return resize(self.predict(levels), (height, width))
