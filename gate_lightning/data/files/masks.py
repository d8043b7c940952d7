"""Class indices from mask files, with ignored, shifted or renumbered values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.files.mask_values import read_mask_values
from gate_lightning.data.files.palette import Palette
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.checks import whole_number

__all__ = ["LabelMap", "MaskReader"]

_TABLE = 65536  # values a 16-bit mask can hold


@dataclass(frozen=True)
class LabelMap:
    """Rule that maps file values to labels 0 … K - 1, or 255 for ignored.

    Attributes:
        num_classes: K.
        ignore_index: file value of unlabelled pixels, or None if there is none.
        reduce_zero_label: ADE20K's habit: 0 is unlabelled and every class is stored one too high.
        label_map: file value → label, for files that number otherwise; replaces the identity, and for its values the
            ignored one. Values it does not mention are unknown.

    Raises:
        ConfigError: a rule that contradicts another one or leaves the range.
    """

    num_classes: int
    ignore_index: int | None = IGNORE_INDEX
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ignore_index is not None:
            whole_number(self.ignore_index, "dataset.ignore_index", 0, _TABLE - 1, optional="no such value")
        if not isinstance(self.label_map, Mapping):
            raise ConfigError(f"label_map is {self.label_map!r}; expected {{file value: class index, …}}")
        if self.reduce_zero_label and self.label_map:
            raise ConfigError("reduce_zero_label and label_map both renumber labels; use one of them")
        for value, label in self.label_map.items():
            whole_number(value, "a file value of dataset.label_map", 0, _TABLE - 1)
            if not 0 <= whole_number(label, f"dataset.label_map[{value}]") < self.num_classes:
                raise ConfigError(f"label_map sends {value} to {label}, outside the classes 0 … {self.num_classes - 1}")

    @property
    def known(self) -> dict[int, int]:
        """File value → label (255 for ignored)."""
        if self.label_map:
            known = {int(value): int(label) for value, label in self.label_map.items()}
        else:
            known = {label + int(self.reduce_zero_label): label for label in range(self.num_classes)}
        if self.reduce_zero_label:
            known[0] = IGNORE_INDEX
        if self.ignore_index is not None and self.ignore_index not in self.label_map:
            known[self.ignore_index] = IGNORE_INDEX
        return known

    def apply(self, values: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        """File values → labels.

        Args:
            values: int (H, W).

        Returns:
            uint8 (H, W) labels, ignored where the value is unknown; and unknown values with their numbers of pixels.
        """
        table = np.full(_TABLE, -1, dtype=np.int16)
        for value, label in self.known.items():
            table[value] = label
        if values.size and (values.min() < 0 or values.max() >= _TABLE):
            inside = (values >= 0) & (values < _TABLE)
            labels = np.where(inside, table[np.where(inside, values, 0)], -1)
        else:
            labels = table[values]
        lost = labels < 0
        if not lost.any():
            return labels.astype(np.uint8), {}
        found, counts = np.unique(values[lost], return_counts=True)
        unknown = {int(value): int(count) for value, count in zip(found, counts, strict=True)}
        return np.where(lost, IGNORE_INDEX, labels).astype(np.uint8), unknown

    def advice(self, unknown: Mapping[int, int]) -> str:
        """Advice on unknown values: the most likely mistake and its remedy."""
        values = set(unknown)
        if len(values) == 1:
            (value,) = values
            if self.num_classes == 2 and value > 2:
                return (
                    f"If {value} is foreground use 'dataset.label_map={{0: 0, {value}: 1}}', if it is ignored "
                    f"dataset.ignore_index={value}"
                )
            follows = value == self.num_classes + int(self.reduce_zero_label) and not self.label_map
            shifted = value == self.num_classes and not self.reduce_zero_label
            also = ", or if 0 is ignored and classes start at 1 dataset.reduce_zero_label=true" if shifted else ""
            named = (
                "add it to classes.txt"
                if follows
                else "say its class: 'dataset.label_map={file value: class index, …}'"
            )
            return f"If {value} means unlabelled use dataset.ignore_index={value}{also}; else {named}"
        return "Add the missing names to classes.txt, or renumber with dataset.label_map={file value: class index, …}"

    def advice_on_ignored(self, present: Sequence[int]) -> str:
        """Advice where so much is ignored that one class is left, or none: the reading that would make sense.

        Args:
            present: the classes that are left.
        """
        if self.reduce_zero_label:
            return "If 0 is a class and not unlabelled use dataset.reduce_zero_label=false"
        ignored = self.ignore_index
        if ignored is None or ignored in self.label_map:
            return "Choose masks with labels"
        if len(present) != 1 or self.num_classes > 2:
            return f"If {ignored} is a class say which: 'dataset.label_map={{file value: class index, …}}'"
        (label,) = present
        given = self.label_map or {label: label}
        reading = dict(sorted({**given, ignored: 1 - label}.items()))
        words = f"If {ignored} is the other class and not unlabelled use 'dataset.label_map={reading}'"
        return words if self.num_classes == 2 else f"{words}, with both names in classes.txt"


@dataclass(frozen=True)
class MaskReader:
    """Reader of labels from mask files.

    Attributes:
        classes: names in the order of their values.
        label_map: for index masks.
        palette: for RGB masks, or None if there is no palette file.
        colour_advice: what to do about RGB masks where there is no palette, for the message.
    """

    classes: tuple[str, ...]
    label_map: LabelMap
    palette: Palette | None = None
    colour_advice: str = (
        "the data set has no palette file; write palette.txt beside classes.txt, `r g b name` on every line, or name "
        "one with dataset.palette=…"
    )

    def inspect(self, path: Path, turn: int = 1) -> tuple[np.ndarray, dict[Any, int]]:
        """Labels of a mask and its unknown values.

        Args:
            path: the mask.
            turn: see `read_mask_values`.

        Returns:
            uint8 (H, W) labels, and unknown values (or colours) with their numbers of pixels, ignored in the labels.

        Raises:
            DataError: missing, damaged, or RGB without a palette file.
        """
        values = read_mask_values(path, turn)
        if values.ndim == 2:
            return self.label_map.apply(values)
        if self.palette is None:
            raise DataError(f"{path} is an RGB mask and {self.colour_advice}")
        return self.palette.decode(values, self.classes)

    def read(self, path: Path, turn: int = 1) -> np.ndarray:
        """Labels of a mask, uint8 (H, W) with 255 for ignored.

        Raises:
            DataError: as `inspect`, and for an unknown value.
        """
        labels, unknown = self.inspect(path, turn)
        if unknown:
            raise DataError(f"{path}: {self.describe(unknown)}")
        return labels

    def describe(self, unknown: Mapping[Any, int], everywhere: Mapping[Any, int] | None = None) -> str:
        """Sentence about unknown values.

        Args:
            unknown: value or colour → pixels, of one file.
            everywhere: the same over all files looked at, which the advice is based on.
        """
        shown = ", ".join(f"{value} in {count} pixels" for value, count in sorted(unknown.items())[:6])
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        if isinstance(next(iter(unknown)), tuple):
            return f"unknown colours: {shown}{more}; add them to the palette file, as `void` if they mean unlabelled"
        everywhere = everywhere or unknown
        expected = _ranges(sorted(self.label_map.known))
        return (
            f"unknown label values: {shown}{more}; {len(self.classes)} classes and ignored are "
            f"{expected}. {self.label_map.advice(everywhere)}"
        )


def _ranges(values: list[int]) -> str:
    """Sorted numbers for a sentence: "0 … 10, 255"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]} … {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)
