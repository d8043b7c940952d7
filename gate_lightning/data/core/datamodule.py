"""Base of all data sets of images: reproducible loaders that a resumed run continues exactly."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.core.prediction import ImageSource, PredictionDataModule
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.core.resume import align_loops, batches_per_epoch, position
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, TrainingBatches, group_by_size, loading
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import BatchDataset, Collate, Sample, SampleSource, Transform, collate_images
from gate_lightning.data.transforms.basic import Compose, Resize
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.structures import ImageBatch
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["LOADER_SETTINGS", "ImageDataModule"]

log = logging.getLogger(__name__)

#: settings of data sets about their own loaders and augmentation, which who reads their images otherwise leaves out
LOADER_SETTINGS = frozenset(
    {
        *("batch_size", "eval_batch_size", "num_workers"),
        *("augment", "ratio_range", "cat_max_ratio", "flip", "flip_one", "photometric", "pad_label"),
    }
)


class ImageDataModule(LightningDataModule):
    """Loaders of train, val and test splits, and of unlabelled images.

    Training batches are a function of (seed, global step, process), augmentation of (seed, sample, epoch): neither
    the number of workers nor the moment of an interruption changes them. Validation and test images are seen
    exactly once each, whatever the number of processes; where processes must be padded, the repeated samples are
    `Sample.ignored`.

    Subclasses set ``card`` and provide ``make_source``. Where a sample is more than an image they set ``batch_type``
    and ``collate``; where it is no single image (a pair, a video), ``eval_transform`` and ``attach`` too.

    Attributes:
        card: facts about the data set.
        batch_type: class of the training batches, which a task's ``batch_type`` must allow.
        collate: makes a batch of samples.
        train_transform: from a sample of the files to a training sample.
        eval_resize: rule by which an image is resized for evaluation and prediction.
        random_views: whether ``train_transform`` draws random numbers.
        allow_changes: go on with a resumed run although data or batches changed.

    Args:
        batch_size: training images per process and step.
        eval_batch_size: images of equal size evaluated together; None for ``batch_size`` if all have one size,
            else 1.
        num_workers: loader processes; None for `samplers.WORKERS` where an accelerator computes, which they read ahead
            for, and none where the CPU does.
        seed: of order and augmentation.

    Raises:
        ConfigError: a number out of range.
    """

    card: DatasetCard
    batch_type: type = ImageBatch
    collate: Collate = staticmethod(collate_images)
    train_transform: Transform = Compose(())
    eval_resize: Resize = Resize(0)
    random_views = False
    allow_changes = False

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = whole_number(batch_size, "dataset.batch_size", 1)
        if num_workers is not None:
            whole_number(num_workers, "dataset.num_workers", optional="as many as the device needs")
        self.num_workers = num_workers
        self.seed = whole_number(seed, "dataset.seed")
        if eval_batch_size is not None:
            whole_number(eval_batch_size, "dataset.eval_batch_size", 1, optional="batch_size, or 1 where sizes differ")
        self.eval_batch_size = eval_batch_size
        self._sources: dict[str, SampleSource] = {}
        self._required_inputs = RequiredInputs()

    @abstractmethod
    def make_source(self, split: str) -> SampleSource:
        """The samples of ``train``, ``val`` or ``test``, as they are in the files."""

    @property
    def eval_transform(self) -> Transform:
        """Transform of validation and test samples."""
        return self.eval_resize

    @property
    def has_test(self) -> bool:
        """True if the data set has a test split."""
        return True

    def attach_inputs(self, required_inputs: RequiredInputs) -> None:
        """Set the inputs that techniques require, for all splits and for prediction; call it before ``setup``.

        Raises:
            ConfigError: images were read already.
        """
        if self._sources:
            raise ConfigError(
                f"attach_inputs comes before setup, and {type(self).__name__} has read {', '.join(self._sources)}; "
                "make a new data module"
            )
        self._required_inputs = required_inputs

    def attach(self, source: SampleSource, required_inputs: RequiredInputs) -> SampleSource:
        """Split with the inputs that the techniques require."""
        return required_inputs.attach(source)

    def source(self, split: str) -> SampleSource:
        """The samples of a split, found and checked once."""
        if split not in self._sources:
            self._sources[split] = self.attach(self.make_source(split), self._required_inputs)
        return self._sources[split]

    def setup(self, stage: str | None = None) -> None:
        """Find and check the splits of a stage (``fit``, ``validate``, ``test``); calling it again costs nothing."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: ("train", "val")}
        for split in splits.get(stage, ()):
            self.source(split)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled training batches; a resumed run gets the rest of the epoch it stopped in."""
        source = self.source("train")
        trainer = self._fitting
        if trainer is not None and getattr(trainer, "overfit_batches", False):
            raise ConfigError(
                "trainer.overfit_batches is not supported; use debug=overfit, dataset.train= or dataset.subset="
            )
        sampler = TrainingBatches(len(source), self.batch_size, self.seed, None, *self._processes)
        if trainer is not None:
            align_loops(trainer, len(sampler))
            sampler.position = partial(position, trainer, len(sampler))
        return self._loader(self.training_views(), sampler)

    def training_views(self) -> BatchDataset:
        """Data set of augmented training batches, indexed by lists of `SampleRequest`."""
        random = self.random_views or self._required_inputs.random_views
        source = self.source("train")
        cycle = self._required_inputs.view_cycle
        edges = self._required_inputs.edges
        return BatchDataset(source, self.train_transform, self.collate, self.seed, random, True, cycle, edges)

    def val_dataloader(self) -> BatchLoader:
        """Every validation image once."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> BatchLoader:
        """Every test image once."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> BatchLoader:
        source = self.source(split)
        sizes = [source.sizes(index) for index in range(len(source))]
        for index, found in enumerate(sizes):
            for size in found[:1]:
                self.eval_resize.check(*size, source.sample_id(index))
        batches = group_by_size(sizes, self.eval_batch_size, together=self.batch_size)
        return self._loader(self.evaluation_views(split), EvaluationBatches(batches, *self._processes))

    def evaluated(self, split: str) -> SampleSource:
        """Samples that `evaluation_views` are of: those of a split, single images where these are pairs."""
        return self.source(split)

    def evaluation_views(self, split: str) -> Dataset[Any]:
        """The samples of a split as they are evaluated, batch by batch of one's own choice."""
        edges = self._required_inputs.edges
        return BatchDataset(self.evaluated(split), self.eval_transform, self.collate, self.seed, edges=edges)

    def _loader(self, views: Dataset[Any], sampler: Any) -> BatchLoader:
        return BatchLoader(views, sampler=sampler, **loading(self.trainer, self.num_workers))

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

    def prepare(self, sample: Sample) -> ImageBatch:
        """Batch of one image, resized as for prediction."""
        return collate_images([self.eval_resize(sample, data_generator())])  # resizing draws nothing

    @property
    def underlying(self) -> ImageDataModule:
        """Data set that the images come from: itself, unless it is a choice of another one's images."""
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the available splits."""
        return ("train", "val", "test") if self.has_test else ("train", "val")

    def check(self, level: str = "full") -> DataReport:
        """Check the data without a run; errors are raised or listed in the report.

        Args:
            level: ``quick`` or ``full``; by default every sample is read.
        """
        return DataReport(self.card.name, (), tuple(self._report(split) for split in self.splits))

    def _report(self, split: str) -> SplitReport:
        source = self.source(split)
        for index in range(len(source)):
            source.load(index)
        return SplitReport(split, len(source), len(source), (), (), np.zeros(1, dtype=np.int64))

    def state_dict(self) -> dict[str, Any]:
        """Fingerprint of the data and settings that decide the order of training batches."""
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
        """Rank of this process and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
