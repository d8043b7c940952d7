"""Heads for correspondence: pyramid → descriptors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import resize
from gate_lightning.utils.checks import whole_number

__all__ = ["ConvDescriptors", "PlainDescriptors"]


class PlainDescriptors(nn.Module):
    """Descriptors that are the pyramid itself: its levels, resized bilinearly to the finest one and concatenated.

    Args:
        in_channels: channels of each level, finest level first.

    Raises:
        ConfigError: no level.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        if not in_channels or min(in_channels) < 1:
            raise ConfigError(f"in_channels={list(in_channels)}; expected the channels of one level or more")
        self.channels = sum(in_channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Descriptors (B, C, h_0, w_0) of levels (B, C_l, h_l, w_l), finest first."""
        height, width = levels[0].shape[-2:]
        return torch.cat([levels[0], *(resize(level, (height, width)) for level in levels[1:])], dim=1)


class ConvDescriptors(PlainDescriptors):
    """A 3×3 convolution without bias on the joined pyramid (GATE's ``conv``, arXiv 2410.06719).

    Args:
        in_channels: channels of each level, finest level first.
        out_channels: of the descriptors; None for as many as the pyramid has.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int | None = None) -> None:
        super().__init__(in_channels)
        if out_channels is not None:
            whole_number(out_channels, "head.decode.out_channels", 1, optional="the pyramid's channels")
        self.conv = nn.Conv2d(self.channels, out_channels or self.channels, 3, padding=1, bias=False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Descriptors (B, out_channels, h_0, w_0)."""
        joined = super().forward(levels)
        descriptors: Tensor = self.conv(joined)
        return descriptors
