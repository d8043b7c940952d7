"""Sanity check of a data set folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.files.images import image_size, read_image, size_of_mask
from gate_lightning.data.files.masks import MaskReader
from gate_lightning.data.files.pairing import Pair, SplitFiles
from gate_lightning.errors import DataError
from gate_lightning.utils.checks import check_choice

__all__ = ["LEVELS", "DataReport", "SplitReport", "check_split", "count_pixels"]

#: quick: all headers, and some masks and images of every split; full: everything is decoded
LEVELS = ("quick", "full")
QUICK_SAMPLES = 32
#: folders that hold masks, by the layouts' names
MASK_FOLDERS = frozenset({"masks", "annotations", "gtFine"})


@dataclass(frozen=True)
class SplitReport:
    """Result of the check of a split.

    Attributes:
        split: its name.
        count: images with masks.
        inspected: how many of them were decoded.
        errors, warnings: sentences that name the file, in the order of the files.
        pixels: int64 (K + 1,) labelled pixels of every class and, last, ignored ones, of the decoded masks.
        sizes: (height, width) → number of images.
    """

    split: str
    count: int
    inspected: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    pixels: np.ndarray
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """Result of a check; printing it gives the report.

    Attributes:
        name: data set or folder.
        classes: names.
        splits: one report each.
        notes: further tables, printed below.
    """

    name: str
    classes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[str, ...]:
        """Errors of all splits, in the order of files."""
        return tuple(error for split in self.splits for error in split.errors)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all splits."""
        seen = tuple(warning for split in self.splits for warning in split.warnings)
        return seen + _class_warnings(self.classes, self.splits)

    def raise_if_broken(self) -> None:
        """Raise the first error.

        Raises:
            DataError: its message names the first broken file and counts the other errors.
        """
        if self.errors:
            more = len(self.errors) - 1
            rest = f"\n({more} more; all of them: python eval.py tool=check_data dataset=…)" if more else ""
            raise DataError(f"{self.errors[0]}{rest}")

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.classes)} classes" if self.classes else self.name]
        for split in self.splits:
            common = ", ".join(f"{w}×{h}" for (h, w), _ in Counter(split.sizes).most_common(3))
            sizes = f", {len(split.sizes)} size(s): {common}" if split.sizes else ""
            lines.append(f"  {split.split}: {split.count} images, {split.inspected} decoded{sizes}")
        lines += [*(_table(self.classes, self.splits) if self.classes else ()), *self.notes]
        for title, entries in (("errors", self.errors), ("warnings", self.warnings)):
            lines.append(f"  {len(entries)} {title}")
            lines += [f"    {entry}" for entry in entries[:50]]
            if len(entries) > 50:
                lines.append(f"    … and {len(entries) - 50} more")
        return "\n".join(lines)


def _table(classes: Sequence[str], splits: Sequence[SplitReport]) -> list[str]:
    """Share of the labelled pixels per class and split."""
    width = max(len(name) for name in (*classes, "(ignored)"))
    lines = [f"  {'class':<{width + 4}}" + "".join(f"{split.split:>10}" for split in splits)]
    for number, name in enumerate((*classes, "(ignored)")):
        shares = [split.pixels[number] / max(int(split.pixels.sum()), 1) for split in splits]
        index = f"{number:>3} " if number < len(classes) else "    "
        lines.append(f"  {index}{name:<{width}}" + "".join(f"{share:>10.2%}" for share in shares))
    return lines


def _class_warnings(classes: Sequence[str], splits: Sequence[SplitReport]) -> tuple[str, ...]:
    found = []
    for split in splits:
        empty = [f"{name!r} ({number})" for number, name in enumerate(classes) if not split.pixels[number]]
        if empty and split.inspected:
            looked = (
                "" if split.inspected == split.count else f" that were looked at ({split.inspected} of {split.count})"
            )
            shown = ", ".join(empty[:8]) + (f" and {len(empty) - 8} more classes" if len(empty) > 8 else "")
            found.append(f"{split.split}: no pixel of {shown} in the masks{looked}")
    return tuple(found)


