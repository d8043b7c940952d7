"""Base of data sets of image pairs: every image once for evaluation, divided among processes by pairs."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic

import numpy as np

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.correspondence.annotations import Annotated, AnyPair
from gate_lightning.data.correspondence.batches import SquareBicubic
from gate_lightning.data.files.checks import LEVELS
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import SampleSource
from gate_lightning.errors import DataError
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["PairedImagesDataModule", "names_in_order"]

log = logging.getLogger(__name__)


class PairedImagesDataModule(ImageDataModule, Generic[AnyPair]):
    """Pairs of images that are measured: loaders give every image that occurs in a pair once.

    What is measured are ``pairs_of(split)``, in the pixels of the files. Several processes divide the pairs among them
    (``share_of``), and each reads the images of its own.

    Args:
        size: side of the square that images are resized to for the backbone, aspect not kept; 0 keeps them as they
            are.
        subset: take at most so many pairs of every split, evenly spread over their order; None for all.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    #: what the root should hold, for messages
    layout = ""
    eval_resize: SquareBicubic

    def __init__(self, size: int = 0, subset: int | None = None, check_level: str = "quick", **loading: Any) -> None:
        super().__init__(**loading)
        check_choice(check_level, "dataset.check_level", LEVELS)
        if subset is not None:
            whole_number(subset, "dataset.subset", 1, optional="all")
        self.subset, self.check_level = subset, check_level
        self.eval_resize = SquareBicubic(size)
        self._annotated: dict[str, Annotated[AnyPair]] = {}

    @abstractmethod
    def read(self, split: str) -> Annotated[AnyPair]:
        """Pairs and images of ``train``, ``val`` or ``test``.

        Raises:
            DataError: there is no such split, or a file that tells of the pairs is missing or broken.
        """

    @abstractmethod
    def checked(self, split: str, annotated: Annotated[AnyPair], level: str) -> SplitReport:
        """Faults of a split that was read."""

    def counts(self, split: str, annotated: Annotated[AnyPair]) -> tuple[str, ...]:
        """Lines of the report of a check on what a split holds."""
        return (f"  {split}: {len(annotated.pairs)} pairs of {len(annotated.images)} images",)

    def order_of(self, pair: AnyPair) -> tuple[str, ...]:
        """Key that sorts pairs: those together that have images in common."""
        return (pair.group,)

    def pairs_of(self, split: str) -> tuple[AnyPair, ...]:
        """All pairs of a split, those of a group together.

        Raises:
            DataError: names the first fault of the split.
        """
        return self.annotated(split).pairs

    def share_of(self, split: str) -> tuple[AnyPair, ...]:
        """The pairs that this process measures; the loader of the split gives their images and no others."""
        rank, world_size = self._processes
        return self._shares(split, world_size)[rank]

    def _evaluation_loader(self, split: str) -> BatchLoader:
        source, (rank, world_size) = self.source(split), self._processes
        place = {source.sample_id(index): index for index in range(len(source))}
        shares = [self._batches(source, place, pairs) for pairs in self._shares(split, world_size)]
        sampler = EvaluationBatches.of_shares(shares, rank)
        return self._loader(self.evaluation_views(split), sampler)

    def _batches(self, source: SampleSource, place: Mapping[str, int], pairs: Sequence[AnyPair]) -> list[list[int]]:
        """Batches of the images of some pairs, in the order in which these need them."""
        needed = [place[name] for name in names_in_order(pairs)]
        sizes = [self.eval_resize.size(*source.sizes(index)[0]) for index in needed]
        groups = group_by_size(sizes, self.eval_batch_size, together=self.batch_size)
        return [[needed[number] for number in group] for group in groups]

    def _shares(self, split: str, world_size: int) -> list[tuple[AnyPair, ...]]:
        pairs = self.pairs_of(split)
        return [tuple(pairs[index] for index in part) for part in np.array_split(np.arange(len(pairs)), world_size)]

    def annotated(self, split: str) -> Annotated[AnyPair]:
        """A split as it was read and checked, once.

        Raises:
            DataError: names the first fault of the split.
        """
        if split not in self._annotated:
            self._require(split)
            annotated = self._ordered(self.read(split))
            report = DataReport(self.card.name, (), (self.checked(split, annotated, self.check_level),))
            for warning in report.warnings:
                log.warning("%s", warning)
            report.raise_if_broken()
            if not annotated.pairs:
                raise DataError(f"{self.card.name} has no pairs in {split}")
            self._annotated[split] = annotated
        return self._annotated[split]

    def _require(self, split: str) -> None:
        if split not in self.splits:
            expected = f"; looked for {self.layout}" if self.layout else ""
            there = f", only {' and '.join(self.splits)}" if self.splits else ""
            raise DataError(f"{self.card.name} has no {split} pairs here{there}{expected}")

    def _ordered(self, annotated: Annotated[AnyPair]) -> Annotated[AnyPair]:
        """Pairs in their order, as many as ``subset`` allows, and their images."""
        pairs = annotated.pairs
        if self.subset is not None and len(pairs) > self.subset:
            pairs = tuple(pairs[index * len(pairs) // self.subset] for index in range(self.subset))
        pairs = tuple(sorted(pairs, key=self.order_of))
        images = {name: annotated.images[name] for name in names_in_order(pairs)}
        return replace(annotated, pairs=pairs, images=images)

    def check(self, level: str = "full") -> DataReport:
        """Check all splits without a run; errors about what the annotations say are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: a file that tells of the pairs is missing or broken.
        """
        if not self.splits:
            self._require("test")
        read = {split: self.read(split) for split in self.splits}
        reports = tuple(self.checked(split, annotated, level) for split, annotated in read.items())
        notes = tuple(line for split, annotated in read.items() for line in self.counts(split, annotated))
        return DataReport(self.card.name, (), reports, notes)


def names_in_order(pairs: Sequence[AnyPair]) -> list[str]:
    """Sample ids of the images of pairs, once each, in the order in which pairs name them."""
    return list(dict.fromkeys(name for pair in pairs for name in (pair.source, pair.target)))
