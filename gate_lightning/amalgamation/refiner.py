"""Residual refiners: a few convolutions that may adapt a frozen feature map before branches are fused."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.ops.normalization import group_count

__all__ = ["Norm", "ResidualBlock", "build_norm"]

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
    """x + norm(conv(relu(norm(conv(x))))), 3×3 convolutions, the identity at the start.

    Only the last normalisation starts at zero. (Where the convolutions start at zero as well, every gradient but that
    of the last bias stays zero for ever.) Convolutions have no bias: the normalisation behind would take it out.

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
