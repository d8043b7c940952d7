"""Base of data sets of image and mask files: reading, checks, captions."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.files.captions import derangement, read_captions
from gate_lightning.data.files.checks import LEVELS, ORIENTATIONS, check_split, mask_turn
from gate_lightning.data.files.images import image_header, read_image
from gate_lightning.data.files.mask_values import mask_header
from gate_lightning.data.files.masks import MaskReader
from gate_lightning.data.files.pairing import Pair, SplitFiles
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import check_choice

__all__ = ["CAPTIONS", "FileDataModule", "FileSource"]

log = logging.getLogger(__name__)

CAPTIONS = ("fine", "coarse", "shuffled")
SPLITS = ("train", "val", "test")
#: decoded images of a split are kept in RAM below this
RAM_BYTES = 512 * 2**20


class FileSource:
    """A split of image and mask files.

    Args:
        pairs: images and masks.
        reader: of the masks.
        captions: one per pair, or None.
        ram_bytes: keep decoded images if all of them together need at most this.
        same_size: masks have the size of their images.
        mask_orientation: see `FileDataModule`.

    Attributes:
        orientations: EXIF orientation of the images that have one, by sample id.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        reader: MaskReader,
        captions: Sequence[str] | None = None,
        ram_bytes: int = 0,
        same_size: bool = True,
        mask_orientation: str | None = None,
    ) -> None:
        self.pairs, self.reader, self.captions, self.same_size = tuple(pairs), reader, captions, same_size
        headers = [image_header(pair.image) for pair in self.pairs]
        self._sizes = [header.size for header in headers]
        self._mask_turns = [mask_turn(header, mask_orientation) for header in headers]
        self.orientations = {
            pair.sample_id: header.turn for pair, header in zip(self.pairs, headers, strict=True) if header.turn != 1
        }
        self._keep = sum(height * width for height, width in self._sizes) * 4 <= ram_bytes
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        """Path of the image relative to the root."""
        return self.pairs[index].sample_id

    def load(self, index: int) -> SegmentationSample:
        """The image and its mask as they are in the files.

        Raises:
            DataError: a file that does not decode, or an unknown label.
        """
        pair = self.pairs[index]
        image, mask = self._kept.get(index) or (
            read_image(pair.image),
            self.reader.read(pair.mask, self._mask_turns[index]),
        )
        if self._keep:
            self._kept[index] = image, mask
        caption = None if self.captions is None else self.captions[index]
        return SegmentationSample(pair.sample_id, image, caption, mask=mask)

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of the image and of its mask."""
        size = self._sizes[index]
        if self.same_size:
            return size, size
        mask = mask_header(self.pairs[index].mask)
        swapped = mask.turn == 1 and self._mask_turns[index] > 4
        return size, (mask.size[1], mask.size[0]) if swapped else mask.size


class FileDataModule(SegmentationDataModule):
    """Base of data sets whose images and masks are files.

    Subclasses set ``root``, ``card``, ``labels``, ``reader``, ``train_transform`` and ``eval_resize``, and provide
    ``scan``.

    Args:
        captions: ``fine`` (the files, if there are any), ``coarse`` (``prompt_simple``) or ``shuffled`` (the control:
            every image gets another one's).
        check_level: sanity check at start: ``quick`` or ``full``.
        mask_orientation: what the masks of images with an EXIF orientation were drawn on: ``shown`` (the turned image)
            or ``stored`` (its pixels as they are in the file); None: ``shown``, with a warning where nothing tells.
        subset: take at most so many images of every split, spread evenly over its sorted names; or split → number,
            for some splits; None for all. Always the same ones, so they can be compared, resumed and cached.
        loading: `SegmentationDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    root: Path
    reader: MaskReader
    #: masks must have the size of their images; else the same shape
    same_size = True

    def __init__(
        self,
        captions: str = "fine",
        check_level: str = "quick",
        mask_orientation: str | None = None,
        subset: int | Mapping[str, int] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_choice(captions, "captions", CAPTIONS)
        check_choice(check_level, "dataset.check_level", LEVELS)
        if mask_orientation is not None:
            check_choice(mask_orientation, "dataset.mask_orientation", ORIENTATIONS)
        self.captions, self.check_level, self.subset = captions, check_level, _per_split(subset)
        self.mask_orientation = mask_orientation

    @abstractmethod
    def scan(self, split: str) -> SplitFiles:
        """Images and masks of ``train``, ``val`` or ``test``, paired.

        Raises:
            DataError: a folder is missing or holds no image.
        """

    def make_source(self, split: str) -> FileSource:
        """The checked images of a split.

        Raises:
            DataError: names the first broken file of the split.
        """
        files = _some(self.scan(split), self.subset.get(split))
        report = DataReport(self.card.name, self.labels.classes, (self._check(files, self.check_level),))
        for warning in report.warnings:
            log.warning("%s", warning)
        report.raise_if_broken()
        captions = self._captions_of(split, _names(files))
        return FileSource(files.pairs, self.reader, captions, RAM_BYTES, self.same_size, self.mask_orientation)

    def check(self, level: str = "full") -> DataReport:
        """Check all splits without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: a split's folder is missing.
        """
        reports = tuple(self._check(self.scan(split), level) for split in self.splits)
        return DataReport(str(self.root), self.labels.classes, reports)

    def _check(self, files: SplitFiles, level: str) -> SplitReport:
        report = check_split(files, self.reader, level, self._unfit, self.same_size, self.mask_orientation)
        try:
            self._captions_of(files.split, _names(files))
        except DataError as error:
            return SplitReport(**{**vars(report), "errors": (*report.errors, str(error))})
        return report

    def _unfit(self, height: int, width: int) -> str | None:
        """Reason why images of this size cannot be used, or None: small ones are padded."""
        return self.eval_resize.too_long(height, width) or None

    def _captions_of(self, split: str, names: Sequence[str]) -> list[str] | None:
        if self.captions == "coarse":
            return [self.card.prompt_simple] * len(names)
        found = read_captions(self.root, split, names)
        if self.captions == "fine":
            return found
        if found is None:
            raise DataError(
                f"captions=shuffled, but {self.root} has no captions to shuffle; expected captions/{split}/"
                "<name>.txt or captions.txt"
            )
        return [found[index] for index in derangement(len(found), self.seed, split)]


def _names(files: SplitFiles) -> list[str]:
    return [pair.name for pair in files.pairs]


def _per_split(subset: int | Mapping[str, int] | None) -> dict[str, int]:
    numbers = dict(subset or {}) if isinstance(subset, Mapping | None) else dict.fromkeys(SPLITS, subset)
    if not set(numbers) <= set(SPLITS) or not all(type(number) is int and number > 0 for number in numbers.values()):
        raise ConfigError(f"dataset.subset is {subset}; expected a number of images, {{train: …, val: …}}, or null")
    return numbers


def _some(files: SplitFiles, count: int | None) -> SplitFiles:
    """At most ``count`` of the pairs, evenly spread."""
    total = len(files.pairs)
    if count is None or count >= total:
        return files
    log.info("%s: %d of %d images (dataset.subset)", files.split, count, total)
    return replace(files, pairs=tuple(files.pairs[number * total // count] for number in range(count)))