def count_pixels(masks: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """int64 (K + 1,) pixels per class and, last, ignored ones, of uint8 masks."""
    counts = np.zeros(num_classes + 1, dtype=np.int64)
    for mask in masks:
        seen = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
        counts[:-1] += seen[:num_classes]
        counts[-1] += seen[IGNORE_INDEX]
    return counts


def check_split(
    files: SplitFiles,
    reader: MaskReader,
    level: str = "quick",
    too_small: Callable[[int, int], str | None] | None = None,
    same_size: bool = True,
) -> SplitReport:
    """Check one split of a folder.

    Args:
        files: what its folders hold.
        reader: of its masks.
        level: ``quick`` or ``full``.
        too_small: says for a (height, width) why it is too small, or None.
        same_size: masks must have the size of their images; else only the same shape.

    Raises:
        ConfigError: unknown level.
    """
    check_choice(level, "level", LEVELS)
    errors, warnings = _pairing(files)
    count = len(files.pairs)
    step = 1 if level == "full" else max(1, -(-count // QUICK_SAMPLES))
    sizes: Counter[tuple[int, int]] = Counter()
    pixels = np.zeros(len(reader.classes) + 1, dtype=np.int64)
    unknown = _UnknownLabels(reader)
    inspected = 0
    for number, pair in enumerate(files.pairs):
        try:
            sizes[_check_sizes(pair, too_small, same_size)] += 1
            if number % step == 0:
                inspected += 1
                read_image(pair.image)
                labels = unknown.inspect(pair.mask, place=len(errors))
                pixels += count_pixels([labels], len(reader.classes))
        except DataError as error:
            errors.append(str(error))
    errors[unknown.place : unknown.place] = unknown.sentences(inspected)
    return SplitReport(files.split, count, inspected, tuple(errors), tuple(warnings), pixels, dict(sizes))


class _UnknownLabels:
    """Collector of unknown mask values; all masks together give one error, which names the first."""

    def __init__(self, reader: MaskReader) -> None:
        self.reader = reader
        self.first: tuple[Path, dict[Any, int]] | None = None
        self.total: Counter[Any] = Counter()
        self.files = 0
        self.place = 0

    def inspect(self, path: Path, place: int) -> np.ndarray:
        labels, unknown = self.reader.inspect(path)
        if unknown:
            if self.first is None:
                self.first, self.place = (path, unknown), place
            self.files += 1
            self.total.update(unknown)
        return labels

    def sentences(self, inspected: int) -> list[str]:
        if self.first is None:
            return []
        path, unknown = self.first
        others = ""
        if self.files > 1:
            values = ", ".join(f"{value}" for value in sorted(self.total)[:6])
            others = f" ({self.files} of {inspected} masks looked at hold such values: {values})"
        return [f"{path}: {self.reader.describe(unknown, self.total)}{others}"]


def _pairing(files: SplitFiles) -> tuple[list[str], list[str]]:
    errors = [
        f"{group[0]}: {len(group)} files of one name ({', '.join(path.name for path in group)}); keep one"
        for group in files.doubles
    ]
    lossy = [
        path
        for path in files.other
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp") and MASK_FOLDERS.intersection(path.parts)
    ]
    errors += [
        f"{path}: a mask saved with loss has wrong labels at every edge; save masks as PNG" for path in lossy[:1]
    ]
    if not lossy:
        errors += _alone(files.without_mask, "image", "mask", files.split, files.mask_place)
    errors += _alone(files.without_image, "mask", "image", files.split, files.image_place)
    rest = [path for path in files.other if path not in lossy]
    warnings = [f"{path}: no image, left out ({len(rest)} such files)" for path in rest[:1]]
    return errors, warnings


def _alone(paths: Sequence[Path], what: str, partner: str, split: str, place: str) -> list[str]:
    if not paths:
        return []
    total = f" ({len(paths)} such files in {split})" if len(paths) > 1 else ""
    return [f"{paths[0]}: {what} without {partner}{total}; expected {place} of the same path and name"]


def _check_sizes(pair: Pair, too_small: Callable[[int, int], str | None] | None, same_size: bool) -> tuple[int, int]:
    """(height, width) of an image whose mask fits.

    Raises:
        DataError: it has not, or the image is too small.
    """
    size, mask_size = image_size(pair.image), size_of_mask(pair.mask)
    fits = size == mask_size if same_size else size[0] * mask_size[1] == size[1] * mask_size[0]
    if not fits:
        turned = size == mask_size[::-1]
        hint = "the mask does not follow the EXIF rotation of the image" if turned else "one of them was resized"
        raise DataError(
            f"{pair.image}: image is {size[1]}×{size[0]} (width × height), its mask {pair.mask} "
            f"{mask_size[1]}×{mask_size[0]}; {hint}"
        )
    reason = too_small(*size) if too_small else None
    if reason:
        raise DataError(f"{pair.image}: {reason}")
    return size
