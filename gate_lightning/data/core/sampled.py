"""A few images of a data set, whatever is done with them otherwise: of pairs and videos the single images."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from lightning import LightningDataModule
from torch.utils.data import Dataset

from gate_lightning.data.card import ClassLabels
from gate_lightning.data.core.datamodule import LOADER_SETTINGS, ImageDataModule
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, group_by_size
from gate_lightning.data.samples import BatchDataset, SampleSource
from gate_lightning.data.transforms.square_resize import Square
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import ImageBatch, PairBatch
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["SampledImages", "spread_sample"]


class SampledImages(LightningDataModule):
    """Evaluation batches of a sample of another data set's images.

    Attributes:
        ignored_settings: of the data set, those without effect on the sample.

    Args:
        dataset: whose images these are.
        images: number of images of a split; all of a split that has fewer.
        batch_size: images of equal size at once.
        seed: of the sample.
        size: side in pixels of the squares that masks are brought to, as in label-scarce segmentation, whose data
            sets set it; None leaves images and masks to the data set's own rule.
        image_size: side in pixels of the images then; None for ``size``.

    Raises:
        ConfigError: a number out of range, or a data set that gives no single images.
    """

    batch_type: type = ImageBatch
    ignored_settings: ClassVar[frozenset[str]] = LOADER_SETTINGS

    def __init__(
        self,
        dataset: ImageDataModule,
        images: int = 32,
        batch_size: int = 8,
        seed: int = 0,
        size: int | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if not issubclass(getattr(dataset, "batch_type", object), ImageBatch | PairBatch):  # these are read singly, too
            raise ConfigError(
                f"{type(dataset).__name__} (dataset=) gives no single images to take a sample of; choose a data set of "
                "images: dataset=images (a folder), folder, scenes …"
            )
        self.dataset, self.card = dataset, dataset.card
        self.labels: ClassLabels | None = getattr(dataset, "labels", None)
        self.images = whole_number(images, "task.data.images", 2)
        self.batch_size = whole_number(batch_size, "task.data.batch_size", 1)
        self.seed = whole_number(seed, "task.data.seed")
        self._square = None if size is None else Square(size if image_size is None else image_size, size)

    @property
    def underlying(self) -> ImageDataModule:
        """Data set that the sample is taken of."""
        return self.dataset

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the available splits."""
        return self.dataset.splits

    def attach_inputs(self, required_inputs: RequiredInputs) -> None:
        """Tell the data set what techniques need with its images; see `ImageDataModule.attach_inputs`."""
        self.dataset.attach_inputs(required_inputs)

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images of a stage."""
        self.dataset.setup(stage)

    def val_dataloader(self) -> BatchLoader:
        """The sample of the validation split."""
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        """The sample of the test split."""
        return self._loader("test")

    def batches(self, split: str) -> list[Any]:
        """The sample of a split, also of ``train``: as it is evaluated, never augmented."""
        return list(self._loader(split))

    def sample_ids(self, split: str) -> list[str]:
        """Names of the images of a split's sample."""
        source = self.dataset.evaluated(split)
        return [source.sample_id(index) for index in self._chosen(split, source)]

    def _loader(self, split: str) -> BatchLoader:
        source = self.dataset.evaluated(split)
        chosen = self._chosen(split, source)
        sizes = [source.sizes(index) if self._square is None else () for index in chosen]
        groups = group_by_size(sizes, self.batch_size, self.batch_size)
        batches = [[chosen[number] for number in group] for group in groups]
        return BatchLoader(self._views(split, source), sampler=EvaluationBatches(batches))

    def _chosen(self, split: str, source: SampleSource) -> list[int]:
        if len(source) < 2:
            raise DataError(f"{self.card.name} has {len(source)} image in {split}; a sample needs at least 2")
        return spread_sample(len(source), self.images, self.seed, split)

    def _views(self, split: str, source: SampleSource) -> Dataset[Any]:
        if self._square is None:
            return self.dataset.evaluation_views(split)
        return BatchDataset(source, self._square, self.dataset.collate, self.seed)


def spread_sample(total: int, count: int, *key: object) -> list[int]:
    """Places of ``count`` of ``total`` things, rising: a random one of each of as many equal parts; all of fewer.

    Args:
        total: how many there are.
        count: how many are taken.
        key: the choice depends on it, and on both numbers, alone.

    >>> spread_sample(3, 8, 0)
    [0, 1, 2]
    """
    if count >= total:
        return list(range(total))
    draw = data_generator("sample", total, count, *key)
    limits = [number * total // count for number in range(count + 1)]
    return [int(draw.integers(low, high)) for low, high in pairwise(limits)]
