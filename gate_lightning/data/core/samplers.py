"""Samplers of batches, as pure functions of (seed, epoch, batch number, process).

They yield whole batches and go into a DataLoader with ``batch_size=None``. They derive from
`DistributedSampler` only so that Lightning, which replaces every other sampler when training is distributed, leaves
them alone: they shard by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from lightning import Trainer
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from gate_lightning.data.samples import SampleRequest
from gate_lightning.errors import ConfigError
from gate_lightning.utils.seeding import data_generator
from gate_lightning.utils.signals import leave_to_parent, starting_workers

__all__ = [
    "BatchLoader",
    "EvaluationBatches",
    "ResumableSampler",
    "TrainingBatches",
    "epoch_order",
    "group_by_size",
    "loading",
]

#: loader processes of each process that trains on an accelerator, where no number is given
WORKERS = 4
#: (epoch, number of the first batch to yield)
Position = Callable[[], tuple[int, int]]


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (length,) permutation of a pass over the data, the same in every process."""
    return data_generator("order", seed, epoch).permutation(length)


class _Batches(DistributedSampler[Any]):
    """Base of samplers that yield batches and know their share of the work."""

    def __init__(self, length: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(length), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the position says where training is."""


class ResumableSampler(_Batches):
    """Base of samplers that can start in the middle of an epoch; subclasses define ``rest_of`` and ``__len__``.

    Attributes:
        position: called whenever iteration starts, for epoch and number of the next batch; None makes every iteration
            the next epoch.
    """

    position: Position | None = None
    _epochs = 0

    def __iter__(self) -> Iterator[Any]:
        # not a generator: the position is read now, not with the first batch
        return self._next_epoch() if self.position is None else self.rest_of(*self.position())

    def _next_epoch(self) -> Iterator[Any]:
        # counted here and not in __iter__, which loaders with workers call twice
        epoch = self._epochs
        self._epochs += 1
        yield from self.rest_of(epoch, 0)

    def rest_of(self, epoch: int, first: int) -> Iterator[Any]:
        """Batches of an epoch from number ``first`` on."""
        raise NotImplementedError


class TrainingBatches(ResumableSampler):
    """Shuffled batches of images.

    The global order of images does not depend on the number of processes: step s of an epoch takes the s-th run of
    ``batch_size * world_size`` images of its permutation, and each process its share. Images that do not fill a
    global batch wait for a later epoch.

    Args:
        length: number of images.
        batch_size: images per process and batch.
        seed: of the permutations.
        position: see `ResumableSampler`.
        rank, world_size: this process and their number.

    Raises:
        ConfigError: fewer images than one global batch needs.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        position: Position | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        if length < batch_size * world_size:
            raise ConfigError(
                f"a batch of {batch_size} on {world_size} process(es) needs {batch_size * world_size} training "
                f"images, there are {length}; use dataset.batch_size={max(length // world_size, 1)} or less"
            )
        super().__init__(length, rank, world_size)
        self.length, self.batch_size, self.seed, self.position = length, batch_size, seed, position

    def __len__(self) -> int:
        """Batches of a whole epoch, also where iteration starts in its middle (Lightning counts on it)."""
        return self.length // (self.batch_size * self.num_replicas)

    def rest_of(self, epoch: int, first: int) -> Iterator[list[SampleRequest]]:
        """Batches of an epoch from number ``first`` on."""
        order = epoch_order(self.length, self.seed, epoch)
        for number in range(first, len(self)):
            start = (number * self.num_replicas + self.rank) * self.batch_size
            yield [SampleRequest(int(index), epoch) for index in order[start : start + self.batch_size]]


def group_by_size(sizes: Sequence[Hashable], batch_size: int | None, together: int) -> list[list[int]]:
    """Batches of indices of images that have equal sizes, in order.

    Args:
        sizes: size of every image.
        batch_size: largest batch; None for ``together`` where all sizes are equal and 1 where they are not.
        together: see ``batch_size``.
    """
    if batch_size is None:
        batch_size = together if len(set(sizes)) == 1 else 1
    groups: dict[Hashable, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    batches = [group[at : at + batch_size] for group in groups.values() for at in range(0, len(group), batch_size)]
    return sorted(batches)


class EvaluationBatches(_Batches):
    """Batches of every image once, in fixed order; process r of n takes batches r, r + n, r + 2n …

    Args:
        batches: indices of every batch.
        rank, world_size: this process and their number.
        pad: give all processes equally many batches by repeating the last one as padding, whose masks become ignored.
            Inside training this is needed: distributed forward passes wait for each other.
    """

    def __init__(self, batches: Sequence[Sequence[int]], rank: int = 0, world_size: int = 1, pad: bool = True) -> None:
        super().__init__(len(batches), rank, world_size)
        draws = [[SampleRequest(index) for index in batch] for batch in batches]
        missing = -len(draws) % world_size if pad else 0
        draws += [[replace(draw, padding=True) for draw in draws[-1]]] * missing
        self.own = draws[rank::world_size]

    @classmethod
    def of_shares(cls, shares: Sequence[Sequence[Sequence[int]]], rank: int = 0) -> Self:
        """Batches that are divided already: process r takes ``shares[r]``, padded to as many as the longest has."""
        longest = max(shares, key=len)
        sampler = cls(longest)
        padding = [SampleRequest(index, padding=True) for index in longest[-1]]
        own = [[SampleRequest(index) for index in batch] for batch in shares[rank]]
        sampler.own = own + [padding] * (len(longest) - len(own))
        return sampler

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        return iter(self.own)


def loading(trainer: Trainer | None, num_workers: int | None) -> dict[str, Any]:
    """Settings of a `BatchLoader` for the device that a trainer computes on.

    A GPU reads page-locked memory by itself, and has workers read ahead for it unless their number is given; on the CPU
    they would only take its cores.
    """
    device = "cpu" if trainer is None else trainer.strategy.root_device.type
    if num_workers is None:
        num_workers = 0 if device == "cpu" else min(WORKERS, os.cpu_count() or 1)
    return {"num_workers": num_workers, "persistent_workers": num_workers > 0, "pin_memory": device == "cuda"}


def _as_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    """Start of a worker process. With a function of our own Lightning does not add its own, which seeds."""
    leave_to_parent()
    if int(os.environ.get("PL_SEED_WORKERS", "0")):
        pl_worker_init_function(number)


class BatchLoader(DataLoader[Any]):
    """A DataLoader over a sampler of batches.

    Its (empty) state tells Lightning that it can be resumed in the middle of an epoch. What it would have to save is
    in the trainer's counters, which the sampler's position reads.
    """

    # Keyword only: Lightning builds loaders for prediction anew, from recorded arguments and its own.
    def __init__(self, dataset: Dataset[Any], *, sampler: Any, **kwargs: Any) -> None:
        own = {"batch_size": None, "collate_fn": _as_is, "worker_init_fn": _begin_worker}
        super().__init__(dataset, **{**own, **kwargs, "sampler": sampler})

    def _get_iterator(self) -> Any:
        with starting_workers():
            return super()._get_iterator()

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is nothing to load."""
