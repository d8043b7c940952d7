"""Base of data sets whose images have a class each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from gate_lightning.data.card import IGNORE_INDEX, ClassLabels
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import Collate, Sample, SampleSource, Subset, collate_images
from gate_lightning.data.transforms.basic import CenterCrop, Resize
from gate_lightning.structures import ClassificationBatch
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = [
    "CenterSquare",
    "ClassificationDataModule",
    "ClassifiedSample",
    "ClassifiedSource",
    "ClassifiedSubset",
    "absent",
    "collate_labels",
    "count_images",
    "held_out",
]


@dataclass(frozen=True)
class ClassifiedSample(Sample):
    """An image with its class.

    Attributes:
        label: class index; 255 for an image that only pads a batch.
    """

    label: int = field(kw_only=True)

    def ignored(self) -> Self:
        """The same image without its class."""
        return replace(self, label=IGNORE_INDEX)


def collate_labels(
    samples: Sequence[ClassifiedSample], views: Sequence[str] = (), training: bool = False
) -> ClassificationBatch:
    """Batch of images of one size and their classes; see `collate_images`."""
    batch = collate_images(samples, views, training)
    return ClassificationBatch(batch.images, batch.conditions, torch.tensor([sample.label for sample in samples]))


class ClassifiedSource(SampleSource[ClassifiedSample], Protocol):
    """A split whose classes are known without decoding its images."""

    def label(self, index: int) -> int:
        """Class index of image ``index``."""


class ClassifiedSubset(Subset):
    """Images of a split, chosen by position, as a `ClassifiedSource`.

    Args:
        source: the split.
        chosen: positions in it.
    """

    def __init__(self, source: ClassifiedSource, chosen: Sequence[int]) -> None:
        super().__init__([(source, index) for index in chosen])
        self._labels = [source.label(index) for index in chosen]

    def label(self, index: int) -> int:
        """Class index of image ``index``."""
        return self._labels[index]


class CenterSquare(Resize):
    """Resize the shorter side to ``side`` pixels, aspect kept, and cut the middle out.

    Args:
        side: in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__(whole_number(side, "dataset.size", 1))
        self._crop = CenterCrop(side)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The square; draws no random number."""
        return self._crop(super().__call__(sample, rng), rng)


class ClassificationDataModule(ImageDataModule):
    """Loaders of `ClassificationBatch`: squares of one size, in training as in evaluation, never augmented.

    So every image passes the backbone once, whatever the number of epochs. Subclasses set ``labels`` and ``card``, and
    their sources load `ClassifiedSample` and have ``label(index)``.

    Attributes:
        labels: classes of the images.

    Args:
        size: side in pixels of what the backbone is shown.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a number out of range.
    """

    batch_type: type = ClassificationBatch
    collate: Collate = staticmethod(collate_labels)
    labels: ClassLabels

    def __init__(self, size: int = 64, **loading: Any) -> None:
        super().__init__(**loading)
        self.eval_resize = self.train_transform = CenterSquare(size)
        self.size = size

    def images(self, split: str) -> BatchLoader:
        """Every image of a split once, in the order of the split, as it is evaluated."""
        return self._evaluation_loader(split)

    def _evaluation_loader(self, split: str) -> BatchLoader:
        # whatever sizes the files have, they are shown in one
        same = [self.size] * len(self.source(split))
        batches = group_by_size(same, self.eval_batch_size, together=self.batch_size)
        return self._loader(self.evaluation_views(split), EvaluationBatches(batches, *self._processes))

    def check(self, level: str = "full") -> DataReport:
        """Check the data without a run.

        Args:
            level: ``quick`` or ``full``; generated data and packed files have no difference.
        """
        reports = tuple(self._report(split) for split in self.splits)
        return DataReport(self.card.name, self.labels.classes, reports, of_images=True)

    def _report(self, split: str) -> SplitReport:
        source: Any = self.source(split)
        sizes = Counter(source.sizes(index)[0] for index in range(len(source)))
        counts = count_images([source.label(index) for index in range(len(source))], self.labels.num_classes)
        return SplitReport(
            split, len(source), len(source), (), absent(split, counts, self.labels.classes), counts, sizes
        )


def count_images(labels: Sequence[int], num_classes: int) -> np.ndarray:
    """int64 (K + 1,) images per class and, last, 0: none is without a class."""
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=num_classes + 1)


def absent(split: str, counts: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Sentence about classes of which a split has no image; () if it has some of all."""
    names = [repr(name) for name, count in zip(classes, counts, strict=False) if not count]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more classes" if len(names) > 8 else "")
    return (f"{split}: no image of {shown}",) if names else ()


def held_out(places: Sequence[int], count: int, *key: object) -> tuple[list[int], list[int]]:
    """Places that stay, and ``count`` that are held out; both in the given order.

    Args:
        places: positions of images in a split.
        count: how many are held out.
        key: decides which ones.
    """
    out = set(data_generator("held out", *key).permutation(len(places))[:count].tolist())
    kept = [place for number, place in enumerate(places) if number not in out]
    return kept, [place for number, place in enumerate(places) if number in out]
