"""Heat maps of pixel values, such as an ensemble's disagreement."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from gate_lightning.errors import ConfigError

__all__ = ["heat_map", "heat_overlay"]


def heat_map(values: NDArray[np.floating], highest: float) -> NDArray[np.uint8]:
    """Heat map of non-negative values; 0 is black.

    Args:
        values: (H, W).
        highest: value of the brightest colour, at which larger ones are clipped; one for all images that are compared.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ConfigError: if ``highest`` is not positive or the values are no map.
    """
    if values.ndim != 2 or not highest > 0:
        raise ConfigError(f"values are {values.shape}, the highest is {highest}; expected (H, W) and a positive number")
    table = (colormaps["inferno"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    places = np.rint(np.clip(values / highest, 0.0, 1.0) * 255).astype(np.int64)
    image: NDArray[np.uint8] = table[places]
    return image


def heat_overlay(image: NDArray[np.uint8], values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Image under the heat map of values, half and half; the smallest value is black, the largest brightest.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (H, W).

    Raises:
        ConfigError: if the sizes differ.
    """
    if image.shape != (*values.shape, 3):
        raise ConfigError(f"image {image.shape} and values {values.shape} differ in size; expected (H, W, 3), (H, W)")
    heat = heat_map(values - values.min(), max(float(np.ptp(values)), 1e-12))
    return np.rint(0.5 * image + 0.5 * heat).astype(np.uint8)
