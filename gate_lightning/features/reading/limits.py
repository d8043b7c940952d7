"""Samples of a pass: as many as are allowed, and half as many where the GPU's memory does not suffice."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.passes import group_branches
from gate_lightning.features.reading.steering import SteeredBranch

__all__ = ["SampleLimit", "passes"]

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class SampleLimit:
    """Most samples of a pass.

    Args:
        most: at the beginning; None for no limit.
        what: kind of pass, for messages.
        make_room: frees memory that can be done without, and tells whether there was any; asked before passes are made
            smaller.

    Attributes:
        most: now; halved whenever a pass runs out of memory, for all later ones.
    """

    def __init__(self, most: int | None, what: str, make_room: Callable[[], bool] = lambda: False) -> None:
        self.most, self.what, self._make_room = most, what, make_room

    def attempt(self, run: Callable[[], _Result], samples: int, divisible: bool = True) -> _Result | None:
        """Result of ``run``; None if it ran out of memory, and is to be run again on as many samples as allowed now.

        Args:
            run: the pass.
            samples: how many it has.
            divisible: whether it can be divided.

        Raises:
            ConfigError: it ran out of memory, and cannot be divided.
        """
        try:
            return run()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
        # behind the handler: its traceback would keep the pass's tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._make_room():
            return None
        if not divisible:
            raise ConfigError(
                f"the GPU has no room for one image in {self.what} ({reason}). Half the memory by "
                "weights of type bfloat16 (backbone.dtype=bfloat16); less by smaller images (backbone_scale=0.5), a "
                "smaller head or batch (dataset.batch_size), or a cache on the host (cache.place=host)"
            )
        self.most = max(1, samples // 2)
        log.warning(
            "out of memory in %s of %d samples: %d at once from here on. max_samples=%d (features.max_samples=%d) "
            "says so from the beginning (%s)",
            *(self.what, samples, self.most, self.most, self.most, reason),
        )
        return None

    def in_parts(self, count: int, run: Callable[[slice], _Result]) -> list[_Result]:
        """Results of ``run`` on consecutive rows of ``count``, as many at once as there may be."""
        results: list[_Result] = []
        done = 0
        while done < count:
            rows = slice(done, count if self.most is None else min(count, done + self.most))
            result = self.attempt(partial(run, rows), rows.stop - done, rows.stop - done > 1)
            if result is not None:
                results.append(result)
                done = rows.stop
        return results


def passes(
    branches: Sequence[SteeredBranch], limit: SampleLimit, run: Callable[[list[SteeredBranch]], _Result]
) -> Iterator[tuple[list[SteeredBranch], _Result]]:
    """Groups of steered branches that share a pass, each with what ``run`` makes of it."""
    waiting = deque(group_branches(branches, limit.most))
    while waiting:
        group = waiting.popleft()
        divisible = len(group) > 1 or len(group[0]) > 1
        result = limit.attempt(partial(run, group), sum(one.samples for one in group), divisible)
        if result is None:
            waiting = deque(group_branches([one for same in (group, *waiting) for one in same], limit.most))
        else:
            yield group, result
