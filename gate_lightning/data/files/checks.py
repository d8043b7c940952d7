"""Sanity checks of image files, and of images with masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.files.images import Header, image_header, inspect_image
from gate_lightning.data.files.mask_values import mask_header
from gate_lightning.data.files.masks import MaskReader
from gate_lightning.data.files.pairing import Pair, SplitFiles, pairing_faults
from gate_lightning.data.files.report import SplitReport
from gate_lightning.errors import DataError
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.progress import Progress

__all__ = ["LEVELS", "ORIENTATIONS", "check_images", "check_split", "count_pixels", "mask_turn", "too_few_classes"]

#: quick: all headers, and some masks and images of every split; full: everything is decoded
LEVELS = ("quick", "full")
QUICK_SAMPLES = 32
#: view of an image with an EXIF orientation that its mask was drawn on: as it is shown, or as its pixels are stored
ORIENTATIONS = ("shown", "stored")


def count_pixels(masks: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """int64 (K + 1,) pixels per class and, last, ignored ones, of uint8 masks."""
    counts = np.zeros(num_classes + 1, dtype=np.int64)
    for mask in masks:
        seen = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
        counts[:-1] += seen[:num_classes]
        counts[-1] += seen[IGNORE_INDEX]
    return counts


def mask_turn(image: Header, mask_orientation: str | None) -> int:
    """EXIF orientation that the mask of an image is turned by, unless it has one of its own."""
    return image.turn if mask_orientation == "stored" else 1


def check_split(
    files: SplitFiles,
    reader: MaskReader,
    level: str = "quick",
    unfit: Callable[[int, int], str | None] | None = None,
    same_size: bool = True,
    mask_orientation: str | None = None,
) -> SplitReport:
    """Check one split of a folder.

    Args:
        files: what its folders hold.
        reader: of its masks.
        level: ``quick`` or ``full``.
        unfit: says for a (height, width) why such images cannot be used, or None.
        same_size: masks must have the size of their images; else only the same shape.
        mask_orientation: see ``ORIENTATIONS``; None: ``shown``, with a warning where nothing tells.

    Raises:
        ConfigError: unknown level.
    """
    check_choice(level, "level", LEVELS)
    errors, warnings = pairing_faults(files)
    masks = _Masks(reader)
    images = _Images(files.split, len(files.pairs), level)
    unclear, left = [], []
    for number, pair in enumerate(files.pairs):
        try:
            header, mask = image_header(pair.image), mask_header(pair.mask)
            turn = mask_turn(header, mask_orientation)
            _check_sizes(pair, header, mask, turn, unfit, same_size)
            unclear += [pair.image] if _unclear(header, mask, mask_orientation) else []
            if images.look(number, pair.image, header):
                masks.look(pair.mask, turn, place=len(errors))
            else:
                left.append((pair.mask, turn))
        except DataError as error:
            errors.append(str(error))
    errors[masks.place : masks.place] = masks.sentences(images.inspected)
    if not errors:
        errors += masks.too_few(files.split, left)
    report = images.report(errors, [*warnings, *_turned(files.split, unclear)])
    return replace(report, pixels=masks.pixels)


def check_images(
    split: str, paths: Sequence[Path], level: str = "quick", unfit: Callable[[int, int], str | None] | None = None
) -> SplitReport:
    """Check images without masks: all headers, and some of them or (``full``) all decoded.

    Args:
        split, paths, level: of the images.
        unfit: see `check_split`.

    Raises:
        ConfigError: unknown level.
    """
    check_choice(level, "level", LEVELS)
    images, errors = _Images(split, len(paths), level), []
    for number, path in enumerate(paths):
        try:
            header = image_header(path)
            _check_size(path, header, unfit)
            images.look(number, path, header)
        except DataError as error:
            errors.append(str(error))
    return images.report(errors, [])


def too_few_classes(split: str, classes: Sequence[str], pixels: np.ndarray, masks: int) -> str:
    """Beginning of a sentence about masks of which nothing can be learned; empty where two classes or more are in them.

    Args:
        split: name.
        classes: K names.
        pixels: (K + 1,) pixels of every class and, last, ignored ones.
        masks: number of masks.
    """
    present = np.flatnonzero(pixels[:-1])
    if len(present) > 1:
        return ""
    if not len(present):
        return f"{split}: every pixel of its {masks} masks is ignored, so nothing can be learned or measured"
    beside = f" beside ignored pixels ({pixels[-1] / pixels.sum():.1%})" if pixels[-1] else ""
    name = f"{classes[present[0]]!r} ({present[0]})"
    return f"{split}: its {masks} masks hold no class but {name}{beside}, so nothing can be learned or measured"


@dataclass
class _Images:
    """Looks at the images of a split one after another, and counts."""

    split: str
    count: int
    level: str
    inspected: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dim: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step = 1 if self.level == "full" else max(1, -(-self.count // QUICK_SAMPLES))
        self.progress = Progress(self.count, 0, 1, f"check of {self.split}")

    def look(self, number: int, path: Path, header: Header) -> bool:
        """Count an image, and decode it if it is one of those; whether it is."""
        self.sizes[header.size] += 1
        self.progress.step(1, 0)
        if number % self.step:
            return False
        self.inspected += 1
        note = inspect_image(path)[1]
        self.dim += [f"{path}: {note}"] if note else []
        return True

    def report(self, errors: Sequence[str], warnings: Sequence[str]) -> SplitReport:
        """The report, without pixels of classes."""
        more = f" ({len(self.dim)} of {self.inspected} images looked at)" if len(self.dim) > 1 else ""
        told = (*warnings, *(f"{note}{more}" for note in self.dim[:1]))
        nothing = np.zeros(1, dtype=np.int64)
        return SplitReport(self.split, self.count, self.inspected, tuple(errors), told, nothing, dict(self.sizes))


class _Masks:
    """Looks at masks, counts their pixels, and collects their unknown values to one error, which names the first."""

    def __init__(self, reader: MaskReader) -> None:
        self.reader = reader
        self.pixels = np.zeros(len(reader.classes) + 1, dtype=np.int64)
        self.first: tuple[Path, dict[Any, int]] | None = None
        self.total: Counter[Any] = Counter()
        self.files = self.looked = self.place = 0

    def look(self, path: Path, turn: int, place: int = 0) -> None:
        """Count one mask; ``place`` is where in a list of errors one about its values belongs."""
        labels, unknown = self.reader.inspect(path, turn)
        self.looked += 1
        self.pixels += count_pixels([labels], len(self.reader.classes))
        if unknown:
            if self.first is None:
                self.first, self.place = (path, unknown), place
            self.files += 1
            self.total.update(unknown)

    def sentences(self, inspected: int) -> list[str]:
        """The error about unknown values, if there were any."""
        if self.first is None:
            return []
        path, unknown = self.first
        others = ""
        if self.files > 1:
            values = ", ".join(f"{value}" for value in sorted(self.total)[:6])
            others = f" ({self.files} of {inspected} masks looked at hold such values: {values})"
        return [f"{path}: {self.reader.describe(unknown, self.total)}{others}"]

    def too_few(self, split: str, left: Sequence[tuple[Path, int]]) -> list[str]:
        """The error about a split without two classes; masks not looked at yet are read until there are two."""
        pixels, progress = self.pixels.copy(), Progress(len(left), 0, 1, f"search for a second class in {split}")
        for path, turn in left:
            if np.count_nonzero(pixels[:-1]) > 1:
                break
            try:
                pixels += count_pixels([self.reader.read(path, turn)], len(self.reader.classes))
            except DataError as error:
                return [str(error)]
            progress.step(1, 0)
        found = too_few_classes(split, self.reader.classes, pixels, self.looked + len(left))
        present = np.flatnonzero(pixels[:-1])
        if not found or (split == "test" and len(present)):
            return []  # one class can still be measured
        return [f"{found}. {self._advice([int(label) for label in present], bool(pixels[-1]))}"]

    def _advice(self, present: Sequence[int], ignored: bool) -> str:
        if not ignored and len(self.reader.classes) == 1:
            return "Name what is around it in classes.txt as a second class, and draw it in the masks"
        if not ignored:
            return "Are these the right masks? Choose images that show other classes too"
        if self.reader.palette is not None:
            return "Look at the colours that the palette file calls unlabelled"
        return self.reader.label_map.advice_on_ignored(present)


def _check_sizes(
    pair: Pair,
    image: Header,
    mask: Header,
    turn: int,
    unfit: Callable[[int, int], str | None] | None,
    same_size: bool,
) -> None:
    """Check that the mask of an image fits, and that the image has a size that can be used.

    Raises:
        DataError: it does not, or it has not.
    """
    size = image.size
    mask_size = _swapped(mask.size) if mask.turn == 1 and turn > 4 else mask.size
    fits = size == mask_size if same_size else size[0] * mask_size[1] == size[1] * mask_size[0]
    if not fits:
        hint = "one of them was resized"
        if image.turn > 4 and size == _swapped(mask_size):
            other = "shown" if turn > 4 else "stored"
            hint = (
                "the mask does not follow the EXIF rotation of the image; if masks were drawn on images as they are "
                f"{other}, say dataset.mask_orientation={other}"
            )
        raise DataError(
            f"{pair.image}: image is {size[1]}×{size[0]} (width × height), its mask {pair.mask} "
            f"{mask_size[1]}×{mask_size[0]}; {hint}"
        )
    _check_size(pair.image, image, unfit)


def _check_size(path: Path, image: Header, unfit: Callable[[int, int], str | None] | None) -> None:
    reason = unfit(*image.size) if unfit else None
    if reason:
        raise DataError(f"{path}: {reason}")


def _unclear(image: Header, mask: Header, mask_orientation: str | None) -> bool:
    """True if an image has an orientation and nothing tells which view of it the mask was drawn on."""
    if mask_orientation is not None or image.turn == 1 or mask.turn != 1:
        return False
    return image.turn <= 4 or image.size[0] == image.size[1]


def _turned(split: str, unclear: Sequence[Path]) -> list[str]:
    if not unclear:
        return []
    return [
        f"{split}: {len(unclear)} images are turned or mirrored by their EXIF orientation (first {unclear[0]}), and "
        "nothing tells whether their masks were drawn on the image as it is shown or as its pixels are stored; taken "
        "as shown. Say which: dataset.mask_orientation=shown or stored"
    ]


def _swapped(size: tuple[int, int]) -> tuple[int, int]:
    return size[1], size[0]
