"""``task=label_scarce``: few labelled images of any data set, split at random and sampled pixel by pixel.

The protocol is ddpm-segmentation's, as GATE uses it: the data set's training and test images are pooled and split at
random, with as many training images as before. Images and masks are squares. On training masks, annotations too
small to learn from are ignored. Features of an image do not depend on the split, so one cache serves all splits.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import Trainer

from gate_lightning.data.core.datamodule import LOADER_SETTINGS
from gate_lightning.data.core.prediction import ImageSource, PredictionDataModule
from gate_lightning.data.core.resume import align_loops, batches_per_epoch, position
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches, loading
from gate_lightning.data.files.checks import too_few_classes
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.label_scarce.class_presence import ClassPresence, over_splits, pixels_by_image, with_presence
from gate_lightning.data.label_scarce.pixel_batches import LabelledPixels, PixelSampler
from gate_lightning.data.label_scarce.pool import Pool, not_square
from gate_lightning.data.label_scarce.splits import Split, random_split, read_split, shipped_split, write_split
from gate_lightning.data.samples import BatchDataset, Sample, SampleSource, Subset
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.transforms.basic import Compose, resize_mask
from gate_lightning.data.transforms.square_resize import DropSmallAnnotations, Square, drop_small
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import ImageBatch, PixelBatch
from gate_lightning.utils.checks import check_choice

__all__ = ["LabelScarceDataModule"]

log = logging.getLogger(__name__)

SQUARES = ("refuse", "stretch")
#: random splits that a check looks at: those of a whole protocol
CHECKED_SPLITS = 5


class LabelScarceDataModule(SegmentationDataModule):
    """Images of another data set under the label-scarce protocol.

    Training batches are `PixelBatch`es: pixels of the labelled images, by position. Images and masks come from
    ``images("train")`` and ``images("test")``. There is no validation split: ``val`` is the test split.

    Attributes:
        ignored_settings: of the data set, those without effect here.

    Args:
        dataset: whose images these are. Its training and test images are the pool; where it has no test split,
            training and validation images.
        split_seed: of the random split; None for the data set's own.
        labelled: training images used, the first of the split's; None for all. The test images do not depend on
            it, and fewer are always among more.
        split_file: a ``split.json`` to follow instead of ``split_seed``.
        size: side in pixels of the masks: what is trained on and measured.
        image_size: side in pixels of the images, which the backbone sees; None for ``size``.
        square: what to do with images that are not square: ``refuse`` or ``stretch``; None refuses where the
            data set wants squares and stretches elsewhere.
        small_annotations: a class with fewer pixels in a training mask is ignored there; of 256², scaled to ``size``².
        members: classifiers trained together, each with its own order of pixels.
        pixels_per_batch: per member.
        eval_batch_size: images at once.
        seed: of the orders of pixels.

    Raises:
        ConfigError: a setting out of range.
    """

    batch_type = PixelBatch
    ignored_settings: ClassVar[frozenset[str]] = LOADER_SETTINGS

    def __init__(
        self,
        dataset: SegmentationDataModule,
        split_seed: int | None = 0,
        labelled: int | None = None,
        split_file: str | None = None,
        size: int = 256,
        image_size: int | None = None,
        square: str | None = None,
        small_annotations: int = 20,
        members: int = 10,
        pixels_per_batch: int = 64,
        eval_batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=1, eval_batch_size=eval_batch_size, seed=seed)
        if not isinstance(dataset, SegmentationDataModule):
            raise ConfigError(f"task=label_scarce needs labelled images; {type(dataset).__name__} has none")
        if square is not None:
            check_choice(square, "task.data.square", SQUARES)
        if split_file is not None and split_seed not in (None, 0):
            log.warning("split_file decides the split; split_seed=%s has no effect", split_seed)
        self.dataset, self.card, self.labels = dataset, dataset.card, dataset.labels
        self.split_seed, self.split_file, self.wanted = split_seed, split_file, labelled
        self.size, self.image_size = size, size if image_size is None else image_size
        self.refuses = square == "refuse" or (square is None and dataset.wants_squares)
        self.members, self.pixels_per_batch = members, pixels_per_batch
        self._looked = False
        self._square, self._drop = Square(self.image_size, size), DropSmallAnnotations(small_annotations)
        self.eval_resize = Square(self.image_size)

    # ------------------------------------------------------------------ the pool and its split

    @property
    def underlying(self) -> SegmentationDataModule:
        """Data set that the pool is made of."""
        return self.dataset

    @cached_property
    def pool(self) -> Pool:
        """All images of the data set.

        Raises:
            DataError: a broken file, or images that are not square where they must be.
        """
        splits = ("train", "test" if self.dataset.has_test else "val")
        pool = Pool(self.card.name, {split: self.dataset.source(split) for split in splits})
        if self.refuses:
            pool.require_squares()
        return pool

    @cached_property
    def split(self) -> Split:
        """Positions of the labelled and of the test images in the pool.

        Raises:
            ConfigError: more labelled images asked for than there are.
            DataError: see `read_split`.
        """
        if self.split_file is None:
            return self.split_of(self.split_seed)
        return read_split(self.split_file, self.pool.names).labelled(self.wanted)

    def split_of(self, seed: int | None) -> Split:
        """The split of another seed."""
        train, total = self.pool.lengths[0], len(self.pool)
        made = shipped_split(train, total) if seed is None else random_split(train, total, seed)
        return made.labelled(self.wanted)

    def make_source(self, split: str) -> Subset:
        """The images of ``train`` or ``test`` as they are in their files; ``val`` is ``test``."""
        return self.pool.part(self.split.train if split == "train" else self.split.test)

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images.

        Raises:
            DataError: broken data, or labelled images that show fewer than two classes.
        """
        self.source("test")
        if stage not in ("fit", None) or self._looked:
            return
        # decodes all of them: a broken one must not be found when training has been paid for
        presence = self.presence("train", "test")
        for split, advice in (
            ("train", "take more images (task.data.labelled) or another split (task.data.split_seed)"),
            ("test", "choose other test images"),
        ):
            pixels = presence.pixels[split].sum(axis=0)
            found = too_few_classes(split, self.labels.classes, pixels, len(presence.pixels[split]))
            if found and (split == "train" or not pixels[:-1].any()):
                raise DataError(f"{found}; {advice}")
        missing = presence.missing("train")
        self._looked = True
        if missing:
            log.warning(
                "no pixel of class %s in the %d labelled images of this split; it is never predicted, its IoU is 0",
                ", ".join(missing),
                len(self.split.train),
            )

    def write_split(self, path: str | Path) -> None:
        """Write the split as JSON that ``split_file`` reads."""
        about = {"dataset": self.card.name, "split_seed": self.split_seed, "split_file": self.split_file}
        write_split(Path(path), self.split, self.pool.names, about)

    # ------------------------------------------------------------------ images and pixels

    def images(self, split: str) -> BatchLoader:
        """Every image of ``train`` or ``test`` once, in the order that `PixelBatch` counts, in every process.

        Returns:
            Loader of `SegmentationBatch`: images of ``image_size``², masks of ``size``² (on ``train`` without small
            annotations), not augmented.
        """
        return self._images(split, (0, 1))

    def test_dataloader(self) -> BatchLoader:
        """Every test image once, shared between processes."""
        return self._images("test", self._processes)

    def val_dataloader(self) -> BatchLoader:
        """The test images: the protocol has no others."""
        return self.test_dataloader()

    def _images(self, split: str, processes: tuple[int, int]) -> BatchLoader:
        source = self.source(split)
        # no process may be left without a batch
        at_once = min(self.eval_batch_size or 1, max(len(source) // processes[1], 1))
        transform = Compose([self._square, self._drop]) if split == "train" else self._square
        places = range(len(source))
        batches = [places[at : at + at_once] for at in range(0, len(source), at_once)]
        views = BatchDataset(source, transform, self.collate, self.seed)
        # never padded: what is predicted at ignored pixels counts in this protocol, and no process waits for another
        # here
        return self._loader(views, EvaluationBatches(batches, *processes, pad=False))

    def masks(self, split: str) -> list[np.ndarray]:
        """uint8 (size, size) masks of ``train`` or ``test`` with 255 for ignored, as ``images`` gives them.

        Raises:
            DataError: a broken file.
        """
        return self._masks(self.source(split), small=split != "train")

    def _masks(self, source: SampleSource, small: bool) -> list[np.ndarray]:
        masks = [resize_mask(source.load(index).mask, self.size, self.size) for index in range(len(source))]
        return masks if small else [drop_small(mask, self._drop.pixels) for mask in masks]

    @cached_property
    def pixels(self) -> LabelledPixels:
        """The labelled pixels of the training images.

        Raises:
            ConfigError: fewer than a batch takes.
        """
        return LabelledPixels(self.masks("train"), self.members, self.pixels_per_batch, self.seed)

    def train_dataloader(self) -> BatchLoader:
        """`PixelBatch`es, epoch by epoch; a resumed run gets the rest of the epoch it stopped in.

        Of a fit, ``split.json`` is written into the trainer's folder.

        Raises:
            ConfigError: several processes.
        """
        if self._processes[1] > 1:
            raise ConfigError(
                "label-scarce training is a small model in one process: use trainer.devices=1, or several random "
                "re-splits (repeats=5), which several devices divide among them"
            )
        sampler = PixelSampler(len(self.pixels))
        trainer = self._fitting
        if trainer is not None:
            align_loops(trainer, len(sampler))
            sampler.position = partial(position, trainer, len(sampler))
            # not in setup, which comes before a checkpoint of another split is refused
            self.write_split(Path(trainer.default_root_dir) / "split.json")
        return BatchLoader(self.pixels, sampler=sampler, **loading(self.trainer, 0))

    def prediction(self, images: str | Path | ImageSource, eval_batch_size: int | None = None) -> PredictionDataModule:
        """Loader of unlabelled images, under the same rule about squares.

        Raises:
            DataError: an image that is no square, where those are refused.
        """
        loader = super().prediction(images, eval_batch_size)
        if self.refuses:
            Pool(self.card.name, {"input": loader.images}).require_squares()
        return loader

    def prepare(self, sample: Sample) -> ImageBatch:
        """Batch of one image, (1, 3, image_size, image_size).

        Raises:
            DataError: it is no square, where those are refused.
        """
        height, width = sample.image.shape[:2]
        if self.refuses and height != width:
            raise DataError(not_square("the image", (height, width), self.card.name))
        return super().prepare(sample)

    # ------------------------------------------------------------------ reports

    def presence(self, *splits: str) -> ClassPresence:
        """Class presence in the images of ``train`` and ``test``."""
        count = self.labels.num_classes
        found = {split: pixels_by_image(self.masks(split), count) for split in splits or ("train", "test")}
        return ClassPresence(self.labels.classes, found)

    def check(self, level: str = "full") -> DataReport:
        """The data set's own check; if nothing is broken, this split and classes that random splits lack.

        Args:
            level: ``quick`` or ``full``, of the first.

        Raises:
            DataError: a folder is missing.
        """
        report = self.dataset.check(level)
        if report.errors:
            return report
        try:
            here, over = self.presence("train", "test"), self._presence_over_splits()
        except (ConfigError, DataError) as error:
            unseen = np.zeros(self.labels.num_classes + 1, dtype=np.int64)
            broken = SplitReport("labelled", 0, 0, (str(error),), (), unseen)
            return replace(report, splits=(*report.splits, broken))
        return with_presence(report, here, over)

    def _presence_over_splits(self) -> ClassPresence:
        splits = {"split": self.split.train}
        if self.split_file is None and self.split_seed is not None:
            seeds = range(self.split_seed, self.split_seed + CHECKED_SPLITS)
            splits = {f"split {seed}": self.split_of(seed).train for seed in seeds}
        return over_splits(self.labels.classes, self.learnable(), splits)

    def learnable(self) -> np.ndarray:
        """int64 (N, K + 1) pixels of every class and, last, ignored ones, of the pool's images as training masks."""
        return pixels_by_image(self._masks(self.pool, small=False), self.labels.num_classes)

    def _order_of(self, trainer: Trainer) -> dict[str, Any]:
        pixels = self.pixels
        content = hashlib.sha256(pixels.places.tobytes() + pixels.labels.tobytes()).hexdigest()[:16]
        return {
            **super()._order_of(trainer),
            "pixels": len(pixels.places),
            "labels": content,
            "members": self.members,
            "pixels_per_batch": self.pixels_per_batch,
            "batches_per_epoch": batches_per_epoch(trainer, len(pixels)),
        }
