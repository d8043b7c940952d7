"""The k-NN probe of images: classes of the nearest training images, without training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import number, whole_number

__all__ = ["NearestImages"]

#: cosines that are computed at a time
_CELLS = 2**24


class NearestImages(nn.Module):
    """Votes of the nearest training images, by the cosine of their features (Wu et al. 2018; DINO's k-NN evaluation).

    An image's features are its levels, averaged over the image and concatenated. A neighbour of cosine s votes with
    exp(s / temperature).

    Args:
        in_channels: channels of each level.
        num_classes: K, at least 2.
        neighbours: training images that vote.
        temperature: above 0.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        neighbours: int = 20,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not in_channels or min(in_channels) < 1 or num_classes < 2:
            raise ConfigError(
                f"in_channels={list(in_channels)}, num_classes={num_classes}; expected one level or more, and two "
                "classes or more"
            )
        self.channels, self.num_classes = sum(in_channels), num_classes
        self.neighbours = whole_number(neighbours, "head.decode.neighbours", 1)
        self.temperature = number(temperature, "head.decode.temperature", 1e-6)
        for name in ("features", "labels"):  # of the training images; no part of a checkpoint
            self.register_buffer(name, torch.zeros(0), persistent=False)

    features: Tensor
    labels: Tensor

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Take the training images, instead of any before.

        Args:
            features: (N, C) as `described` gives them.
            labels: (N,) int64 classes.

        Raises:
            ConfigError: fewer images than neighbours.
        """
        if len(features) < self.neighbours:
            raise ConfigError(
                f"head.decode.neighbours={self.neighbours}: there are {len(features)} training images; use fewer"
            )
        self.features, self.labels = normalize(features, dim=1), labels

    def described(self, levels: Sequence[Tensor]) -> Tensor:
        """Features (B, C) of images, from the levels (B, C_l, h_l, w_l) of their pyramid."""
        return torch.cat([level.float().mean(dim=(2, 3)) for level in levels], dim=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Shares (B, K, 1, 1) of the votes, from the levels (B, C_l, h_l, w_l) of a pyramid.

        Raises:
            ConfigError: there are no training images yet.
        """
        if not len(self.features):
            raise ConfigError("head=nearest_images knows no training images yet: it is measured, not trained (eval.py)")
        rows = normalize(self.described(levels), dim=1)
        votes = [self._votes(part) for part in rows.split(max(1, _CELLS // len(self.features)))]
        return torch.cat(votes)[..., None, None]

    def _votes(self, rows: Tensor) -> Tensor:
        """Shares (B, K) of the votes."""
        near, places = (rows @ self.features.T).topk(self.neighbours, dim=1)
        weights = ((near - near[:, :1]) / self.temperature).exp()
        votes = (one_hot(self.labels[places], self.num_classes) * weights[..., None]).sum(dim=1)
        return votes / weights.sum(dim=1, keepdim=True)
