"""The k-NN probe: classes of the nearest labelled pixels, without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.base import PixelClassifier

__all__ = ["NearestPixels"]


class NearestPixels(PixelClassifier):
    """Majority class of a pixel's nearest labelled pixels, by the cosine of their features; a single member.

    The length of a pixel's own features does not change which labelled pixels are nearest, so the cosines are, up to
    that factor, a linear layer: the first one. For ``dense`` take few rows a band: a position has ``bank`` channels.

    Args:
        in_channels: D.
        num_classes: K, at least 2.
        neighbours: labelled pixels that vote.
        bank: labelled pixels that are kept, at most. They take 4 D bytes each, in checkpoints too.

    Raises:
        ConfigError: if a number is out of range.
    """

    features: Tensor
    labels: Tensor
    kept: Tensor

    def __init__(self, in_channels: int, num_classes: int, neighbours: int = 20, bank: int = 10_000) -> None:
        super().__init__()
        if in_channels < 1 or num_classes < 2 or not 1 <= neighbours <= bank:
            raise ConfigError(
                f"in_channels is {in_channels}, num_classes {num_classes}, neighbours {neighbours}, bank {bank}; "
                "expected one or more channels, two or more classes, and 1 … bank neighbours"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.neighbours, self.bank = neighbours, bank
        self.register_buffer("features", torch.zeros(1, bank, in_channels))  # of length 1
        self.register_buffer("labels", torch.zeros(1, bank, dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(1, dtype=torch.int64))

    @property
    def members(self) -> int:
        """Number of members of the ensemble: always 1."""
        return 1

    def most_steps(self, pixels: int) -> int:
        """Steps after which the bank is full."""
        return math.ceil(self.bank / pixels)

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Keep the labelled pixels of a batch; (1,) share of the bank that is still empty."""
        self.add(features, labels)
        return 1.0 - self.kept / self.bank

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Keep labelled pixels, as many as there is room for.

        Args:
            features: (1, P, D).
            labels: (1, P) int64 classes.

        Raises:
            ConfigError: if the shapes do not fit.
        """
        if features.shape != (1, labels.shape[-1], self.in_channels) or len(labels) != 1:
            raise ConfigError(
                f"got features {tuple(features.shape)} and labels {tuple(labels.shape)}; expected "
                f"(1, P, {self.in_channels}) and (1, P)"
            )
        start = int(self.kept)
        stop = min(start + labels.shape[1], self.bank)
        self.features[:, start:stop] = normalize(features, dim=2)[:, : stop - start]
        self.labels[:, start:stop] = labels[:, : stop - start]
        self.kept.fill_(stop)

    @property
    def first_weight(self) -> Tensor:
        """Features (1, N, D) of the kept pixels, each of length 1.

        Raises:
            ConfigError: if there are fewer of them than neighbours.
        """
        kept = int(self.kept)
        if kept < self.neighbours:
            raise ConfigError(f"{kept} labelled pixels are kept and {self.neighbours} neighbours vote; use fewer")
        return self.features[:, :kept]

    def forward(self, rows: Tensor) -> Tensor:
        """Features (1, P, D) → shares (1, P, K) of the neighbours that have each class."""
        return self.tail(self.first_weight @ rows.transpose(1, 2)).transpose(1, 2)

    def tail(self, projected: Tensor) -> Tensor:
        """Cosines with the labelled pixels up to a factor per pixel, (1, N, P) → shares (1, K, P)."""
        nearest = projected.topk(self.neighbours, dim=1).indices  # (1, k, P)
        votes = one_hot(self.labels[0, nearest], self.num_classes).sum(dim=1)
        return (votes.to(projected.dtype) / self.neighbours).transpose(1, 2)
