"""One's own data set outside the package: pairs of images with corresponding keypoints, no masks and no classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.samples import BatchDataset, Sample, collate_images
from gate_lightning.structures import Pair, PairBatch


@dataclass(frozen=True)
class PairSample:
    """A pair with both of its images; ``points`` (2, N, 2) are those of source and target in these."""

    sample_id: str
    source: Sample
    target: Sample
    pair: Pair
    points: Tensor

    def ignored(self) -> Self:
        return replace(self, points=torch.full_like(self.points, torch.nan))


class ShiftedImages:
    """Images of noise, and each of them moved to the right by 1, 2 or 3 pixels."""

    def __init__(self, split: str, pairs: int, size: int = 16) -> None:
        self.split, self.pairs, self.size = split, pairs, size

    def __len__(self) -> int:
        return 2 * self.pairs

    def sample_id(self, index: int) -> str:
        return f"{self.split}/{index // 2}" + (" moved" if index % 2 else "")

    def load(self, index: int) -> Sample:
        number, moved = divmod(index, 2)
        image = np.random.default_rng(number).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return Sample(self.sample_id(index), np.roll(image, moved * (1 + number % 3), axis=1), category="noise")

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        return ((self.size, self.size),)

    def pair(self, number: int) -> Pair:
        first = torch.from_numpy(np.random.default_rng(number).integers(0, self.size - 4, (2, 2))).float()
        names, size = (self.sample_id(2 * number), self.sample_id(2 * number + 1)), (self.size, self.size)
        return Pair(*names, first, first + torch.tensor([1.0 + number % 3, 0.0]), size, size, category="noise")


class ShiftedPairs:
    """The pairs of `ShiftedImages`, for training."""

    def __init__(self, images: ShiftedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images.pairs

    def sample_id(self, index: int) -> str:
        return self.images.sample_id(2 * index)

    def load(self, index: int) -> PairSample:
        pair = self.images.pair(index)
        source, target = self.images.load(2 * index), self.images.load(2 * index + 1)
        return PairSample(pair.source, source, target, pair, torch.stack([pair.source_points, pair.target_points]))

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        return self.images.sizes(2 * index) + self.images.sizes(2 * index + 1)


class PairsDataModule(ImageDataModule):
    """Pairs of images that differ by a shift: batches of pairs for training, of images for evaluation."""

    batch_type = PairBatch
    card = DatasetCard("shifted pairs")

    def make_source(self, split: str) -> Any:
        images = ShiftedImages(split, 8 if split == "train" else 3)
        return ShiftedPairs(images) if split == "train" else images

    def evaluation_views(self, split: str) -> BatchDataset:
        return BatchDataset(self.source(split), self.eval_transform, collate_images, self.seed)

    @cache  # noqa: B019 - the pairs of a split are the same objects
    def pairs_of(self, split: str) -> tuple[Pair, ...]:
        return tuple(ShiftedImages(split, 3).pair(number) for number in range(3))

    share_of = pairs_of  # of this process, where there are several

    @staticmethod
    def collate(samples: Sequence[PairSample], views: Sequence[str] = (), training: bool = False) -> PairBatch:
        source, target = (
            collate_images(images, views, training)
            for images in ([one.source for one in samples], [one.target for one in samples])
        )
        points = torch.stack([one.points for one in samples])
        return PairBatch(source, target, tuple(one.pair for one in samples), points[:, 0], points[:, 1])
