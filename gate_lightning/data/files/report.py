"""Report of the check of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gate_lightning.errors import DataError

__all__ = ["DataReport", "SplitReport"]


@dataclass(frozen=True)
class SplitReport:
    """Result of the check of a split.

    Attributes:
        split: its name.
        count: images with masks.
        inspected: how many of them were decoded.
        errors, warnings: sentences that name the file, in the order of the files.
        pixels: int64 (K + 1,) labelled pixels of every class and, last, ignored ones, of the decoded masks; images of
            every class where an image has one.
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
        of_images: whether an image has a class instead of a mask.
    """

    name: str
    classes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    notes: tuple[str, ...] = ()
    of_images: bool = False

    @property
    def errors(self) -> tuple[str, ...]:
        """Errors of all splits, in the order of files."""
        return tuple(error for split in self.splits for error in split.errors)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of all splits."""
        seen = tuple(warning for split in self.splits for warning in split.warnings)
        return seen + (() if self.of_images else _class_warnings(self.classes, self.splits))

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
        names = self.classes if self.of_images else (*self.classes, "(ignored)")
        lines += [*(_table(names, self.splits) if self.classes else ()), *self.notes]
        for title, entries in (("warnings", self.warnings), ("errors", self.errors)):
            lines.append(f"  {len(entries)} {title}")
            lines += [f"    {entry}" for entry in entries[:50]]
            if len(entries) > 50:
                lines.append(f"    … and {len(entries) - 50} more")
        return "\n".join(lines)


def _table(names: Sequence[str], splits: Sequence[SplitReport]) -> list[str]:
    """Share of the labelled pixels (of the images) per class and split; ``names`` are of classes and of the ignored."""
    width = max(len(name) for name in names)
    lines = [f"  {'class':<{width + 4}}" + "".join(f"{split.split:>10}" for split in splits)]
    for number, name in enumerate(names):
        shares = [split.pixels[number] / max(int(split.pixels.sum()), 1) for split in splits]
        index = "    " if name == "(ignored)" else f"{number:>3} "
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
            ignored = split.pixels[-1] / max(int(split.pixels.sum()), 1)
            beside = f"; {ignored:.1%} of their pixels are ignored" if ignored else ""
            found.append(f"{split.split}: no pixel of {shown} in the masks{looked}{beside}")
    return tuple(found)
