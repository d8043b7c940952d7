"""The GATE paper's score of content shift: how far the contours of a feature have moved (arXiv 2410.06719, §5.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["contour_difference", "contours"]

_KERNEL = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def contours(features: Tensor) -> Tensor:
    """Strength (B, h, w) of the contours of feature maps (B, C, h, w): ‖∇²F(i, j)‖₂ over the channels.

    ∇² has the four-neighbour kernel; beyond the border the map goes on as it ends, so that a constant map has no
    contours. (The paper names neither.) Unchanged by whatever adds a constant to a channel, changes its sign, or
    permutes or rotates the channels (an orthogonal matrix).
    """
    channels = features.shape[1]
    kernel = features.new_tensor(_KERNEL).expand(channels, 1, 3, 3)
    edged = F.conv2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
    return torch.linalg.vector_norm(edged, dim=1)


def contour_difference(reference: Tensor, features: Tensor) -> Tensor:
    """(B,) diff = Σ over positions | ‖∇²F_ref‖₂ - ‖∇²F‖₂ | of feature maps (B, C, h, w) to their references.

    The paper's score is (diff_anchor - diff) / diff_anchor: 1 for equal contours, 0 for those of the anchor.

    Raises:
        ConfigError: maps of different sizes. (Channels may differ: their contours are compared.)
    """
    if reference.shape[0] != features.shape[0] or reference.shape[2:] != features.shape[2:]:
        raise ConfigError(
            f"features are {tuple(features.shape)} and their references {tuple(reference.shape)}; contours are "
            "compared place by place, so both need one size"
        )
    return (contours(reference.float()) - contours(features.float())).abs().double().sum(dim=(1, 2))
