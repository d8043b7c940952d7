"""Batches of labelled pixels for the members of an ensemble, each member in its own order.

As in ddpm-segmentation every member passes over all labelled pixels of all training images in shuffled order and
drops the last, incomplete batch. The order is a function of (seed, member, epoch): a run stopped anywhere goes on with
exactly the batch it would have seen, and a member sees the same batches alone as among others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.core.samplers import ResumableSampler
from gate_lightning.errors import ConfigError
from gate_lightning.structures import PixelBatch
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["LabelledPixels", "PixelSampler", "pixel_order"]


def pixel_order(length: int, seed: int, member: int, epoch: int) -> np.ndarray:
    """Permutation of the labelled pixels for one pass of a member, uint32 (length,)."""
    order = np.arange(length, dtype=np.uint32)
    data_generator("pixels", seed, member, epoch).shuffle(order)
    return order


class LabelledPixels(Dataset[PixelBatch]):
    """Labelled pixels of the training masks as a data set of batches, indexed by (epoch, number).

    Memory: 5 bytes per labelled pixel and, from the first batch on, 4 per pixel and member: 90 MB for 30 masks of 256²
    and 10 members.

    Args:
        masks: uint8 (H, W) class indices, 255 ignored; of equal size, in the order of the training split.
        members: M.
        batch_size: P, pixels per member and batch.
        seed: of the orders.

    Raises:
        ConfigError: fewer labelled pixels than a batch needs, or a number out of range.
    """

    def __init__(self, masks: Sequence[np.ndarray], members: int = 10, batch_size: int = 64, seed: int = 0) -> None:
        self.members = whole_number(members, "task.data.members", 1)
        self.batch_size = whole_number(batch_size, "task.data.pixels_per_batch", 1)
        flat = np.concatenate([mask.ravel() for mask in masks])
        #: positions of the labelled pixels in the concatenated masks
        self.places = np.flatnonzero(flat != IGNORE_INDEX).astype(np.uint32)
        self.labels = flat[self.places]
        self.seed, self._area = seed, masks[0].size
        if len(self.places) < batch_size:
            raise ConfigError(
                f"a batch has {batch_size} labelled pixels per member and the {len(masks)} training masks hold "
                f"{len(self.places)}; label more, or lower task.data.pixels_per_batch"
            )
        self._epoch, self._orders = -1, np.empty((members, 0), dtype=np.uint32)

    @staticmethod
    def bytes_for(pixels: int, members: int) -> int:
        """Memory in bytes of ``pixels`` labelled pixels with the orders of all members."""
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


class PixelSampler(ResumableSampler):
    """Keys (epoch, number) of the batches that are left of the current epoch."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def __len__(self) -> int:
        """Batches of a whole epoch, also where iteration starts in its middle (Lightning counts on it)."""
        return self.length

    def rest_of(self, epoch: int, first: int) -> Iterator[tuple[int, int]]:
        """Keys of an epoch's batches from number ``first`` on."""
        return ((epoch, number) for number in range(first, self.length))
