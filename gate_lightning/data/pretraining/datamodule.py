"""Data for training the denoising models: endless reproducible batches and rendered scenes with captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gate_lightning.data.scenes import render, sample_scene
from gate_lightning.errors import ConfigError

TRAIN_SEED = 10_000_000
"""First scene seed used for training; the data sets of the experiments use seeds far below."""
VAL_SEED = 9_000_000
"""First scene seed of the held-out images."""


class EndlessBatches(Sampler[list[int]]):
    """Batches without end, as a function of (seed, step, process) only, so that a resumed run continues exactly.

    Every pass over the data is another permutation.  Yields *draws* ``pass * length + index``: the data set recovers
    the index with ``% length`` and may use the draw to seed its own choices (which caption, which flip).

    Args:
        length: size of the data set.
        batch_size: images per process and batch.
        seed: of the permutations.
        start: batches already consumed.
        rank, world_size: this process and their number.

    Raises:
        ConfigError: a size that is not positive.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ConfigError(f"length is {length} and batch_size {batch_size}; expected both to be at least 1.")
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of ``batch_size`` draws for ever."""
        position = self.start * self.batch_size * self.world_size
        order, known_pass = np.empty(0, dtype=np.int64), -1
        while True:
            batch: list[int] = []
            for offset in range(self.batch_size * self.world_size):
                number, within = divmod(position + offset, self.length)
                if number != known_pass:
                    order = np.random.default_rng([self.seed, number]).permutation(self.length)
                    known_pass = number
                if offset % self.world_size == self.rank:
                    batch.append(number * self.length + int(order[within]))
            position += self.batch_size * self.world_size
            yield batch


class EndlessDataModule(LightningDataModule):
    """Training batches from `EndlessBatches`, validation batches in order and shared between the processes.

    Subclasses provide ``train_set`` and ``val_set`` in ``setup``.

    Args:
        batch_size: per process.
        val_batch_size: per process.
        seed: of the order.
        num_workers: loader processes.
    """

    train_set: Dataset[dict[str, Any]]
    val_set: Dataset[dict[str, Any]]

    def __init__(self, batch_size: int, val_batch_size: int = 32, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.val_batch_size, self.seed, self.num_workers = (
            batch_size,
            val_batch_size,
            seed,
            num_workers,
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Endless loader that continues behind the batches a resumed run has consumed."""
        trainer = self.trainer
        sampler = EndlessBatches(
            len(self.train_set),  # type: ignore[arg-type]
            self.batch_size,
            self.seed,
            start=trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return DataLoader(
            self.train_set, batch_sampler=sampler, num_workers=self.num_workers, persistent_workers=self.num_workers > 0
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Held-out images in fixed order; process r of n sees every n-th, starting with the r-th."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        own = list(range(rank, len(self.val_set), world))  # type: ignore[arg-type]
        return DataLoader(self.val_set, batch_size=self.val_batch_size, sampler=own)


class RenderedScenes(Dataset[dict[str, Any]]):
    """Scenes rendered when asked for, in both domains.

    Args:
        length: number of different scenes; a draw beyond it comes back to the first ones.
        first_seed: seed of scene 0.
        target_share: share of the target domain, spread evenly.
        size: side in pixels.
    """

    def __init__(self, length: int, first_seed: int, target_share: float = 0.2, size: int = 64) -> None:
        if not 0.0 <= target_share <= 1.0:
            raise ConfigError(f"target_share is {target_share}; expected a share in [0, 1].")
        self.length, self.first_seed, self.target_share, self.size = length, first_seed, target_share, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """``pixels`` (3, S, S) float32 in [-1, 1] and ``domain`` (0 source, 1 target)."""
        index = draw % self.length
        # Evenly spread: the running count of target images grows at these indices.
        target = int((index + 1) * self.target_share) > int(index * self.target_share)
        spec = sample_scene(self.first_seed + index, domain="target" if target else "source")
        return {"pixels": to_pixels(render(spec, size=self.size).image), "domain": int(target)}


class SceneImages(EndlessDataModule):
    """Rendered images without captions, for the autoencoder.

    Args:
        train_length: different training scenes.
        val_length: held-out scenes.
        target_share: share of the target domain in both.
        size: side in pixels.
        loading: `EndlessDataModule`'s arguments.
    """

    def __init__(
        self,
        train_length: int = 60_000,
        val_length: int = 640,
        target_share: float = 0.2,
        size: int = 64,
        **loading: Any,
    ) -> None:
        super().__init__(**{"batch_size": 8, **loading})
        self.train_length, self.val_length = train_length, val_length
        self.target_share, self.size = target_share, size

    def setup(self, stage: str | None = None) -> None:
        """Describe the data; images are rendered when asked for."""
        self.train_set = RenderedScenes(self.train_length, TRAIN_SEED, self.target_share, self.size)
        self.val_set = RenderedScenes(self.val_length, VAL_SEED, self.target_share, self.size)


def to_pixels(image: np.ndarray) -> Tensor:
    """Image uint8 (H, W, 3) as float32 (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(127.5).sub_(1.0)
