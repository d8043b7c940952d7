"""The contract of classifiers of single pixels, which `task=label_scarce` trains and evaluates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["PixelClassifier"]


class PixelClassifier(nn.Module, ABC):
    """M members that each map the features of a pixel, (D,), to scores of K classes.

    Every parameter and buffer has the members as its first axis. The first layer is linear and can therefore be
    applied to feature maps before they are resized, see ``pixel_classifiers.dense``.
    """

    @property
    @abstractmethod
    def members(self) -> int:
        """M, number of the members that still train."""

    @property
    @abstractmethod
    def first_weight(self) -> Tensor:
        """Weight (M, hidden, D) of the first layer."""

    @abstractmethod
    def tail(self, projected: Tensor) -> Tensor:
        """Scores (M, K, N) from the first layer's products (M, hidden, N) of N pixels, without its bias."""

    @abstractmethod
    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Losses of the members in a training step.

        Args:
            features: (M, P, D), or (1, P, D) where all members look at the same pixels.
            labels: (M, P) int64 classes 0 … K - 1.

        Returns:
            (M,) losses; without gradient where nothing is trained by gradients.
        """

    def most_steps(self, pixels: int) -> int | None:
        """Steps of ``pixels`` per member after which there is nothing more to learn; None if there is no such limit."""
        del pixels
        return None

    def dense(self, bands: Iterable[Tensor]) -> Tensor:
        """Scores of a whole image, its first layer applied at the features' own resolution.

        Args:
            bands: (M, hidden, R, W), bands of R rows of the image from top to bottom, as
                ``PixelAmalgamation.dense(maps, first_weight, size)`` yields them.

        Returns:
            (M, K, H, W).
        """
        scores = [self.tail(band.flatten(2)).unflatten(2, band.shape[2:]) for band in bands]
        return torch.cat(scores, dim=2)
