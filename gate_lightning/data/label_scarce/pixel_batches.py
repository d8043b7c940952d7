"""Batches of single labelled pixels for the members of an ensemble, each in an order of its own.

As in ddpm-segmentation every member passes over all labelled pixels of all training images in shuffled order and
drops the last, incomplete batch. The order is a function of (seed, member, epoch): a run stopped anywhere goes on with
exactly the batch it would have seen, and a member sees the same batches alone as among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.errors import ConfigError
from gate_lightning.structures import PixelBatch
from gate_lightning.utils.seeding import data_generator

__all__ = ["LabelledPixels", "PixelLoader", "PixelSampler", "pixel_order"]


def pixel_order(length: int, seed: int, member: int, epoch: int) -> np.ndarray:
    """uint32 (length,) permutation of the labelled pixels: one pass of a member."""
    order = np.arange(length, dtype=np.uint32)
    data_generator("pixels", seed, member, epoch).shuffle(order)
    return order


class LabelledPixels(Dataset[PixelBatch]):
    """All labelled pixels of the training masks; batch (epoch, number) by index.

    Holds 5 bytes per labelled pixel and, once asked for a batch, 4 per pixel and member: 90 MB for 30 masks of 256² and
    10 members.

    Args:
        masks: uint8 (H, W) class indices, 255 ignored; of equal size, in the order of the training split.
        members: M.
        batch_size: P, pixels per member and batch.
        seed: of the orders.

    Raises:
        ConfigError: fewer labelled pixels than a batch needs, or a number out of range.
    """

    def __init__(self, masks: Sequence[np.ndarray], members: int = 10, batch_size: int = 64, seed: int = 0) -> None:
        for name, value in (("members", members), ("pixels_per_batch", batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number from 1")
        flat = np.concatenate([mask.ravel() for mask in masks])
        #: of every labelled pixel its place in the masks laid end to end
        self.places = np.flatnonzero(flat != IGNORE_INDEX).astype(np.uint32)
        self.labels = flat[self.places]
        self.members, self.batch_size, self.seed, self._area = members, batch_size, seed, masks[0].size
        if len(self.places) < batch_size:
            raise ConfigError(
                f"a batch has {batch_size} labelled pixels per member and the {len(masks)} training masks hold "
                f"{len(self.places)}; label more, or lower task.data.pixels_per_batch"
            )
        self._epoch, self._orders = -1, np.empty((members, 0), dtype=np.uint32)

    @staticmethod
    def bytes_for(pixels: int, members: int) -> int:
        """Memory that so many labelled pixels take."""
        return pixels * (5 + 4 * members)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.places) // self.batch_size

    def __getitem__(self, key: tuple[int, int]) -> PixelBatch:
        """Batch ``number`` of ``epoch``, both from 0."""
        epoch, number = key
        if epoch != self._epoch:
            if not self._orders.size:
                self._orders = np.empty((self.members, len(self.places)), dtype=np.uint32)
            for member in range(self.members):  # in place: the orders of two epochs are never there at once
                self._orders[member] = pixel_order(len(self.places), self.seed, member, epoch)
            self._epoch = epoch
        chosen = self._orders[:, number * self.batch_size : (number + 1) * self.batch_size]
        images, positions = np.divmod(self.places[chosen].astype(np.int64), self._area)
        labels = self.labels[chosen].astype(np.int64)
        return PixelBatch(*(torch.from_numpy(part) for part in (images, positions, labels)))


class PixelSampler(DistributedSampler[Any]):
    """(epoch, number) of every batch that is left of the current epoch.

    Derives from `DistributedSampler` only so that Lightning leaves it alone.

    Args:
        length: batches of an epoch.
        position: asked whenever iteration starts for (epoch, first batch); without one, each iteration is the next
            epoch.
    """

    def __init__(self, length: int, position: Callable[[], tuple[int, int]] | None = None) -> None:
        super().__init__(range(length), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.length, self.position, self._epochs = length, position, 0

    def __len__(self) -> int:
        """Batches of a whole epoch, also where iteration starts in its middle (Lightning counts on it)."""
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Not a generator: the position is that of now, not that of the first batch being asked for.
        if self.position is None:
            epoch, first = self._epochs, 0
            self._epochs += 1
        else:
            epoch, first = self.position()
        return iter([(epoch, number) for number in range(first, self.length)])

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the position says where training is."""


def _as_is(batch: Any) -> Any:
    return batch


class PixelLoader(DataLoader[PixelBatch]):
    """A DataLoader of whole batches. Its (empty) state tells Lightning that it resumes in the middle of an epoch."""

    def __init__(self, dataset: LabelledPixels, *, sampler: PixelSampler) -> None:
        super().__init__(dataset, batch_size=None, sampler=sampler, collate_fn=_as_is)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save: the trainer's counters say where training is."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
