"""Squares of captioned images, for the training of LoRAs, ControlNets and students."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from gate_lightning.data.core.required_inputs import check_control_size, control_table
from gate_lightning.data.files.checks import check_images
from gate_lightning.data.files.images import image_header, read_image
from gate_lightning.data.files.report import DataReport
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.captioned_files import CaptionedImage, found_captioned
from gate_lightning.data.pretraining.datamodule import BatchSource, PretrainingDataModule, stacked, three_channels
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import DataError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.seeding import data_generator

__all__ = ["CaptionedFolder", "CaptionedImages"]

log = logging.getLogger(__name__)

#: image uint8 (H, W, 3) → control image uint8 (H, W) or (H, W, 3)
MakeControl = Callable[[np.ndarray], np.ndarray]


class CaptionedFolder(BatchSource):
    """Square images with captions, repeats spelled out.

    Args:
        entries: see `list_captioned`.
        size: side in pixels; images are scaled to cover it and cropped.
        flip: mirror half of the images.
        random_crop: crop anywhere instead of the middle.
        seed: of flips and crops, which also depend on the entry and the epoch.
        make_control: image uint8 (H, W, 3) → control image uint8 (H, W) or (H, W, 3), of the square.
        controls: image → file of its control image, cut as the image is; instead of ``make_control``.
    """

    def __init__(
        self,
        entries: Sequence[CaptionedImage],
        size: int,
        flip: bool = False,
        random_crop: bool = False,
        seed: int = 0,
        make_control: MakeControl | None = None,
        controls: Mapping[Path, Path] | None = None,
    ) -> None:
        self.entries = [entry for entry in entries for _ in range(entry.repeats)]
        self.resize = Resize(size)
        self.size, self.flip, self.random_crop, self.seed = size, flip, random_crop, seed
        self.make_control, self.controls = make_control, controls

    def __len__(self) -> int:
        return len(self.entries)

    def sample_id(self, index: int) -> str:
        """Folder and name of the image, and its caption."""
        entry = self.entries[index]
        return f"{entry.path.parent.name}/{entry.path.name}: {entry.caption}"

    def __getitem__(self, requests: Sequence[SampleRequest]) -> CaptionedBatch:
        captions = tuple(self.entries[request.index].caption for request in requests)
        images = [self._square(request, self.entries[request.index].path) for request in requests]
        return CaptionedBatch(captions, stacked(images), control_images=self._control(requests, images))

    def _control(self, requests: Sequence[SampleRequest], images: Sequence[np.ndarray]) -> Tensor | None:
        """(B, 3, size, size) in [0, 1], or None."""
        if self.controls is not None:
            paths = [self.controls[self.entries[request.index].path] for request in requests]
            made = [self._square(request, path) for request, path in zip(requests, paths, strict=True)]
        elif self.make_control is not None:
            made = [self.make_control(image) for image in images]
        else:
            return None
        return (stacked([three_channels(control) for control in made]) + 1) / 2

    def _square(self, request: SampleRequest, path: Path) -> np.ndarray:
        """uint8 (size, size, 3)."""
        image = read_image(path)
        top, left, mirrored = data_generator("captioned", self.seed, request.index, request.epoch).random(3)
        if not self.random_crop:
            top = left = 0.5
        height, width = image.shape[:2]
        self.resize.check(height, width, path)
        scale = self.size / min(height, width)
        new_height, new_width = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, (new_width, new_height), interpolation=method)
        row, column = int(top * (new_height - self.size)), int(left * (new_width - self.size))
        square = image[row : row + self.size, column : column + self.size]
        return np.ascontiguousarray(square[:, ::-1]) if self.flip and mirrored < 0.5 else square


class CaptionedImages(PretrainingDataModule):
    """Folder of captioned images.

    The loss is followed on some of them, as adapters are meant to fit their images, or on images held out.

    Args:
        root, styles: see `list_captioned`.
        size: side in pixels.
        flip: mirror half of the images in training; captions may speak of left and right.
        random_crop: see `CaptionedFolder`.
        val_length: at most so many entries, spread over all, to follow the loss.
        held_out: images, spread over all, that are validated on and not trained on; of several styles, with all their
            captions. 0: training images are validated on.
        make_control: see `CaptionedFolder`; None for no control images.
        control_folder: control images, each at its image's path below the folder and of its size; instead of
            ``make_control``.
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
        held_out: int = 0,
        make_control: MakeControl | None = None,
        control_folder: str | Path | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 4,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.root, self.size, self.flip, self.random_crop = root, whole_number(size, "size", 1), flip, random_crop
        self.val_length, self.styles = whole_number(val_length, "val_length", 1), styles
        self.held_out = whole_number(held_out, "held_out", 0)
        self.make_control, self.control_folder = make_control, control_folder

    @cached_property
    def entries(self) -> list[CaptionedImage]:
        """The images of the folder, checked."""
        entries, left_out = found_captioned(self.root, self.styles)
        report = self._checked(entries, left_out, "quick")
        for warning in report.warnings:
            log.warning("%s", warning)
        report.raise_if_broken()
        return entries

    @cached_property
    def controls(self) -> dict[Path, Path] | None:
        """Image → file of its control image; None without a folder of them."""
        if self.control_folder is None:
            return None
        table = control_table("dataset.control_folder", self.control_folder)
        paths = list(dict.fromkeys(entry.path for entry in self.entries))
        found = {path: table.get(path.as_posix()) for path in paths}
        missing = [path.as_posix() for path, control in found.items() if control is None]
        if missing:
            raise table.missing(missing, len(paths))
        there = {path: control for path, control in found.items() if control is not None}
        for path, control in there.items():
            check_control_size(
                "dataset.control_folder", control, image_header(control).size, path.as_posix(), image_header(path).size
            )
        return there

    @cached_property
    def validated(self) -> frozenset[str]:
        """Names of the images that are not trained on."""
        names = sorted({entry.path.name for entry in self.entries})
        if self.held_out >= len(names):
            raise DataError(f"held_out={self.held_out} of {len(names)} images leaves none to train on")
        places = np.linspace(0, len(names) - 1, self.held_out).round().astype(int)
        return frozenset(names[place] for place in places)

    def make_source(self, split: str) -> CaptionedFolder:
        """The images of ``train``, or those of ``val`` to follow the loss on.

        Raises:
            DataError: see `list_captioned`; a broken image, which is named; no image left to train on; or a control
                image that is missing or of another size.
        """
        control: dict[str, Any] = {"make_control": self.make_control, "controls": self.controls}
        if split == "train":
            trained = [entry for entry in self.entries if entry.path.name not in self.validated]
            return CaptionedFolder(trained, self.size, self.flip, self.random_crop, self.seed, **control)
        if self.held_out:
            repeated = [entry for entry in self.entries if entry.path.name in self.validated]
        else:
            repeated = [entry for entry in self.entries for _ in range(entry.repeats)]
        chosen = np.linspace(0, len(repeated) - 1, min(self.val_length, len(repeated))).round().astype(int)
        return CaptionedFolder([replace(repeated[index], repeats=1) for index in chosen], self.size, **control)

    def check(self, level: str = "full") -> DataReport:
        """Check the images without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: see `list_captioned`.
        """
        return self._checked(*found_captioned(self.root, self.styles), level)

    def _checked(self, entries: Sequence[CaptionedImage], left_out: Sequence[str], level: str) -> DataReport:
        report = check_images(
            "train", list(dict.fromkeys(entry.path for entry in entries)), level, Resize(self.size).too_long
        )
        return DataReport(str(self.root), (), (replace(report, warnings=(*left_out, *report.warnings)),))
