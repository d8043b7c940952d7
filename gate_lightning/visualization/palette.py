"""Colouring of label maps by class palettes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError, DataError

__all__ = ["IGNORED_COLOUR", "Palette", "colorize", "palette_array", "voc_palette"]

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


def colorize(labels: NDArray[np.integer], palette: Palette, ignore_index: int | None = None) -> NDArray[np.uint8]:
    """The colour image of a label map.

    Args:
        labels: (H, W) class indices.
        palette: colour per class.
        ignore_index: label drawn in `IGNORED_COLOUR`; it may lie outside the palette.

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
    image[ignored] = IGNORED_COLOUR
    return image


@lru_cache
def voc_palette(count: int) -> Palette:
    """The first colours of PASCAL VOC's palette, which DAVIS's masks have: black, dark red, dark green … (at most 256).

    Bits of a label are dealt to red, green and blue in turn, the lowest ones to the highest bits of the colours.
    """
    return tuple(
        tuple(sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))  # type: ignore[misc]
        for label in range(count)
    )
