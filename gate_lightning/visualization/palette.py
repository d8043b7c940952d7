"""Colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError, DataError

__all__ = ["IGNORED_COLOUR", "Palette", "colorize", "distinct_palette", "palette_array"]

#: one RGB colour (0 … 255) per class
Palette = Sequence[Sequence[int]]
#: colour of pixels without a label
IGNORED_COLOUR = (64, 64, 64)


def palette_array(palette: Palette) -> NDArray[np.uint8]:
    """The palette as an array (K, 3) uint8.

    Raises:
        ConfigError: if it is empty, not three numbers a class, or out of 0 … 255.
    """
    array = np.asarray(palette)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or array.min() < 0 or array.max() > 255:
        raise ConfigError(f"a palette has one (red, green, blue) in 0 … 255 per class; got an array of {array.shape}")
    return array.astype(np.uint8)


def colorize(
    labels: NDArray[np.integer],
    palette: Palette,
    ignore_index: int | None = None,
    ignored_colour: Sequence[int] = IGNORED_COLOUR,
) -> NDArray[np.uint8]:
    """The colour image of a label map.

    Args:
        labels: (H, W) class indices.
        palette: colour per class.
        ignore_index: label drawn in ``ignored_colour``; it may lie outside the palette.
        ignored_colour: see above.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: if a label is neither a class nor ``ignore_index``.
    """
    colours = palette_array(palette)
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    unknown = ~ignored & ((labels < 0) | (labels >= len(colours)))
    if unknown.any():
        found = np.unique(labels[unknown])[:5].tolist()
        raise DataError(f"labels {found} have no colour: there are {len(colours)} classes, ignored is {ignore_index}")
    image = colours[np.where(ignored, 0, labels)]
    image[ignored] = ignored_colour
    return image


def distinct_palette(count: int) -> list[tuple[int, int, int]]:
    """``count`` colours that are far apart: hues by the golden ratio, three levels of brightness and saturation.

    For data sets that come without a palette. Colour k does not depend on ``count``.
    """
    colours = []
    for index in range(count):
        hue = (0.58 + index * 0.6180339887498949) % 1.0
        value = (0.95, 0.75, 0.55)[index % 3]
        saturation = (0.65, 0.9, 0.45)[index // 3 % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
