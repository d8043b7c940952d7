"""Colours of classes: generated, or read from a palette file, which also decodes RGB masks."""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gate_lightning.data.card import IGNORE_INDEX, RGB
from gate_lightning.errors import DataError
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["IGNORED_NAMES", "Palette", "default_palette", "read_palette"]

#: names in a palette file that mean "unlabelled" where no class is called so
IGNORED_NAMES = ("void", "ignored", "ignore", "unlabeled", "unlabelled")


def default_palette(num_classes: int) -> tuple[RGB, ...]:
    """Distinct colours: hues by the golden ratio, three brightnesses; colour k does not depend on ``num_classes``.

    Hues within 18° of red are left out: in images of predictions red is an error.
    """
    colours = []
    for number in range(num_classes):
        hue = 0.05 + 0.9 * ((0.6 + number * 0.6180339887498949) % 1.0)
        value = (0.95, 0.7, 0.5)[(number // 5) % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


@dataclass(frozen=True)
class Palette:
    """Colours by class name.

    Attributes:
        names: one per colour; a name may have several colours.
        colours: one per name.
    """

    names: tuple[str, ...]
    colours: tuple[RGB, ...]

    def of(self, classes: tuple[str, ...], path: Path) -> tuple[RGB, ...]:
        """First colour of every class, in the order of ``classes``.

        Raises:
            DataError: a class without colour, or a colour without class (unless it is called ignored).
        """
        missing = [name for name in classes if name not in self.names]
        unknown = [name for name in self.names if name not in classes and name.lower() not in IGNORED_NAMES]
        if missing or unknown:
            raise DataError(
                f"{path} and the classes differ: no colour for {missing or 'none'}, no class for {unknown or 'none'}; "
                f"use the same names, and one of {', '.join(IGNORED_NAMES)} for unlabelled pixels"
            )
        return tuple(self.colours[self.names.index(name)] for name in classes)

    def decode(self, image: np.ndarray, classes: tuple[str, ...]) -> tuple[np.ndarray, dict[RGB, int]]:
        """RGB mask → labels.

        Args:
            image: uint8 (H, W, 3).
            classes: names in the order of their values.

        Returns:
            uint8 (H, W) labels, ignored where the colour is ignored or unknown; and unknown colours → number of
            pixels.
        """
        packed = _pack(image)
        known = _pack(np.array(self.colours, dtype=np.uint8))
        order = np.argsort(known)
        place = np.searchsorted(known[order], packed).clip(max=len(known) - 1)
        found = known[order][place] == packed
        values = np.array([classes.index(n) if n in classes else IGNORE_INDEX for n in self.names], dtype=np.uint8)
        labels = np.where(found, values[order][place], IGNORE_INDEX).astype(np.uint8)
        colours, counts = np.unique(packed[~found], return_counts=True)
        unknown = {
            (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): int(n) for c, n in zip(colours, counts, strict=True)
        }
        return labels, unknown


def _pack(colours: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def read_palette(path: Path) -> Palette:
    """A palette file: text, one ``r g b name`` a line, 0 to 255; blank lines and lines starting with # do not count.

    Raises:
        DataError: missing, a line that does not read so, or a colour twice; the message has the line's number.
    """
    if not path.is_file():
        raise DataError(f"palette file {path} does not exist; expected text with `r g b name` on every line")
    names: list[str] = []
    colours: list[RGB] = []
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = line.split(maxsplit=3)
        values = [int(value) for value in fields[:3] if re.fullmatch("[0-9]{1,3}", value)]
        if len(fields) < 4 or len(values) < 3 or max(values) > 255:
            raise DataError(f"{path}, line {number}: {line.strip()!r}; expected `r g b name`, e.g. `128 64 128 road`")
        colour = (values[0], values[1], values[2])
        if colour in colours:
            raise DataError(f"{path}, line {number}: {colour} is also {names[colours.index(colour)]!r}")
        names.append(fields[3].strip())
        colours.append(colour)
    if not names:
        raise DataError(f"{path} holds no colours; expected `r g b name` on every line")
    return Palette(tuple(names), tuple(colours))
