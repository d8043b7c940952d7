"""One's own data set outside the package: pairs of images with corresponding keypoints, no masks and no classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.samples import Sample, collate_images
from gate_lightning.structures import ImageBatch


@dataclass(frozen=True, kw_only=True)
class Pair(Sample):
    """An image with a second one and (N, 2, 2) keypoints: of each point (x, y) in the first and in the second."""

    other: Sample
    keypoints: np.ndarray

    def ignored(self) -> Self:
        return replace(self, keypoints=np.full_like(self.keypoints, np.nan))


@dataclass(frozen=True)
class PairBatch(ImageBatch):
    """Pairs of images with keypoints.

    Attributes:
        others: the second images.
        keypoints: (B, N, 2, 2) pixels, NaN where there is nothing to measure.
    """

    others: ImageBatch
    keypoints: Tensor


class ShiftedPairs:
    """Images of noise, and the same moved to the right."""

    def __init__(self, split: str, length: int, size: int = 16) -> None:
        self.split, self.length, self.size = split, length, size

    def __len__(self) -> int:
        return self.length

    def sample_id(self, index: int) -> str:
        return f"{self.split}/{index}"

    def load(self, index: int) -> Pair:
        rng, name, shift = np.random.default_rng(index), self.sample_id(index), 1 + index % 3
        image = rng.integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        first = rng.integers(0, self.size - 4, (2, 2))
        keypoints = np.stack([first, first + np.array([shift, 0])], axis=1).astype(np.float32)
        other = Sample(f"{name} moved", np.roll(image, shift, axis=1))
        return Pair(name, image, other=other, keypoints=keypoints)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        return (self.size, self.size), (self.size, self.size)


class PairsDataModule(ImageDataModule):
    """Pairs of images that differ by a shift."""

    batch_type = PairBatch
    card = DatasetCard("shifted pairs")

    def make_source(self, split: str) -> ShiftedPairs:
        return ShiftedPairs(split, 8 if split == "train" else 3)

    @staticmethod
    def collate(pairs: Sequence[Pair], views: Sequence[str] = (), training: bool = False) -> PairBatch:
        first = collate_images(pairs, views, training)
        others = collate_images([pair.other for pair in pairs], views, training)
        keypoints = torch.from_numpy(np.stack([pair.keypoints for pair in pairs]))
        return PairBatch(first.images, first.conditions, others, keypoints)
