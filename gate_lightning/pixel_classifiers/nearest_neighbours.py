"""The k-NN probe: what can be read off the features without training anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from gate_lightning.errors import ConfigError

__all__ = ["NearestPixels"]


class NearestPixels(nn.Module):
    """A pixel gets the class that most of its nearest labelled pixels have; nearness is the cosine of the features.

    The length of a pixel's own features has no effect on which labelled pixels are nearest, so the cosines of a whole
    image are, up to that factor, a linear layer over its maps: ``dense`` works as the ensemble's does. Tensors have a
    first axis of one member, as those of ``PixelEnsemble`` have M.

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
    members = 1

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
    def full(self) -> bool:
        """Whether no more labelled pixels are kept."""
        return int(self.kept) == self.bank

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
        """(1, N, D) kept pixels, each of length 1: the linear layer that ``dense`` begins with.

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

    def dense(self, bands: Iterable[Tensor]) -> Tensor:
        """Shares (1, K, H, W) of an image, from bands (1, N, R, W) of ``PixelAmalgamation.dense``.

        Take few rows per band: each position has ``bank`` channels there.
        """
        shares = [self.tail(band.flatten(2)).unflatten(2, band.shape[2:]) for band in bands]
        return torch.cat(shares, dim=2)
