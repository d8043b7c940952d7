"""What all segmentation data sets share: reproducible loaders that a resumed run continues exactly."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from gate_lightning.data.card import ClassLabels, DatasetCard
from gate_lightning.data.core.prediction import ImageSource, PredictionDataModule
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.resume import align_loops, batches_per_epoch, position
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, TrainingBatches, group_by_size
from gate_lightning.data.files.checks import DataReport, SplitReport, count_pixels
from gate_lightning.data.samples import Sample, SampleSource, SegmentationDataset, Transform, collate
from gate_lightning.data.transforms.basic import Compose, Resize
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.structures import SegmentationBatch
from gate_lightning.utils.seeding import data_generator

__all__ = ["SegmentationDataModule"]

log = logging.getLogger(__name__)


class SegmentationDataModule(LightningDataModule):
    """Loaders of `SegmentationBatch` for train, val and test, and of unlabelled images.

    Training batches are a function of (seed, global step, process), augmentation of (seed, sample, epoch): neither
    the number of workers nor the moment of an interruption changes them. Validation and test images are seen
    exactly once each, whatever the number of processes; where processes must be padded, the repeated images have
    ignored masks. There the mask keeps the size of its file while the image follows ``eval_resize``.

    Subclasses set ``card`` and ``labels``, and provide ``make_source``, ``train_transform`` and ``eval_resize``.

    Args:
        batch_size: training images per process and step.
        eval_batch_size: images of equal size evaluated together; None for ``batch_size`` if all have one size,
            else 1.
        num_workers: loader processes.
        seed: of order and augmentation.

    Raises:
        ConfigError: a number out of range.
    """

    card: DatasetCard
    labels: ClassLabels
    #: whether its images are meant to be squares (label-scarce segmentation refuses others)
    wants_squares = False
    #: go on with a resumed run although data or batches changed
    allow_changes = False
    #: whether ``train_transform`` draws random numbers
    random_views = False
    #: views of a training image, taken in turn by epoch; None for another one in every epoch
    view_cycle: int | None = None
    #: what the training loader reads instead: batches of the same views with features that were stored before
    stored_views: Callable[[SegmentationDataset], Dataset[SegmentationBatch]] | None = None

    def __init__(
        self, batch_size: int = 8, eval_batch_size: int | None = None, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value, low in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"dataset.{name} is {value!r}; expected a whole number from {low}")
        if eval_batch_size is not None and eval_batch_size < 1:
            raise ConfigError(f"dataset.eval_batch_size is {eval_batch_size}; expected at least 1, or null")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed = num_workers, seed
        self._sources: dict[str, SampleSource] = {}
        self._required_inputs = RequiredInputs()

    @abstractmethod
    def make_source(self, split: str) -> SampleSource:
        """The images of ``train``, ``val`` or ``test``."""

    @property
    def train_transform(self) -> Transform:
        """From a file's image and mask to training images of one size."""
        return Compose(())

    @property
    def eval_resize(self) -> Resize:
        """The documented rule by which images (not masks) are resized for evaluation."""
        return Resize(0)

    @property
    def has_test(self) -> bool:
        """Whether there is a test split."""
        return True

    def attach_inputs(self, required_inputs: RequiredInputs) -> None:
        """Hand out every image with what techniques need besides, in all splits and in prediction."""
        self._required_inputs = required_inputs
        self._sources.clear()

    def source(self, split: str) -> SampleSource:
        """The images of a split, read once."""
        if split not in self._sources:
            self._sources[split] = self._required_inputs.attach(self.make_source(split))
        return self._sources[split]

    def setup(self, stage: str | None = None) -> None:
        """Find and check the splits of a stage (``fit``, ``validate``, ``test``); calling it again costs nothing."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: ("train", "val")}
        for split in splits.get(stage, ()):
            self.source(split)

    def train_dataloader(self) -> BatchLoader:
        """Endless order cut into epochs; a resumed run gets the rest of the epoch it stopped in."""
        source = self.source("train")
        trainer = self._fitting
        if trainer is not None and getattr(trainer, "overfit_batches", False):
            raise ConfigError("trainer.overfit_batches is not supported; use trainer.limit_train_batches=<number>")
        views = self.training_views()
        sampler = TrainingBatches(len(source), self.batch_size, self.seed, None, *self._processes)
        if trainer is not None:
            align_loops(trainer, len(sampler))
            sampler.position = partial(position, trainer, len(sampler))
        return self._loader(views if self.stored_views is None else self.stored_views(views), sampler)

    def training_views(self) -> SegmentationDataset:
        """The training images as they are trained on, batch by batch of one's own choice."""
        random = self.random_views or self._required_inputs.random_views
        source = self.source("train")
        return SegmentationDataset(source, self.train_transform, self.seed, random, True, self.view_cycle)

    def val_dataloader(self) -> BatchLoader:
        """Every validation image once."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Every test image once."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> BatchLoader:
        source = self.source(split)
        sizes = [source.sizes(index) for index in range(len(source))]
        batches = group_by_size(sizes, self.eval_batch_size, together=self.batch_size)
        views = SegmentationDataset(source, self.eval_resize, self.seed)
        return self._loader(views, EvaluationBatches(batches, *self._processes))

    def _loader(self, views: Dataset[SegmentationBatch], sampler: Any) -> BatchLoader:
        return BatchLoader(
            views, sampler=sampler, num_workers=self.num_workers, persistent_workers=self.num_workers > 0
        )

    def images_of(self, split: str) -> ImageSource:
        """The image files of a split without their masks, with the sample ids of the split.

        Raises:
            ConfigError: this data set has no such files.
        """
        raise ConfigError(f"{self.card.name} has no image files of its {split} split that could be predicted")

    def prediction(self, images: str | Path | ImageSource, eval_batch_size: int | None = None) -> PredictionDataModule:
        """Loader of unlabelled images, resized by the rule for evaluation.

        Args:
            images: an image, a folder of images, or the images of a split.
            eval_batch_size: see the constructor.
        """
        return PredictionDataModule(images, self.eval_resize, eval_batch_size, self.num_workers, self._required_inputs)

    def prepare(self, sample: Sample) -> SegmentationBatch:
        """One image, with what belongs to it, as the model gets it in evaluation."""
        return collate([self.eval_resize(sample, data_generator())])  # resizing draws nothing

    def check(self, level: str = "full") -> DataReport:
        """Look at the data without a run.

        Args:
            level: ``quick`` or ``full``; generated data have no difference.
        """
        reports = []
        for split in ("train", "val", "test")[: 3 if self.has_test else 2]:
            source = self.source(split)
            samples = [source.load(index) for index in range(len(source))]
            masks = [sample.mask for sample in samples if sample.mask is not None]
            pixels = count_pixels(masks, self.labels.num_classes)
            reports.append(SplitReport(split, len(samples), len(masks), (), (), pixels))
        return DataReport(self.card.name, self.labels.classes, tuple(reports))

    def state_dict(self) -> dict[str, Any]:
        """What the order of a run's batches depends on."""
        trainer = self._fitting
        return {} if trainer is None else self._order_of(trainer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to go on with other data or batches, unless ``allow_changes``.

        Raises:
            ResumeError: names everything that changed.
        """
        trainer = self._fitting
        if trainer is None:
            return
        now = self._order_of(trainer)
        changes = [f"{name}: {state.get(name)} → {now[name]}" for name in now if state.get(name) != now[name]]
        if not changes:
            return
        text = "the training data or their order changed since the checkpoint: " + "; ".join(changes)
        if not self.allow_changes:
            raise ResumeError(f"{text}. Restore them, or add allow_changes=true if you mean it")
        log.warning("%s", text)

    def _order_of(self, trainer: Trainer) -> dict[str, Any]:
        source = self.source("train")
        names = "\n".join(source.sample_id(index) for index in range(len(source)))
        length = len(source) // (self.batch_size * trainer.world_size)
        return {
            "images": len(source),
            "names": hashlib.sha256(names.encode()).hexdigest()[:16],
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "batches_per_epoch": batches_per_epoch(trainer, length),
        }

    @property
    def _fitting(self) -> Trainer | None:
        trainer = self.trainer
        return trainer if trainer is not None and trainer.state.fn == TrainerFn.FITTING else None

    @property
    def _processes(self) -> tuple[int, int]:
        """(rank, world size)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
