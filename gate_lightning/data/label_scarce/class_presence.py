"""Presence of classes in splits: a random split of 20 labelled images easily lacks a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gate_lightning.data.files.checks import count_pixels
from gate_lightning.data.files.report import DataReport, SplitReport

__all__ = ["ClassPresence", "over_splits", "pixels_by_image", "rare_classes", "with_presence"]


def pixels_by_image(masks: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """int64 (N, K + 1) pixels of every class and, last, ignored ones, of N uint8 masks."""
    return np.stack([count_pixels([mask], num_classes) for mask in masks])


@dataclass(frozen=True)
class ClassPresence:
    """Images and pixels of every class by split.

    Attributes:
        classes: K names.
        pixels: split → int64 (N, K + 1) as of `pixels_by_image`.
    """

    classes: tuple[str, ...]
    pixels: Mapping[str, np.ndarray]

    def images(self, split: str) -> np.ndarray:
        """int64 (K,) images of a split that show each class."""
        found: np.ndarray = (self.pixels[split][:, :-1] > 0).sum(axis=0)
        return found

    def missing(self, split: str) -> tuple[str, ...]:
        """Classes that no image of a split shows, as ``'name' (number)``."""
        empty = np.flatnonzero(self.images(split) == 0)
        return tuple(f"{self.classes[number]!r} ({number})" for number in empty)

    def __str__(self) -> str:
        width = max(len(name) for name in self.classes)
        heads = "".join(f"{split:>12}" for split in self.pixels)
        lines = [f"      {'images that show':<{max(width, 18)}}{heads}"]
        found = {split: self.images(split) for split in self.pixels}
        for number, name in enumerate(self.classes):
            cells = "".join(f"{count[number]:>12}" for count in found.values())
            lines.append(f"  {number:>3} {name:<{max(width, 18)}}{cells}")
        return "\n".join(lines)


def over_splits(classes: tuple[str, ...], pixels: np.ndarray, splits: Mapping[str, Sequence[int]]) -> ClassPresence:
    """Presence in all images and in the labelled ones of several splits.

    Args:
        classes: K names.
        pixels: int64 (N, K + 1) of all images, as of `pixels_by_image`.
        splits: name → positions of its labelled images.
    """
    parts = {name: pixels[list(places)] for name, places in splits.items()}
    return ClassPresence(classes, {"all": pixels, **parts})


def rare_classes(presence: ClassPresence) -> tuple[str, ...]:
    """Sentences about classes that some or all of the splits of `over_splits` cannot learn."""
    splits = [name for name in presence.pixels if name != "all"]
    images, total = presence.images("all"), len(presence.pixels["all"])
    learnt = np.stack([presence.images(name) > 0 for name in splits]).sum(axis=0)
    return tuple(
        f"class {name!r} ({number}) is in the labelled images of {learnt[number] or 'none'} of the {len(splits)} "
        f"splits looked at ({images[number]} of {total} images show enough of it to learn from); where it is "
        "missing its IoU is 0"
        for number, name in enumerate(presence.classes)
        if learnt[number] < len(splits)
    )


def with_presence(report: DataReport, here: ClassPresence, over: ClassPresence) -> DataReport:
    """A data set's report with the two parts of a split, and the classes that random splits lack.

    Args:
        report: on the data set.
        here: presence in ``train`` and ``test`` of the split.
        over: presence of `over_splits`.
    """
    parts = [
        SplitReport(
            name, len(here.pixels[split]), len(here.pixels[split]), (), warnings, here.pixels[split].sum(axis=0)
        )
        for name, split, warnings in (("labelled", "train", rare_classes(over)), ("measured", "test", ()))
    ]
    return replace(report, splits=(*report.splits, *parts), notes=(*report.notes, str(over)))
