"""Base of data sets of image pairs: every image once for evaluation, batches of pairs for training."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.correspondence.annotations import Annotated, check_pairs
from gate_lightning.data.correspondence.batches import (
    Groups,
    PairSource,
    PairTransform,
    Partners,
    SquareBicubic,
    collate_pairs,
)
from gate_lightning.data.correspondence.images import ImagesOfPairs
from gate_lightning.data.files.checks import LEVELS
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import BatchDataset, Collate, SampleSource, collate_images
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Pair, PairBatch
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["PairDataModule"]

log = logging.getLogger(__name__)


class PairDataModule(ImageDataModule):
    """Pairs of images with keypoints.

    Training: batches of pairs (`PairBatch`), their images resized, points with them. Validation and test: every image
    that occurs in a pair once, as `ImageBatch`; what is measured are ``pairs_of(split)``, in the pixels of the files.
    Several processes divide the pairs among them (``share_of``), and each reads the images of its own.

    Subclasses set ``card`` and provide ``read``; where the keypoints are known that change places in a mirror image
    they set ``partners``.

    Attributes:
        partners: category → keypoint → keypoint that is in its place in a mirror image.
        keypoint_groups: category → groups of keypoints that look alike but for their place.

    Args:
        size: side of the square that images are resized to for the backbone, aspect not kept; 0 keeps them as they
            are.
        flip: probability that both images of a training pair are mirrored.
        flip_one: probability that one of them alone is mirrored, its keypoints renamed.
        subset: take at most so many pairs of every split, evenly spread over their order; None for all.
        check_level: sanity check at start: ``quick`` or ``full``.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    batch_type: type = PairBatch
    collate: Collate = staticmethod(collate_pairs)
    partners: Partners = MappingProxyType({})
    keypoint_groups: Groups = MappingProxyType({})
    #: what the root should hold, for messages
    layout = ""

    def __init__(
        self,
        size: int = 0,
        flip: float = 0.0,
        flip_one: float = 0.0,
        subset: int | None = None,
        check_level: str = "quick",
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_choice(check_level, "dataset.check_level", LEVELS)
        if subset is not None:
            whole_number(subset, "dataset.subset", 1, optional="all")
        self.subset, self.check_level = subset, check_level
        self.eval_resize = SquareBicubic(size)
        self.train_transform = PairTransform(self.eval_resize, flip, flip_one, self.partners)
        self.random_views = self.train_transform.random
        self._annotated: dict[str, Annotated] = {}

    @abstractmethod
    def read(self, split: str) -> Annotated:
        """Pairs and images of ``train``, ``val`` or ``test``.

        Raises:
            DataError: there is no such split, or a file that tells of the pairs is missing or broken.
        """

    def pairs_of(self, split: str) -> tuple[Pair, ...]:
        """All pairs of a split, those of a group and category together.

        Raises:
            DataError: names the first fault of the split.
        """
        return self._checked(split).pairs

    def share_of(self, split: str) -> tuple[Pair, ...]:
        """The pairs that this process measures; the loader of the split gives their images and no others."""
        rank, world_size = self._processes
        return self._shares(split, world_size)[rank]

    def make_source(self, split: str) -> SampleSource:
        """Pairs of the training split; of the others images, in the order in which pairs need them."""
        annotated = self._checked(split)
        images = ImagesOfPairs({name: annotated.images[name] for name in _in_order(annotated.pairs)})
        return PairSource(annotated.pairs, images) if split == "train" else images

    def attach(self, source: SampleSource, required_inputs: RequiredInputs) -> SampleSource:
        """Split whose images have the inputs that the techniques require."""
        if isinstance(source, PairSource):
            return PairSource(source.pairs, required_inputs.attach(source.images))
        return required_inputs.attach(source)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of pairs; a resumed run gets the rest of the epoch it stopped in."""
        if self.batch_size > 1 and not self.eval_resize.short:
            raise ConfigError(
                f"dataset.size=0 keeps images at their sizes, and batch_size={self.batch_size} needs one size; give a "
                "size, or dataset.batch_size=1"
            )
        return super().train_dataloader()

    def evaluation_views(self, split: str) -> Dataset[Any]:
        """The images of a split as they are evaluated."""
        source = self.source(split)
        images = source.images if isinstance(source, PairSource) else source
        return BatchDataset(images, self.eval_transform, collate_images, self.seed)

    def _evaluation_loader(self, split: str) -> BatchLoader:
        source, (rank, world_size) = self.source(split), self._processes
        place = {source.sample_id(index): index for index in range(len(source))}
        shares = [self._batches(source, place, pairs) for pairs in self._shares(split, world_size)]
        sampler = EvaluationBatches.of_shares(shares, rank)
        return self._loader(self.evaluation_views(split), sampler)

    def _batches(self, source: SampleSource, place: Mapping[str, int], pairs: Sequence[Pair]) -> list[list[int]]:
        """Batches of the images of some pairs, in the order in which these need them."""
        needed = [place[name] for name in _in_order(pairs)]
        sizes = [self.eval_resize.size(*source.sizes(index)[0]) for index in needed]
        groups = group_by_size(sizes, self.eval_batch_size, together=self.batch_size)
        return [[needed[number] for number in group] for group in groups]

    def _shares(self, split: str, world_size: int) -> list[tuple[Pair, ...]]:
        pairs = self.pairs_of(split)
        return [tuple(pairs[index] for index in part) for part in np.array_split(np.arange(len(pairs)), world_size)]

    def _checked(self, split: str) -> Annotated:
        if split not in self._annotated:
            self._require(split)
            annotated = self._ordered(self.read(split))
            report = DataReport(self.card.name, (), (self._check(split, annotated, self.check_level),))
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

    def _ordered(self, annotated: Annotated) -> Annotated:
        """Pairs of a group and category together, as many as ``subset`` allows, and their images."""
        pairs = annotated.pairs
        if self.subset is not None and len(pairs) > self.subset:
            pairs = tuple(pairs[index * len(pairs) // self.subset] for index in range(self.subset))
        pairs = tuple(sorted(pairs, key=lambda pair: (pair.group, pair.category)))
        images = {name: annotated.images[name] for name in _in_order(pairs)}
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
        reports = tuple(self._check(split, annotated, level) for split, annotated in read.items())
        return DataReport(self.card.name, (), reports, _counts(read))

    def _check(self, split: str, annotated: Annotated, level: str) -> SplitReport:
        return check_pairs(split, annotated, level, "{category}" in self.card.prompt_simple)


def _in_order(pairs: Sequence[Pair]) -> list[str]:
    """Sample ids of the images of pairs, once each, in the order in which pairs name them."""
    return list(dict.fromkeys(name for pair in pairs for name in (pair.source, pair.target)))


def _counts(read: Mapping[str, Annotated]) -> tuple[str, ...]:
    """Table of pairs and keypoints by split, group and category."""
    lines = []
    for split, annotated in read.items():
        pairs, points = len(annotated.pairs), sum(map(len, annotated.pairs))
        lines.append(f"  {split}: {pairs} pairs with {points} keypoints, of {len(annotated.images)} images")
        tally: dict[tuple[str, str], list[int]] = {}
        for pair in annotated.pairs:
            row = tally.setdefault((pair.group, pair.category), [0, 0])
            row[0], row[1] = row[0] + 1, row[1] + len(pair)
        if len(tally) > 1:
            for (group, category), (count, keypoints) in sorted(tally.items()):
                name = " ".join(part for part in (group, category) if part) or "(without category)"
                lines.append(f"    {name:<28}{count:>8} pairs{keypoints:>9} keypoints")
    return tuple(lines)
