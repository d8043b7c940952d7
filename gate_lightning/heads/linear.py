"""Linear probe of all levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import Head, resize

__all__ = ["LinearHead"]


class LinearHead(Head):
    """One 1×1 convolution over all levels, resized to the finest one and concatenated.

    A 1×1 convolution commutes with bilinear resizing, so it is applied to each level at the level's own resolution and
    the K logits are resized instead of the features: the same function at a fraction of the cost.

    Args:
        in_channels: channels of each level, finest level first.
        strides: pixels per position of each level, growing.
        num_classes: K.
        batch_norm: normalise every channel first, as the linear probes of DINOv2 and DINOv3 do; statistics are taken
            at each level's own resolution.
        dropout: share of the channels (whole maps, after the normalisation) left out in training, in [0, 1).

    Raises:
        ConfigError: if the numbers do not describe a pyramid, or ``dropout`` is out of range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout is {dropout}; expected a share of the channels in [0, 1), for example 0.1")
        self.dropout = nn.Dropout2d(dropout)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels) if batch_norm else nn.Identity() for channels in self.in_channels
        )
        # one bias for the sum of all levels
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 1, bias=index == 0) for index, channels in enumerate(self.in_channels)
        )
        for parameter in self.classifiers.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    def predict(self, levels: Sequence[Tensor]) -> Tensor:
        """Sum of the levels' logits (B, K, h_0, w_0)."""
        height, width = levels[0].shape[-2:]
        logits = [
            resize(classifier(self.dropout(norm(level))), (height, width))
            for classifier, norm, level in zip(self.classifiers, self.norms, levels, strict=True)
        ]
        total = logits[0]
        for part in logits[1:]:
            total = total + part
        return total
