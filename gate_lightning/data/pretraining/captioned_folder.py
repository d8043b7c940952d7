"""Squares of captioned images, for LoRA training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from gate_lightning.data.files.checks import check_images
from gate_lightning.data.files.images import read_image
from gate_lightning.data.files.report import DataReport
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.captioned_files import CaptionedImage, found_captioned
from gate_lightning.data.pretraining.datamodule import BatchSource, PretrainingDataModule, stacked
from gate_lightning.data.samples import SampleRequest
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["CaptionedFolder", "CaptionedImages"]

log = logging.getLogger(__name__)


class CaptionedFolder(BatchSource):
    """Square images with captions, repeats spelled out.

    Args:
        entries: see `list_captioned`.
        size: side in pixels; images are scaled to cover it and cropped.
        flip: mirror half of the images.
        random_crop: crop anywhere instead of the middle.
        seed: of flips and crops, which also depend on the entry and the epoch.
    """

    def __init__(
        self,
        entries: Sequence[CaptionedImage],
        size: int,
        flip: bool = False,
        random_crop: bool = False,
        seed: int = 0,
    ) -> None:
        self.entries = [entry for entry in entries for _ in range(entry.repeats)]
        self.size, self.flip, self.random_crop, self.seed = size, flip, random_crop, seed

    def __len__(self) -> int:
        return len(self.entries)

    def sample_id(self, index: int) -> str:
        """Folder and name of the image, and its caption."""
        entry = self.entries[index]
        return f"{entry.path.parent.name}/{entry.path.name}: {entry.caption}"

    def __getitem__(self, requests: Sequence[SampleRequest]) -> CaptionedBatch:
        captions = tuple(self.entries[request.index].caption for request in requests)
        return CaptionedBatch(captions, stacked([self._square(request) for request in requests]))

    def _square(self, request: SampleRequest) -> np.ndarray:
        """uint8 (size, size, 3)."""
        image = read_image(self.entries[request.index].path)
        top, left, mirrored = data_generator("captioned", self.seed, request.index, request.epoch).random(3)
        if not self.random_crop:
            top = left = 0.5
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        new_height, new_width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (new_width, new_height), interpolation=method)
        row, column = int(top * (new_height - self.size)), int(left * (new_width - self.size))
        square = image[row : row + self.size, column : column + self.size]
        return square[:, ::-1] if self.flip and mirrored < 0.5 else square


class CaptionedImages(PretrainingDataModule):
    """Folder of captioned images. The loss is followed on some of them: adapters are meant to fit their images.

    Args:
        root, styles: see `list_captioned`.
        size: side in pixels.
        flip: mirror half of the images in training; captions may speak of left and right.
        random_crop: see `CaptionedFolder`.
        val_length: at most so many entries, spread over all, to follow the loss.
        batch_size, eval_batch_size, num_workers, seed: see `PretrainingDataModule`.
    """

    batch_type = CaptionedBatch

    def __init__(
        self,
        root: str | Path | None,
        size: int = 512,
        flip: bool = False,
        random_crop: bool = False,
        val_length: int = 32,
        styles: Sequence[str] | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.root, self.size, self.flip, self.random_crop = root, whole_number(size, "size", 1), flip, random_crop
        self.val_length, self.styles = whole_number(val_length, "val_length", 1), styles

    @cached_property
    def entries(self) -> list[CaptionedImage]:
        """The images of the folder, checked."""
        entries, left_out = found_captioned(self.root, self.styles)
        report = self._checked(entries, left_out, "quick")
        for warning in report.warnings:
            log.warning("%s", warning)
        report.raise_if_broken()
        return entries

    def make_source(self, split: str) -> CaptionedFolder:
        """The images of ``train``, or those of ``val`` to follow the loss on.

        Raises:
            DataError: see `list_captioned`; or a broken image, which is named.
        """
        if split == "train":
            return CaptionedFolder(self.entries, self.size, self.flip, self.random_crop, self.seed)
        repeated = [entry for entry in self.entries for _ in range(entry.repeats)]
        chosen = np.linspace(0, len(repeated) - 1, min(self.val_length, len(repeated))).round().astype(int)
        return CaptionedFolder([replace(repeated[index], repeats=1) for index in chosen], self.size)

    def check(self, level: str = "full") -> DataReport:
        """Check the images without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: see `list_captioned`.
        """
        return self._checked(*found_captioned(self.root, self.styles), level)

    def _checked(self, entries: Sequence[CaptionedImage], left_out: Sequence[str], level: str) -> DataReport:
        report = check_images("train", list(dict.fromkeys(entry.path for entry in entries)), level)
        return DataReport(str(self.root), (), (replace(report, warnings=(*left_out, *report.warnings)),))
