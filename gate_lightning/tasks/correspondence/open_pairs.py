"""Pairs whose images arrive one by one; what belongs to an image is kept no longer than needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from gate_lightning.errors import DataError
from gate_lightning.structures import ImagePair

__all__ = ["OpenPairs", "open_pairs", "require_measured"]

log = logging.getLogger(__name__)

AnyPair = TypeVar("AnyPair", bound=ImagePair)
Kept = TypeVar("Kept")


class OpenPairs(Generic[AnyPair, Kept]):
    """Features of images, kept until the last of their pairs has been measured.

    Args:
        pairs: number and pair, of the pairs to be measured.

    Attributes:
        sizes: sample id → (H, W) of its file, of all images of the pairs.
        sources: sample ids of the images that are the source of a pair.

    Raises:
        DataError: pairs that disagree about the size of an image.
    """

    def __init__(self, pairs: Sequence[tuple[int, AnyPair]]) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}
        self.sources = frozenset(pair.source for _, pair in pairs)
        self._open: dict[str, dict[int, AnyPair]] = {}
        self._kept: dict[str, Kept] = {}
        for number, pair in pairs:
            for name, size in ((pair.source, pair.source_size), (pair.target, pair.target_size)):
                if self.sizes.setdefault(name, size) != size:
                    raise DataError(f"{name} has {self.sizes[name]} (height, width) in one pair and {size} in another")
                self._open.setdefault(name, {})[number] = pair

    def __len__(self) -> int:
        """Number of pairs that are not measured yet."""
        return len({number for pairs in self._open.values() for number in pairs})

    @property
    def kept(self) -> int:
        """Number of images that are kept now."""
        return len(self._kept)

    def wants(self, name: str) -> bool:
        """True if a pair waits for the image."""
        return name in self._open and name not in self._kept

    def arrive(self, name: str, value: Kept) -> Iterator[tuple[int, AnyPair, Kept, Kept]]:
        """Keep what belongs to an image; the pairs that it completes, with what belongs to their source and target."""
        self._kept[name] = value
        for number, pair in list(self._open[name].items()):
            if pair.source in self._kept and pair.target in self._kept:
                yield number, pair, self._kept[pair.source], self._kept[pair.target]
                for image in {pair.source, pair.target}:
                    self._close(image, number)

    def _close(self, image: str, number: int) -> None:
        del self._open[image][number]
        if not self._open[image]:
            del self._open[image], self._kept[image]


def open_pairs(data: Any, split: str) -> OpenPairs[Any, Any]:
    """The pairs that this process measures, with their places in the split.

    Args:
        data: data module with ``pairs_of`` and ``share_of``.
        split: name.
    """
    numbers = {id(pair): number for number, pair in enumerate(data.pairs_of(split))}
    return OpenPairs([(numbers[id(pair)], pair) for pair in data.share_of(split)])


def require_measured(measured: Sequence[Any], left: int, split: str) -> None:
    """Raise DataError if no pair of a split was measured, and warn of ``left`` that were not."""
    if not measured:
        raise DataError(f"no pair of {split} was complete: both of its images have to be read (limit_{split}_batches)")
    if left:
        log.warning("%d pairs of %s were not measured: not all of their images were read", left, split)
